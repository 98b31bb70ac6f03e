"""Vectors of the residual stream read in words: final norm, unembedding, top and bottom tokens, ranks."""

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TypeAlias, TypeVar, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_k, short
from tl_backward._support.html import Cell, table, visible_token
from tl_backward._support.lengths import lengths, units
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import DRAWS_NEEDED, count_text
from tl_backward._support.types import DataFrame, Tokenizer, TransformerLensModel, typed
from tl_backward.model.checks import check_model
from tl_backward.model.head import Head
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.ids import ARRAYS, Id, Ids, as_ids, one_id
from tl_backward.text.token_strings import token_strings
from tl_backward.vocabulary.basis import Basis, Side
from tl_backward.vocabulary.extremes import extremes, placed
from tl_backward.vocabulary.latents import LatentReadout, read_latents

TokenChoice: TypeAlias = str | Id | Ids
Same = TypeVar("Same", bound="Readout")


@public
@dataclass(frozen=True, repr=False, eq=False)
class Readout(Saved):
    """Vectors in words. `...` are the leading axes of the vectors that were read, usually [pos] or [batch, pos].

    Attributes:
        top_ids, top_values, bottom_ids, bottom_values: the k largest and smallest logits and their tokens [..., k].
        norm: of each vector as given. is_zero: whether it is exactly zero.
        target_rank, answer_rank: how many tokens have a larger logit: 0 for the largest; None unless asked for.

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

    def __getitem__(self: Same, index: int | slice | Tensor | tuple[int | slice | Tensor, ...]) -> Same:
        """Index the leading axes, as one would the vectors."""
        try:
            tensors = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        except IndexError as error:
            raise IndexError(
                f"Expected an index within the {list(self.norm.shape)} vectors that were read, got {short(index)}; see "
                ".norm.shape."
            ) from error
        return replace(self, **tensors)

    def __repr__(self) -> str:
        return f"Readout({self._sizes()}{self._last_words()})"

    def summary(self) -> str:
        """In one sentence: the first words of the last vector, with nothing beside them."""
        said = self._last_words().removeprefix("; ") or "nothing was read"
        return f"In words, {count_text(self.norm.numel(), 'vector')}: {said}."

    def _sizes(self) -> str:
        return f"{list(self.norm.shape)} vectors, k={self.top_ids.shape[-1]}, d_vocab={self.d_vocab}"

    def _last_words(self, n: int = 3) -> str:
        """The top and bottom tokens of the last vector, for one line."""
        if not self.norm.numel():
            return ""
        which = "" if self.norm.numel() == 1 else "the last: "
        if bool(self.is_zero.flatten()[-1]):
            return f"; {which}exactly zero"
        sides = (ids.reshape(-1, ids.shape[-1])[-1, :n] for ids in (self.top_ids, self.bottom_ids))
        top, bottom = (" ".join(map(visible_token, token_strings(self.tokenizer, ids))) for ids in sides)
        return f"; {which}top {top}, bottom {bottom}"

    def to_frame(self) -> DataFrame:
        """One row a vector, indexed by its place: norm, ranks, and the top and bottom tokens as lists."""
        import pandas

        places, k = product(*map(range, self.norm.shape)), self.top_ids.shape[-1]
        ranks = {"target_rank": self.target_rank, "answer_rank": self.answer_rank}
        columns = {
            "place": [place[0] if len(place) == 1 else place for place in places],
            "norm": self.norm.flatten().tolist(),
            **{name: rank.flatten().tolist() for name, rank in ranks.items() if rank is not None},
            "top_tokens": token_strings(self.tokenizer, self.top_ids.reshape(-1, k)),
            "bottom_tokens": token_strings(self.tokenizer, self.bottom_ids.reshape(-1, k)),
        }
        return pandas.DataFrame(columns).set_index("place")

    def _repr_html_(self) -> str:
        """A static table: one row a vector, its norm, top and bottom tokens."""
        frame, k = self.to_frame(), min(5, self.top_ids.shape[-1])
        columns = ["norm", *[f"top {i}" for i in range(k)], *[f"bottom {i}" for i in range(k)]]
        rows = [
            [norm, *map(Cell, top[:k]), *map(Cell, bottom[:k])]
            for norm, top, bottom in zip(frame["norm"], frame["top_tokens"], frame["bottom_tokens"], strict=True)
        ]
        return table(columns, rows, row_names=[str(place) for place in frame.index], caption=self._sizes())


@dataclass(frozen=True, repr=False, eq=False)
class TargetReadout(Readout):
    """Vectors in words, with the rank of a target token."""

    target_rank: Int[Tensor, "..."] = field(kw_only=True)

    @property
    def target_rank_from_bottom(self) -> Int[Tensor, "..."]:
        """The target's rank from the other end: 0 is the smallest logit; -1 stays for zero vectors."""
        return torch.where(self.is_zero, -1, self.d_vocab - 1 - self.target_rank)


