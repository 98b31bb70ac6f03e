"""Which model this is: a fingerprint of its weights, by which files know the model that they were made with."""

from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.storage import fingerprint
from tl_backward._support.types import TransformerLensModel

_PROBED = 64  # numbers of a weight that are kept as they are
_CHUNK = 1 << 22


def model_digest(model: TransformerLensModel) -> str:
    """Fingerprint of a model's weights, their data types, its heads and activation function.

    In another data type the same numbers give other bits, and in half precision other gradients: what was begun with
    one is not continued with the other. Of each weight, the sum of all numbers' bits as integers, which one changed
    number changes, and up to 127 numbers, in float32.
    """
    parts: list[object] = [f"{model.cfg.n_heads} heads, {getattr(model.cfg, 'act_fn', None)}"]
    for name, weight in cast(nn.Module, model).named_parameters():
        flat = weight.detach().flatten()
        few = flat[:: max(1, len(flat) // _PROBED)]
        parts += [f"{name} {weight.dtype} {list(weight.shape)} {_bits(flat)}", few.float()]
    return fingerprint(*parts)[:16]


def _bits(flat: Tensor) -> int:
    """The sum of all bits by 64 at a time, two numbers each: by 32 it would take twenty times as long."""
    total = 0
    for part in flat.split(_CHUNK):
        pairs = part.float()
        if len(pairs) % 2 or pairs.storage_offset() % 2:  # no view of pairs
            pairs = torch.cat([pairs, pairs.new_zeros(len(pairs) % 2)])
        total += int(pairs.view(torch.int64).sum())
    return total % (1 << 64)
