"""The result of a sweep over a data set: a few numbers for each prompt, to be averaged, saved and merged."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.bootstrap import Interval, bootstrap
from tl_backward._support.checks import nearest
from tl_backward._support.public import public
from tl_backward._support.shown import Paged, names_page
from tl_backward._support.storage import check_kind, joined, load_tensors, part_of, save_tensors
from tl_backward._support.types import DataFrame, Tokenizer
from tl_backward.lens.control import NO_CONTROL
from tl_backward.lens.segments import NAMES
from tl_backward.lens.sweep_summary import Mean, Stands, sweep_sentence
from tl_backward.text.token_strings import text_column, token_string
from tl_backward.weights import layer_of

Quantity: TypeAlias = Literal["norm", "gradient_norm", "share", "rank", "target_rank", "answer_rank"]
BY_SEGMENT = ("norm", "share")
"""Quantities that each segment has its own of; the others are one a prompt."""

FORMAT = "tl_backward sweep 1"
_TOLD: tuple[tuple[Quantity, str, bool], ...] = (
    ("answer_rank", "the old answer's mean rank in the raw readout", True),
    ("target_rank", "the target's mean rank in the raw readout", False),
    ("share", "the share of the gradient at the subject (or the last token)", False),
    ("norm", "the VJP norm at the subject (or the last token)", False),
    ("gradient_norm", "the gradient's norm", False),
    ("rank", "the gradient's numerical rank", False),
)
"""What the summary tells of, whichever was collected first: in words, and whether small values are the finding."""
_COLUMNS = ("items", "loss", "targets", "answers", "draws")


@public
@dataclass(frozen=True, repr=False, eq=False)
class Sweep(Paged):
    """The result of `sweep`: one row a prompt that was measured, in the data set's order."""

    _report = "sweep_report"

    items: Int[Tensor, "item"]
    """Each prompt's index in the data set."""
    loss: Float[Tensor, "item"]
    """In nats."""
    targets: Int[Tensor, "item"]
    """The (first) target token; -1 where the loss has none."""
    answers: Int[Tensor, "item"]
    """The old answer's token."""
    draws: Int[Tensor, "item"]
    """Which draw of the control's weights; 0 for the model itself."""
    weights: tuple[str, ...]
    """Full names, in the model's order."""
    values: dict[str, Tensor]
    """By quantity: [item, weight] or, for `norm` and `share`, [item, weight, segment] with NaN where a prompt lacks the
    segment; `top_ids` and `bottom_ids` [item, weight, k], -1 where a VJP is zero. Ranks of zero vectors are NaN."""
    skipped: dict[int, str]
    """Why, by the prompt's index."""
    interrupted: bool
    """Whether it was ended by hand, before all prompts were seen."""
    about: dict[str, object]
    """The options it was run with and a digest of the model; equal for sweeps that can be merged."""
    tokenizer: Tokenizer | None = None
    control: "Sweep | Absent" = NO_CONTROL
    """The same of the untrained control; false where there is none."""

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        ended = ", interrupted" if self.interrupted else ""
        beside = f", control of {len(self.control.items)}" if self.control else ""
        quantities = ", ".join(self.values)
        said = f"{len(self.items)} prompts, {len(self.weights)} weights, {quantities}{skipped}{ended}{beside}"
        return f"Sweep({said}; {self.about['left_out']})" if "left_out" in self.about else f"Sweep({said})"

    @property
    def layers(self) -> list[int | None]:
        """The layer of each weight; None for the embeddings."""
        return [layer_of(name) for name in self.weights]

    def interval(self, quantity: Quantity, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0) -> Interval:
        """Mean over prompts with a percentile bootstrap interval: cells [weight] or [weight, segment].

        A control's interval resamples its draws too (`bootstrap`).
        """
        if quantity not in self.values:
            raise ValueError(
                f"Expected a quantity that was collected, got {quantity!r}; the nearest are "
                f"{nearest(quantity, self.values)} (choose with collect=...)."
            )
        groups = self.draws if len(self.draws.unique()) > 1 else None
        return bootstrap(self.values[quantity], groups=groups, level=level, n_boot=n_boot, seed=seed)

    def summary(self) -> str:
        """In one sentence: the layer where one quantity stands out most, and the untrained control there.

        The quantity is the first that was collected of the old answer's rank, the target's, the subject's share, norms,
        ranks; intervals that overlap the control's make no difference.
        """
        n_draws = len(self.control.draws.unique()) if self.control else 0
        return sweep_sentence(self._stands(), len(self.items), n_draws)

    def _stands(self) -> Stands | None:
        chosen = next((each for each in _TOLD if each[0] in self.values), None)
        last = self.weights[-1].rpartition(".")[2] if self.weights else ""
        at = [i for i, layer in enumerate(self.layers) if layer is not None and self.weights[i].endswith(f".{last}")]
        if chosen is None or not at:
            return None
        quantity, what, smallest = chosen
        control = self.control if self.control and quantity in self.control.values else None
        sides = [side and side._means(quantity, at) for side in (self, control)]
        layers = [layer for layer in (self.layers[i] for i in at) if layer is not None]
        return Stands(f"{what} of {last}", layers, sides[0] or [], sides[1], smallest)

    def _means(self, quantity: Quantity, at: Sequence[int]) -> list[Mean]:
        interval = self.interval(quantity)
        subject = interval.n[..., NAMES.index("subject")].any() if quantity in BY_SEGMENT else False
        part = () if quantity not in BY_SEGMENT else (NAMES.index("subject" if subject else "last"),)
        return [Mean(*(float(each[(i, *part)]) for each in (interval.mean, interval.low, interval.high))) for i in at]

    def to_frame(self, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0) -> DataFrame:
        """A row for each quantity, weight and segment: mean, low, high, n, and the same of the control."""
        import pandas

        rows = []
        for quantity in (name for name in get_args(Quantity) if name in self.values):
            sides = {"": self} | ({"control_": self.control} if self.control else {})
            intervals = {
                prefix: side.interval(quantity, level=level, n_boot=n_boot, seed=seed)
                for prefix, side in sides.items()
                if quantity in side.values
            }
            segments = NAMES if quantity in BY_SEGMENT else ("",)
            for w, (weight, layer) in enumerate(zip(self.weights, self.layers, strict=True)):
                for s, segment in enumerate(segments):
                    cell = (w, s) if segment else (w,)
                    if int(intervals[""].n[cell]):
                        bounds = {
                            f"{prefix}{name}": float(getattr(each, name)[cell])
                            for prefix, each in intervals.items()
                            for name in _BOUNDS
                        }
                        row = {"quantity": quantity, "weight": weight, "layer": layer, "segment": segment}
                        rows.append(row | bounds | {"n": int(intervals[""].n[cell])})
        return pandas.DataFrame(rows)

    def per_item(self) -> DataFrame:
        """One row a prompt: index, loss, target and old answer."""
        import pandas

        words = {
            name: text_column(token_string(self.tokenizer, i) if i >= 0 else None for i in ids.tolist())
            for name, ids in (("target", self.targets), ("answer", self.answers))
        }
        return pandas.DataFrame({"item": self.items.tolist(), "loss": self.loss.tolist(), **words})

    def top_tokens(self, weight: str, end: Literal["top", "bottom"] = "bottom", n: int = 10) -> DataFrame:
        """The tokens that are most often among the top or bottom k at the prompts' last tokens, with counts.

        Args:
            weight: its full name.
            end: of the raw readout; a descent step moves toward a shift's "bottom".
            n: rows.

        Returns:
            One row a token: its count, the share of prompts that have it, and the control's share.
        """
        import pandas

        if f"{end}_ids" not in self.values or weight not in self.weights:
            raise ValueError(
                f"Expected the top or bottom tokens of one of {list(self.weights)}, got {end!r} of {weight!r}; collect "
                "them with sweep(..., collect=['top_tokens'], weights=...)."
            )
        place = self.weights.index(weight)
        counts: Counter[int] = Counter(self.values[f"{end}_ids"][:, place].flatten().tolist())
        del counts[-1]
        beside = self.control.values[f"{end}_ids"][:, place] if self.control else None
        rows: dict[int, dict[str, float]] = {}
        for token, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:n]:
            control = {} if beside is None else {"control": int((beside == token).sum()) / max(1, len(beside))}
            rows[token] = {"count": count, "share": count / len(self.items)} | control
        frame = pandas.DataFrame(list(rows.values()))
        frame.insert(0, "token", text_column(token_string(self.tokenizer, token) for token in rows))
        return frame

    def _repr_html_(self) -> str:
        """The means by weight, as a static table."""
        from tl_backward._support.html import frame_table

        return frame_table(self.to_frame(n_boot=200), caption=repr(self))

    def save(self, path: str | Path, *, run: str = "") -> Path:
        """Write everything but the tokenizer as safetensors; atomically. `run` says of which run it is a part.

        Where `path` ends in .html, it is a page for people.
        """
        if names_page(path):
            return self.page().save(path)
        tensors = _tensors(self) | (joined(control=_tensors(self.control)) if self.control else {})
        sides = {
            name: {"about": side.about, "skipped": side.skipped, "interrupted": side.interrupted}
            for name, side in (("model", self), ("control", self.control))
            if side
        }
        return save_tensors(
            path, tensors, {"format": FORMAT, "weights": self.weights, "sides": sides, "run": run}, of=self
        )


