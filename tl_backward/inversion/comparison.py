"""What each site along the network knows: one query, many sites and positions, one table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tl_backward._support.html import Cell, table
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion._old_calls import old_options
from tl_backward.inversion.activations import batches, progress
from tl_backward.inversion.distances import distances
from tl_backward.inversion.features import LEVEL, Feature, FeatureTable, common_features
from tl_backward.inversion.options import EPSILON, TEXTS, Closeness, check_text_options
from tl_backward.inversion.positions import NOWHERE, Position
from tl_backward.inversion.preimage import Preimage, Valid, assemble
from tl_backward.inversion.query import QueryLike, read_query
from tl_backward.inversion.scoring import Scores, allowed_positions, smallest
from tl_backward.model.place import Places
from tl_backward.text.encoded import Inputs, encode
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False, eq=False)
class SiteComparison:
    """The preimages of one query at several sites and positions, within one set of inputs."""

    preimages: tuple[Preimage, ...]
    """By site, then by position."""
    features: tuple[FeatureTable, ...]
    """What each one keeps."""

    def __repr__(self) -> str:
        sites = len({preimage.site for preimage in self.preimages})
        return f"SiteComparison({len(self.preimages)} preimages at {sites} sites, {len(self._names)} features)"

    @property
    def _names(self) -> list[str]:
        return sorted(row.feature for row in self.features[0].rows)

    def to_frame(self) -> "pandas.DataFrame":
        """One row a site, position and feature: share_inside, n_inside, rate, low, high, prior, bits."""
        return text_frame(
            {
                "site": str(preimage.site),
                "position": preimage.position,
                "share_inside": preimage.diagnostics.share_inside,
                "n_inside": int(preimage.inside.sum()),
                "feature": name,
                "rate": features[name].rate.value,
                "low": features[name].rate.low,
                "high": features[name].rate.high,
                "prior": (features[name].prior or features[name].rate).value,
                "bits": features[name].bits,
            }
            for preimage, features in zip(self.preimages, self.features, strict=True)
            for name in self._names
        )

    def _repr_html_(self) -> str:
        """A static table: sites down, the share of the preimage that keeps each feature across, darker for more."""
        rows = []
        for preimage, features in zip(self.preimages, self.features, strict=True):
            rates = [features[name].rate for name in self._names]
            cells = [Cell(str(rate), value=None if math.isnan(rate.value) else rate.value) for rate in rates]
            rows.append([preimage.position, int(preimage.inside.sum()), preimage.diagnostics.share_inside, *cells])
        first = self.preimages[0]
        caption = f"{first.query.text}: share of the preimage within {first.epsilon:g} that keeps the query's value"
        columns = ["position", "inside", "share inside", *self._names]
        names = [str(preimage.site) for preimage in self.preimages]
        return table(columns, rows, row_names=names, caption=caption, corner="site", bound=1.0, limit=40)


class _Once:
    """A feature that is asked once of each text, however many sites there are."""

    def __init__(self, feature: Feature) -> None:
        self._feature, self._known = feature, {}

    def __call__(self, text: str) -> object:
        if text not in self._known:
            self._known[text] = self._feature(text)
        return self._known[text]


@old_options
def compare_sites(
    model: TransformerLensModel,
    query: QueryLike,
    sites: Places,
    positions: Position | Sequence[Position] = -1,
    *,
    inputs: Inputs,
    features: Mapping[str, Feature],
    exact: bool = False,
    epsilon: float | Closeness = EPSILON,
    valid: Valid | None = None,
    level: float = LEVEL,
    text_options: TextOptions = TEXTS,
    show_progress: bool = True,
) -> SiteComparison:
    """The query's preimage at every site and position, and what each keeps, in one pass over the inputs.

    Args:
        model: the probed model.
        query: a text, or its tokens [pos].
        sites: one or a list; see `resolve_place`.
        positions: of the query, one or several; every site is asked at each.
        inputs: what is looked through at every site: a domain, or a pool drawn from the task's prior.
        features: name -> feature; see `feature_consistency`. All inputs are the prior that rates are beside.
        exact: whether `inputs` is the whole domain, whose rates are exact and need no interval.
        epsilon: the threshold on D, or a `Closeness`.
        valid: as for `preimage_of`.
        level: of confidence.
        text_options: batch size, and whether texts begin with BOS.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: as for `preimage_of`; no position; or a feature that raises.

    Example:
        >>> adder = tlb.zoo.load("addition")
        >>> domain = [f"{left}+157=" for left in range(200, 300)]
        >>> features = {"tens": lambda text: text[1]}
        >>> same = tlb.inversion.Closeness(match="same")
        >>> c = tlb.inversion.compare_sites(
        ...     adder, "234+157=", ("result", 0, 3), inputs=domain, features=features, epsilon=same
        ... )
        >>> c.features[0]["tens"].rate.value  # this head carries the tens
        1.0
    """
    closeness, bos = Closeness.of(epsilon), text_options.prepend_bos
    check_text_options(text_options)
    rules = list(positions) if isinstance(positions, Sequence) and not isinstance(positions, str) else [positions]
    if not rules:
        raise ValueError("Expected at least one position, got an empty list; for example [-1].")
    reader = PlaceReader(model, sites)
    queries = [read_query(model, query, site, rule, prepend_bos=bos) for site in reader.places for rule in rules]
    texts = encode(model, inputs, prepend_bos=bos)
    n = len(texts)
    found = [Scores(torch.full((n,), torch.inf, dtype=torch.float64), torch.full((n,), NOWHERE)) for _ in queries]
    allowed = [allowed_positions(texts, query, closeness.match) for query in queries]
    parts = batches(texts, None, text_options.batch_size)
    for part in progress(parts, n, text_options.batch_size, show_progress):
        values = reader(part.tokens, part.text, part.at, lengths=part.lengths)
        for asked, scores, at in zip(queries, found, allowed, strict=True):
            each = distances(values[asked.site], asked.activation.to(values[asked.site]), closeness.metric).cpu()
            if at is not None:
                each = torch.where(part.at == at[part.index[part.text]], each, torch.inf)
            scores.distances[part.index], best = smallest(part, each)
            scores.best_positions[part.index] = best if at is None else at[part.index]
    preimages = tuple(
        assemble(
            asked, closeness, texts, scores, "enumeration" if exact else "pool", valid=valid,
            chance=float((scores.distances <= closeness.epsilon).double().mean()),
        )
        for asked, scores in zip(queries, found, strict=True)
    )  # fmt: skip
    once = {name: _Once(feature) for name, feature in features.items()}
    tables = tuple(common_features(preimage, once, prior=texts.texts, level=level) for preimage in preimages)
    return SiteComparison(preimages, tables)
