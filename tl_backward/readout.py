"""Vectors of the residual stream read in words: final norm, unembedding, top and bottom tokens, ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._checks import check_k, check_model
from tl_backward._html import Cell, table
from tl_backward._lengths import lengths, units
from tl_backward._typing import Tokenizer, TransformerLensModel, typed
from tl_backward.head import Head, Product
from tl_backward.losses import encode_text
from tl_backward.token_ids import ARRAYS, Id, Ids, as_ids, one_id
from tl_backward.vocabulary import token_strings

if TYPE_CHECKING:
    import pandas

MAX_LOGIT_BYTES = 32 * 2**20
"""Logits and scratch held at once; the vocabulary is read in tiles through the same two buffers."""

_ROWS = 1024  # vectors read together; more would narrow the tiles

TokenChoice: TypeAlias = str | Id | Ids


@dataclass(frozen=True, repr=False, eq=False)
class Readout:
    """Vectors in words. `...` are the leading axes of the vectors that were read, usually [pos] or [batch, pos].

    Attributes:
        top_ids, top_values, bottom_ids, bottom_values: the k largest and smallest logits and their tokens [..., k].
        norm: of each vector as given. is_zero: whether it is exactly zero.
        target_rank, answer_rank: 0 is the largest logit, d_vocab - 1 the smallest; None unless asked for.

    A vector that is exactly zero says nothing: it is marked in `is_zero`, its ids and ranks are -1, its values 0 and
    its tokens "".
    """

    top_ids: Int[Tensor, "... k"]
    """Token ids with the largest logits, largest first."""
    top_values: Float[Tensor, "... k"]
    """Their logits."""
    bottom_ids: Int[Tensor, "... k"]
    """Token ids with the smallest logits, smallest first."""
    bottom_values: Float[Tensor, "... k"]
    """Their logits."""
    norm: Float[Tensor, "..."]
    """Euclidean norm of each vector as it was given, in the vector's own units."""
    is_zero: Bool[Tensor, "..."]
    """Whether the vector is exactly zero."""
    d_vocab: int
    """Size of the vocabulary that ranks run over."""
    target_rank: Int[Tensor, "..."] | None = None
    """Number of tokens with a strictly larger logit than the target's: 0 is the top, d_vocab - 1 the bottom."""
    answer_rank: Int[Tensor, "..."] | None = None
    """The same for the answer."""
    tokenizer: Tokenizer | None = field(default=None)
    """Decodes ids; None shows them as [id]."""

    @property
    def top_tokens(self) -> list:
        """Strings of `top_ids`, nested as they are; leading spaces kept."""
        return token_strings(self.tokenizer, self.top_ids)

    @property
    def bottom_tokens(self) -> list:
        """Strings of `bottom_ids`, nested as they are; leading spaces kept."""
        return token_strings(self.tokenizer, self.bottom_ids)

    @property
    def target_rank_from_bottom(self) -> Int[Tensor, "..."] | None:
        """The target's rank from the other end: 0 is the smallest logit; -1 stays for zero vectors."""
        if self.target_rank is None:
            return None
        return torch.where(self.is_zero, -1, self.d_vocab - 1 - self.target_rank)

    def __getitem__(self, index: int | slice | Tensor | tuple[int | slice | Tensor, ...]) -> "Readout":
        """Index the leading axes, as one would the vectors."""
        tensors = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Readout(**tensors, d_vocab=self.d_vocab, tokenizer=self.tokenizer)

    def __repr__(self) -> str:
        return f"Readout({list(self.norm.shape)} vectors, k={self.top_ids.shape[-1]}, d_vocab={self.d_vocab})"

    def to_frame(self) -> "pandas.DataFrame":
        """One row a vector, indexed by its place: norm, ranks, and the top and bottom tokens as lists."""
        import pandas

        places = list(product(*map(range, self.norm.shape)))
        columns: dict[str, list] = {"place": [place[0] if len(place) == 1 else place for place in places]}
        columns["norm"] = self.norm.flatten().tolist()
        for name, rank in (("target_rank", self.target_rank), ("answer_rank", self.answer_rank)):
            if rank is not None:
                columns[name] = rank.flatten().tolist()
        k = self.top_ids.shape[-1]
        columns["top_tokens"] = token_strings(self.tokenizer, self.top_ids.reshape(-1, k))
        columns["bottom_tokens"] = token_strings(self.tokenizer, self.bottom_ids.reshape(-1, k))
        return pandas.DataFrame(columns).set_index("place")

    def _repr_html_(self) -> str:
        """A static table: one row a vector, its norm, top and bottom tokens."""
        frame, k = self.to_frame(), min(5, self.top_ids.shape[-1])
        columns = ["norm", *[f"top {i}" for i in range(k)], *[f"bottom {i}" for i in range(k)]]
        rows = [
            [norm, *map(Cell, top[:k]), *map(Cell, bottom[:k])]
            for norm, top, bottom in zip(frame["norm"], frame["top_tokens"], frame["bottom_tokens"], strict=True)
        ]
        return table(columns, rows, row_names=[str(place) for place in frame.index], caption=repr(self))


