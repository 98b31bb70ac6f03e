"""Activations at hook points, read over batches of tokens; the model is left unchanged."""

from tl_backward._support.submodules import offer
from tl_backward.activations.reader import PlaceReader, forward, last_layer, watch

__all__ = ["PlaceReader", "forward", "last_layer", "watch"]

offer(__name__, {})
