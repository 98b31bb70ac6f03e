"""What a watch saw: of each weight what its gradients asked for and what was really written, in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from tl_backward._support.checks import nearest
from tl_backward._support.html import visible_token
from tl_backward._support.saved import load_saved
from tl_backward._support.sentences import count_text, no_comparison
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, Tokenizer, TransformerLensModel
from tl_backward.text.token_strings import token_string, token_strings
from tl_backward.training.directions import Change, Directions, before_and_after, directions_of, first_directions
from tl_backward.training.largest import Contribution
from tl_backward.training.record import Record, as_matrix
from tl_backward.training.sketch import Sketch
from tl_backward.vocabulary.readout import Readout
from tl_backward.weights import layer_of

if TYPE_CHECKING:
    import plotly.graph_objects

Of: TypeAlias = Literal["gradient", "written"]

_NEAR = 0.9
"""Of the largest share, from which on another weight's counts as near it."""
NO_CONTROL = "training.difference(..., control=...)"
"""What sets a training beside another."""


@dataclass(frozen=True, repr=False, eq=False)
class WatchResult(Shown):
    """What a training wrote. `gradient` is what plain gradient descent along its gradients would have written."""

    _report = "watch_report"

    weights: tuple[str, ...]
    """Full names, in the model's order."""
    gradient: Mapping[str, Directions]
    """Minus the summed gradients of each weight."""
    written: Mapping[str, Directions]
    """The weight now, minus the weight when the watch began: what any optimizer made of them."""
    norms: Mapping[str, Tensor]
    """Of each gradient [step]: of each backward, or as the optimizer read it."""
    tokens: Mapping[str, tuple[Contribution, ...]]
    """The tokens that contributed most, largest first."""
    examples: Mapping[str, tuple[Contribution, ...]]
    """The same of whole examples: the sum of their tokens' norms."""
    sums: Mapping[str, Sketch]
    """The summed gradients as they are kept."""
    steps: int
    """Backward passes that were seen."""
    missing: Mapping[str, str]
    """What was not watched, or not wholly, and why."""
    about: Mapping[str, object]
    """The options, and what was summed."""
    tokenizer: Tokenizer | None = None
    before: Mapping[str, Readout] = field(default_factory=dict)
    """Of each direction of `written`, in words: what an input along U_j made the weight write to the stream when the
    watch began, of a weight that reads it what in the stream made it write along V_j. None for other weights."""
    after: Mapping[str, Readout] = field(default_factory=dict)
    """The same of the weight now."""

    def __repr__(self) -> str:
        left = f", {len(self.missing)} missing" if self.missing else ""
        return f"WatchResult({self._passes}, {len(self.weights)} weights{left}: {self.summary()})"

    @property
    def _passes(self) -> str:
        return count_text(self.steps, "backward pass", "backward passes")

    @property
    def layers(self) -> list[int | None]:
        """The layer of each weight."""
        return [layer_of(name) for name in self.weights]

    def summary(self) -> str:
        """One sentence: where most was written, in which words, by which token; a watch has no control."""
        shares = self.shares()
        if not any(shares.values()):
            return f"{self._passes} wrote nothing: no watched weight has changed."
        name = next(iter(shares))
        change = self.written[name]
        near = sum(share >= _NEAR * shares[name] for share in shares.values()) - 1
        beside = f", {count_text(near, 'other')} within a tenth of that" if near else ""
        said = f"{self._passes} wrote most into {name} ({shares[name]:.0%} of the squared change{beside})"
        side = change.shift or change.imprint
        if side is not None and len(change.S):
            share = float(change.S[0] ** 2) / change.norm**2
            words = ", ".join(visible_token(token) for token in side.top_tokens[0][:3])
            verb = "writes" if change.shift is not None else "reads"
            said += f", whose first direction ({min(share, 1.0):.0%} of it) {verb} {words}"
        first = next(iter(self.tokens[name]), None)
        if first is not None and first.position < len(first.ids) and self.tokenizer is not None:
            token = token_string(self.tokenizer, first.ids[first.position])
            said += f"; the token that contributed most is {visible_token(token)}"
        return f"{said}{no_comparison(0, NO_CONTROL, 'any training')}."

    def shares(self) -> dict[str, float]:
        """Each weight's share of the squared change of all, |W_written|^2 / sum |W_written|^2, largest first."""
        squares = {name: self.written[name].norm ** 2 for name in self.weights}
        total = sum(squares.values()) or 1.0
        return {name: squares[name] / total for name in sorted(squares, key=squares.__getitem__, reverse=True)}

    def to_frame(self, of: Of = "written") -> DataFrame:
        """A row a weight and direction: its size, its share of the weight's squared change, and its words.

        `before` and `after`, of what was written: what such an input came out as, of a weight that reads the stream
        what it answered to.
        """
        import pandas

        rows = []
        for name in self.weights:
            each = self._of(of)[name]
            for j, size in enumerate(each.S.tolist()):
                words = {
                    side: None if read is None else read.top_tokens[j]
                    for side, read in (("imprint", each.imprint), ("shift", each.shift))
                }
                if of == "written":
                    words |= {
                        side: read[name].top_tokens[j] if name in read else None
                        for side, read in (("before", self.before), ("after", self.after))
                    }
                share = min(1.0, size**2 / each.norm**2) if each.norm else 0.0
                rows.append(
                    {"weight": name, "layer": layer_of(name), "direction": j, "size": size, "share": share, **words}
                )
        return pandas.DataFrame(rows)

    def contributions(self, weight: str, of: Literal["tokens", "examples"] = "tokens") -> DataFrame:
        """A row a token or example, largest first: its norm, when and where it was, and its text without padding."""
        import pandas

        if weight not in self.weights:
            raise ValueError(
                f"Expected a weight that was watched, got {weight!r}; the nearest are {nearest(weight, self.weights)}."
            )
        rows, pad = [], getattr(self.tokenizer, "pad_token_id", None)
        for each in getattr(self, of)[weight]:
            end = len(each.ids)
            while end > each.position + 1 and each.ids[end - 1] == pad:
                end -= 1
            texts = token_strings(self.tokenizer, torch.tensor(each.ids[:end])) if end else []
            word = {"token": texts[each.position]} if of == "tokens" and each.position < len(texts) else {}
            rows.append(
                {
                    "norm": each.norm,
                    "step": each.step,
                    "example": each.example,
                    **({"position": each.position} if of == "tokens" else {}),
                    **word,
                    "text": "".join(texts),
                }
            )
        return pandas.DataFrame(rows)

    def plot(self) -> "plotly.graph_objects.Figure":
        """The norms of each weight's gradients over the training, as a plotly figure."""
        return import_module("tl_backward.render").watch_heatmap(self)

    def packed(self) -> dict[str, Any]:
        """What `save` writes: sums as their tensors."""
        sums = {name: [each.shape, each.rank, each.seed, each.tensors()] for name, each in self.sums.items()}
        return super().packed() | {"sums": sums}

    @classmethod
    def unpacked(cls, saved: dict[str, Any]) -> "WatchResult":
        """The same again."""
        sums = {}
        for name, (shape, rank, seed, tensors) in saved["sums"].items():
            sums[name] = Sketch(tuple(shape), rank, seed)
            sums[name].load(tensors)
        largest = {
            of: {name: tuple(Contribution(*each) for each in rows) for name, rows in saved[of].items()}
            for of in ("tokens", "examples")
        }
        whole: dict[str, Any] = {**saved, "sums": sums, **largest}
        return cls(**whole)

    def _of(self, of: Of) -> Mapping[str, Directions]:
        if of not in ("gradient", "written"):
            raise ValueError(f"Expected of='gradient' or 'written', got {of!r}.")
        return self.gradient if of == "gradient" else self.written

    def _repr_html_(self) -> str:
        """The first direction of each weight, as a static table."""
        return first_directions(self.to_frame(), self.summary())


