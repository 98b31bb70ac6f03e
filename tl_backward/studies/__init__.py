"""The papers' findings, run again beside their controls: scripts with results of their own."""

from tl_backward._support.submodules import offer

offer(__name__)