@typed
def readout(
    model: TransformerLensModel,
    vectors: Float[Tensor, "*lead d_model"],
    *,
    k: int = 10,
    ln: bool = True,
    normalize: bool = False,
    bias: bool = False,
    target: TokenChoice | None = None,
    answer: TokenChoice | None = None,
) -> Readout:
    """Read vectors of the residual stream in words: logits = softcap(scale * (final_norm(v) @ W_U [+ b_U])).

    The logit lens (nostalgebraist 2020), for activations, weights and gradients alike, through the model's own head:
    the last residual stream, read with `bias=True`, gives the model's logits. What the architecture has between the two
    takes part: BERT's and ModernBERT's transform, OPT-350m's projection, the scales of T5, Cohere and Granite, Gemma's
    softcap, an adapter or a quantiser on the unembedding. The head is learnt from one pass over a few tokens at its
    first use, which is held against what that pass said. The final norm is applied afresh to each vector, with its own
    mean and scale, without anyone's hooks.

    Args:
        model: a HookedTransformer or TransformerBridge, folded or not.
        vectors: anything in the residual stream's basis, on the model's device.
        k: how many top and bottom tokens to keep.
        ln: whether to apply the model's final norm (none is applied where the model has none). Without it the rest of
            the head is applied still: a projection, and a transform with the norm that is part of it (BERT).
        normalize: scale each vector to unit norm first: the Normalized Logit Lens of Katz et al. 2024, for
            VJPs so small that the norm's epsilon would swallow them.
        bias: whether to add b_U.
        target: a token whose rank to report: text that is one token, an id, or ids that broadcast to [...].
        answer: a second such token.

    Raises:
        ValueError: vectors of another width, not finite, or k out of range; a token that is not one token; a model
            whose head could not be learnt: none, one that mixes several streams (Gemma3n), or one that gives other
            numbers when it is run alone.

    Example:
        >>> tlb.readout(model, model.W_U[:, model.to_single_token(" Oslo")], k=2).top_tokens[0]
        ' Oslo'
    """
    check_model(model)
    head = Head.of(model)
    d_model, d_vocab = head.d_model, head.d_vocab
    if vectors.ndim == 0 or vectors.shape[-1] != d_model:
        raise ValueError(
            f"Expected vectors [..., d_model={d_model}], got shape {list(vectors.shape)}; only vectors of the residual "
            "stream can be read in words."
        )
    if not torch.isfinite(vectors).all():
        raise ValueError("Expected finite vectors, got NaN or inf among them; look upstream for an overflow.")
    if ln and not normalize:
        _check_squares(vectors)
    check_k(k, d_vocab)
    lead = vectors.shape[:-1]
    flat = vectors.detach().reshape(-1, d_model)
    with torch.no_grad():
        norm = lengths(flat)
        is_zero = ~flat.bool().any(-1)
        said = (~is_zero).nonzero().flatten()
        chosen = [_choice(model, token, lead) for token in (target, answer)]
        wanted = [ids[said] for ids in chosen if ids is not None]
        ids = torch.stack(wanted, -1) if wanted else torch.zeros(len(said), 0, dtype=torch.long, device=flat.device)
        found = extremes(
            head.pre(units(flat[said].to(head.dtype)) if normalize else flat[said], ln=ln),
            head.product(),
            k,
            wanted=ids,
            offset=head.bias() if bias else None,
            transform=head.post,
        )

    def placed(part: Tensor, fill: int) -> Tensor:
        """What was found for the vectors that say something, in the shape of all; `fill` at the zero ones."""
        everywhere = part.new_full((len(flat), *part.shape[1:]), fill)
        everywhere[said] = part
        return everywhere.reshape((*lead, *part.shape[1:]))

    ranks = iter(found.ranks.unbind(-1))
    target_rank, answer_rank = (None if ids is None else placed(next(ranks), -1) for ids in chosen)
    return Readout(
        top_ids=placed(found.top[1], -1),
        top_values=placed(found.top[0], 0),
        bottom_ids=placed(found.bottom[1], -1),
        bottom_values=placed(found.bottom[0], 0),
        norm=norm.reshape(lead),
        is_zero=is_zero.reshape(lead),
        d_vocab=d_vocab,
        target_rank=target_rank,
        answer_rank=answer_rank,
        tokenizer=getattr(model, "tokenizer", None),
    )


