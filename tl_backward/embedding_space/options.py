"""How a vector is read in words: one set of options, wherever a parameter is projected on the vocabulary.

Which tokens a projection may name is said by filters on a token's text, or by a list; they compose.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_backward._support.checks import nearest, short
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.text.ids import ARRAYS, Id, Ids, as_ids
from tl_backward.text.token_strings import token_string
from tl_backward.vocabulary.readout import single_token

FilterName: TypeAlias = Literal["ascii", "alphanumeric", "not_special", "not_byte"]
Filter: TypeAlias = str | Callable[[str], bool]
Filters: TypeAlias = Filter | Sequence[Filter]
TokenList: TypeAlias = Sequence[str | Id] | Ids

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a sentencepiece space that stands alone shows as this
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
Inverse: TypeAlias = Literal["transpose", "pinv"]
Source: TypeAlias = Literal["W_U", "W_E"]

OLD_KEYWORDS = {name: f"vector_options.{name}" for name in ("inverse", "fold_ln", "tokens", "filters")}
"""Deprecated keyword -> the field of `vector_options` that replaces it."""


@public
@dataclass(frozen=True)
class VectorOptions(Saved):
    """How vectors of the residual stream are read in words.

    Attributes:
        inverse: of the embedding, for weights that read the stream: "transpose" (the paper's choice) or "pinv".
        fold_ln: read as if each norm's weight (and LayerNorm's centring) were folded into what reads from it.
        tokens: the only tokens to consider: ids, or texts of one token each; None for all.
        filters: which tokens to consider, by name or predicate; see `tl_backward.embedding_space.token_mask`.

    Raises:
        TypeError: tokens or filters of another type.
        ValueError: another inverse, or an unknown filter.
    """

    inverse: Inverse = "transpose"
    fold_ln: bool = False
    tokens: TokenList | None = None
    filters: Filters = ()

    def __post_init__(self) -> None:
        if self.inverse not in get_args(Inverse):
            raise ValueError(f"Expected inverse 'transpose' or 'pinv', got {self.inverse!r}; choose one of them.")
        _listed_filters(self.filters)
        if isinstance(self.tokens, str) or not isinstance(self.tokens, Iterable | None):
            raise TypeError(
                f"Expected tokens as a list of ids or texts, got {short(self.tokens)}; one is a list of one."
            )

    def mask(self, model: TransformerLensModel) -> Bool[Tensor, " d_vocab"] | None:
        """The tokens to consider; None for all."""
        return token_mask(model, tokens=self.tokens, filters=self.filters)


@public
@dataclass(frozen=True)
class PairOptions(Saved):
    """Which pairs of tokens of a head are wanted.

    Attributes:
        largest: the largest scores; otherwise the smallest.
        exclude_same: leave out pairs of a token with itself.
        offset: for QK in models with rotary embeddings: the key stands this many positions before the query. None is
            the paper's W_Q W_K^T, which knows no positions.
        source: where e comes from: "W_U" (the paper's), or "W_E", the input embedding as it is, which is what the
            first layer reads (Elhage et al. 2021); `inverse` then has no effect.

    Raises:
        ValueError: another source.
    """

    largest: bool = True
    exclude_same: bool = False
    offset: int | None = None
    source: Source = "W_U"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"Expected source to be 'W_U' or 'W_E', got {self.source!r}; W_U is the paper's choice.")


def is_ascii(text: str) -> bool:
    """Whether a token is ASCII text; bytes that are shown by their names (<0x41>, <0xE2>) count as what they are."""
    return text.replace(_SPACE, " ").isascii() and all(int(byte, 16) < 0x80 for byte in _BYTE.findall(text))


def is_alphanumeric(text: str) -> bool:
    """Whether a token is letters and digits alone, of any script, but for spaces around it."""
    return text.strip().isalnum()


def is_no_byte(text: str) -> bool:
    """Whether a token is no single byte of a byte-fallback vocabulary (<0x41>): training may never have seen those.

    Control characters alone are bytes too, shown as what they are where no other token has them; not so the line feed
    and the tab, which texts have.
    """
    return _BYTE.fullmatch(text) is None and not _is_control(text)


def _is_control(text: str) -> bool:
    inner = text.strip(f" {_SPACE}")
    return bool(inner) and all(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in inner)


_BY_TEXT: dict[str, Callable[[str], bool]] = {
    "ascii": is_ascii,
    "alphanumeric": is_alphanumeric,
    "not_byte": is_no_byte,
}
_NAMES = get_args(FilterName)


def without_bytes(model: TransformerLensModel) -> tuple[tuple[FilterName, ...], int]:
    """Filters that leave out the bytes of a byte-fallback vocabulary and its special tokens, and how many these are.

    No filters for another vocabulary, all of whose tokens are words.

    Examples:
        >>> tlb.embedding_space.without_bytes(model)
        ((), 0)
    """
    tokenizer = getattr(model, "tokenizer", None)
    known = range(0 if tokenizer is None else min(model.W_U.shape[1], len(tokenizer)))
    if not any(_BYTE.fullmatch(token_string(tokenizer, i)) for i in known[:1000]):
        return (), 0
    filters: tuple[FilterName, ...] = ("not_byte", "not_special")
    kept = token_mask(model, filters=filters)
    return filters, 0 if kept is None else int((~kept).sum())


@public
@typed
def token_mask(
    model: TransformerLensModel, *, tokens: TokenList | None = None, filters: Filters = ()
) -> Bool[Tensor, " d_vocab"] | None:
    """The tokens that a list and every filter leave; None where nothing is asked for.

    Args:
        model: its tokenizer says what a token's text is.
        tokens: ids, or texts that are one token each; None for all.
        filters: "ascii", "alphanumeric" (letters and digits, spaces around them aside), "not_special" (neither a
            special token nor an id that stands for none), "not_byte" (no <0x41> of a byte-fallback vocabulary, and
            no control characters alone but line feeds and tabs), a predicate on a token's text, or a list of these.

    Raises:
        ValueError: an unknown filter, no tokenizer for filters on text, no token left.

    Examples:
        >>> int(tlb.embedding_space.token_mask(model, tokens=[" Oslo", " Graz"]).sum())
        2
    """
    wanted = _listed_filters(filters)
    if tokens is None and not wanted:
        return None
    d_vocab = model.W_U.shape[1]
    kept = torch.full((d_vocab,), tokens is None)
    if tokens is not None:
        listed = as_ids(tokens).flatten().tolist() if isinstance(tokens, ARRAYS) else tokens
        kept[torch.tensor([single_token(model, token) for token in listed], dtype=torch.long)] = True
    for one in wanted:
        kept &= _passing(model, one, kept)
    if not kept.any():
        raise ValueError(
            f"Expected filters that leave at least one token, got tokens={'all' if tokens is None else 'a list'} and "
            f"filters={wanted!r}, which leave none of {d_vocab}; loosen them."
        )
    return kept.to(model.W_U.device)


def _listed_filters(filters: Filters) -> list[Filter]:
    """One filter or several as a list.

    Raises:
        TypeError: one that is neither a name nor a predicate.
        ValueError: a name that is none.
    """
    one = isinstance(filters, str) or not isinstance(filters, Iterable)
    listed = cast("list[Filter]", [filters] if one else list(cast("Iterable[Filter]", filters)))
    for each in listed:
        if not isinstance(each, str) and not callable(each):
            raise TypeError(f"Expected filters by name or as a predicate on text, got {short(each)}; such as 'ascii'.")
        if isinstance(each, str) and each not in _NAMES:
            raise ValueError(
                f"Expected a filter's name or a predicate on text, got {each!r}; the nearest are "
                f"{nearest(each, _NAMES)}."
            )
    return listed


def _passing(model: TransformerLensModel, one: Filter, among: Tensor) -> Tensor:
    """Which of the tokens in `among` pass one filter."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"Expected a model with a tokenizer for the filter {one!r}, got one without; pass token ids.")
    if one == "not_special":
        special, n_known = set(getattr(tokenizer, "all_special_ids", ())), len(tokenizer)
        return torch.tensor([id_ not in special and id_ < n_known for id_ in range(len(among))])
    predicate = _BY_TEXT[one] if isinstance(one, str) else one
    return torch.tensor([left and bool(predicate(token_string(tokenizer, i))) for i, left in enumerate(among.tolist())])
