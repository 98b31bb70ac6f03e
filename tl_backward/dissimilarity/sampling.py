"""A bounded, seeded sample of the data, for measures that need samples rather than sums, and for permutations."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward.dissimilarity._processes import gathered, several, sum_over
from tl_backward.dissimilarity.statistics import Rows

_MULTIPLIER = 1_000_003  # a prime, so that (seed, batch) pairs do not collide for any data one could run through


class RowSample:
    """At most `size` samples of every layer, each as likely as any other, the same ones in every layer.

    Each sample draws a key from a generator seeded with (seed, batch number), and those with the smallest keys stay:
    the sample depends neither on how the data are shared out among processes nor on where a run was interrupted.
    """

    def __init__(
        self, widths: Sequence[int], *, size: int, seed: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        self.size, self.seed = size, seed
        self.keys = torch.zeros(0, dtype=torch.float64)
        self.batch = torch.zeros(0, dtype=torch.long)
        self.layers = [torch.zeros(0, width, dtype=dtype, device=device) for width in widths]
        self.n_seen = 0

    def __len__(self) -> int:
        return len(self.keys)

    def update(self, number: int, rows: Rows) -> None:
        """Offer the samples of a batch: every layer's rows, those of A and then those of B."""
        n = len(rows[0])
        self.n_seen += n
        generator = torch.Generator().manual_seed(self.seed * _MULTIPLIER + number)
        keys = torch.rand(n, generator=generator, dtype=torch.float64)
        full = len(self) >= self.size
        offered = (keys < self.keys.max()).nonzero().flatten() if full else torch.arange(n)
        if not len(offered):
            return
        self._keep(
            torch.cat([self.keys, keys[offered]]),
            torch.cat([self.batch, torch.full((len(offered),), number)]),
            [torch.cat([had, row[offered.to(row.device)].to(had)]) for had, row in zip(self.layers, rows, strict=True)],
        )

    def _keep(self, keys: Tensor, batch: Tensor, layers: list[Tensor]) -> None:
        """Keep the smallest keys, in the order (batch, key)."""
        best = keys.argsort()[: self.size]
        best = best[batch[best].argsort(stable=True)]
        self.keys, self.batch = keys[best], batch[best]
        self.layers = [layer[best.to(layer.device)] for layer in layers]

    def first(self, size: int) -> Int[Tensor, "sample"]:
        """Which rows a smaller sample would hold."""
        return self.keys.argsort()[:size].sort().values

    def reduce(self) -> None:
        """The sample of all processes together, on every one of them."""
        if not several():
            return
        self.n_seen = int(sum_over(torch.tensor([self.n_seen])))

        def every(part: Tensor, fill: float) -> Tensor:
            padded = torch.full((self.size, *part.shape[1:]), fill, dtype=part.dtype, device=part.device)
            padded[: len(part)] = part
            return torch.cat(gathered(padded))

        keys, batch = every(self.keys, 2.0), every(self.batch, -1)
        real = keys < 1
        layers = [every(layer, 0)[real.to(layer.device)] for layer in self.layers]
        self._keep(keys[real], batch[real], layers)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {"keys": self.keys, "batch": self.batch} | {str(i): layer for i, layer in enumerate(self.layers)}

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps beside the tensors, and must find again."""
        return {"size": self.size, "seed": self.seed, "n_seen": self.n_seen}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Take over what `tensors` and `state` gave."""
        self.keys, self.batch, self.n_seen = tensors["keys"].cpu(), tensors["batch"].cpu(), state["n_seen"]
        self.layers = [tensors[str(i)].to(layer) for i, layer in enumerate(self.layers)]


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