def single_token(model: TransformerLensModel, token: str | Id) -> int:
    """The id of a token given as text or id.

    Raises:
        ValueError: the text is several tokens, none, or not in the vocabulary.
    """
    ids = encode_text(token, model) if isinstance(token, str) else [one_id(token)]
    if len(ids) != 1:
        raise ValueError(f"Expected one token, got {token!r}, which is {len(ids)}; pass the id of the one you mean.")
    return int(predicted_tokens(model, torch.tensor(ids)))


def predicted_tokens(model: TransformerLensModel, ids: Tensor) -> Tensor:
    """Token ids that the model has logits of.

    Raises:
        ValueError: some have none.
    """
    n = model.W_U.shape[1]
    wrong = (ids < 0) | (ids >= n)
    if wrong.any():
        raise ValueError(f"Expected a token id in [0, {n}), got {int(ids[wrong][0])}; it is from another vocabulary.")
    return ids


def _choice(model: TransformerLensModel, token: TokenChoice | None, lead: torch.Size) -> Tensor | None:
    """Token ids, one a vector."""
    if token is None:
        return None
    ids = as_ids(token) if isinstance(token, ARRAYS) else torch.tensor(single_token(model, token))
    ids = predicted_tokens(model, ids)
    return ids.to(model.W_U.device).broadcast_to(lead).reshape(-1)


def _check_squares(vectors: Tensor) -> None:
    """Refuse vectors so long that a norm, which squares them in float32 at least, would make zeros of them."""
    most = torch.finfo(torch.promote_types(vectors.dtype, torch.float32)).max
    longest = float(vectors.detach().abs().max()) * vectors.shape[-1] ** 0.5 if vectors.numel() else 0.0
    if longest > most**0.5 / 2:
        raise ValueError(
            f"Expected vectors whose squares the final norm can add up, got one of norm up to {longest:.3g}; pass "
            "normalize=True, or ln=False."
        )


@dataclass(frozen=True)
class Extremes:
    """Top k, bottom k [n, k] (values and ids) and ranks [n, m] of some vectors."""

    top: tuple[Tensor, Tensor]
    bottom: tuple[Tensor, Tensor]
    ranks: Tensor


