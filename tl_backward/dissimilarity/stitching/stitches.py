"""Stitch two models at a pair of layers, fit the map, and say what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_layers
from tl_backward._support.html import table
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity.moments import PairSums
from tl_backward.dissimilarity.reading import Reading
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.stitching.descent import Descent, descend
from tl_backward.dissimilarity.stitching.maps import KINDS, MapKind, StitchMap, least_squares
from tl_backward.dissimilarity.stitching.model import StitchedModel
from tl_backward.dissimilarity.stitching.penalty import Penalty, judge
from tl_backward.dissimilarity.stitching.texts import TextBatch, read_texts, split_texts
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.token_strings import one_vocabulary

if TYPE_CHECKING:
    import pandas

FITS = ("least_squares", "sgd")


@dataclass(frozen=True, repr=False, eq=False)
class Stitch:
    """A stitched model, and what it costs on texts that it was not fitted on."""

    model: StitchedModel
    """Runs, generates and takes hooks."""
    layer_a: int
    layer_b: int
    map: MapKind
    fit: str
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


def stitch(
    model_a: TransformerLensModel,
    layer_a: int,
    model_b: TransformerLensModel,
    layer_b: int,
    data: object,
    *,
    map: str = "affine",
    fit: str = "least_squares",
    layer_norm: bool | None = None,
    ridge: float = 0.0,
    held_out_data: object = None,
    held_out: float = 0.2,
    exclude_first: bool = False,
    batching: int = 8,
    n_batches: int | None = None,
    text_key: str = "text",
    prepend_bos: bool | None = None,
    max_tokens: int | None = None,
    descent: Descent | None = None,
    checkpoint: str | Path | None = None,
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
        data: as in `compare`; all of it, or `n_batches`, is held as tokens.
        map: "identity", "orthogonal" (xQ), "linear" (xW) or "affine" (xW + b).
        fit: "least_squares" or "sgd".
        layer_norm: whether an extra LayerNorm comes before the map; None for "sgd" alone.
        ridge: share of the mean eigenvalue of X'X that is added to all, for few samples.
        held_out_data: what to judge on; None for a share of the batches of `data`, its last.
        held_out: that share.
        exclude_first: leave position 0 out of the closed-form fit (its massive activation can decide it).
        batching: texts a batch.
        n_batches: read so many.
        text_key: as in `compare`.
        prepend_bos: as in `compare`.
        max_tokens: as in `compare`.
        descent: steps, rates and seed of SGD.
        checkpoint: a file that SGD saves to and goes on from.
        show_progress: show progress bars.

    Raises:
        TypeError: no TransformerLens model, or data of an unknown kind.
        ValueError: an unknown map or fit; models that do not share a tokenizer; too little data to judge on.
        IndexError: a layer that a model lacks.

    Example:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:60]]
        >>> s = tlb.dissimilarity.stitch(model, 1, model, 1, texts, map="identity", show_progress=False)
        >>> abs(s.penalty.nats) < 1e-5  # a model and itself
        True
    """
    check_pair(model_a, model_b)
    if map not in KINDS or fit not in FITS:
        raise ValueError(
            f"Expected map among {', '.join(KINDS)} and fit among {', '.join(FITS)}, got {map!r} and {fit!r}; choose "
            "others."
        )
    kind = cast(MapKind, map)
    layer_a, layer_b = check_layers(layer_a, model_a.cfg.n_layers)[0], check_layers(layer_b, model_b.cfg.n_layers)[0]
    reading = Reading(batching, "token", False, None, "tokens", text_key, prepend_bos, max_tokens)
    fitting, judging = fit_and_judge_texts(model_a, model_b, data, held_out_data, held_out, reading, n_batches)
    normed = fit == "sgd" if layer_norm is None else layer_norm
    stitched = StitchedModel(
        model_a, layer_a, model_b, layer_b, new_map(kind, model_a, model_b, layer_norm=normed)
    )  # fmt: skip
    if kind != "identity":
        sums = residual_sums(
            model_a, [layer_a], model_b, [layer_b], fitting, exclude_first=exclude_first, normed=normed,
            show_progress=show_progress,
        )  # fmt: skip
        stitched.map.set(*least_squares(kind, sums.pair(0, 0), ridge))
    penalty, before, losses = judge(stitched, judging), None, ()
    if fit == "sgd":
        before = penalty
        losses = descend(stitched, fitting, descent or Descent(), checkpoint=checkpoint, show_progress=show_progress)
        penalty = judge(stitched, judging)
    return Stitch(
        stitched, layer_a, layer_b, kind, fit, penalty, before, sum(len(batch.tokens) for batch in fitting), losses
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


def new_map(
    kind: MapKind, model_a: TransformerLensModel, model_b: TransformerLensModel, *, layer_norm: bool
) -> StitchMap:
    """An empty map between the models' residual streams, where and in the precision that the tail is in."""
    made = StitchMap(kind, model_a.W_U.shape[0], model_b.W_U.shape[0], layer_norm=layer_norm)
    return made.to(model_b.W_U.device, torch.promote_types(model_b.W_U.dtype, torch.float32))


def fit_and_judge_texts(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: object,
    held_out_data: object,
    held_out: float,
    reading: Reading,
    n_batches: int | None,
) -> tuple[list[TextBatch], list[TextBatch]]:
    """Texts to fit on, and others to judge on."""
    texts = read_texts(model_a, model_b, data, reading, n_batches)
    if held_out_data is None:
        return split_texts(texts, held_out)
    return texts, read_texts(model_a, model_b, held_out_data, reading, None)


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
        heads = {place.layer: rows.to(device) for place, rows in reader_a(batch.tokens, text, at).items()}
        own = heads
        if not alone:
            own = {place.layer: rows.to(device) for place, rows in reader_b(batch.tokens, text, at).items()}
        x = [_normed(heads[layer]) if normed else heads[layer] for layer in layers_a]
        sums.update(x, [own[layer] for layer in layers_b])
    return sums


def _normed(rows: Float[Tensor, "sample d"]) -> Float[Tensor, "sample d"]:
    return torch.nn.functional.layer_norm(rows.double(), rows.shape[1:]).to(rows)


def fitted_map(
    kind: MapKind, pair: PairSums, model_a: TransformerLensModel, model_b: TransformerLensModel, ridge: float
) -> StitchMap:
    """The least-squares map of one pair of layers."""
    made = new_map(kind, model_a, model_b, layer_norm=False)
    if kind != "identity":
        made.set(*least_squares(kind, pair, ridge))
    return made
