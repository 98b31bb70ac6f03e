"""Whether a TransformerLens model computes what Hugging Face's does: a few tokens through both."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tl_backward._support.closeness import difference
from tl_backward.model.loading.options import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_TOKENS = 12


def probe_tokens(model: "PreTrainedModel") -> Tensor | None:
    """Ids [1, pos] that any text model takes, none of them special; None for a model that reads no text."""
    embedding = model.get_input_embeddings() if model.main_input_name == "input_ids" else None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    config = model.config.to_dict()
    special = set(_special_ids(config))
    ids = [token for token in range(min(len(weight), 1000)) if token not in special]
    # Two fewer than there are positions, as RoBERTa's begin at the padding's.
    limits = [config[name] for name in ("max_position_embeddings", "n_positions") if isinstance(config.get(name), int)]
    length = max(1, min(N_TOKENS, *(limit - 2 for limit in limits), len(ids)))
    step = max(1, len(ids) // length)
    return torch.tensor([ids[::step][:length]], device=model.device)


def _special_ids(config: Mapping) -> Iterator[int]:
    """Ids that a configuration gives a meaning: an image's place among them."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_index", "token_ids")):
            yield from (value if isinstance(value, list) else [value] if isinstance(value, int) else [])


@torch.no_grad()
def own_logits(model: "PreTrainedModel", tokens: Tensor | None) -> Tensor | None:
    """Hugging Face's logits [1, pos, d_vocab], taken before TransformerLens wraps the model; None where it has none."""
    if tokens is None:
        return None
    try:
        logits = getattr(model(**probe_inputs(model, tokens)), "logits", None)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError):  # it takes no text alone
        return None
    return logits if isinstance(logits, Tensor) else None


def logit_difference(ours: Tensor, theirs: Tensor, wanted: Wanted) -> float:
    """As `difference`, up to each position's mean where the unembedding was centred."""
    if wanted.options["center_unembed"]:
        ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    return difference(ours, theirs)


def probe_inputs(model: "PreTrainedModel", tokens: Tensor) -> dict[str, Tensor]:
    """The tokens, for an encoder-decoder to both of its halves."""
    decoder = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
    return {"input_ids": tokens, **decoder}