def extremes(
    vectors: Tensor,
    unembedding: Product,
    k: int,
    *,
    wanted: Tensor | None = None,
    offset: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] = lambda logits: logits,
    columns: Tensor | None = None,
    show_progress: bool = False,
) -> Extremes:
    """Extremes of logits that are never held whole: tiles of the vocabulary through one buffer.

    Wide tiles of many vectors keep the matrix product at its best; each leaves k candidates and a count.

    Args:
        vectors: [n, d_model], in the dtype of `unembedding`.
        unembedding: what they are multiplied with: a matrix [d_model, d_vocab], or a function that does it, of which
            fewer vectors are read at once since it makes their logits whole.
        k: how many of each end.
        wanted: [n, m], the ids to rank.
        offset: [d_vocab], added to the logits.
        transform: what is done to a tile of logits then, in place.
        columns: the only ids to consider, ascending; all by default (and where ids are ranked).
        show_progress: draw a progress bar if it takes longer than a second.
    """
    wanted = torch.zeros(len(vectors), 0, dtype=torch.long, device=vectors.device) if wanted is None else wanted
    allowed = MAX_LOGIT_BYTES // (vectors.element_size() + 4)
    if isinstance(unembedding, Tensor):
        d_vocab = unembedding.shape[1] if columns is None else len(columns)
        rows = min(len(vectors), _ROWS)
        width = allowed // max(1, rows)
        width = max(1, min(d_vocab, width - width % _GROUP if width > _GROUP else width))
    else:
        d_vocab = width = unembedding(vectors[:1]).shape[1] if len(vectors) else k
        rows = min(len(vectors), max(1, allowed // d_vocab))
    buffer, scratch = vectors.new_empty(rows * width), vectors.new_empty(rows * width, dtype=torch.float32)
    parts = []
    starts = range(0, max(1, len(vectors)), max(1, rows))
    for start in tqdm(starts, disable=not show_progress, delay=1, leave=False, desc="vectors in words"):
        chunk, ids = vectors[start : start + rows], wanted[start : start + rows]
        if isinstance(unembedding, Tensor):
            own = _own(chunk, unembedding, ids)
            tiles = _products(chunk, unembedding, columns, width, buffer)
        else:
            whole = unembedding(chunk) if len(chunk) else buffer.new_zeros(0, d_vocab)
            own, tiles = whole.gather(1, ids), iter([whole])
        own = transform(own if offset is None else own + offset[ids])
        ranks, top_k, bottom_k, first = torch.zeros_like(ids), _Best(k, largest=True), _Best(k, largest=False), 0
        for logits in tiles:
            shape, stop = (len(chunk), logits.shape[1]), first + logits.shape[1]
            logits = transform(logits if offset is None else logits.add_(offset[first:stop]))
            top_k.add(logits, first)
            bottom_k.add(logits, first)
            for i, value in enumerate(own.unbind(-1)):
                # Counted in float: several times faster than summing booleans, and exact below 2^24 tokens.
                greater = torch.gt(logits, value[:, None], out=_view(scratch, shape))
                # The token itself, whose logit was computed apart, must not outrank itself by a rounding error.
                place = (ids[:, i] - first).clamp(0, shape[1] - 1)[:, None]
                inside = ((ids[:, i] >= first) & (ids[:, i] < stop))[:, None]
                greater.scatter_(1, place, torch.where(inside, 0.0, greater.gather(1, place)))
                ranks[:, i] += greater.sum(-1).long()
            first = stop
        parts.append((*top_k.found(), *bottom_k.found(), ranks))
    top, top_ids, bottom, bottom_ids, ranks = (torch.cat(side) for side in zip(*parts, strict=True))
    for i, ids in enumerate(wanted.unbind(-1)):
        # The compared logit was computed apart and may differ in the last bit; a listed token's rank is the list's.
        above = _place(top, top_ids, ids, largest=True)
        below = _place(bottom, bottom_ids, ids, largest=False)
        ranks[:, i] = torch.where(above >= 0, above, torch.where(below >= 0, d_vocab - 1 - below, ranks[:, i]))
    if columns is not None:
        top_ids, bottom_ids = columns[top_ids], columns[bottom_ids]
    return Extremes((top, top_ids), (bottom, bottom_ids), ranks)


def _own(vectors: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """Each vector's products with its own columns [n, m]; mostly all have the same few."""
    few, which = ids.unique(return_inverse=True)
    if len(few) <= 64:
        return (vectors @ matrix[:, few]).gather(1, which)
    return torch.einsum("nd,dnm->nm", vectors, matrix[:, ids])


def _products(vectors: Tensor, matrix: Tensor, columns: Tensor | None, width: int, buffer: Tensor) -> Iterator[Tensor]:
    """Tiles [n, width] of vectors @ matrix, each in the place of the last."""
    d_vocab = matrix.shape[1] if columns is None else len(columns)
    for first in range(0, d_vocab, width):
        tile = slice(first, min(first + width, d_vocab))
        part = matrix[:, tile] if columns is None else matrix.index_select(1, columns[tile])
        yield torch.mm(vectors, part, out=_view(buffer, (len(vectors), tile.stop - first)))


class _Best:
    """Each row's k largest or smallest entries of what comes in tiles, by `topk` of those alone that can be among them.

    Whatever is among the k is in one of the k groups of a tile with the most extreme entries, which are found several
    times faster than topk goes through a row; topk of all groups' entries together is made once for many tiles.
    """

    def __init__(self, k: int, *, largest: bool) -> None:
        self.k, self.largest = k, largest
        self._values: list[Tensor] = []
        self._ids: list[Callable[[Tensor], Tensor]] = []
        """Places in each entry of `_values` -> ids."""

    def add(self, tile: Tensor, first: int) -> None:
        """Consider the entries of a tile [n, width], whose first has the id `first`."""
        n, width = tile.shape
        k = min(self.k, width)
        if width % _GROUP or width < 4 * _GROUP * k:
            values, ids = tile.topk(k, largest=self.largest)
            self._keep(values, ids + first)
        else:
            groups = tile.view(n, _GROUP, -1)
            best = (groups.amax(1) if self.largest else groups.amin(1)).topk(k, largest=self.largest).indices
            self._values.append(groups.gather(2, best[:, None].expand(-1, _GROUP, -1)).flatten(1))
            n_groups = groups.shape[2]
            self._ids.append(lambda at: first + at // k * n_groups + best.gather(1, at % k))
        if sum(values.shape[1] for values in self._values) > _PENDING:
            self._keep(*self._merged())

    def found(self) -> tuple[Tensor, Tensor]:
        """(values, ids) [n, k], the most extreme first."""
        return self._merged()

    def _keep(self, values: Tensor, ids: Tensor) -> None:
        self._values.append(values)
        self._ids.append(lambda at: ids.gather(1, at))

    def _merged(self) -> tuple[Tensor, Tensor]:
        """The k of all that were kept, which are forgotten."""
        values, at = torch.cat(self._values, 1).topk(self.k, largest=self.largest)
        ids, start = torch.zeros_like(at), 0
        for held, ids_of in zip(self._values, self._ids, strict=True):
            stop = start + held.shape[1]
            here = (at >= start) & (at < stop)
            ids = torch.where(here, ids_of((at - start).clamp(0, held.shape[1] - 1)), ids)
            start = stop
        self._values.clear()
        self._ids.clear()
        return values, ids


_GROUP = 32  # entries compared before topk; those of a group lie far apart, which a processor compares side by side
_PENDING = 4096  # entries a row that wait for topk


def _place(values: Tensor, listed: Tensor, ids: Tensor, *, largest: bool) -> Tensor:
    """How many entries of each row's list lie strictly beyond the one for `ids`; -1 where it is not listed."""
    hit = listed == ids[:, None]
    own = torch.where(hit, values, 0).sum(1, keepdim=True)
    beyond = (values > own) if largest else (values < own)
    return torch.where(hit.any(1), beyond.sum(1), -1)


def _view(buffer: Tensor, shape: tuple[int, int]) -> Tensor:
    """The start of a flat buffer as a matrix."""
    return buffer[: shape[0] * shape[1]].view(shape)
