"""SiteReading: an activation's preimage, its nearest texts token by token, common features, and baselines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.inversion.activations import collect
from tl_backward.inversion.features import LEVEL, Feature, FeatureTable, common_features, compare_with_exact
from tl_backward.inversion.preimage import Preimage
from tl_backward.inversion.query import Query, distances
from tl_backward.inversion.summary import Known, known_sentence
from tl_backward.text.encoded import Inputs

N_SHOWN = 16


@runtime_checkable
class TokenReader(Protocol):
    """A decoder: anything that says how probable each token is with z and without."""

    def token_probabilities(
        self, texts: Inputs, query: Query
    ) -> tuple[Float[Tensor, "text pos"], Float[Tensor, "text pos"]]:
        """Each token's probability after those before it, given z and given no information; NaN for BOS."""
        ...


@dataclass(frozen=True)
class ShownText(Saved):
    """One text of a preimage, token by token."""

    index: int
    """Which of the preimage's texts it is."""
    strings: tuple[str, ...]
    """Its tokens as they read, raw."""
    distances: Float[Tensor, "pos"]
    """D of each token's activation from the query's."""
    conditional: Float[Tensor, "pos"] | None = None
    """p(token | those before it, z) of the decoder; NaN for BOS."""
    unconditional: Float[Tensor, "pos"] | None = None
    """p(token | those before it), given no information."""

    @property
    def shading(self) -> Float[Tensor, "pos"] | None:
        """Conditional minus unconditional probability: which tokens z speaks for (Huang et al. 2024)."""
        return None if self.conditional is None or self.unconditional is None else self.conditional - self.unconditional


@dataclass(frozen=True, repr=False, eq=False)
class SiteReading(Shown):
    """What one site at one position knows of the query, as a page shows it."""

    _report = "invert_report"

    preimage: Preimage
    inside: tuple[ShownText, ...]
    """Different texts within epsilon, nearest first."""
    outside: tuple[ShownText, ...]
    """Different texts that are not, nearest first."""
    features: FeatureTable | None
    """Hypotheses of what the texts within share, ranked."""
    retrieval: Preimage | None
    """The baseline: the nearest inputs of a pool."""
    retrieval_features: FeatureTable | None
    """What those within epsilon keep."""
    exact: Preimage | None
    """All inputs of a finite domain within epsilon, where it was enumerated."""
    exact_features: FeatureTable | None
    """What the exact preimage keeps."""

    def known(self) -> Known:
        """What the summary says of this site."""
        return Known.of(self.preimage, self.features)

    def summary(self) -> str:
        """In one sentence: which features of the query the activation keeps, beside how often other texts have them.

        A feature counts as kept where at least 95 % of the texts within epsilon have the query's value, and its
        interval lies above that of the prior.
        """
        return known_sentence([self.known()])

    def to_frame(self) -> DataFrame:
        """The preimage's frame: one row a text."""
        return self.preimage.to_frame()

    def _repr_html_(self) -> str:
        """The static table of what the texts within share; of the texts where no feature was asked about."""
        return (self.features or self.preimage)._repr_html_()

    def __repr__(self) -> str:
        beside = [name for name in ("retrieval", "exact") if getattr(self, name) is not None]
        return f"SiteReading({self.preimage!r}{', beside ' + ' and '.join(beside) if beside else ''})"


@public
def read_preimage(
    model: TransformerLensModel,
    preimage: Preimage,
    *,
    features: Mapping[str, Feature] | None = None,
    prior: Iterable[str] | None = None,
    retrieval: Preimage | None = None,
    exact: Preimage | None = None,
    decoder: TokenReader | None = None,
    n_shown: int = N_SHOWN,
    level: float = LEVEL,
) -> SiteReading:
    """Prepare a preimage for a page: its nearest texts token by token, the hypotheses, and what it is compared with.

    Args:
        model: the probed model.
        preimage: however it was found.
        features: name -> hypothesis; see `common_features`.
        prior: texts drawn from the task, for the hypotheses' rates without z.
        retrieval: the nearest inputs of a pool, from `pool_preimage`, of the same question.
        exact: from `enumerate_preimage`, of the same question; recall and total variation are then added.
        decoder: of this site; it colours tokens by what z adds to their probability, whoever wrote them.
        n_shown: texts on each side.
        level: of confidence.

    Raises:
        ValueError: n_shown < 1; another question in `exact`; a decoder that does not know the site; a feature that
            raises.
    """
    check_at_least_one("n_shown", n_shown, f"{N_SHOWN} is the default")
    if exact is not None and preimage.method != "enumeration":
        preimage = compare_with_exact(preimage, exact, features)
    texts = None if prior is None else list(prior)
    table, near, truth = (
        common_features(each, features, prior=texts, level=level) if features and each is not None else None
        for each in (preimage, retrieval, exact)
    )
    inside, outside = (_shown(model, preimage, _nearest(preimage, side, n_shown), decoder) for side in (True, False))
    return SiteReading(preimage, inside, outside, table, retrieval, near, exact, truth)


def _nearest(preimage: Preimage, inside: bool, n: int) -> list[int]:
    """The nearest texts on one side, each once; those without the position are nowhere near."""
    chosen: dict[tuple[int, ...], int] = {}
    for index in preimage.distances.argsort(stable=True).tolist():
        if len(chosen) == n:
            break
        if bool(preimage.inside[index]) == inside and torch.isfinite(preimage.distances[index]):
            chosen.setdefault(tuple(preimage.inputs.row(index)), index)
    return list(chosen.values())


def _shown(
    model: TransformerLensModel, preimage: Preimage, indices: list[int], decoder: TokenReader | None
) -> tuple[ShownText, ...]:
    if not indices:
        return ()
    texts, site = preimage.inputs.select(torch.tensor(indices)), preimage.site
    values = collect(model, texts.tokens, site, mask=texts.mask, show_progress=False)[site]
    each = distances(values, preimage.query.activation.to(values), preimage.metric)
    known = [each, *(() if decoder is None else decoder.token_probabilities(texts, preimage.query))]
    return tuple(
        ShownText(index, tuple(texts.strings(row)), *(values[row, :length] for values in known))
        for row, (index, length) in enumerate(zip(indices, texts.lengths.tolist(), strict=True))
    )
