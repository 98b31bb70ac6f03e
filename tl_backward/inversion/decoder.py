"""Decoder: texts drawn from p(x | z), the distance of each taken by the probed model (Huang et al. 2024)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion._old_calls import old_options
from tl_backward.inversion.network import DecoderNetwork
from tl_backward.inversion.options import EPSILON, Closeness, SamplingOptions
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, preimage_of
from tl_backward.inversion.query import Query, QueryLike, read_query
from tl_backward.inversion.storage import check_same_model, load_decoder, probe, save_decoder
from tl_backward.inversion.stream import widened
from tl_backward.model.place import Place, PlaceLike, resolve_place
from tl_backward.text.encoded import Encoded, Inputs, encode, encode_rows


@dataclass(frozen=True, repr=False, eq=False)
class Decoder:
    """A trained decoder and the model whose activations it reads."""

    model: TransformerLensModel
    network: DecoderNetwork
    sites: tuple[Place, ...]
    description: Mapping[str, object]
    """What it was trained on and how, as JSON: model, sites, positions, options, history of loss and rates."""
    valid: Callable[[str], bool] | None = None
    """Text -> whether it is well-formed; a shipped decoder knows its task's."""

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.sites[:3])) + (", ..." if len(self.sites) > 3 else "")
        return f"Decoder({self.description['model']}: {sites}; {self.network.layout.conditioning})"

    @old_options
    def sample(
        self,
        query: QueryLike | Query,
        n: int = 200,
        *,
        site: PlaceLike | None = None,
        position: Position | None = None,
        sampling_options: SamplingOptions = SamplingOptions(),
        seed: int = 0,
    ) -> Encoded:
        """Draw texts from p(x | z) of the query's activation z, not verified by the probed model.

        Args:
            query: a text, its tokens, or a `Query`, which knows its site and position.
            n: how many texts.
            site: one of the decoder's.
            position: of the query's token.
            sampling_options: temperature and noise.
            seed: of everything drawn; the global random state is not touched.

        Raises:
            ValueError: a site that the decoder was not trained on, or n < 1; and as for `read_query`.
        """
        asked = self._query(query, site, position)
        check_at_least_one("n", n, "200 is the default")
        z = asked.activation.float().expand(n, -1)
        if sampling_options.noise:
            length = sampling_options.noise * z.norm(dim=1, keepdim=True) / z.shape[1] ** 0.5
            z = z + length * torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        return self._drawn(z, self.sites.index(asked.site), sampling_options.temperature, seed)

    def sample_unconditional(
        self, site: PlaceLike, *, n: int = 200, temperature: float = 1.0, seed: int = 0
    ) -> Encoded:
        """Texts drawn from the no-information activation: the baseline that knows the data and nothing of z."""
        index = self.sites.index(self._site(site))
        return self._drawn(self.network.null[index].expand(n, -1), index, temperature, seed)

    @old_options
    def preimage(
        self,
        query: QueryLike | Query,
        *,
        site: PlaceLike | None = None,
        position: Position | None = None,
        epsilon: float | Closeness = EPSILON,
        n: int = 200,
        sampling_options: SamplingOptions = SamplingOptions(),
        valid: Callable[[str], bool] | None = None,
        prior: Inputs | None = None,
        seed: int = 0,
        show_progress: bool = True,
    ) -> Preimage:
        """Draw texts as `sample` does, and let the probed model say how far each is from the query.

        Args:
            query: as for `sample`.
            site: as for `sample`.
            position: as for `sample`.
            epsilon: the threshold on D, or a `Closeness`.
            n: how many texts.
            sampling_options: temperature and noise.
            valid: text -> whether it is well-formed; the decoder's own by default.
            prior: see `preimage_of`.
            seed: of everything drawn.
            show_progress: draw a progress bar if scoring takes longer than a second.

        Raises:
            ValueError: epsilon <= 0, and as for `sample` and `preimage_of`.
        """
        closeness = Closeness.of(epsilon)  # refused before anything is drawn
        asked = self._query(query, site, position)
        texts = self.sample(asked, n, sampling_options=sampling_options, seed=seed)
        return preimage_of(
            self.model, asked, asked.site, asked.rule, texts, epsilon=closeness, method="decoder",
            valid=valid or self.valid, prior=prior, show_progress=show_progress,
        )  # fmt: skip

    @torch.no_grad()
    def token_probabilities(
        self,
        texts: Inputs,
        query: QueryLike | Query,
        *,
        site: PlaceLike | None = None,
        position: Position | None = None,
    ) -> tuple[Float[Tensor, "text pos"], Float[Tensor, "text pos"]]:
        """Each token's probability after those before it, given the query's z and given no information.

        Their difference is the paper's shading: which tokens z speaks for. BOS, which the decoder is not asked about,
        and what lies beyond a text's end are NaN.
        """
        asked, encoded = self._query(query, site, position), encode(self.model, texts)
        index, n_start = self.sites.index(asked.site), len(self._start)
        tokens = encoded.tokens[:, n_start:]
        own, device = widened(asked.activation.float(), self.network.mean.shape[1]), self.network.mean.device
        sites = torch.full((len(tokens),), index, device=device)

        def probabilities(z: Tensor) -> Float[Tensor, "text pos"]:
            logits = self.network.logits(z.expand(len(tokens), -1).to(device), sites, tokens.to(device)).cpu()
            chosen = logits[:, :-1].double().softmax(-1).gather(2, tokens[..., None])[..., 0]
            padded = torch.nn.functional.pad(chosen, (n_start, 0), value=torch.nan)
            return padded.masked_fill(~encoded.mask, torch.nan).float()

        return probabilities(own), probabilities(self.network.null[index])

    def save(self, directory: str | Path, *, half: bool = False) -> None:
        """Write `decoder.safetensors` and `decoder.json`; `half` stores weights in float16."""
        texts = encode_rows(self.model, cast(list[list[int]], self.description["probe"]))
        probed = probe(PlaceReader(self.model, list(self.sites)), texts)
        save_decoder(directory, self.network, self.description, probed, half=half)

    @property
    def _start(self) -> list[int]:
        return cast(list[int], self.description["start"])

    def _query(self, query: QueryLike | Query, site: PlaceLike | None, position: Position | None) -> Query:
        if not isinstance(query, Query):
            if site is None or position is None:
                lacking = " and ".join(of for of, each in (("site", site), ("position", position)) if each is None)
                raise ValueError(
                    f"Expected a site and a position beside the query, got no {lacking}; name it, for example "
                    f"site={str(self.sites[0])!r}, position=-1."
                )
            query = read_query(self.model, query, self._site(site), position)
        self._site(query.site)
        return query

    def _site(self, site: PlaceLike) -> Place:
        resolved = resolve_place(self.model, site)
        if resolved not in self.sites:
            raise ValueError(
                f"Expected a site that the decoder was trained on, got {str(resolved)!r}; it knows "
                f"{', '.join(map(str, self.sites))}."
            )
        return resolved

    def _drawn(self, z: Float[Tensor, "text d"], index: int, temperature: float, seed: int) -> Encoded:
        wide, sites = widened(z, self.network.mean.shape[1]), torch.full((len(z),), index)
        return encode_rows(self.model, self.network.draw(wide, sites, self._start, temperature=temperature, seed=seed))


def load_from(
    directory: str | Path, model: TransformerLensModel, *, valid: Callable[[str], bool] | None = None
) -> Decoder:
    """The decoder in a directory, for the model it was trained on.

    Raises:
        ValueError: no decoder there, or another model, tokenizer or site than those it was trained on.
    """
    network, description, probed = load_decoder(directory)
    names = cast(list[str], description["sites"])
    check_same_model(model, names, description, probed)
    sites = tuple(resolve_place(model, name) for name in names)
    return Decoder(model, network.to(model.W_U.device), sites, description, valid)
