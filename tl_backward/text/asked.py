"""The position at which a prompt's answer is predicted: its last token, or the mask of a bidirectional model."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import model_kind
from tl_backward.model.guard import unobserved
from tl_backward.model.inputs import has_decoder, probe_logits, probe_tokens

NO_MASK = -1
"""Stands for the mask of a model that sees both ways and whose tokenizer knows none."""

_SEEN: "WeakKeyDictionary[TransformerLensModel, bool]" = WeakKeyDictionary()


def mask_token(model: TransformerLensModel) -> int | None:
    """The mask token's id of a masked language model; None for a model that predicts after the last token.

    A model that sees both ways (BERT) would read the answer's place from what follows it; it was trained to fill in
    a mask. `NO_MASK` where its tokenizer has none.
    """
    mask = getattr(getattr(model, "tokenizer", None), "mask_token_id", None)
    generates = getattr(getattr(model, "original_model", None), "can_generate", None)
    # One that generates text and knows no mask is taken at its word: a prefix-LM sees both ways, and answers last.
    at_its_word = mask is None and generates is not None and generates()
    if has_decoder(model) or at_its_word or not sees_both_ways(model):
        return None
    return NO_MASK if mask is None else int(mask)


def asked_index(ids: Sequence[int], mask: int | None) -> int:
    """Index, among a prompt's real tokens, of the token at which its answer is predicted.

    Raises:
        ValueError: not one mask in a prompt for a model that is asked at its mask.
    """
    if mask is None:
        return len(ids) - 1
    places = [place for place, token in enumerate(ids) if token == mask]
    if len(places) > 1:
        raise ValueError(
            f"Expected one mask in the prompt, got {len(places)} at positions {places}; say which is meant: "
            "target_loss(..., positions=...), or position=... of backward_lens."
        )
    if not places:
        what = "a tokenizer without a mask token" if mask == NO_MASK else "a prompt without one"
        raise ValueError(
            f"Expected a mask where the answer belongs, since the model sees the tokens on both sides, got {what}; "
            "write the tokenizer's mask_token into the prompt (BERT's is [MASK]), or say where with "
            "target_loss(..., positions=...)."
        )
    return places[0]


def check_one_token(rows: Sequence[Sequence[int]], mask: int | None) -> None:
    """Refuse targets of several tokens for a masked language model.

    Raises:
        ValueError: one has several.
    """
    longest = max(rows, key=len, default=())
    if mask is not None and len(longest) > 1:
        raise ValueError(
            f"Expected a target of one token for a model that fills in a mask, got ids {list(longest)}: it sees the "
            "tokens on both sides, so that none can be teacher-forced; choose a word that is one token."
        )


def sees_both_ways(model: TransformerLensModel) -> bool:
    """Whether what a model computes at one position depends on later tokens, as an encoder's does."""
    if model_kind(model) == "HookedTransformer":
        return getattr(model.cfg, "attention_dir", "causal") == "bidirectional"
    if has_decoder(model):
        return True
    if model not in _SEEN:
        _SEEN[model] = _looks_ahead(model)
    return _SEEN[model]


def _looks_ahead(model: TransformerLensModel) -> bool:
    """Whether another last token changes the logits before it."""
    with unobserved(model):
        tokens = probe_tokens(model)
        other = tokens.clone()
        other[:, -1] = tokens[:, 0]
        before, after = (probe_logits(model, given)[:, :-1].double() for given in (tokens, other))
    if not before.numel():
        return False
    change = float((before - after).abs().max())
    # Sums of the same numbers in another order are no dependence.
    eps = torch.finfo(next(p.dtype for p in model.parameters() if p.is_floating_point())).eps
    return change > max(1e-5, 4 * eps) * float(before.abs().max())
