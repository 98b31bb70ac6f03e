"""Where the matrix of a gradient goes in a parameter, and which token each of its rows comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.saved import Saved


@dataclass(frozen=True)
class Layout(Saved):
    """How the [d_in, d_out] matrix of a gradient maps to TransformerLens's shape and to the stored parameter's."""

    shape: tuple[int, ...]
    """TransformerLens's shape, e.g. [head_index, d_model, d_head] for W_Q."""
    heads: Literal["in", "out"] | None = None
    """Which side of the matrix runs over (head_index d_head); None where the weight has no head axis."""
    stored: Literal["tl", "in_out", "out_in"] = "tl"
    """The stored parameter: in TL's own shape, or a 2-D [in, out] (Conv1D) or [out, in] (nn.Linear) matrix."""
    stored_shape: tuple[int, ...] = ()
    """The stored parameter's shape; () where it is TL's."""
    experts: bool = False
    """Whether `shape` is [expert, d_in, d_out], one matrix an expert, each of which reads rows of its own."""
    part: tuple[int, int] | None = None
    """(which, of how many): the weight is one of several that share a parameter, side by side within each head."""
    pull_back: Callable[[Tensor], Tensor] | None = None
    """Gradient of the matrix that was used -> gradient of the parameter it is a function of; None where it is it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[d_in, d_out] of the matrix, one expert's where there are several, head axes flattened."""
        if len(self.shape) == 3 and not self.experts:
            head, rows, columns = self.shape
            return (rows, head * columns) if self.heads == "out" else (head * rows, columns)
        return self.shape[-2], self.shape[-1]

    def packed(self) -> dict[str, Any]:
        """What to save: of a function only that there is one."""
        return super().packed() | {"pull_back": self.pull_back is not None}

    @classmethod
    def unpacked(cls, saved: dict[str, Any]) -> "Layout":
        """The same again, but for what cannot be saved, which refuses."""
        return super().unpacked(saved | {"pull_back": _lost if saved["pull_back"] else None})

    def to_tl(self, matrix: Float[Tensor, "*expert d_in d_out"]) -> Float[Tensor, "..."]:
        """A [d_in, d_out] matrix in TransformerLens's shape."""
        if len(self.shape) == 3 and self.heads == "out":  # [d_model, (head d_head)] -> [head, d_model, d_head]
            head, d_model, d_head = self.shape
            return matrix.reshape(d_model, head, d_head).transpose(0, 1)
        return matrix.reshape(self.shape)

    def to_stored(self, matrix: Float[Tensor, "*expert d_in d_out"]) -> Float[Tensor, "..."]:
        """A [d_in, d_out] matrix in the layout of the parameter behind the weight; zeros where it is another's part."""
        if self.stored == "tl":
            stored = self.to_tl(matrix)
        else:
            if self.part is not None:
                which, n = self.part
                heads, d_head = self.shape[0], self.shape[2]
                whole = matrix.new_zeros(len(matrix), heads, n, d_head)
                whole[:, :, which] = matrix.unflatten(1, (heads, d_head))
                matrix = whole.flatten(1)
            stored = (matrix.mT if self.stored == "out_in" else matrix).reshape(self.stored_shape)
        return stored if self.pull_back is None else self.pull_back(stored)

    def from_stored(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A parameter's value in TransformerLens's shape."""
        if self.stored == "tl":
            return stored
        matrix = stored[None] if stored.ndim == 1 else stored
        matrix = matrix.mT if self.stored == "out_in" else matrix
        if self.part is not None:
            which, n = self.part
            matrix = matrix.unflatten(1, (self.shape[0], n, self.shape[2]))[:, :, which].flatten(1)
        return self.to_tl(matrix)


def _lost(gradient: Tensor) -> NoReturn:
    raise ValueError(
        "Expected a weight that is its parameter, got factors from a file of one that is a function of its parameter, "
        "which is not saved; take gradient('tl'), or capture anew."
    )


@dataclass(frozen=True, eq=False)
class Origin(Saved):
    """Where each row of some factors comes from, where rows are not simply [batch, pos]: rows of experts."""

    example: Int[Tensor, "batch row"]
    """The example of the batch."""
    token: Int[Tensor, "batch row"]
    """The token's place in its example."""
    expert: Int[Tensor, "batch row"] | None
    """Which expert's matrix the row belongs to; None where there is one matrix."""
    shape: tuple[int, int]
    """[batch, pos] of the tokens."""

    def where(self, rows: Bool[Tensor, "batch row"]) -> "Origin":
        """The rows that are chosen, in one batch axis of 1."""
        expert = None if self.expert is None else self.expert[rows][None]
        return Origin(self.example[rows][None], self.token[rows][None], expert, self.shape)


class Addend(NamedTuple):
    """The factors that one use of a weight contributes."""

    inputs: Tensor
    deltas: Tensor
    origin: Origin | None = None


def joined(parts: list[Addend], elementwise: bool) -> Addend:
    """The factors of one weight from those of all its uses: of a bias or norm summed, else of more tokens."""
    if len(parts) == 1:
        return parts[0]
    if elementwise and len({part.deltas.shape for part in parts}) == 1:
        return Addend(parts[0].inputs, torch.stack([part.deltas for part in parts]).sum(0))
    known = [part.origin for part in parts if part.origin is not None]
    if not known and len({len(part.deltas) for part in parts}) > 1:  # one batch, whose examples are not told apart
        parts = [Addend(part.inputs.flatten(0, 1)[None], part.deltas.flatten(0, 1)[None]) for part in parts]
    inputs, deltas = (torch.cat([getattr(part, side) for part in parts], dim=1) for side in ("inputs", "deltas"))
    if len(known) < len(parts):
        return Addend(inputs, deltas)
    experts = [origin.expert for origin in known if origin.expert is not None]
    expert = torch.cat(experts, 1) if len(experts) == len(known) else None
    example, token = torch.cat([each.example for each in known], 1), torch.cat([each.token for each in known], 1)
    return Addend(inputs, deltas, Origin(example, token, expert, known[0].shape))
