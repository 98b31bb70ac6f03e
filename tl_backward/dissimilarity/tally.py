"""What was read: texts, tokens, samples, and how much of each layer the first token makes up."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward.dissimilarity._processes import several, sum_over
from tl_backward.dissimilarity.tokens import PairedTokens

COUNTS = (
    "batches", "texts", "samples", "pairs", "tokens_a", "tokens_b", "unknown_a", "unknown_b", "truncated", "empty",
    "by_characters",
)  # fmt: skip


class Tally:
    """Counts over the batches seen, additive over processes."""

    def __init__(self, n_a: int, n_b: int) -> None:
        self.counts = torch.zeros(len(COUNTS), dtype=torch.float64)
        self.first = torch.zeros(n_a + n_b, dtype=torch.float64)
        self.squares = torch.zeros(n_a + n_b, dtype=torch.float64)

    def update(self, pairs: PairedTokens, rows: Sequence[Float[Tensor, "sample _"]]) -> None:
        """Add a batch with its activations: A's layers, then B's."""
        by_characters = pairs.counts["texts"] if pairs.aligned == "characters" else 0
        counts = {
            "batches": 1,
            "samples": len(rows[0]),
            "pairs": len(pairs.text),
            "by_characters": by_characters,
            **pairs.counts,
        }
        self.counts += torch.tensor([counts[name] for name in COUNTS], dtype=torch.float64)
        if len(pairs.first) != len(rows[0]):  # means over texts hold no token apart
            return
        for layer, row in enumerate(rows):
            squares = torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square().cpu()
            self.squares[layer] += squares.sum()
            self.first[layer] += squares[pairs.first].sum()

    def __getitem__(self, name: str) -> int:
        return int(self.counts[COUNTS.index(name)])

    def share(self, some: str, of: str) -> float:
        """One count over another."""
        return self[some] / max(1, self[of])

    def first_share(self) -> Float[Tensor, "layer"]:
        """How much of sum |x|^2 the first tokens make up in each layer, A's and then B's."""
        return self.first / self.squares.clamp(min=1e-300)

    def reduce(self) -> None:
        """Sum over all processes."""
        if several():
            for part in (self.counts, self.first, self.squares):
                sum_over(part)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return {"counts": self.counts, "first": self.first, "squares": self.squares}

    def state(self) -> dict[str, object]:
        """Nothing beside the tensors."""
        return {}

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Take over what `tensors` gave."""
        self.counts, self.first, self.squares = (tensors[name].cpu() for name in ("counts", "first", "squares"))
