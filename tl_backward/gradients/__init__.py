"""Gradients as factors: losses, one capture, its cache, hook points at weights, similarity of examples."""

from tl_backward._support.submodules import offer

offer(__name__)
