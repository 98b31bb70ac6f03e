"""Relative differences between two computations of the same tensor, and the tolerance that rounding explains."""

import torch
from torch import Tensor


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest |ours - theirs| / the largest |theirs|; infinite where one is a number and the other is none.

    In half precision, of the median position: rounding may send a token to another expert, and move its logits far.
    """
    half = theirs.dtype not in (torch.float32, torch.float64)
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    finite = theirs.isfinite()
    if ours.shape != theirs.shape or not torch.equal(finite, ours.isfinite()):
        return float("inf")
    scale = theirs.masked_fill(~finite, 0).abs().max().clamp_min(torch.finfo(theirs.dtype).tiny)
    errors = (ours - theirs).masked_fill(~finite, 0).abs().amax(-1)  # of each position
    return float((errors.median() if half else errors.max()) / scale)


def tolerance(dtype: torch.dtype) -> float:
    """The largest `difference` that rounding alone makes between two correct implementations."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
