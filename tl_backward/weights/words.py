"""Several weights in a few words, for sentences: "W_in and W_out in layers 0-3"."""

from collections.abc import Iterable

from tl_backward._support.sentences import count_text, layers_text, listed
from tl_backward.weights._site import layer_of, short_name

_MOST = 6
"""Kinds of weights that are named; of more their number is said."""


def weights_text(names: Iterable[str]) -> str:
    """Weights by their full names: the one, or those of each kind with the layers that they are in.

    Examples:
        >>> from tl_backward.weights.words import weights_text
        >>> weights_text(["blocks.2.mlp.W_out"])
        'blocks.2.mlp.W_out'
        >>> weights_text([f"blocks.{layer}.mlp.{name}" for layer in range(4) for name in ("W_in", "W_out")])
        'W_in and W_out in layers 0-3'
    """
    full = list(names)
    if len(full) == 1:
        return full[0]
    layers: dict[str, list[int]] = {}
    for name in full:
        layer = layer_of(name)
        layers.setdefault(short_name(name), []).extend([] if layer is None else [layer])
    alike: dict[tuple[int, ...], list[str]] = {}
    for short, own in layers.items():
        alike.setdefault(tuple(own), []).append(short)
    return listed([_kinds(shorts) + (f" in {layers_text(own, ())}" if own else "") for own, shorts in alike.items()])


def _kinds(shorts: list[str]) -> str:
    return listed(shorts) if len(shorts) <= _MOST else count_text(len(shorts), "kind of weights", "kinds of weights")
