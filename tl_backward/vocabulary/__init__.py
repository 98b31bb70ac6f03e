"""Vectors and products over the whole vocabulary: what is largest, and where a token stands."""

from tl_backward._support.submodules import offer

offer(__name__)