@dataclass(frozen=True, repr=False, eq=False)
class RankedReadout(TargetReadout):
    """Vectors in words, with the ranks of a target and of an answer token."""

    answer_rank: Int[Tensor, "..."] = field(kw_only=True)


@overload
def readout(
    model: TransformerLensModel,
    vectors: Float[Tensor, "*lead d_model"],
    *,
    k: int = 10,
    ln: bool = True,
    normalize: bool = False,
    bias: bool = False,
    basis: Basis,
    side: Side = "decoder",
    n_control: int = DRAWS_NEEDED,
    seed: int = 0,
) -> LatentReadout: ...
@overload
def readout(
    model: TransformerLensModel,
    vectors: Float[Tensor, "*lead d_model"],
    *,
    k: int = 10,
    ln: bool = True,
    normalize: bool = False,
    bias: bool = False,
    target: TokenChoice,
    answer: TokenChoice,
) -> RankedReadout: ...
@overload
def readout(
    model: TransformerLensModel,
    vectors: Float[Tensor, "*lead d_model"],
    *,
    k: int = 10,
    ln: bool = True,
    normalize: bool = False,
    bias: bool = False,
    target: TokenChoice,
    answer: None = None,
) -> TargetReadout: ...
@overload
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
) -> Readout: ...
@public
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
    basis: Basis | None = None,
    side: Side = "decoder",
    n_control: int = DRAWS_NEEDED,
    seed: int = 0,
) -> Readout | LatentReadout:
    """Read vectors of the residual stream in words: logits = softcap(scale * (final_norm(v) @ W_U [+ b_U])).

    The logit lens (nostalgebraist 2020), for activations, weights and gradients alike, through the model's own head:
    the last residual stream, read with `bias=True`, gives the model's logits. What the architecture has between the two
    takes part: BERT's and ModernBERT's transform, OPT-350m's projection, the scales of T5, Cohere and Granite, Gemma's
    softcap, an adapter or a quantiser on the unembedding. The head is learnt from one pass over a few tokens at its
    first use, which is held against what that pass said. The final norm is applied afresh to each vector, with its own
    mean and scale, without anyone's hooks.

    Args:
        model: a HookedTransformer or TransformerBridge, folded or not.
        vectors: anything in the residual stream's basis, on the model's device; a list or a NumPy array is brought
            there, in the model's own type.
        k: how many top and bottom tokens to keep.
        ln: whether to apply the model's final norm (none is applied where the model has none). Without it the rest of
            the head is applied still: a projection, and a transform with the norm that is part of it (BERT).
        normalize: scale each vector to unit norm first: the Normalized Logit Lens of Katz et al. 2024, for
            VJPs so small that the norm's epsilon would swallow them.
        bias: whether to add b_U.
        target: a token whose rank to report: text that is one token, an id, or ids that broadcast to [...].
        answer: a second such token.
        basis: named directions, such as the latents of a sparse autoencoder, to read the vectors in, in place of
            tokens: by the cosine with each, and v . direction beside it, neither normed. `ln`, `normalize` and `bias`
            are then of the words that the listed latents are read in, of which each has k.
        side: with a basis: "decoder" for what its latents write, "encoder" for what they read.
        n_control: with a basis: how many times as many random directions of the same norms are read beside them;
            fewer than five are compared with nothing.
        seed: with a basis: of these directions; the global random state stays as it is.

    Returns:
        A `Readout`, with the ranks asked for; a `LatentReadout` in a basis.

    Raises:
        ValueError: vectors of another width, not finite, or k out of range; a token that is not one token; a basis of
            another width, without the side that is asked for, or with a token to rank; a model
            whose head could not be learnt: none, one that mixes several streams (Gemma3n), or one that gives other
            numbers when it is run alone.

    Examples:
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
    if basis is not None:
        if target is not None or answer is not None:
            raise ValueError("Expected a basis or a token to rank, got both; read once with each.")
        words = partial(readout, model, k=min(k, d_vocab), ln=ln, normalize=normalize, bias=bias)
        return read_latents(
            vectors,
            basis,
            lambda rows: words(rows.to(head.dtype)).top_ids,
            k=k,
            side=side,
            n_control=n_control,
            seed=seed,
            tokenizer=getattr(model, "tokenizer", None),
        )
    if (side, n_control, seed) != ("decoder", DRAWS_NEEDED, 0):
        raise ValueError("Expected a basis with side, n_control or seed, got none; pass basis=, or leave them out.")
    if ln and not normalize:
        _check_squares(vectors)
    check_k(k, d_vocab)
    lead = vectors.shape[:-1]
    flat = vectors.detach().reshape(-1, d_model)
    with torch.no_grad():
        norm = lengths(flat)
        is_zero = ~flat.bool().any(-1)
        nonzero = (~is_zero).nonzero().flatten()
        chosen = [_choice(model, token, lead) for token in (target, answer)]
        wanted = [ids[nonzero] for ids in chosen if ids is not None]
        ids = torch.stack(wanted, -1) if wanted else torch.zeros(len(nonzero), 0, dtype=torch.long, device=flat.device)
        largest = extremes(
            head.pre(units(flat[nonzero].to(head.dtype)) if normalize else flat[nonzero], ln=ln),
            head.product(),
            k,
            wanted=ids,
            offset=head.bias() if bias else None,
            transform=head.post,
        )
    of_all, ranks = partial(placed, nonzero, lead), iter(largest.ranks.unbind(-1))
    named = zip(("target_rank", "answer_rank"), chosen, strict=True)
    asked = {name: of_all(next(ranks), -1) for name, ids in named if ids is not None}
    kind = Readout if target is None else TargetReadout if answer is None else RankedReadout
    return kind(
        top_ids=of_all(largest.top[1], -1),
        top_values=of_all(largest.top[0], 0),
        bottom_ids=of_all(largest.bottom[1], -1),
        bottom_values=of_all(largest.bottom[0], 0),
        norm=norm.reshape(lead),
        is_zero=is_zero.reshape(lead),
        d_vocab=d_vocab,
        tokenizer=getattr(model, "tokenizer", None),
        **asked,
    )


def single_token(model: TransformerLensModel, token: str | Id) -> int:
    """The id of a token given as text or id.

    Raises:
        ValueError: the text is several tokens, none, or not in the vocabulary.
    """
    ids = encode_continuation(model, token) if isinstance(token, str) else [one_id(token)]
    if len(ids) != 1:
        raise ValueError(f"Expected one token, got {token!r}, which is {len(ids)}; pass the id of the one you mean.")
    return int(predicted_tokens(model, torch.tensor(ids)))


def predicted_tokens(model: TransformerLensModel, ids: Tensor) -> Tensor:
    """The token ids, once the model has a logit for each.

    Raises:
        ValueError: some have none.
    """
    n = model.W_U.shape[1]
    wrong = (ids < 0) | (ids >= n)
    if wrong.any():
        raise ValueError(f"Expected a token id in [0, {n}), got {int(ids[wrong][0])}; it is from another vocabulary.")
    return ids


def _choice(model: TransformerLensModel, token: TokenChoice | None, lead: torch.Size) -> Tensor | None:
    """Token ids [n], one for each vector; None for no token."""
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
