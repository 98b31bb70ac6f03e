"""Stitch two models at a pair of layers, fit the map, and say what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_choice, check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import table
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.moments import PairSums
from tl_backward.dissimilarity.options import OLD_TEXT, Fit, FitOptions, MapKind
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.stitching.maps import StitchMap, least_squares
from tl_backward.dissimilarity.stitching.model import StitchedModel
from tl_backward.dissimilarity.stitching.penalty import Penalty, judge
from tl_backward.dissimilarity.stitching.sgd import train_map
from tl_backward.dissimilarity.stitching.texts import TextBatch, fit_and_held_out_texts
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import one_vocabulary

if TYPE_CHECKING:
    import pandas


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

    def to_frame(self) -> "pandas.DataFrame":
        """One row: layers, map, penalty in nats and bits a byte with 95 % intervals, both losses."""
        import pandas

        return pandas.DataFrame([self._row()])

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


OLD_FIT = OLD_TEXT | {
    "held_out_data": "held_out",
    "descent": "fit_options",
    **{name: f"fit_options.{name}" for name in ("ridge", "layer_norm", "checkpoint")},
}
"""How stitches were fitted, as keywords that go with the next release."""


@old_keywords(OLD_FIT, text_options=TextOptions, fit_options=FitOptions)
def stitch(
    model_a: TransformerLensModel,
    layer_a: int,
    model_b: TransformerLensModel,
    layer_b: int,
    data: object,
    *,
    map: MapKind = "affine",
    fit: Fit = "least_squares",
    held_out: object = 0.2,
    text_options: TextOptions = TextOptions(),
    fit_options: FitOptions = FitOptions(),
    show_progress: bool = True,
) -> Stitch:
    """The head of A up to `layer_a`, a map, and the tail of B after `layer_b`, as a model that runs.

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

    Example:
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
    pair = None
    if map != "identity":
        pair = residual_sums(
            model_a, [layer_a], model_b, [layer_b], fitting, exclude_first=text_options.exclude_first, normed=normed,
            show_progress=show_progress,
        ).pair(0, 0)  # fmt: skip
    fitted = fitted_map(map, pair, model_a, model_b, fit_options.ridge, normed)
    stitched = StitchedModel(model_a, layer_a, model_b, layer_b, fitted)
    penalty, before, losses = judge(stitched, held), None, ()
    if fit == "sgd":
        before = penalty
        losses = train_map(stitched, fitting, fit_options, show_progress=show_progress)
        penalty = judge(stitched, held)
    return Stitch(
        stitched, layer_a, layer_b, map, fit, penalty, before, sum(len(batch.tokens) for batch in fitting), losses
    )


def check_pair(model_a: TransformerLensModel, model_b: TransformerLensModel) -> None:
    """Refuse models whose tokens mean different things.

    Raises:
        ValueError: different vocabularies.
    """
    check_model(model_a)
    check_reads_text(model_a)
    check_model(model_b)
    check_reads_text(model_b)
    if not one_vocabulary(model_a, model_b):
        raise ValueError(
            "Expected models with one tokenizer, got two whose vocabularies differ, so that the head would read other "
            "tokens than the tail predicts; stitch models that share one (compare aligns others)."
        )


def residual_sums(
    model_a: TransformerLensModel,
    layers_a: Sequence[int],
    model_b: TransformerLensModel,
    layers_b: Sequence[int],
    batches: Sequence[TextBatch],
    *,
    exclude_first: bool,
    normed: bool,
    show_progress: bool,
) -> CovarianceStatistics:
    """Sums over the real tokens of both residual streams, A's after a LayerNorm without weights if `normed`."""
    width_a, width_b = model_a.W_U.shape[0], model_b.W_U.shape[0]
    device = model_b.W_U.device if model_b.W_U.device.type != "mps" else "cpu"
    sums = CovarianceStatistics([width_a] * len(layers_a), [width_b] * len(layers_b), device=device)
    # A LayerNorm's output sums to 0: one direction less is no loss, and nothing in it is much larger than the rest.
    sums.names["a"] = ["" if normed else f"layer {layer} of A" for layer in layers_a]
    sums.names["b"] = [f"layer {layer} of B" for layer in layers_b]
    reader_a = PlaceReader(model_a, "resid_post", layers=layers_a, which="model A")
    reader_b = PlaceReader(model_b, "resid_post", layers=layers_b, which="model B")
    alone = model_a is model_b and reader_a.places == reader_b.places
    for batch in tqdm(batches, desc="fit", unit="batch", disable=not show_progress or len(batches) < 20):
        mask = batch.mask.clone()
        mask[:, 0] &= not exclude_first
        text, at = mask.nonzero(as_tuple=True)
        lengths = batch.mask.sum(1)
        heads = {p.layer: rows.to(device) for p, rows in reader_a(batch.tokens, text, at, lengths=lengths).items()}
        own = heads
        if not alone:
            own = {p.layer: rows.to(device) for p, rows in reader_b(batch.tokens, text, at, lengths=lengths).items()}
        x = [_normed(heads[layer]) if normed else heads[layer] for layer in layers_a]
        sums.update(x, [own[layer] for layer in layers_b])
    return sums


def _normed(rows: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    return torch.nn.functional.layer_norm(rows.double(), rows.shape[1:]).to(rows)


def fitted_map(
    kind: MapKind,
    pair: PairSums | None,
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    ridge: float,
    normed: bool,
) -> StitchMap:
    """The least-squares map of one pair of layers, where and in the precision that the tail is in."""
    made = StitchMap(kind, model_a.W_U.shape[0], model_b.W_U.shape[0], layer_norm=normed)
    made = made.to(model_b.W_U.device, torch.promote_types(model_b.W_U.dtype, torch.float32))
    if pair is not None and kind != "identity":
        made.set(*least_squares(kind, pair, ridge))
    return made
