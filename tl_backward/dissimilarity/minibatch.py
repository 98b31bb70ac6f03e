"""CKA from batches alone: two estimators that never compare samples of different batches.

Both take the unbiased HSIC within each batch. Nguyen et al. (2021) divide mean HSICs, Brown et al. (2023) average each
batch's own ratio. What they estimate depends on what is in a batch together, and so differs from CKA over all samples.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity._processes import greatest_of, several, sum_over
from tl_backward.dissimilarity.grouped import jackknife
from tl_backward.dissimilarity.options import Estimator
from tl_backward.dissimilarity.sampling import u_centred
from tl_backward.dissimilarity.statistics import Rows

TILE_BYTES = 256_000_000  # of Gram matrices at once
SMALLEST = 4  # the unbiased HSIC divides by n - 3


class MinibatchCKA:
    """Each batch's unbiased HSIC of every pair of layers, and of every layer with itself."""

    def __init__(self, n_a: int, n_b: int) -> None:
        self.numbers: list[int] = []
        self.n_skipped = 0
        self.both: list[Float[Tensor, "layer_a layer_b"]] = []
        self.own: list[Float[Tensor, "layer"]] = []
        """Of A's layers, then of B's."""
        self.n_a, self.n_b = n_a, n_b

    def update(self, number: int, x: Rows, y: Rows) -> None:
        """Add a batch; one of fewer than 4 samples has no unbiased HSIC and is left out."""
        n = len(x[0])
        if n < SMALLEST:
            self.n_skipped += 1
            return
        height = max(1, TILE_BYTES // (8 * n * (self.n_a + self.n_b)))
        both, own = torch.zeros(self.n_a, self.n_b, dtype=torch.float64), torch.zeros(0)
        for start in range(0, n, height):
            of = slice(start, start + height)
            grams = [torch.stack([u_centred(rows, of).flatten() for rows in side]) for side in (x, y)]
            squares = torch.cat([gram.square().sum(1) for gram in grams]).cpu()
            both, own = both + (grams[0] @ grams[1].T).cpu(), squares if not start else own + squares
        self.numbers.append(number)
        self.both.append(both / (n * (n - 3)))
        self.own.append(own / (n * (n - 3)))

    def values(self, estimator: Estimator) -> tuple[Float[Tensor, "layer_a layer_b"], Float[Tensor, "layer_a layer_b"]]:
        """The estimate and its delete-batch jackknife standard error."""
        if not self.both:
            raise ValueError(
                f"Expected batches of at least {SMALLEST} samples for the estimator {estimator!r}, got none; use "
                "larger batches or estimator='full'."
            )
        both, own = torch.stack(self.both), torch.stack(self.own)
        a, b = own[:, : self.n_a], own[:, self.n_a :]
        if estimator == "minibatch_mean_of_ratios":
            ratios = _ratio(both, a, b)
            left_out = (ratios.sum(0) - ratios) / max(1, len(ratios) - 1)
            return ratios.mean(0), jackknife(left_out)
        whole = _ratio(both.mean(0), a.mean(0), b.mean(0))
        return whole, jackknife(_ratio(both.sum(0) - both, a.sum(0) - a, b.sum(0) - b))

    def reduce(self) -> None:
        """The batches of all processes, on every one of them."""
        if not several():
            return
        self.n_skipped = int(sum_over(torch.tensor([self.n_skipped])))
        size = int(greatest_of(max(self.numbers, default=-1) + 1))
        flat = torch.zeros(size, 1 + self.n_a * self.n_b + self.n_a + self.n_b, dtype=torch.float64)
        for number, both, own in zip(self.numbers, self.both, self.own, strict=True):
            flat[number] = torch.cat([torch.ones(1, dtype=torch.float64), both.flatten(), own])
        sum_over(flat)
        self.numbers = flat[:, 0].nonzero().flatten().tolist()
        self._unpack(flat[self.numbers, 1:])

    def _unpack(self, flat: Tensor) -> None:
        pairs = self.n_a * self.n_b
        self.both = [row[:pairs].view(self.n_a, self.n_b) for row in flat]
        self.own = [row[pairs:] for row in flat]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        rows = [torch.cat([both.flatten(), own]) for both, own in zip(self.both, self.own, strict=True)]
        width = self.n_a * self.n_b + self.n_a + self.n_b
        return {"hsic": torch.stack(rows) if rows else torch.zeros(0, width, dtype=torch.float64)}

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps beside the tensors."""
        return {"numbers": self.numbers, "n_skipped": self.n_skipped}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Take over what `tensors` and `state` gave."""
        self.numbers, self.n_skipped = list(state["numbers"]), state["n_skipped"]
        self._unpack(tensors["hsic"].cpu())


def _ratio(both: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)); 0 where a layer is constant."""
    scale = a[..., :, None] * b[..., None, :]
    return torch.where(scale > 0, both / scale.clamp(min=1e-300).sqrt(), torch.zeros_like(both))


ESTIMATORS: dict[Estimator, str] = {
    "full": "over all samples, debiased (Song et al. 2012)",
    "minibatch_ratio_of_means": "ratio of the batches' mean HSICs (Nguyen et al. 2021)",
    "minibatch_mean_of_ratios": "mean of the batches' own ratios (Brown et al. 2023)",
}
"""How CKA is estimated, in words."""