def result_of(
    model: TransformerLensModel,
    records: Mapping[str, Record],
    missing: Mapping[str, str],
    steps: int,
    k: int,
    about: dict[str, object],
) -> WatchResult:
    """Freeze what is kept, and read its directions."""
    gradient: dict[str, Change] = {}
    written: dict[str, Change] = {}
    now: dict[str, Tensor] = {}
    for name, record in records.items():
        sketch = Sketch(record.total.shape, record.rank, record.seed)
        now[name] = as_matrix(record.site, record.site.parameter.detach())
        sketch.add(now[name].double())
        change, summed = sketch.plus(record.start, -1.0).approximation(), record.total.approximation()
        along = None if record.mean_input is None else record.mean_input.double().cpu()
        written[name], gradient[name] = (change, along), (summed._replace(V=-summed.V), along)
    changes = directions_of(model, written, k)
    before, after = before_and_after(model, changes, now, k)
    return WatchResult(
        weights=tuple(records),
        gradient=directions_of(model, gradient, k),
        written=changes,
        norms={name: torch.tensor(record.norms, dtype=torch.float64) for name, record in records.items()},
        tokens={name: tuple(sorted(record.tokens, reverse=True)) for name, record in records.items()},
        examples={name: tuple(sorted(record.examples, reverse=True)) for name, record in records.items()},
        sums={name: record.total.copied() for name, record in records.items()},
        steps=steps,
        missing=dict(missing),
        about=about,
        tokenizer=model.tokenizer,
        before=before,
        after=after,
    )


def load_watch(path: str | Path, *, tokenizer: Tokenizer | None = None) -> WatchResult:
    """Read what `WatchResult.save` wrote; `tokenizer` puts its tokens in words.

    Raises:
        ValueError: no such file, a damaged one, or another result's.
    """
    return load_saved(path, WatchResult, tokenizer=tokenizer)
