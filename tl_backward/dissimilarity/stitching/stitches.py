"""Stitch two models at a pair of layers, or at all of them both ways, fit the maps, and say what each costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_choice, check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, table
from tl_backward._support.public import public
from tl_backward._support.sentences import count_text
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.dissimilarity.options import OLD_TEXT, Fit, FitOptions, MapKind
from tl_backward.dissimilarity.stitching.maps import fitted_stitches
from tl_backward.dissimilarity.stitching.penalty import Penalty, fit_and_held_out_texts, own_losses, penalties
from tl_backward.dissimilarity.stitching.sgd import train_map
from tl_backward.dissimilarity.stitching.summary import Cost, stitches_sentence
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import one_vocabulary, text_frame


@dataclass(frozen=True, repr=False, eq=False)
class Stitch:
    """A stitched model, and what it costs on texts that it was not fitted on."""

    model: StitchedModel
    """Runs, generates and takes hooks."""
    layer_a: int
    layer_b: int
    map: MapKind
    fit: Fit
    penalty: Penalty
    fit_penalty: Penalty | None
    """With fit="sgd": the penalty of the least-squares map it started from."""
    n_fit_texts: int
    losses: tuple[float, ...] = field(default=())
    """Of every step of SGD, in nats a token."""

    def __repr__(self) -> str:
        low, high = self.penalty.interval
        return (
            f"Stitch(layer {self.layer_a} -> {self.layer_b}, {self.map} map by {self.fit}: "
            f"{self.penalty.nats:+.4f} nats a token [{low:+.4f}, {high:+.4f}], "
            f"{self.penalty.bits_per_byte:+.4f} bits a byte, on {self.penalty.n_texts} texts)"
        )

    def summary(self) -> str:
        """In one sentence: what the stitch costs, and whether that is clearly more than nothing."""
        p, (low, high) = self.penalty, self.penalty.interval
        if math.isnan(low):
            clearly = "no interval being known of one text"
        elif low <= 0 <= high:
            clearly = "no clear difference"
        else:
            clearly = f"clearly {'worse' if low > 0 else 'better'}"
        return (
            f"A up to layer {self.layer_a}, a map ({self.map}, by {self.fit}) and B after layer {self.layer_b} change "
            f"B's loss by {p.nats:+.3f} nats a token [{low:+.3f}, {high:+.3f}] on {count_text(p.n_texts, 'text')}, "
            f"{clearly}; `stitching_grid` sets beside it what a map within one model changes."
        )

    def to_frame(self) -> DataFrame:
        """One row: layers, map, penalty in nats and bits a byte with 95 % intervals, both losses."""
        return text_frame([self._row()])

    def _row(self) -> dict[str, str | int | float]:
        p = self.penalty
        return {
            "layer_a": self.layer_a,
            "layer_b": self.layer_b,
            "map": self.map,
            "fit": self.fit,
            "penalty_nats": p.nats,
            "nats_low": p.interval[0],
            "nats_high": p.interval[1],
            "penalty_bits_per_byte": p.bits_per_byte,
            "bits_low": p.interval_bits[0],
            "bits_high": p.interval_bits[1],
            "loss": p.loss,
            "tail_loss": p.tail_loss,
            "n_fit_texts": self.n_fit_texts,
            "n_texts": p.n_texts,
            "n_tokens": p.n_tokens,
        }

    def _repr_html_(self) -> str:
        """A static table of one row."""
        row = self._row()
        return table(list(row), [list(row.values())], caption=repr(self))


DIRECTIONS = ("A->B", "B->A", "A->A", "B->B")


@dataclass(frozen=True, repr=False, eq=False)
class StitchingGrid(Shown):
    """Penalties of stitches [head layer][tail layer] in each direction; the last two are the self-stitch baselines."""

    _report = "stitching_report"

    layers_a: tuple[int, ...]
    layers_b: tuple[int, ...]
    map: MapKind
    penalties: dict[str, list[list[Penalty]]]
    """By direction, "A->B" being A's head and B's tail: [head layer][tail layer]."""
    n_fit_texts: int

    def __repr__(self) -> str:
        return (
            f"StitchingGrid({len(self.layers_a)} x {len(self.layers_b)} layers, {self.map} maps, "
            f"{', '.join(self.penalties)})"
        )

    def summary(self, names: tuple[str, str] = ("A", "B")) -> str:
        """In one sentence: the cheapest stitch of each direction, beside the tail's own head left at that depth.

        Args:
            names: what A and B are called.
        """
        ways = {"A->B": names, "B->A": names[::-1]}
        return stitches_sentence({ways[way]: self._costs(way) for way in ways if way in self.penalties})

    def _costs(self, direction: str) -> list[Cost]:
        heads, tails = self.layers(direction)
        own = self.penalties.get(f"{direction[-1]}->{direction[-1]}")
        costs = []
        for i, (head, row) in enumerate(zip(heads, self.penalties[direction], strict=True)):
            for j, (tail, each) in enumerate(zip(tails, row, strict=True)):
                beside = None if own is None else own[self._same_depth(direction, i)][j]
                cost = Cost(head, tail, each.nats, each.interval)
                costs.append(cost if beside is None else replace(cost, own=beside.nats, own_interval=beside.interval))
        return costs

    def nats(self, direction: str) -> Float[Tensor, "head_layer tail_layer"]:
        """Penalties of one direction, in nats a token."""
        if direction not in self.penalties:
            raise KeyError(
                f"Expected a direction among {', '.join(self.penalties)}, got {direction!r}; choose one of them."
            )
        return torch.tensor([[each.nats for each in row] for row in self.penalties[direction]], dtype=torch.float64)

    def layers(self, direction: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layers of the head and of the tail in one direction."""
        named = {"A": self.layers_a, "B": self.layers_b}
        head, tail = direction.split("->")
        return named[head], named[tail]

    def to_frame(self) -> DataFrame:
        """One row a stitch, each beside the self-stitch of its tail's model at the same relative depth.

        `baseline_nats` is the penalty of the tail model's own head, left at the layer nearest in relative depth to that
        of the foreign head, stitched to the same tail layer.
        """
        return text_frame(
            {
                "direction": direction,
                "head_layer": head,
                "tail_layer": tail,
                "penalty_nats": each.nats,
                "nats_low": each.interval[0],
                "nats_high": each.interval[1],
                "penalty_bits_per_byte": each.bits_per_byte,
                "baseline_nats": baseline,
                "loss": each.loss,
                "tail_loss": each.tail_loss,
                "map": self.map,
                "n_texts": each.n_texts,
            }
            for direction, grid in self.penalties.items()
            for i, (head, row) in enumerate(zip(self.layers(direction)[0], grid, strict=True))
            for tail, each, baseline in zip(self.layers(direction)[1], row, self._baselines(direction, i), strict=True)
        )

    def _baselines(self, direction: str, head: int) -> list[float]:
        """Each tail layer's penalty with a head of the tail's own model, left at the relative depth of head `head`."""
        own = f"{direction[-1]}->{direction[-1]}"
        if own not in self.penalties:
            return [float("nan")] * len(self.layers(direction)[1])
        return [each.nats for each in self.penalties[own][self._same_depth(direction, head)]]

    def _same_depth(self, direction: str, head: int) -> int:
        """Which layer of the tail's own model is nearest in relative depth to head `head`."""
        own = f"{direction[-1]}->{direction[-1]}"
        n, n_heads = len(self.layers(own)[0]), len(self.layers(direction)[0])
        return min(range(n), key=lambda k: abs(k / n - head / n_heads))

    def _repr_html_(self) -> str:
        """A static table a direction: head layers down, tail layers across, 95 % half-widths beside the penalties."""
        parts = []
        bound = max(float(self.nats(direction).abs().max()) for direction in self.penalties)
        for direction, grid in self.penalties.items():
            heads, tails = self.layers(direction)
            rows = [
                [
                    Cell(f"{each.nats:+.3f} \N{PLUS-MINUS SIGN} {each.interval[1] - each.nats:.3f}", value=each.nats)
                    for each in row
                ]
                for row in grid
            ]
            parts.append(
                table(
                    [f"L{layer}" for layer in tails], rows, row_names=[f"L{layer}" for layer in heads],
                    caption=f"{direction}: penalty in nats a token, {self.map} map", corner="head, tail",
                    bound=bound or 1.0,
                )
            )  # fmt: skip
        return "".join(parts)


