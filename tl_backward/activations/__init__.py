"""Activations at places, read over batches of tokens; they leave no trace in the model."""

from tl_backward.activations.reader import PlaceReader, forward, last_layer, watch

__all__ = ["PlaceReader", "forward", "last_layer", "watch"]