_BOUNDS = ("mean", "low", "high")


@public
def load_sweep(path: str | Path, *, tokenizer: Tokenizer | None = None) -> Sweep:
    """Read what `Sweep.save` wrote; `tokenizer` puts its tokens in words.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    return load_sweep_of_run(path, tokenizer=tokenizer)[0]


def load_sweep_of_run(path: str | Path, *, tokenizer: Tokenizer | None) -> tuple[Sweep, str]:
    """A saved sweep and the fingerprint of its run; errors as of `load_sweep`."""
    tensors, about = load_tensors(path)
    check_kind(path, about.get("format") == FORMAT, "Sweep.save", about)
    own = {"model": tensors, "control": part_of(tensors, "control")}
    sides = {
        name: Sweep(
            *(own[name][column] for column in _COLUMNS),
            weights=tuple(json.loads(about["weights"])),
            values=part_of(own[name], "values"),
            skipped={int(index): why for index, why in said["skipped"].items()},
            interrupted=said["interrupted"],
            about=said["about"],
            tokenizer=tokenizer,
        )
        for name, said in json.loads(about["sides"]).items()
    }
    return replace(sides["model"], control=sides.get("control", NO_CONTROL)), about.get("run", "")


@public
def merge(*sweeps: Sweep) -> Sweep:
    """Sweeps over parts of one data set, as one run over all would have given it.

    Raises:
        TypeError: no sweeps, or something else.
        ValueError: run on other models, weights or with other options, or with prompts of the same index.

    Examples:
        >>> cases = tlb.zoo.edit_cases("test")[:4]
        >>> parts = [tlb.sweep(model, cases[i : i + 2], start=i, show_progress=False) for i in (0, 2)]
        >>> tlb.merge(*parts).items.tolist()
        [0, 1, 2, 3]
    """
    if not sweeps or not all(isinstance(sweep, Sweep) for sweep in sweeps):
        got = ", ".join(type(sweep).__name__ for sweep in sweeps) or "nothing"
        raise TypeError(f"Expected the sweeps of the parts, got {got}; load saved ones with load_sweep(path).")
    return reduce(_merged, sweeps)


def _merged(a: Sweep, b: Sweep) -> Sweep:
    if a.about.get("model") != b.about.get("model"):
        raise ValueError(
            f"Expected two sweeps of one model, got two whose weights differ (digests {a.about.get('model')} and "
            f"{b.about.get('model')}); run both on one."
        )
    if a.weights != b.weights or a.about != b.about or bool(a.control) != bool(b.control):
        raise ValueError(f"Expected two sweeps run with the same options, got {a.about} and {b.about}; run both alike.")
    indices = [set(side.items.tolist()) | set(side.skipped) for side in (a, b)]
    shared = sorted(indices[0] & indices[1])
    if shared:
        raise ValueError(
            f"Expected sweeps over different prompts, got {len(shared)} of the same index (the first is {shared[0]}); "
            "give the second part's first index with sweep(..., start=...)."
        )
    control = _merged(a.control, b.control) if a.control and b.control else NO_CONTROL
    return replace(in_order([a, b]), control=control)


def in_order(parts: Sequence[Sweep]) -> Sweep:
    """Sweeps joined, rows sorted by index; all settings are those of the first."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _COLUMNS}
    names = dict.fromkeys(name for part in parts for name in part.values)
    values = {name: torch.cat([part.values[name] for part in parts if part.values]) for name in names}
    order = columns["items"].argsort()
    skipped = {index: why for part in parts for index, why in part.skipped.items()}
    return replace(
        parts[0],
        **{name: column[order] for name, column in columns.items()},
        values={name: value[order] for name, value in values.items()},
        skipped=dict(sorted(skipped.items())),
        interrupted=any(part.interrupted for part in parts),
    )


def rows_of_draw(control: Sweep, draw: int) -> Sweep:
    """The rows of a control that were measured with one draw of fresh weights."""
    own = control.draws == draw
    n_draws = cast(int, control.about["n_draws"])
    return replace(
        control,
        **{name: getattr(control, name)[own] for name in _COLUMNS},
        values={name: value[own] for name, value in control.values.items()},
        skipped={index: why for index, why in control.skipped.items() if index % n_draws == draw},
        interrupted=False,
    )


def _tensors(side: Sweep) -> dict[str, Tensor]:
    return {name: getattr(side, name) for name in _COLUMNS} | joined(values=side.values)
