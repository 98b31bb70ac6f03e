"""Access to a TransformerLens model: locks, hooks, partial passes, inputs, the head, loading and controls."""

from tl_backward._support.submodules import offer

offer(__name__)
