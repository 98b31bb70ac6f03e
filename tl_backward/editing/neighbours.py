"""Prompts near an edited one: its subject replaced by the tokens whose embeddings are nearest."""

from tl_backward._support.checks import check_at_least_one
from tl_backward._support.public import public
from tl_backward._support.types import Prompt, TransformerLensModel
from tl_backward.model.inputs import check_text_model
from tl_backward.text.prompts import encode_prompt
from tl_backward.text.subjects import Subject, subject_spans
from tl_backward.text.token_strings import token_string


@public
def neighbour_prompts(model: TransformerLensModel, prompt: Prompt, subject: Subject, *, k: int = 8) -> list[str]:
    """The prompt with its subject's last token replaced by each of the k tokens of the largest cosine in W_E.

    Only words that begin as the subject does (with a space, or without) are taken, so that the prompt stays one. What
    an edit does to them says whether it is about the subject, or about all that are like it.

    Args:
        model: a HookedTransformer or TransformerBridge with a tokenizer.
        prompt: that was edited.
        subject: its part to replace, as text or (start, end) token span.
        k: how many prompts.

    Raises:
        ValueError: a subject that is not in the prompt; k < 1.

    Examples:
        >>> tlb.editing.neighbour_prompts(model, "Anna Berg lives in the city of", "Anna Berg", k=1)[0][:5]
        'Anna '
    """
    check_text_model(model)
    check_at_least_one("k", k, "8 is the default")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("Expected a model with a tokenizer, got one without; set model.tokenizer.")
    ids = encode_prompt(model, prompt).rows()[0]
    ids = list(map(int, ids))
    span = subject_spans(tokenizer, [ids], [prompt] if isinstance(prompt, str) else None, subject)[0]
    if span is None:
        raise ValueError("Expected a subject in the prompt, got none; pass subject='...'.")
    place, embedding = span[1] - 1, model.W_E.detach().float()
    own = embedding[ids[place]]
    cosines = (embedding @ own) / (embedding.norm(dim=1) * own.norm()).clamp(min=1e-12)
    start = int(ids[0] == getattr(tokenizer, "bos_token_id", None))
    word, special = token_string(tokenizer, ids[place]), set(getattr(tokenizer, "all_special_ids", ()))
    prompts: list[str] = []
    for other in cosines.argsort(descending=True).tolist():
        text = token_string(tokenizer, other)
        same_kind = text[:1].isspace() == word[:1].isspace() and text.strip().isalpha() and text != word
        if other != ids[place] and other not in special and same_kind:
            prompts.append(tokenizer.decode([*ids[start:place], other, *ids[place + 1 :]]))
        if len(prompts) == k:
            break
    return prompts
