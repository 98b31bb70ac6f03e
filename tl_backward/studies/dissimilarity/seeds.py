"""Means over training seeds, of which there are few."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.bootstrap import Interval


def over_seeds(values: Float[Tensor, "seed *cell"], *, level: float = 0.95) -> Interval:
    """Mean over seeds and Student's t interval, mean +- t_{n-1} s / sqrt(n), cell by cell; NaNs are left out.

    A percentile bootstrap, as `tl_backward._support.bootstrap` takes over examples, is too narrow for a handful of
    seeds. Fewer than two have no interval: its bounds are NaN.
    """
    from scipy.stats import t

    flat = values.detach().double().cpu()
    there = ~flat.isnan()
    n: Int[Tensor, "*cell"] = there.sum(0)
    mean = flat.nan_to_num(0.0).sum(0) / n
    squares = torch.where(there, flat - mean, 0.0).square().sum(0)
    error = torch.where(n > 1, (squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt(), math.nan)
    quantile = torch.as_tensor(t.ppf((1 + level) / 2, (n - 1).clamp(min=1).numpy()), dtype=torch.float64)
    return Interval(mean, mean - quantile * error, mean + quantile * error, n)
