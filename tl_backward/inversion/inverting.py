"""Preimages of one query at many sites and positions, in one set of inputs or by whichever method fits best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

from tl_backward._support.html import table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion._old_calls import old_options
from tl_backward.inversion.decoder import Decoder
from tl_backward.inversion.enumeration import exact_scored
from tl_backward.inversion.features import LEVEL, Feature, FeatureTable, common_features
from tl_backward.inversion.options import (
    EPSILON,
    TEXTS,
    Closeness,
    InversionOptions,
    SearchOptions,
    Way,
    check_text_options,
)
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, Valid, assemble, nearest_scored
from tl_backward.inversion.query import Query, QueryLike, Scores, read_query, score
from tl_backward.inversion.search import search_preimage
from tl_backward.inversion.shipped import names
from tl_backward.inversion.site_reading import SiteReading, read_preimage
from tl_backward.inversion.summary import Known, known_sentence
from tl_backward.inversion.tasks import Task
from tl_backward.model.place import Places, resolve_places
from tl_backward.text.encoded import Encoded, Inputs, encode, encode_starts
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_frame

_CHAINS, _STEPS = 64, 400  # of a search


@dataclass(frozen=True, repr=False, eq=False)
class SiteComparison(Saved):
    """The preimages of one query at several sites and positions, within one set of inputs."""

    preimages: tuple[Preimage, ...]
    """By site, then by position."""
    features: tuple[FeatureTable, ...]
    """What each one keeps."""

    def __repr__(self) -> str:
        sites = len({preimage.site for preimage in self.preimages})
        return f"SiteComparison({len(self.preimages)} preimages at {sites} sites, {len(self._names)} features)"

    def summary(self) -> str:
        """In one sentence: what each place keeps of the query, the most telling first."""
        return known_sentence([Known.of(*each) for each in zip(self.preimages, self.features, strict=True)])

    @property
    def _names(self) -> list[str]:
        return sorted(row.feature for row in self.features[0].rows)

    def to_frame(self) -> DataFrame:
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
        rows = [
            [
                preimage.position,
                int(preimage.inside.sum()),
                preimage.diagnostics.share_inside,
                *(features[name].rate.cell for name in self._names),
            ]
            for preimage, features in zip(self.preimages, self.features, strict=True)
        ]
        first = self.preimages[0]
        caption = f"{first.query.text}: share of the preimage within {first.epsilon:g} that keeps the query's value"
        return table(
            ["position", "inside", "share inside", *self._names], rows,
            row_names=[str(preimage.site) for preimage in self.preimages], caption=caption, corner="site", bound=1.0,
            limit=40,
        )  # fmt: skip


@public
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

    Examples:
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
    rules = _as_list(positions)
    reader = PlaceReader(model, sites)
    queries = [read_query(model, query, site, rule, prepend_bos=bos) for site in reader.places for rule in rules]
    texts = encode(model, inputs, prepend_bos=bos)
    every = score(reader, texts, queries, closeness, text_options.batch_size, show_progress=show_progress)
    return _compared(queries, closeness, texts, every, features, exact=exact, valid=valid, level=level)


def _compared(
    queries: Sequence[Query],
    closeness: Closeness,
    texts: Encoded,
    every: Sequence[Scores],
    features: Mapping[str, Feature],
    *,
    exact: bool = False,
    valid: Valid | None = None,
    level: float = LEVEL,
) -> SiteComparison:
    """Queries beside each other within texts whose distances from each are known."""
    preimages = tuple(
        assemble(
            asked, closeness, texts, scores, "enumeration" if exact else "pool", valid=valid,
            chance=scores.share_within(closeness.epsilon),
        )
        for asked, scores in zip(queries, every, strict=True)
    )  # fmt: skip
    once = {name: cache(feature) for name, feature in features.items()}
    tables = tuple(common_features(preimage, once, prior=texts.texts, level=level) for preimage in preimages)
    return SiteComparison(preimages, tables)


@dataclass(frozen=True, repr=False, eq=False)
class Inversion(Shown):
    """What the activations of one query know; `render.invert_report` makes a page of it."""

    readings: tuple[SiteReading, ...]
    """By site, then by position."""
    comparison: SiteComparison | None
    """Every site at every token of the query, among the pool; None where it was left out."""

    def summary(self) -> str:
        """In one sentence: what the activations keep of the query, the most telling place first."""
        return known_sentence([each.known() for each in self.readings])

    def to_frame(self) -> DataFrame:
        """One row a text of each reading: site, asked_at (in the query), and the columns of `Preimage.to_frame`."""
        import pandas

        frames = []
        for reading in self.readings:
            frame = reading.to_frame()
            frame.insert(0, "site", str(reading.preimage.site))
            frame.insert(1, "asked_at", reading.preimage.position)
            frames.append(frame)
        return pandas.concat(frames, ignore_index=True)

    def page(self, **options: object) -> Any:  # a `render.Page`
        """The page of all readings and the comparison; options are those of `render.invert_report`."""
        report = import_module("tl_backward.render").invert_report
        return report(self.readings, **{"comparison": self.comparison} | options)

    def _repr_html_(self) -> str:
        """The static tables of the readings, one below the other."""
        return "".join(reading._repr_html_() for reading in self.readings)

    def __repr__(self) -> str:
        return f"Inversion({len(self.readings)} readings, first {self.readings[0]!r})"


@public
def invert(
    model: TransformerLensModel,
    query: QueryLike,
    sites: Places | None,
    positions: Position | Sequence[Position],
    task: Task,
    *,
    decoder: Decoder | None = None,
    options: InversionOptions = InversionOptions(),
    epsilon: float | Closeness = EPSILON,
    text_options: TextOptions = TEXTS,
    compared: bool = True,
    show_progress: bool = True,
) -> Inversion:
    """Find and read the preimage of a query's activation at every site and position, the best way that there is.

    Beside each stand the nearest inputs of a pool drawn from the task and, of few inputs, the exact preimage.

    Args:
        model: the probed model.
        query: a text, or its tokens [pos].
        sites: one or a list; see `resolve_place`. None for the decoder's where it is used, else the residual stream
            after every layer.
        positions: of the query, one or several; every site is asked at each.
        task: where inputs come from and what they may share: `task_of` a model of the zoo, or `task_of_texts`.
        decoder: of this model; what it adds to each token's probability is read too at the sites that it knows.
        options: which way, how many texts, the seed.
        epsilon: the threshold on D, or a `Closeness`.
        text_options: batch size, BOS, and as max_tokens where given texts are cut; a task's own inputs are whole.
        compared: also compare the sites at every token of the query.
        show_progress: draw progress bars.

    Raises:
        ValueError: a method that needs a decoder, or a finite task, where there is none; and as for `preimage_of`.

    Examples:
        >>> task = tlb.inversion.task_of("facts")
        >>> few = tlb.inversion.InversionOptions(n=20, n_pool=50)
        >>> found = tlb.inversion.invert(
        ...     model, "Anna Berg lives in the city of", ("resid_post", 3), -1, task, options=few, epsilon=0.4
        ... )
        >>> found.readings[0].preimage.method
        'enumeration'
    """
    closeness, read = Closeness.of(epsilon), replace(text_options, max_tokens=None)
    check_text_options(read)
    way = options.method or _usual_way(model, sites, task, decoder)
    _check_way(way, task, decoder)
    known = list(decoder.sites) if sites is None and way == "decoder" and decoder is not None else None
    chosen = resolve_places(model, known or sites or "resid_post")
    pool = _encoded(model, task.draw(options.n_pool, options.seed), task, text_options)
    all_inputs = task.domain if way == "enumerate" or task.is_small else None
    domain = None if all_inputs is None else _encoded(model, all_inputs(), task, text_options)
    rules, bos = _as_list(positions), text_options.prepend_bos
    asked = [read_query(model, query, site, rule, prepend_bos=bos) for site, rule in product(chosen, rules)]
    beside: list[Query] = []
    if compared:
        tokens = asked[0].tokens
        start = 1 if int(tokens[0]) == getattr(model.tokenizer, "bos_token_id", None) else 0
        each = product(chosen, range(start, len(tokens)))
        beside = [read_query(model, query, site, at, prepend_bos=bos) for site, at in each]
    reader, size = PlaceReader(model, chosen), text_options.batch_size
    # One pass over the pool serves every site, position and the comparison; one over the domain all exact preimages.
    scored = score(reader, pool, [*asked, *beside], closeness, size, show_progress=show_progress)
    exacts: list[Preimage | None] = [None] * len(asked)
    if domain is not None:
        every = score(reader, domain, asked, closeness, size, show_progress=show_progress)
        pairs = zip(asked, every, strict=True)
        exacts = [exact_scored(about, closeness, domain, scores, task.valid) for about, scores in pairs]
    readings: list[SiteReading] = []
    for about, scores, exact in zip(asked, scored, exacts, strict=False):  # those of the comparison come behind
        near = nearest_scored(about, closeness, pool, scores, options.n, task.valid)
        if way == "decoder" and decoder is not None:
            found = decoder.preimage(
                about, n=options.n, epsilon=closeness, prior=pool, seed=options.seed, show_progress=show_progress
            )
        elif way == "search":
            chains = min(_CHAINS, options.n)
            thin = max(1, chains * (_STEPS // 2) // options.n)
            walks = SearchOptions(chains, _STEPS, thin=thin, token_edits=task.edits)
            found = search_preimage(
                model, about, about.site, about.rule, pool, search_options=walks, valid=task.valid, epsilon=closeness,
                seed=options.seed, text_options=read, show_progress=show_progress,
            )  # fmt: skip
        else:
            found = near if exact is None or way == "pool" else exact
        readings.append(read_preimage(
            model, found, features=task.features, prior=pool.texts, retrieval=None if found is near else near,
            exact=None if found is exact else exact,
            decoder=decoder if decoder is not None and about.site in decoder.sites else None,
        ))  # fmt: skip
    comparison = _compared(beside, closeness, pool, scored[len(asked) :], task.features) if compared else None
    return Inversion(tuple(readings), comparison)


def _usual_way(model: TransformerLensModel, sites: Places | None, task: Task, decoder: Decoder | None) -> Way:
    """The method where none is given: the decoder if it knows the sites, else what the task's inputs allow."""
    asked = [] if sites is None else resolve_places(model, sites)
    if decoder is not None and all(site in decoder.sites for site in asked):
        return "decoder"
    return "pool" if task.given else "enumerate" if task.is_small else "search"


def _check_way(way: Way, task: Task, decoder: Decoder | None) -> None:
    """Refuse a method that needs a decoder, or a finite task, where there is none."""
    if way == "decoder" and decoder is None:
        raise ValueError(
            f"Expected a model whose decoder ships ({', '.join(names())}) or a decoder of your own with method "
            "'decoder', got none; train one, or use method 'search'."
        )
    if way == "enumerate" and task.domain is None:
        raise ValueError(
            f"Expected a task of finitely many inputs with method 'enumerate', got {task.name!r}; use method "
            "'search', or give all inputs you mean as texts."
        )


def _encoded(model: TransformerLensModel, inputs: Iterable[str], task: Task, options: TextOptions) -> Encoded:
    """A task's inputs as tokens; texts that the user gave are cut to `max_tokens`."""
    if task.given:
        return encode_starts(model, list(inputs), options.max_tokens, prepend_bos=options.prepend_bos)
    return encode(model, inputs, prepend_bos=options.prepend_bos)


def _as_list(positions: Position | Sequence[Position]) -> list[Position]:
    rules = list(positions) if isinstance(positions, Sequence) and not isinstance(positions, str) else [positions]
    if not rules:
        raise ValueError("Expected at least one position, got an empty list; for example [-1].")
    return rules