OLD_FIT = OLD_TEXT | {
    "held_out_data": "held_out",
    "descent": "fit_options",
    **{name: f"fit_options.{name}" for name in ("ridge", "layer_norm", "checkpoint")},
}
"""Deprecated keyword -> what replaces it."""


@public
@old_keywords(OLD_FIT, text_options=TextOptions, fit_options=FitOptions)
def stitch(
    model_a: TransformerLensModel,
    layer_a: int,
    model_b: TransformerLensModel,
    layer_b: int,
    data: TextData,
    *,
    map: MapKind = "affine",
    fit: Fit = "least_squares",
    held_out: float | TextData = 0.2,
    text_options: TextOptions = TextOptions(),
    fit_options: FitOptions = FitOptions(),
    show_progress: bool = True,
) -> Stitch:
    """The head of A up to `layer_a`, a map, and the tail of B after `layer_b`, as a model that runs.

    A layer is the index of its block, and is left or entered at the block's end: `layer_a` + 1 blocks of A run, and B
    from block `layer_b` + 1 on. `tl_backward.alignment.zero_shot_stitch`, which counts blocks and fits nothing, joins
    the same places as `zero_shot_stitch(model_a, layer_a + 1, model_b, layer_b + 1)`.

    The map is fitted in closed form, to send A's residual stream where B's own is, from sums over the data; with
    fit="sgd" it is then trained on the stitched model's next-token loss with all else frozen (Brown et al. 2023:
    affine, an extra LayerNorm, Nesterov momentum, 2,000 steps of which 200 warm up). The penalty is the loss of the
    stitched model minus B's own, on texts apart from those of the fit. Neither model is changed.

    Args:
        model_a: whose head runs; a HookedTransformer or TransformerBridge.
        layer_a: after which layer it is left; negative from the end.
        model_b: whose tail runs; it must read the data as the same tokens.
        layer_b: after which layer it is entered.
        data: as in `compare`; all of it, or `n_batches` of them, is held as tokens.
        map: "identity", "orthogonal" (xQ), "linear" (xW) or "affine" (xW + b).
        fit: "least_squares" or "sgd".
        held_out: what the penalty is measured on: a share of the batches of `data`, its last, or data of their own.
        text_options: how the data become batches. `exclude_first` leaves position 0 out of the closed-form fit alone
            (its massive activation can decide it).
        fit_options: ridge and LayerNorm of the map; steps, rates, seed and checkpoint of SGD.
        show_progress: show progress bars.

    Raises:
        TypeError: no TransformerLens model, or data of an unknown kind.
        ValueError: an unknown map or fit; models that do not share a tokenizer; too little data to measure on.
        IndexError: a layer that a model lacks.

    Examples:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:60]]
        >>> s = tlb.dissimilarity.stitch(model, 1, model, 1, texts, map="identity", show_progress=False)
        >>> abs(s.penalty.nats) < 1e-5  # a model and itself
        True
    """
    check_pair(model_a, model_b)
    check_choice("map", map, get_args(MapKind))
    check_choice("fit", fit, get_args(Fit))
    layer_a, layer_b = check_layers(layer_a, model_a.cfg.n_layers)[0], check_layers(layer_b, model_b.cfg.n_layers)[0]
    fitting, held = fit_and_held_out_texts(model_a, model_b, data, held_out, text_options)
    normed = fit == "sgd" if fit_options.layer_norm is None else fit_options.layer_norm
    stitches = fitted_stitches(
        map, model_a, [layer_a], model_b, [layer_b], fitting, exclude_first=text_options.exclude_first,
        ridge=fit_options.ridge, normed=normed, show_progress=show_progress,
    )  # fmt: skip
    stitched, own = stitches[0][0], own_losses(model_b, held)
    penalty, before, losses = penalties(stitches, held, own)[0][0], None, ()
    if fit == "sgd":
        before = penalty
        losses = train_map(stitched, fitting, fit_options, show_progress=show_progress)
        penalty = penalties(stitches, held, own)[0][0]
    return Stitch(
        stitched, layer_a, layer_b, map, fit, penalty, before, sum(len(batch.tokens) for batch in fitting), losses
    )


