"""CKA from Gram matrices of few samples: of batches alone, and of one sample in many random orders.

Two estimators never compare samples of different batches. Both take the unbiased HSIC within each batch: Nguyen et al.
(2021) divide mean HSICs, Brown et al. (2023) average each batch's own ratio. What they estimate depends on what is in a
batch together, and so differs from CKA over all samples.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.processes import greatest_of, several, sum_over
from tl_backward.dissimilarity.grouped import jackknife
from tl_backward.dissimilarity.options import Estimator
from tl_backward.dissimilarity.statistics import Rows

TILE_BYTES = 256_000_000  # of Gram matrices at once
SMALLEST = 4  # the unbiased HSIC divides by n - 3


def u_centred(rows: Float[Tensor, "sample d"], of: slice = slice(None)) -> Float[Tensor, "some sample"]:
    """Rows `of` the U-centred linear Gram matrix, in float64 (Szekely & Rizzo 2014).

    U(K)_ij = K_ij - sum_l K_il / (n-2) - sum_l K_lj / (n-2) + sum_kl K_kl / ((n-1)(n-2)), without the diagonal; then
    <U(K), U(L)> / (n(n-3)) is the unbiased HSIC.
    """
    n = len(rows)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    rows = rows - rows.double().mean(0).to(rows.dtype)
    squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    lines = (rows @ rows.sum(0)).double() - squares
    gram = (rows[of] @ rows.T).double()
    gram -= lines[of, None] / (n - 2)
    gram -= lines[None] / (n - 2)
    gram += lines.sum() / ((n - 1) * (n - 2))
    here = torch.arange(n, device=rows.device)[of]
    gram[torch.arange(len(here), device=rows.device), here] = 0
    return gram


def permutations(n: int, count: int, seed: int) -> list[Int[Tensor, "sample"]]:
    """`count` random orders of n samples, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for _ in range(count)]


def permuted_cka(
    x: Sequence[Float[Tensor, "sample _"]],
    y: Sequence[Float[Tensor, "sample _"]],
    orders: Sequence[Int[Tensor, "sample"]],
) -> Float[Tensor, "permutation layer_a layer_b"]:
    """Debiased CKA of every pair of layers with the samples of B in each of several orders."""
    grams_a = torch.stack([u_centred(rows).flatten() for rows in x])
    grams_b = torch.stack([u_centred(rows) for rows in y])
    scale = torch.outer(grams_a.norm(dim=1), grams_b.flatten(1).norm(dim=1)).clamp(min=1e-300)
    turned = (grams_b[:, order][:, :, order] for order in (each.to(grams_b.device) for each in orders))
    return torch.stack([grams_a @ grams.flatten(1).T / scale for grams in turned]).cpu()


class MinibatchCKA:
    """Each batch's unbiased HSIC of every pair of layers, and of every layer with itself."""

    def __init__(self, n_a: int, n_b: int) -> None:
        self.n_a, self.n_b, self.n_skipped = n_a, n_b, 0
        self.hsic: dict[int, Float[Tensor, "hsic"]] = {}
        """By a batch's number: of every pair of layers, of A's layers with themselves, and of B's."""

    def update(self, number: int, x: Rows, y: Rows) -> None:
        """Add a batch; one of fewer than 4 samples has no unbiased HSIC and is left out."""
        n = len(x[0])
        if n < SMALLEST:
            self.n_skipped += 1
            return
        height = max(1, TILE_BYTES // (8 * n * (self.n_a + self.n_b)))
        both, own = torch.zeros(self.n_a, self.n_b, dtype=torch.float64), torch.zeros(0)
        for start in range(0, n, height):
            some = slice(start, start + height)
            grams = [torch.stack([u_centred(rows, some).flatten() for rows in side]) for side in (x, y)]
            squares = torch.cat([gram.square().sum(1) for gram in grams]).cpu()
            both, own = both + (grams[0] @ grams[1].T).cpu(), squares if not start else own + squares
        self.hsic[number] = torch.cat([both.flatten(), own]) / (n * (n - 3))

    def values(self, estimator: Estimator) -> tuple[Float[Tensor, "layer_a layer_b"], Float[Tensor, "layer_a layer_b"]]:
        """The estimate and its delete-batch jackknife standard error."""
        if not self.hsic:
            raise ValueError(
                f"Expected batches of at least {SMALLEST} samples for the estimator {estimator!r}, got none; use "
                "larger batches or estimator='full'."
            )
        both, a, b = torch.stack(list(self.hsic.values())).split([self.n_a * self.n_b, self.n_a, self.n_b], 1)
        both = both.unflatten(1, (self.n_a, self.n_b))
        if estimator == "minibatch_mean_of_ratios":
            ratios = _ratio(both, a, b)
            return ratios.mean(0), jackknife((ratios.sum(0) - ratios) / max(1, len(ratios) - 1))
        left_out = _ratio(both.sum(0) - both, a.sum(0) - a, b.sum(0) - b)
        return _ratio(both.mean(0), a.mean(0), b.mean(0)), jackknife(left_out)

    def reduce(self) -> None:
        """Collect the HSICs of all processes' batches, on each of them."""
        if not several():
            return
        self.n_skipped = int(sum_over(torch.tensor([self.n_skipped])))
        flat = torch.zeros(int(greatest_of(max(self.hsic, default=-1) + 1)), 1 + self._width, dtype=torch.float64)
        for number, row in self.hsic.items():
            flat[number, 0], flat[number, 1:] = 1, row
        sum_over(flat)
        self.hsic = {number: flat[number, 1:] for number in flat[:, 0].nonzero().flatten().tolist()}

    @property
    def _width(self) -> int:
        return self.n_a * self.n_b + self.n_a + self.n_b

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        rows = list(self.hsic.values())
        return {"hsic": torch.stack(rows) if rows else torch.zeros(0, self._width, dtype=torch.float64)}

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps beside the tensors."""
        return {"numbers": list(self.hsic), "n_skipped": self.n_skipped}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Set the HSICs from what `tensors` and `state` returned."""
        self.n_skipped = state["n_skipped"]
        self.hsic = dict(zip(state["numbers"], tensors["hsic"].cpu(), strict=True))


def _ratio(both: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)); 0 where a layer is constant."""
    scale = a[..., :, None] * b[..., None, :]
    return torch.where(scale > 0, both / scale.clamp(min=1e-300).sqrt(), torch.zeros_like(both))


ESTIMATORS: dict[Estimator, str] = {
    "full": "over all samples, debiased (Song et al. 2012)",
    "minibatch_ratio_of_means": "ratio of the batches' mean HSICs (Nguyen et al. 2021)",
    "minibatch_mean_of_ratios": "mean of the batches' own ratios (Brown et al. 2023)",
}
"""Each estimator of CKA, in words."""
