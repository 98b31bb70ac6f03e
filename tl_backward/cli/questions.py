"""How `tl-backward invert` finds a preimage: which way, from which inputs, beside what."""

import argparse
import sys
from functools import cached_property

from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion import (
    Closeness,
    Decoder,
    Preimage,
    SearchOptions,
    SiteReading,
    Task,
    enumerate_preimage,
    load,
    names,
    pool_preimage,
    read_preimage,
    resolve_place,
    search_preimage,
)
from tl_backward.inversion.positions import Position
from tl_backward.model.place import PlaceLike
from tl_backward.text.encoded import Encoded, encode, encode_starts

_CHAINS, _STEPS = 64, 400  # of a search


class Questions:
    """One prompt asked at many sites and positions, the pool and the decoder shared."""

    def __init__(self, model: TransformerLensModel, name: str, task: Task, arguments: argparse.Namespace) -> None:
        """Refuse early what no site could answer.

        Raises:
            ValueError: a method that this model and task do not have; or what `inversion.load` and `encode` refuse.
        """
        self.model, self.task, self.arguments = model, task, arguments
        self.closeness = Closeness(arguments.epsilon, arguments.metric)
        self.watched = sys.stderr.isatty()
        self.decoder = self._decoder(name)
        self.method = arguments.method or self._default_method()
        if self.method == "decoder" and self.decoder is None:
            raise ValueError(
                f"Expected a model whose decoder ships ({', '.join(names())}) with --method decoder, got {name!r}; "
                "train one and give --decoder, or use --method search."
            )
        if self.method == "enumerate" and task.domain is None and arguments.data is None:
            raise ValueError(
                f"Expected a task of finitely many inputs with --method enumerate, got {task.name!r}; use --method "
                "search, or give all inputs you mean with --data."
            )
        query = encode(model, [arguments.prompt])
        self.start = 1 if int(query.tokens[0, 0]) == getattr(model.tokenizer, "bos_token_id", None) else 0

    def _decoder(self, name: str) -> Decoder | None:
        if self.arguments.decoder is not None:
            return load(self.arguments.decoder, model=self.model, valid=self.task.valid)
        # A decoder knows its model by activations in float32; others may still be searched.
        fits = self.arguments.dtype == "float32" or self.arguments.method == "decoder"
        return load(name, model=self.model) if name in names() and self.arguments.data is None and fits else None

    def _default_method(self) -> str:
        asked = [resolve_place(self.model, site) for site in self.arguments.site or ()]
        if self.decoder is not None and all(site in self.decoder.sites for site in asked):
            return "decoder"
        if self.arguments.data is not None:
            return "pool"
        return "enumerate" if self.task.is_small else "search"

    @cached_property
    def sites(self) -> list[PlaceLike]:
        """Those named, or the decoder's, or the residual stream after every layer."""
        if self.arguments.site:
            return list(self.arguments.site)
        if self.decoder is not None and self.method == "decoder":
            return list(self.decoder.sites)
        return [("resid_post", layer) for layer in range(self.model.cfg.n_layers)]

    @cached_property
    def pool(self) -> Encoded:
        """Texts of the task's prior."""
        return self._encoded(self.task.draw(self.arguments.pool, self.arguments.seed))

    def _encoded(self, texts: list[str]) -> Encoded:
        """A task's own inputs whole, a file's texts cut."""
        cut = self.arguments.data is not None
        return encode_starts(self.model, texts, self.arguments.max_tokens) if cut else encode(self.model, texts)

    def answer(self, site: PlaceLike, position: Position) -> SiteReading:
        """The preimage at one site and position, beside retrieval and, of few inputs, the exact one."""
        near = pool_preimage(
            self.model, self.arguments.prompt, site, position, self.pool, n=self.arguments.n, valid=self.task.valid,
            epsilon=self.closeness, show_progress=self.watched,
        )  # fmt: skip
        exact = self._exact(near) if self.method == "enumerate" or self._is_small else None
        found = {"pool": near, "enumerate": exact}.get(self.method) or self._sampled(near)
        knows = self.decoder is not None and found.site in self.decoder.sites
        return read_preimage(
            self.model, found, features=self.task.features, prior=self.pool.texts,
            retrieval=None if found is near else near, exact=None if found is exact else exact,
            decoder=self.decoder if knows else None,
        )  # fmt: skip

    @property
    def _is_small(self) -> bool:
        return self.task.is_small and self.arguments.data is None

    def _exact(self, near: Preimage) -> Preimage:
        domain = self._encoded(self.task.draw(sys.maxsize, 0)) if self.task.domain is None else self.task.domain()
        return enumerate_preimage(
            self.model, near.query, near.site, near.query.rule, domain, epsilon=self.closeness,
            valid=self.task.valid, show_progress=self.watched,
        )  # fmt: skip

    def _sampled(self, near: Preimage) -> Preimage:
        n, seed = self.arguments.n, self.arguments.seed
        if self.method == "decoder" and self.decoder is not None:
            return self.decoder.preimage(
                near.query, n=n, epsilon=self.closeness, prior=self.pool, seed=seed,
                show_progress=self.watched,
            )  # fmt: skip
        chains = min(_CHAINS, n)
        thin = max(1, chains * (_STEPS // 2) // n)
        return search_preimage(
            self.model, near.query, near.site, near.query.rule, self.pool, valid=self.task.valid, seed=seed,
            search_options=SearchOptions(chains, _STEPS, thin=thin, token_edits=self.task.edits),
            epsilon=self.closeness, show_progress=self.watched,
        )  # fmt: skip