@public
@old_keywords(OLD_FIT, text_options=TextOptions, fit_options=FitOptions)
def stitching_grid(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: TextData,
    *,
    layers_a: int | Sequence[int] | None = None,
    layers_b: int | Sequence[int] | None = None,
    map: MapKind = "affine",
    baselines: bool = True,
    held_out: float | TextData = 0.2,
    text_options: TextOptions = TextOptions(),
    fit_options: FitOptions = FitOptions(),
    show_progress: bool = True,
) -> StitchingGrid:
    """Stitch every layer of A to every layer of B and the other way round by least squares, and find the penalties.

    All maps come from one pass over the texts of the fit a pair of models. With `baselines`, each model is stitched to
    itself too: a penalty between two models says little by itself, as far-apart layers of one model cost something too.

    Args:
        model_a: a HookedTransformer or TransformerBridge.
        model_b: another that reads the data as the same tokens.
        data: as in `compare`.
        layers_a: A's layers; None for all.
        layers_b: B's layers.
        map: "identity", "orthogonal", "linear" or "affine".
        baselines: stitch each model to itself too.
        held_out: as in `stitch`.
        text_options: as in `stitch`.
        fit_options: as in `stitch`, of which the closed form takes `ridge` and `layer_norm`.
        show_progress: show progress bars.

    Raises:
        ValueError: an unknown map; models that do not share a tokenizer; too little data to measure on.

    Examples:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:60]]
        >>> options = {"map": "identity", "baselines": False, "show_progress": False}
        >>> grid = tlb.dissimilarity.stitching_grid(model, model, texts, layers_a=[1], layers_b=[1, 2], **options)
        >>> len(grid.to_frame())  # both directions
        4
    """
    check_pair(model_a, model_b)
    check_choice("map", map, get_args(MapKind))
    fitting, held = fit_and_held_out_texts(model_a, model_b, data, held_out, text_options)
    models = {"A": model_a, "B": model_b}
    layers = {
        "A": check_layers(layers_a, model_a.cfg.n_layers),
        "B": check_layers(layers_b, model_b.cfg.n_layers),
    }
    own = {name: own_losses(model, held) for name, model in models.items()}
    directions = DIRECTIONS[: 4 if baselines else 2]
    n_stitches, grids = sum(len(layers[d[0]]) * len(layers[d[-1]]) for d in directions), {}
    with tqdm(total=n_stitches, desc="stitches", unit="stitch", disable=not show_progress) as progress:
        for direction in directions:
            head, tail = direction.split("->")
            stitches = fitted_stitches(
                map, models[head], layers[head], models[tail], layers[tail], fitting,
                exclude_first=text_options.exclude_first, ridge=fit_options.ridge, normed=bool(fit_options.layer_norm),
                show_progress=False,
            )  # fmt: skip
            grids[direction] = penalties(stitches, held, own[tail], progress.update)
    return StitchingGrid(
        tuple(layers["A"]), tuple(layers["B"]), map, grids, sum(len(batch.tokens) for batch in fitting)
    )


def check_pair(model_a: TransformerLensModel, model_b: TransformerLensModel) -> None:
    """Refuse models whose tokens mean different things.

    Raises:
        ValueError: different vocabularies.
    """
    for model in (model_a, model_b):
        check_model(model)
        check_reads_text(model)
    if not one_vocabulary(model_a, model_b):
        raise ValueError(
            "Expected models with one tokenizer, got two whose vocabularies differ, so that the head would read other "
            "tokens than the tail predicts; stitch models that share one (compare aligns others)."
        )
