"""Vectors of the residual stream read in the directions of a basis, beside as many random directions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.html import Cell, table, visible_text, visible_token
from tl_backward._support.lengths import largest, lengths, units
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import DRAWS_NEEDED, band, count_text, two_digits
from tl_backward._support.streams import own_stream
from tl_backward._support.types import DataFrame, Tokenizer
from tl_backward.text.token_strings import text_frame, token_strings
from tl_backward.vocabulary.basis import Basis, Side
from tl_backward.vocabulary.extremes import extremes, placed

Same = TypeVar("Same", bound="LatentReadout")

_LATENTS = ("listed", "word_ids")  # fields of the latents, not of the vectors
_TILE = 2**22  # numbers of random directions held at once, and of norms' scratch
_LEVEL = 0.98  # of each end; the two together, of maxima that are skewed, then err for 1 vector in 20 or fewer
_ROWS = 1024  # vectors that a tile of them multiplies at once


@public
@dataclass(frozen=True, repr=False, eq=False)
class LatentReadout(Saved):
    """Vectors in the latents of a basis. `...` are the leading axes of the vectors that were read.

    A latent is claimed (`top_stands_out`, `bottom_stands_out`) where its cosine lies outside of `low` to `high`: beyond
    the smallest and largest cosines that random directions of the same number have with that vector, and where one more
    draw of them would have it; of random vectors about 1 in 20 is claimed to lie near some latent. Of a vector that is
    exactly zero ids are -1 and values 0.
    """

    top_ids: Int[Tensor, "... k"]
    """Latents with the largest cosines, largest first."""
    top_values: Float[Tensor, "... k"]
    """Their scores v . direction, in the product of both units; norms of directions differ, so do their scales."""
    top_cosines: Float[Tensor, "... k"]
    """Their cosines with the vector; 0 for a direction of zeros."""
    bottom_ids: Int[Tensor, "... k"]
    """Latents with the smallest cosines, smallest first."""
    bottom_values: Float[Tensor, "... k"]
    """Their scores."""
    bottom_cosines: Float[Tensor, "... k"]
    """Their cosines."""
    norm: Float[Tensor, "..."]
    """Euclidean norm of each vector as it was given."""
    is_zero: Bool[Tensor, "..."]
    """Whether the vector is exactly zero."""
    low: Float[Tensor, "..."]
    """What the smallest cosine of as many random directions does not fall below; NaN with fewer than five draws."""
    high: Float[Tensor, "..."]
    """What their largest cosine does not exceed."""
    score_low: Float[Tensor, "..."]
    """The same of scores, the random directions having the norms of the basis."""
    score_high: Float[Tensor, "..."]
    """The same of scores."""
    listed: Int[Tensor, "m"]
    """The distinct latents among all top and bottom ones, ascending."""
    word_ids: Int[Tensor, "m w"]
    """Tokens that the direction of each of `listed` has the largest logits of: what it says in the vocabulary."""
    names: tuple[str | None, ...] | None
    """Names of `listed`; None for a basis without any."""
    n_latents: int
    """How many directions the basis has."""
    side: Side
    """Which directions of it were read."""
    n_control: int
    """Draws of random directions."""
    tokenizer: Tokenizer | None = field(default=None)
    """Decodes `word_ids`; None shows them as [id]."""

    @property
    def words(self) -> dict[int, list[str]]:
        """The words of each listed latent."""
        return dict(zip(self.listed.tolist(), token_strings(self.tokenizer, self.word_ids), strict=True))

    @property
    def top_names(self) -> list:
        """Names of `top_ids`, nested as they are; "latent 17" for one without."""
        return _nested(self.top_ids.tolist(), self._labels())

    @property
    def bottom_names(self) -> list:
        """Names of `bottom_ids`, nested as they are."""
        return _nested(self.bottom_ids.tolist(), self._labels())

    @property
    def top_stands_out(self) -> Bool[Tensor, "... k"]:
        """Whether each of `top_ids` has a cosine above `high`."""
        return self.top_cosines > self.high[..., None]

    @property
    def bottom_stands_out(self) -> Bool[Tensor, "... k"]:
        """Whether each of `bottom_ids` has a cosine below `low`."""
        return self.bottom_cosines < self.low[..., None]

    def __getitem__(self: Same, index: int | slice | Tensor | tuple[int | slice | Tensor, ...]) -> Same:
        """Index the leading axes, as one would the vectors; `listed` stays."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value[index] for name, value in tensors.items() if name not in _LATENTS})

    def joined(self: Same, others: Sequence[Same]) -> Same:
        """One of several vectors of one reading, [1 + n, ...]: this and others, all with the same latents listed."""
        whole = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        rows = [self, *others]
        stacked = {name: torch.stack([getattr(each, name) for each in rows]) for name in whole if name not in _LATENTS}
        return replace(self, **stacked)

    def __repr__(self) -> str:
        return f"LatentReadout({self._sizes()}: {self.summary()})"

    def summary(self) -> str:
        """One sentence: which latent the vectors point along, or against, more than random directions do."""
        read = (~self.is_zero.flatten()).nonzero().flatten()
        if not len(read):
            return "No vector but zeros was read: nothing points along a latent."
        k = self.top_ids.shape[-1]
        cosines = torch.cat([side.reshape(-1, k)[read] for side in (self.top_cosines, -self.bottom_cosines)], 1)
        high, low = (bound.flatten()[read] for bound in (self.high, self.low))
        bounds = torch.stack([high, -low], 1).repeat_interleave(k, 1)
        known = self.n_control >= DRAWS_NEEDED
        beyond = cosines - bounds if known else cosines
        n_out, chance = int((beyond > 0).any(1).sum()), 0.05 * len(read)
        claimed = known and n_out > chance
        row, column = divmod(int((beyond if claimed else cosines).argmax()), 2 * k)
        along = column < k
        latent = int((self.top_ids if along else self.bottom_ids).reshape(-1, k)[read[row], column % k])
        cosine = two_digits(float(cosines[row, column]) * (1 if along else -1))
        what = f"{self._described(latent)}, cosine {cosine}"
        place = list(product(*map(range, self.norm.shape)))[int(read[row])]
        whose = "the vector" if len(read) == 1 else f"vector {place[0] if len(place) == 1 else place}"
        if not known:
            return (
                f"Nearest to {whose} is {what}; without {DRAWS_NEEDED} draws of random directions it is not known "
                f"whether as many of them come as near (n_control={DRAWS_NEEDED} shows it)."
            )
        random = (
            f"{count_text(self.n_latents, 'random direction')} {'reaches' if self.n_latents == 1 else 'reach'} "
            f"{two_digits(float(low[row]))} to {two_digits(float(high[row]))}"
        )
        if not claimed:
            few = "" if not n_out else f", but for {n_out} of {len(read)} vectors, no more than by chance"
            return f"No latent is nearer than random directions come{few}: the nearest to {whose} is {what}; {random}."
        which = "along" if along else "against"
        if len(read) == 1:
            return f"The vector points {which} {what}, further than chance: {random}."
        return (
            f"Of {len(read)} vectors {n_out} point along or against a latent further than random directions do (by "
            f"chance {two_digits(chance)}): most clearly {whose} {which} {what}; {random}."
        )

    def to_frame(self) -> DataFrame:
        """One row for each vector, side ("top", "bottom") and latent: scores, cosines, the control and words."""
        words, labels, rows = self.words, self._labels(), []
        k, places = self.top_ids.shape[-1], list(product(*map(range, self.norm.shape)))
        for side in ("top", "bottom"):
            parts = (getattr(self, f"{side}_{name}") for name in ("ids", "values", "cosines", "stands_out"))
            ids, values, cosines, out = (part.reshape(-1, k).tolist() for part in parts)
            low, high = self.low.flatten().tolist(), self.high.flatten().tolist()
            for n, place in enumerate(places):
                rows += [
                    {
                        "place": place[0] if len(place) == 1 else place,
                        "side": side,
                        "latent": ids[n][i],
                        "name": _name(ids[n][i], labels),
                        "score": values[n][i],
                        "cosine": cosines[n][i],
                        "low": low[n],
                        "high": high[n],
                        "stands_out": out[n][i] if self.n_control >= DRAWS_NEEDED else None,
                        "words": words.get(ids[n][i], []),
                    }
                    for i in range(k)
                ]
        return text_frame(rows)

    def _repr_html_(self) -> str:
        """A static table: one row a vector, its norm, the top and bottom latents with their first words."""
        places = (place[0] if len(place) == 1 else place for place in product(*map(range, self.norm.shape)))
        return self.table(list(map(str, places)), caption=self.summary())

    def table(self, row_names: list[str], *, caption: str = "") -> str:
        """The same with names for the vectors."""
        words, labels, k = self.words, self._labels(), self.top_ids.shape[-1]
        shown = min(5, k)
        norms, rows = self.norm.flatten().tolist(), []
        sides = [
            [
                getattr(self, f"{side}_{name}").reshape(-1, k)[:, :shown].tolist()
                for name in ("ids", "values", "cosines", "stands_out")
            ]
            for side in ("top", "bottom")
        ]
        for n, norm in enumerate(norms):
            cells = []
            for parts in sides:
                for latent, score, cosine, out in zip(*(part[n] for part in parts), strict=True):
                    said = ", ".join(map(visible_token, words.get(latent, [])))
                    lines = (f"latent {latent}", f"score {score:.4g}, cosine {cosine:.4g}", said)
                    first = words.get(latent, [""])[0]
                    cells.append(Cell(_name(latent, labels), sub=first, title=lines, marked=out))
            rows.append([norm, *cells])
        columns = ["norm", *[f"{side} {i}" for side in ("top", "bottom") for i in range(shown)]]
        return table(columns, rows, row_names=row_names, caption=caption)

    def _sizes(self) -> str:
        return f"{list(self.norm.shape)} vectors, k={self.top_ids.shape[-1]}, n_latents={self.n_latents}"

    def _labels(self) -> dict[int, str]:
        named = zip(self.listed.tolist(), self.names or (), strict=self.names is not None)
        return {latent: name for latent, name in named if name is not None}

    def _described(self, latent: int) -> str:
        """A latent by its number, name and first words."""
        place = int((self.listed == latent).nonzero())
        words = ", ".join(map(visible_token, token_strings(self.tokenizer, self.word_ids[place, :3])))
        name = visible_text(self._labels().get(latent, ""))
        name = name if len(name) <= 60 else f"{name[:59]}…"
        return f"latent {latent} ({f'{name!r}; ' if name else ''}says {words})"


