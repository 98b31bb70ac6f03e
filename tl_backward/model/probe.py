"""A short pass that nobody sees: without anyone's hooks, gradients or dropout, and the model is left as it was."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.guard import rng_untouched
from tl_backward.model.inputs import has_decoder, without_cache
from tl_backward.model.modules import every_module

_BATCH, _LENGTH = 4, 3


@contextmanager
def unobserved(model: TransformerLensModel) -> Iterator[None]:
    """Within the context the model has no hooks, is in eval mode and records no gradient.

    Hooks that are registered inside are of the context alone.
    """
    modules = every_module(model)
    found = []
    with rng_untouched(model), torch.no_grad():
        try:
            for module in modules:
                state = module.__dict__
                hooks = {name: value for name, value in state.items() if _holds_hooks(name) and value}
                found.append((state, hooks, module.training))
                state.update({name: OrderedDict() for name in hooks if isinstance(hooks[name], dict)})
                state["training"] = False
            yield
        finally:
            for state, hooks, training in found:
                for name, value in state.items():
                    if _holds_hooks(name) and isinstance(value, dict):
                        value.clear()
                state.update(hooks)
                state["training"] = training


def _holds_hooks(name: str) -> bool:
    return name.endswith(("forward_hooks", "forward_pre_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def probe_tokens(model: TransformerLensModel) -> Tensor:
    """A few tokens [batch, pos] from the middle of the vocabulary, where none stands for padding."""
    table = _table(model)
    d_vocab, length = table.shape[0], max(1, min(_LENGTH, model.cfg.n_ctx))
    ids = d_vocab // 2 + torch.arange(_BATCH * length) % max(1, d_vocab // 2)
    return ids.reshape(_BATCH, length).to(table.device)


def _table(model: TransformerLensModel) -> Tensor:
    """The input embedding, that TransformerLens has no name for in some encoder-decoders."""
    inputs = getattr(getattr(model, "original_model", None), "get_input_embeddings", None)
    table = getattr(inputs(), "weight", None) if inputs is not None else model.W_E
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise ValueError("Expected a model that reads tokens, got one without an input embedding; it has no words.")
    return table


def probe_logits(model: TransformerLensModel, tokens: Tensor) -> Tensor:
    """The logits of a pass, without a key-value cache; an encoder-decoder's decoder reads the same tokens."""
    options: dict[str, object] = {"return_type": "logits", **without_cache(model)}
    if has_decoder(model):
        options["decoder_input"] = tokens
    return model(tokens, **options)
