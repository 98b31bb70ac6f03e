"""One query asked at many sites and positions: which way to its preimages, from which inputs, beside what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion.comparison import SiteComparison, compare_sites
from tl_backward.inversion.decoder import Decoder
from tl_backward.inversion.enumeration import enumerate_preimage
from tl_backward.inversion.options import EPSILON, INVERSION, TEXTS, Closeness, InversionOptions, SearchOptions, Way
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage
from tl_backward.inversion.proposals import pool_preimage
from tl_backward.inversion.query import QueryLike
from tl_backward.inversion.search import search_preimage
from tl_backward.inversion.shipped import names
from tl_backward.inversion.site_reading import SiteReading, read_preimage
from tl_backward.inversion.tasks import Task
from tl_backward.model.place import Place, Places, resolve_places
from tl_backward.text.encoded import Encoded, encode, encode_starts
from tl_backward.text.options import TextOptions

_CHAINS, _STEPS = 64, 400  # of a search


@dataclass(frozen=True, repr=False, eq=False)
class Inversion:
    """What the activations of one query know; `render.invert_report` makes a page of it."""

    readings: tuple[SiteReading, ...]
    """By site, then by position."""
    comparison: SiteComparison | None
    """Every site at every token of the query, among the pool; None where it was left out."""

    def __repr__(self) -> str:
        return f"Inversion({len(self.readings)} readings, first {self.readings[0]!r})"


def invert(
    model: TransformerLensModel,
    query: QueryLike,
    sites: Places | None,
    positions: Position | Sequence[Position],
    task: Task,
    *,
    decoder: Decoder | None = None,
    options: InversionOptions = INVERSION,
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

    Example:
        >>> task = tlb.inversion.task_of("facts")
        >>> few = tlb.inversion.InversionOptions(n=20, n_pool=50)
        >>> found = tlb.inversion.invert(
        ...     model, "Anna Berg lives in the city of", ("resid_post", 3), -1, task, options=few, epsilon=0.4
        ... )
        >>> found.readings[0].preimage.method
        'enumeration'
    """
    asked = _Asked(model, task, decoder, options, Closeness.of(epsilon), text_options, show_progress)
    way = options.method or asked.usual_way(sites)
    asked.check(way)
    known = list(decoder.sites) if sites is None and way == "decoder" and decoder is not None else None
    chosen = resolve_places(model, known or sites or "resid_post")
    rules = list(positions) if isinstance(positions, Sequence) and not isinstance(positions, str) else [positions]
    pool = asked.encoded(task.draw(options.n_pool, options.seed))
    readings = tuple(asked.read(query, site, rule, pool, way) for site in chosen for rule in rules)
    if not compared:
        return Inversion(readings, None)
    tokens = readings[0].preimage.query.tokens
    start = 1 if int(tokens[0]) == getattr(model.tokenizer, "bos_token_id", None) else 0
    comparison = compare_sites(
        model, query, chosen, list(range(start, len(tokens))), inputs=pool, features=task.features,
        epsilon=asked.closeness, text_options=asked.read_options, show_progress=show_progress,
    )  # fmt: skip
    return Inversion(readings, comparison)


@dataclass(frozen=True)
class _Asked:
    """What is the same at all sites and positions."""

    model: TransformerLensModel
    task: Task
    decoder: Decoder | None
    options: InversionOptions
    closeness: Closeness
    text_options: TextOptions
    show_progress: bool

    @property
    def read_options(self) -> TextOptions:
        """For inputs that are cut already."""
        return replace(self.text_options, max_tokens=None)

    def usual_way(self, sites: Places | None) -> Way:
        """The one that says most of these sites at little cost."""
        asked = [] if sites is None else resolve_places(self.model, sites)
        if self.decoder is not None and all(site in self.decoder.sites for site in asked):
            return "decoder"
        return "pool" if self.task.given else "enumerate" if self.task.is_small else "search"

    def check(self, way: Way) -> None:
        """Refuse early what no site could answer."""
        if way == "decoder" and self.decoder is None:
            raise ValueError(
                f"Expected a model whose decoder ships ({', '.join(names())}) or a decoder of your own with method "
                "'decoder', got none; train one, or use method 'search'."
            )
        if way == "enumerate" and self.task.domain is None:
            raise ValueError(
                f"Expected a task of finitely many inputs with method 'enumerate', got {self.task.name!r}; use method "
                "'search', or give all inputs you mean as texts."
            )

    def encoded(self, inputs: Iterable[str]) -> Encoded:
        """A task's own inputs whole, given texts cut."""
        o = self.text_options
        if self.task.given:
            return encode_starts(self.model, list(inputs), o.max_tokens, prepend_bos=o.prepend_bos)
        return encode(self.model, inputs, prepend_bos=o.prepend_bos)

    def read(self, query: QueryLike, site: Place, position: Position, pool: Encoded, way: Way) -> SiteReading:
        """The preimage at one site and position, beside retrieval and, of few inputs, the exact one."""
        task, decoder = self.task, self.decoder
        near = pool_preimage(
            self.model, query, site, position, pool, n=self.options.n, epsilon=self.closeness, valid=task.valid,
            text_options=self.read_options, show_progress=self.show_progress,
        )  # fmt: skip
        found, exact = near, None
        if task.domain is not None and (way == "enumerate" or task.is_small):
            exact = enumerate_preimage(
                self.model, near.query, site, position, self.encoded(task.domain()), epsilon=self.closeness,
                valid=task.valid, text_options=self.read_options, show_progress=self.show_progress,
            )  # fmt: skip
        if way == "enumerate" and exact is not None:
            found, exact = exact, None
        elif way != "pool":
            found = self._drawn(near, pool, way)
        return read_preimage(
            self.model, found, features=task.features, prior=pool.texts, retrieval=None if found is near else near,
            exact=exact, decoder=decoder if decoder is not None and site in decoder.sites else None,
        )  # fmt: skip

    def _drawn(self, near: Preimage, pool: Encoded, way: Way) -> Preimage:
        n, seed = self.options.n, self.options.seed
        if way == "decoder" and self.decoder is not None:
            return self.decoder.preimage(
                near.query, n=n, epsilon=self.closeness, prior=pool, seed=seed, show_progress=self.show_progress
            )
        chains = min(_CHAINS, n)
        walks = SearchOptions(chains, _STEPS, thin=max(1, chains * (_STEPS // 2) // n), token_edits=self.task.edits)
        return search_preimage(
            self.model, near.query, near.site, near.query.rule, pool, search_options=walks, seed=seed,
            epsilon=self.closeness, valid=self.task.valid, text_options=self.read_options,
            show_progress=self.show_progress,
        )  # fmt: skip