def _name(latent: int, labels: dict[int, str]) -> str:
    return "" if latent < 0 else labels.get(latent, f"latent {latent}")


def _nested(ids: list | int, labels: dict[int, str]) -> Any:
    """Names, nested as ids are."""
    return [_nested(each, labels) for each in ids] if isinstance(ids, list) else _name(ids, labels)


def read_latents(
    vectors: Tensor,
    basis: Basis,
    words: Callable[[Tensor], Tensor],
    *,
    k: int,
    side: Side,
    n_control: int,
    seed: int,
    tokenizer: Tokenizer | None,
) -> LatentReadout:
    """Top and bottom latents of finite vectors [..., d_model], a tile of the basis at a time.

    Args:
        vectors: to read.
        basis: its directions are brought to the vectors' device; half types are read in float32.
        words: the tokens [m, w] that directions [m, d_model] say.
        k: how many latents of each end.
        side: of the basis.
        n_control: draws of as many random directions.
        seed: of these.
        tokenizer: of `words`.

    Raises:
        ValueError: a basis of another width or without that side; k or n_control out of range.
    """
    directions = basis.of(side)
    n_latents, width = directions.shape
    if width != vectors.shape[-1]:
        raise ValueError(
            f"Expected a basis of d_model={vectors.shape[-1]}, got {side} directions of width {width}; take the "
            "dictionary of a point in this model's residual stream."
        )
    if not 1 <= k <= n_latents:
        raise ValueError(f"Expected 1 <= k <= {n_latents} (the latents), got k={k}; choose a smaller k.")
    if n_control < 0:
        raise ValueError(f"Expected n_control of at least 0, got {n_control}; {DRAWS_NEEDED} draws or more compare.")
    lead = vectors.shape[:-1]
    with torch.no_grad():
        flat = vectors.detach().reshape(-1, width)
        is_zero = ~flat.bool().any(-1)
        nonzero = (~is_zero).nonzero().flatten()
        directions = directions.to(flat.device, torch.promote_types(directions.dtype, torch.float32))
        read = flat[nonzero].to(torch.promote_types(flat.dtype, directions.dtype))
        # Scaled by a power of two, which is exact: gradients of 1e-60 are no float32 numbers.
        most = largest(read)
        power = most / (2 * torch.frexp(most).mantissa)
        norms = torch.cat([lengths(rows) for rows in directions.split(max(1, _TILE // width))])
        inverse = torch.where(norms > 0, 1 / norms, 0)
        found = extremes((read / power).to(directions.dtype), directions.T, k, scale=inverse)
        norm = lengths(read)
        bands = _bands(units(read).float(), norms.float(), n_control, seed).to(read)
        of_all = partial(placed, nonzero, lead)
        parts: dict[str, Tensor] = {}
        for end, (values, ids) in (("top", found.top), ("bottom", found.bottom)):
            along = values.to(read.dtype)  # the vector's length along each direction, by its power
            parts[f"{end}_ids"] = of_all(ids, -1)
            parts[f"{end}_values"] = of_all(along * norms[ids] * power, 0)
            parts[f"{end}_cosines"] = of_all((along / (norm / power[:, 0])[:, None]).clamp(-1, 1), 0)
        bands[2:] *= norm
        for name, bound in zip(("low", "high", "score_low", "score_high"), bands, strict=True):
            parts[name] = of_all(bound, 0)
        listed = torch.cat([found.top[1].flatten(), found.bottom[1].flatten()]).unique()
        said = words(directions[listed])
    return LatentReadout(
        **parts,
        norm=lengths(flat).reshape(lead),
        is_zero=is_zero.reshape(lead),
        listed=listed,
        word_ids=said,
        names=None if basis.names is None else tuple(basis.names[latent] for latent in listed.tolist()),
        n_latents=n_latents,
        side=side,
        n_control=n_control,
        tokenizer=tokenizer,
    )


def _bands(vectors: Tensor, norms: Tensor, n_draws: int, seed: int) -> Tensor:
    """Lowest and highest cosine, lowest and highest score [4, n], that random directions have with unit vectors.

    Args:
        vectors: [n, d_model], of norm 1.
        norms: [n_latents], of the directions.
        n_draws: of n_latents directions each, independent of how many vectors there are.
        seed: of the first.
    """
    n, width = vectors.shape
    bands = vectors.new_full((4, n), torch.nan)
    if n_draws < DRAWS_NEEDED or not n:
        return bands
    generator = own_stream("random directions", seed)
    reached = vectors.new_zeros(n_draws, 4, n)
    reached[:, 0::2], reached[:, 1::2] = torch.inf, -torch.inf
    tile = max(1, _TILE // max(width, _ROWS))
    for draw in reached:
        for of_tile in norms.split(tile):
            drawn = torch.randn(len(of_tile), width, generator=generator).to(vectors.device)
            lengths_drawn = torch.linalg.vector_norm(drawn, dim=1)
            for first in range(0, n, _ROWS):
                at = slice(first, first + _ROWS)
                products = (vectors[at] @ drawn.T).div_(lengths_drawn)
                for place in (0, 2):
                    lowest, highest = products.aminmax(dim=1)
                    draw[place, at] = torch.minimum(draw[place, at], lowest)
                    draw[place + 1, at] = torch.maximum(draw[place + 1, at], highest)
                    products.mul_(of_tile)
    for place, bound in enumerate(bands):
        around = (band(draws, level=_LEVEL) for draws in reached[:, place].T.tolist())
        bound.copy_(torch.tensor([torch.nan if each is None else each[place % 2] for each in around]))
    longest = float(norms.max())
    bands[:2].clamp_(-1, 1)  # no cosine lies beyond, nor a score
    bands[2:].clamp_(-longest, longest)
    return bands
