"""The leading directions of a sum of gradients or of a change, with the words that they read and write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.html import frame_table, visible_token
from tl_backward._support.saved import Saved
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.lens.reading import Side, side_in_stream
from tl_backward.training.sketch import Approximation
from tl_backward.vocabulary.readout import Readout, readout


@dataclass(frozen=True, repr=False, eq=False)
class Directions(Saved):
    """sum_j S_j outer(U_j, V_j), a change of a weight as it is added to it: an input along U_j comes to write V_j."""

    U: Float[Tensor, "d_in r"]
    """Unit vectors on the side of the inputs, signed so that most inputs point along them."""
    S: Float[Tensor, " r"]
    """How much of each, largest first."""
    V: Float[Tensor, "d_out r"]
    """Unit vectors on the side of the outputs."""
    norm: float
    """Of the whole change (Frobenius)."""
    error: float
    """Of what these directions leave out: exact where the sum is kept whole, else estimated (`training.sketch`)."""
    spectrum: Float[Tensor, " s"]
    """Singular values that are known."""
    imprint: Readout | None
    """U in words, where the weight reads the residual stream."""
    shift: Readout | None
    """V in words, where it writes to it."""

    def __repr__(self) -> str:
        words = [
            f"{of} {', '.join(map(repr, side.top_tokens[0][:3]))}"
            for of, side in (("imprint", self.imprint), ("shift", self.shift))
            if side is not None and len(self.S)
        ]
        said = f"; the first: {'; '.join(words)}" if words else ""
        return f"Directions({len(self.S)} of norm {self.norm:.3g}, {self.share:.0%} of its square{said})"

    @property
    def share(self) -> float:
        """Share of the squared norm that the directions hold; 0 for a change of nothing."""
        kept = float(self.S.square().sum())
        return kept / (kept + self.error**2) if kept > 0 else 0.0


Change: TypeAlias = tuple[Approximation, Tensor | None]
"""A change, and where most inputs point; None where that is not known."""


def directions_of(model: TransformerLensModel, changes: Mapping[str, Change], k: int) -> dict[str, Directions]:
    """Sign the directions of each weight's change, and read all that lie in the stream at once."""
    signed: dict[str, tuple[Approximation, Side | None]] = {}
    vectors: list[Tensor] = []
    for name, (change, along) in changes.items():
        u, v = change.U, change.V
        # A singular pair has no sign of its own: u is the one that inputs lie along, so that v is what they come to
        # write.
        pointing = u.abs().pow(2).mul(u.sign()).sum(0) if along is None else along.to(u) @ u
        sign = torch.where(pointing < 0, -1.0, 1.0).to(u)
        side = side_in_stream(name, ()) if change.S.numel() else None
        signed[name] = change._replace(U=u * sign, V=v * sign), side
        if side is not None:
            vectors.append((signed[name][0].U if side == "inputs" else signed[name][0].V).T)
    words, start, found = None, 0, {}
    if vectors:
        words = readout(model, torch.cat(vectors).to(next(iter(model.parameters())).dtype), k=k)
    for name, (change, side) in signed.items():
        read = None
        if side is not None and words is not None:
            read, start = words[start : start + len(change.S)], start + len(change.S)
        found[name] = Directions(
            U=change.U,
            S=change.S,
            V=change.V,
            norm=change.norm,
            error=change.error,
            spectrum=change.spectrum,
            imprint=read if side == "inputs" else None,
            shift=read if side == "deltas" else None,
        )
    return found


def before_and_after(
    model: TransformerLensModel, changes: Mapping[str, Directions], weights: Mapping[str, Tensor], k: int
) -> tuple[dict[str, Readout], dict[str, Readout]]:
    """What each direction met before the change and meets since, in words; of weights that have a side in the stream.

    Of a weight that writes to the stream: U_j^T W, what an input along U_j comes out as. Of one that reads it: W V_j,
    what in the stream makes it write along V_j.

    Args:
        model: whose words.
        changes: W - W_before of each weight in directions.
        weights: W [d_in, d_out] as it is now.
        k: words of each.
    """
    names = [name for name, each in changes.items() if len(each.S) and (each.imprint or each.shift) is not None]
    if not names:
        return {}, {}
    old, new = [], []
    for name in names:
        each, now = changes[name], weights[name].double().cpu()
        new.append(each.U.T @ now if each.shift is not None else (now @ each.V).T)
        old.append(new[-1] - each.S[:, None] * (each.V if each.shift is not None else each.U).T)
    read = readout(model, torch.cat([*old, *new]).to(next(iter(model.parameters())).dtype), k=k)
    sizes = [len(each) for each in old]
    ends = torch.tensor([*sizes, *sizes]).cumsum(0).tolist()
    parts = [read[end - size : end] for end, size in zip(ends, [*sizes, *sizes], strict=True)]
    return dict(zip(names, parts[: len(names)], strict=True)), dict(zip(names, parts[len(names) :], strict=True))


def first_directions(frame: DataFrame, caption: str) -> str:
    """The first direction of each weight, from a frame with lists of words, as a static table."""
    first = frame[[each == 0 for each in frame["direction"]]] if len(frame) else frame
    words = {
        side: ["" if each is None else ", ".join(map(visible_token, each[:5])) for each in first[side]]
        for side in ("imprint", "shift", "before", "after")
        if side in first
    }
    return frame_table(first.assign(**words), caption=caption)
