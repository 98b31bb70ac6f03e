"""Scores of examples beside what leaving them out did."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_backward._support.bootstrap import Interval


def precision_at(scores: Float[Tensor, "example"], planted: Bool[Tensor, "example"], n: int = 10) -> float:
    """Share of planted examples among the n with the largest scores; examples of equal score share their places.

    Where k examples tie for the last m places, each counts m / k: the mean over all orders of the tie.
    """
    last = scores.topk(n).values[-1]
    above, tied = scores > last, scores == last
    places = (n - above.sum()).double() / tied.sum()
    return float(((above & planted).sum() + places * (tied & planted).sum()) / n)


def rank_correlation(
    scores: Float[Tensor, "item"], measured: Float[Tensor, "item"], *, n_boot: int = 1000, seed: int = 0
) -> Interval:
    """Spearman's correlation, with a 95 % percentile bootstrap interval over items; NaN where all scores are equal."""
    from scipy.stats import rankdata

    n = len(scores)
    pairs = np.stack([scores.double().numpy(), measured.double().numpy()])
    drawn = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed)).numpy()
    ranks = rankdata(np.concatenate([pairs[:, None], pairs[:, drawn]], axis=1), axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    a, b = ranks
    lengths = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    found = np.divide((a * b).sum(-1), lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
    bounds = np.full(2, np.nan) if np.isnan(found[1:]).all() else np.nanquantile(found[1:], [0.025, 0.975])
    return Interval(*(torch.tensor(value) for value in (found[0], *bounds)), n=torch.tensor(n))


def lds(
    scores: Float[Tensor, "example"],
    present: Bool[Tensor, "subset example"],
    measured: Float[Tensor, "subset"],
    *,
    seed: int = 0,
) -> Interval:
    """Linear datamodeling score (Park et al. 2023, TRAK, 2.3): Spearman's correlation over random subsets.

    It is taken between the sum of the scores of the examples that a subset has, and the output of a model trained on
    that subset. The interval resamples subsets.
    """
    return rank_correlation(present.double() @ scores.double(), measured, seed=seed)
