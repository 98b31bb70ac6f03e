"""Is a SoLU head worse for a GeLU tail than the other way round? Brown et al. 2023's first finding.

The paper stitches GeLU and SoLU language models of 3 and 4 layers at equal layers and reports higher penalties from
SoLU into GeLU than from GeLU into SoLU, beside self-stitches that cost little: GeLU's features would do for SoLU's
tail, but not the reverse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.bootstrap import Interval
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import frame_table, visible_text
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.dissimilarity.options import Fit, FitOptions, MapKind
from tl_backward.dissimilarity.stitching import stitch
from tl_backward.studies.dissimilarity.statistics import over_seeds
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_frame

CROSSED = ("A->B", "B->A")
STITCHES = (*CROSSED, "A->A", "B->B", "A->A of another seed", "B->B of another seed")
"""Head -> tail; the last four are the baselines."""


@dataclass(frozen=True, repr=False, eq=False)
class StitchingAsymmetry:
    """Penalties of stitches at equal layers between models in pairs, one pair a seed, beside self-stitches."""

    names: tuple[str, str]
    """Of A and of B, such as "solu" and "gelu"."""
    penalties: Float[Tensor, "stitch seed layer"]
    """In nats a token, in the order of `STITCHES`; the last layer is left out, as only the unembedding follows it."""
    map: MapKind
    fit: Fit
    n_tokens: int
    """That each penalty was measured on."""

    @property
    def difference(self) -> Float[Tensor, "seed layer"]:
        """A->B minus B->A, in nats a token: above 0 where A's head is worse for B's tail than B's head for A's."""
        return self.penalties[0] - self.penalties[1]

    @property
    def excess_difference(self) -> Float[Tensor, "seed layer"]:
        """The same after each direction's own baseline, its tail stitched to its twin of another seed, is taken off."""
        a_to_b, b_to_a, _, _, other_a, other_b = self.penalties
        return (a_to_b - other_b) - (b_to_a - other_a)

    def interval(self, quantity: str) -> Interval:
        """Mean and 95 % t interval over seeds [layer] of a stitch, "difference" or "excess_difference"."""
        if quantity in STITCHES:
            return over_seeds(self.penalties[STITCHES.index(quantity)])
        if quantity in _DIFFERENCES:
            return over_seeds(getattr(self, quantity))
        known = ", ".join((*STITCHES, *_DIFFERENCES))
        raise KeyError(f"Expected one of {known}, got {quantity!r}; choose one of them.")

    def __repr__(self) -> str:
        _, n_seeds, n_layers = self.penalties.shape
        a, b = map(visible_text, self.names)
        return f"StitchingAsymmetry(A={a}, B={b}; {n_seeds} seeds, {n_layers} layers, {self.map} maps by {self.fit})"

    def to_frame(self) -> DataFrame:
        """One row a stitch or difference and layer: mean over seeds in nats a token, 95 % interval, seeds."""
        intervals = {self._named(quantity): self.interval(quantity) for quantity in (*STITCHES, *_DIFFERENCES)}
        return text_frame(
            {
                "quantity": name,
                "layer": layer,
                "mean_nats": float(found.mean[layer]),
                "low": float(found.low[layer]),
                "high": float(found.high[layer]),
                "n_seeds": int(found.n[layer]),
            }
            for name, found in intervals.items()
            for layer in range(self.penalties.shape[2])
        )

    def _named(self, quantity: str) -> str:
        a, b = self.names
        words = {"difference": "A->B minus B->A", "excess_difference": "A->B minus B->A, each above its baseline"}
        return words.get(quantity, quantity).replace("A", a).replace("B", b)

    def _repr_html_(self) -> str:
        """The frame, as a static table."""
        return frame_table(self.to_frame(), caption=repr(self), limit=60)


_DIFFERENCES = ("difference", "excess_difference")


@old_keywords(
    {"descent": "fit_options", "batching": "text_options.batch_size"}, fit_options=FitOptions, text_options=TextOptions
)
def activation_asymmetry(
    models_a: Sequence[TransformerLensModel],
    models_b: Sequence[TransformerLensModel],
    data: TextData,
    held_out_data: TextData,
    *,
    names: tuple[str, str] = ("solu", "gelu"),
    map: MapKind = "affine",
    fit: Fit = "least_squares",
    fit_options: FitOptions = FitOptions(),
    text_options: TextOptions = TextOptions(batch_size=32),
    show_progress: bool = True,
) -> StitchingAsymmetry:
    """Stitch each A to its B and back after every layer but the last, and each model to itself and to its next seed.

    Args:
        models_a: one a seed, two or more, all of one shape.
        models_b: their partners, in the same order.
        data: to fit the maps on, as in `compare`.
        held_out_data: to measure the penalties on.
        names: what to call A and B.
        map: as in `stitch`.
        fit: as in `stitch`: in closed form, or "sgd" on the task's loss as in the paper.
        fit_options: as in `stitch`.
        text_options: how the data become batches.
        show_progress: show a bar.

    Raises:
        ValueError: fewer than two pairs, or models of different depths.
    """
    depths = {model.cfg.n_layers for model in (*models_a, *models_b)}
    if len(models_a) != len(models_b) or len(models_a) < 2 or len(depths) > 1 or min(depths) < 2:
        raise ValueError(
            f"Expected two or more pairs of models of one depth of at least 2, got {len(models_a)} and "
            f"{len(models_b)} of depths {sorted(depths)}; give one model of each kind a seed, in the same order."
        )
    n_seeds, layers = len(models_a), range(min(depths) - 1)
    next_a, next_b = ([*models[1:], models[0]] for models in (models_a, models_b))
    pairs = ((models_a, models_b), (models_b, models_a), (models_a, models_a), (models_b, models_b),
             (next_a, models_a), (next_b, models_b))  # fmt: skip
    penalties = torch.full((len(STITCHES), n_seeds, len(layers)), torch.nan, dtype=torch.float64)
    n_tokens = 0
    places = list(product(range(len(pairs)), range(n_seeds), layers))
    for kind, seed, layer in tqdm(places, desc="stitches", unit="stitch", disable=not show_progress):
        head, tail = (models[seed] for models in pairs[kind])
        found = stitch(
            head, layer, tail, layer, data, map=map, fit=fit, held_out=held_out_data, fit_options=fit_options,
            text_options=text_options, show_progress=False,
        )  # fmt: skip
        penalties[kind, seed, layer] = found.penalty.nats
        n_tokens = found.penalty.n_tokens
    return StitchingAsymmetry(names, penalties, map, fit, n_tokens)
