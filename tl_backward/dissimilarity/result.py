"""Comparison, the result of `compare`: each measure of each pair of layers, and the samples behind it."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.checks import nearest
from tl_backward._support.html import Cell, table
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame
from tl_backward.dissimilarity.measures.registry import get_measure
from tl_backward.dissimilarity.options import Estimator, Sample
from tl_backward.dissimilarity.plan import MemoryPlan
from tl_backward.dissimilarity.summary import Alike, comparison_sentence
from tl_backward.text.token_strings import text_frame

_NO_CONTROL = Absent("untrained networks", "ask for them with run_options=RunOptions(control='random_init')")


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Shown):
    """Every measure of every layer of A against every layer of B, with its uncertainty and what chance gives."""

    _report = "compare_report"

    measures: tuple[str, ...]
    layers_a: tuple[str, ...]
    """Labels of A's points: "L3", "L3H5", or full hook names."""
    layers_b: tuple[str, ...]
    values: Float[Tensor, "measure layer_a layer_b"]
    standard_errors: Float[Tensor, "measure layer_a layer_b"]
    """Delete-batch jackknife; NaN where it was switched off or there are fewer than two batches."""
    null_means: Float[Tensor, "measure layer_a layer_b"]
    """The measure's mean over all pairings of the samples, in closed form; NaN where none is known."""
    permutation_means: Float[Tensor, "measure layer_a layer_b"]
    """Its mean over `n_permutations` random pairings of `n_permuted` samples; NaN where that was switched off."""
    permutation_deviations: Float[Tensor, "measure layer_a layer_b"]
    """Its standard deviation over them."""
    computed_from: tuple[str, ...]
    """For each measure: what it was taken from, in words."""
    estimator: Estimator
    """How CKA was estimated."""
    sample: Sample
    """What one sample is: a token, a text's last token, or a text's mean."""
    n_samples: int
    n_texts: int
    n_batches: int
    n_groups: int
    """Groups of batches that the jackknife left out in turn."""
    n_sampled: int
    """Samples kept for measures that need samples, and for permutations."""
    n_permuted: tuple[int, ...]
    """For each measure: how many of them were permuted. A biased measure's null falls with the number of samples, so
    that only a null over as many as the value's own stands beside it."""
    n_permutations: int
    first_excluded: bool
    """Whether position 0 was left out."""
    first_share: tuple[Float[Tensor, "layer_a"], Float[Tensor, "layer_b"]]
    """How much of each layer's sum |x|^2 the tokens at position 0 make up (A's layers, B's)."""
    aligned: Literal["tokens", "characters"]
    coverage: tuple[float, float]
    """Share of A's and of B's own tokens (padding apart) that became samples."""
    unknown: tuple[float, float]
    """Share of A's and of B's tokens that are the unknown token."""
    n_truncated: int
    """Texts that were cut at the context's end."""
    n_empty: int
    """Empty texts, which were left out."""
    plan: MemoryPlan
    seed: int
    untrained: "Float[Tensor, 'draw measure layer_a layer_b'] | Absent" = _NO_CONTROL
    """`values` of pairs of untrained networks of the same configurations; false where there are none."""

    def __repr__(self) -> str:
        shape = f"{len(self.layers_a)} x {len(self.layers_b)} layers"
        return (
            f"Comparison({', '.join(self.measures)}; {shape}; {self.n_samples} samples ({self._sample_words()}) of "
            f"{self.n_texts} texts, aligned by {self.aligned})"
        )

    def summary(self, names: tuple[str, str] = ("A", "B")) -> str:
        """In one sentence: how well layers correspond by the first measure, how clearly, beside chance and the control.

        Args:
            names: what A and B are called.
        """
        name = self.measures[0]
        closed, drawn = self.null_means[0], self.permutation_means[0]
        chance = closed if bool(closed.isfinite().all()) else drawn
        entry = get_measure(name)
        found = Alike(
            name, self.values[0], entry.kind == "similarity", self.standard_errors[0], chance,
            self.permutation_deviations[0], self.n_permutations,
            None if isinstance(self.untrained, Absent) else self.untrained[:, 0],
        )  # fmt: skip
        return comparison_sentence(found, self.layers_a, self.layers_b, names)

    def __getitem__(self, measure: str) -> Float[Tensor, "layer_a layer_b"]:
        """One measure's values; its name in upper or lower case."""
        return self.values[self.index(measure)]

    def index(self, measure: str) -> int:
        """Where a measure stands among `measures`, by its name in upper or lower case.

        Raises:
            KeyError: it was not computed.
        """
        if str(measure).lower() not in self.measures:
            raise KeyError(
                f"Expected a measure that was computed, got {measure!r}; nearest to it: "
                f"{nearest(str(measure), self.measures)}."
            )
        return self.measures.index(str(measure).lower())

    def to_frame(self) -> DataFrame:
        """One row a measure and pair of layers: value, standard error, nulls, control, and what it was taken from.

        `untrained_mean`, `untrained_low` and `untrained_high` are over the control's draws, NaN without.
        """
        mean, low, high = self.untrained_range()
        return text_frame(
            {
                "measure": measure,
                "layer_a": a,
                "layer_b": b,
                "value": float(self.values[m, i, j]),
                "standard_error": float(self.standard_errors[m, i, j]),
                "null_mean": float(self.null_means[m, i, j]),
                "permutation_mean": float(self.permutation_means[m, i, j]),
                "permutation_deviation": float(self.permutation_deviations[m, i, j]),
                "n_permuted": self.n_permuted[m],
                "untrained_mean": float(mean[m, i, j]),
                "untrained_low": float(low[m, i, j]),
                "untrained_high": float(high[m, i, j]),
                "computed_from": self.computed_from[m],
                "estimator": self.estimator if measure == "cka" else "full",
                "sample": self.sample,
                "n_samples": self.n_samples,
                "first_excluded": self.first_excluded,
            }
            for m, measure in enumerate(self.measures)
            for i, a in enumerate(self.layers_a)
            for j, b in enumerate(self.layers_b)
        )

    def untrained_range(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, least and most of the control's draws, [measure, layer_a, layer_b] each; NaN without a control."""
        if isinstance(self.untrained, Absent):
            none = self.values.new_full(self.values.shape, math.nan)
            return none, none, none
        return self.untrained.mean(0), self.untrained.amin(0), self.untrained.amax(0)

    def _repr_html_(self) -> str:
        """A static table a measure: layers of A down, of B across, standard errors beside the values."""
        parts = []
        for m, measure in enumerate(self.measures):
            rows = [
                [
                    Cell(f"{float(value):.3f} \N{PLUS-MINUS SIGN} {float(error):.3f}", value=float(value))
                    for value, error in zip(values, errors, strict=True)
                ]
                for values, errors in zip(self.values[m], self.standard_errors[m], strict=True)
            ]
            caption = f"{measure}, {self.computed_from[m]}; {self.n_samples} samples ({self._sample_words()})"
            parts.append(
                table(
                    list(self.layers_b),
                    rows,
                    row_names=list(self.layers_a),
                    caption=caption,
                    corner="A \N{RIGHTWARDS ARROW} B",
                    bound=float(self.values[m].abs().max()) or 1.0,
                )
            )
        return "".join(parts)

    def _sample_words(self) -> str:
        words = {"token": "every token", "last": "each text's last token", "mean": "each text's mean"}[self.sample]
        return f"{words}, position 0 {'left out' if self.first_excluded else 'included'}"
