"""Which token of one model is which token of another: what embedding space needs the two to agree on."""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.model.checks import check_model, check_one_device, model_kind
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.token_strings import token_string


@dataclass(frozen=True, repr=False, eq=False)
class TokenMap:
    """Pairs of ids that stand for the same token in model A and model B."""

    ids_a: Int[Tensor, " token"]
    """Ids in A's vocabulary."""
    ids_b: Int[Tensor, " token"]
    """Ids in B's vocabulary, pair by pair."""
    d_vocab_a: int
    """Size of A's vocabulary."""
    d_vocab_b: int
    """Size of B's vocabulary."""

    @property
    def coverage(self) -> tuple[float, float]:
        """Share of each vocabulary that the map reaches, A's and B's."""
        return len(self.ids_a) / self.d_vocab_a, len(self.ids_b) / self.d_vocab_b

    @property
    def is_identity(self) -> bool:
        """Whether both vocabularies have one size and every id is paired with itself."""
        return (
            self.d_vocab_a == self.d_vocab_b == len(self.ids_a)
            and torch.equal(self.ids_a, torch.arange(self.d_vocab_a, device=self.ids_a.device))
            and torch.equal(self.ids_a, self.ids_b)
        )

    @property
    def reversed(self) -> "TokenMap":
        """The map from B to A."""
        return TokenMap(self.ids_b, self.ids_a, self.d_vocab_b, self.d_vocab_a)

    def __repr__(self) -> str:
        share_a, share_b = self.coverage
        return f"TokenMap({len(self.ids_a)} tokens: {share_a:.1%} of A's vocabulary, {share_b:.1%} of B's)"


@public
@typed
def token_map(model_a: TransformerLensModel, model_b: TransformerLensModel) -> TokenMap:
    """Pair the tokens of two vocabularies that have the same text, leading space included.

    A text that two ids of one vocabulary share, and an id without a text, has no partner. Look at `coverage` before
    trusting what a map carries over.

    Raises:
        ValueError: a model without a tokenizer, or no token in common.
        TypeError: no HookedTransformer or TransformerBridge.

    Examples:
        >>> tlb.alignment.token_map(model, model).coverage
        (1.0, 1.0)
    """
    texts_a, texts_b = _texts(model_a), _texts(model_b)
    once_a, once_b = _unique(texts_a), _unique(texts_b)
    pairs = [(i, once_b[text]) for text, i in once_a.items() if text in once_b]
    if not pairs:
        raise ValueError("Expected vocabularies with a token in common, got none; these models share no words.")
    ids_a, ids_b = torch.tensor(pairs).unbind(1)
    return TokenMap(ids_a, ids_b, len(texts_a), len(texts_b))


def shared_tokens(model_a: TransformerLensModel, model_b: TransformerLensModel, given: TokenMap | None) -> TokenMap:
    """The given map, if it fits, or the identity, if both vocabularies are the same; both models are checked.

    Where a model has no tokenizer, vocabularies of one size are taken to be the same.

    Raises:
        TypeError: no HookedTransformer or TransformerBridge.
        ValueError: vocabularies that differ without a map between them, or a map of other vocabularies; a model on
            several devices, or one that reads no text.
    """
    for model in (model_a, model_b):
        check_model(model)
        check_one_device(model)
        check_reads_text(model)
    sizes = model_a.W_U.shape[1], model_b.W_U.shape[1]
    if given is not None:
        return _checked(given, *sizes)
    a, b = (getattr(model, "tokenizer", None) for model in (model_a, model_b))
    comparable = a is not None and b is not None and a is not b
    if sizes[0] != sizes[1] or comparable and _texts(model_a) != _texts(model_b):
        raise ValueError(
            f"Expected models that share a vocabulary, got {sizes[0]} and {sizes[1]} tokens that differ; pass "
            "token_map=tl_backward.alignment.token_map(model_a, model_b) and look at its coverage."
        )
    return TokenMap(torch.arange(sizes[0]), torch.arange(sizes[1]), *sizes)


def _texts(model: TransformerLensModel) -> list[str]:
    """Every token as text; "" for an id without one."""
    model_kind(model)
    check_reads_text(model)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("Expected models with tokenizers, got one without; give it one, or build a TokenMap of ids.")
    texts = [token_string(tokenizer, i) for i in range(model.W_U.shape[1])]
    return ["" if text == f"[{i}]" else text for i, text in enumerate(texts)]


def _unique(texts: list[str]) -> dict[str, int]:
    """Text -> id, of those texts that exactly one id has."""
    counts = Counter(texts)
    return {text: i for i, text in enumerate(texts) if text and counts[text] == 1}


def _checked(given: TokenMap, d_vocab_a: int, d_vocab_b: int) -> TokenMap:
    if (given.d_vocab_a, given.d_vocab_b) != (d_vocab_a, d_vocab_b):
        raise ValueError(
            f"Expected a map between vocabularies of {d_vocab_a} and {d_vocab_b} tokens, got one between "
            f"{given.d_vocab_a} and {given.d_vocab_b}; make it of these models, in this order (or take .reversed)."
        )
    for ids, size in ((given.ids_a, d_vocab_a), (given.ids_b, d_vocab_b)):
        if len(given.ids_a) != len(given.ids_b) or not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= size:
            raise ValueError(
                f"Expected pairs of ids in [0, {d_vocab_a}) and [0, {d_vocab_b}), got {len(given.ids_a)} and "
                f"{len(given.ids_b)} that are not; make the map with token_map."
            )
    return given
