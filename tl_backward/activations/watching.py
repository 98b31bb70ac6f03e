"""Activations at hook points, in both TransformerLens versions: a pass watched at chosen tokens, leaving no trace."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.guard import check_visitor, rng_untouched
from tl_backward.model.inputs import without_cache
from tl_backward.model.torch_hooks import as_shown, register_last

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def watch(
    model: TransformerLensModel, names: Sequence[str], text: Int[Tensor, "sample"], at: Int[Tensor, "sample"]
) -> Iterator[dict[str, Tensor]]:
    """Within the context, a forward pass leaves its activations at the tokens [text, at] in the dict it gives.

    Values are what leaves the hook point after every user's hook, in TransformerLens's shape: [sample, ...].
    """
    found: dict[str, Tensor] = {}
    aliases: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name in names:
        module = model.hook_dict[name]
        aliases.setdefault(id(module), []).append(name)
        modules[id(module)] = module

    def keeper(module: nn.Module, mine: list[str]):
        def keep(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            check_visitor(model)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            value = as_shown(module, output)
            n_texts, n_tokens = shape
            if value.ndim >= 3 and tuple(value.shape[:2]) == (n_texts, n_tokens) and value[0, 0].numel() > 1:
                kept = value.detach()[text.to(value.device), at.to(value.device)]
                found.update(dict.fromkeys(mine, kept))

        return keep

    shape = (0, 0)

    def remember(_: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal shape
        tokens = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        shape = tuple(tokens.shape[:2])

    with ExitStack() as stack:
        stack.enter_context(rng_untouched(model))
        embed = _embedding(model)
        stack.callback(embed.register_forward_pre_hook(remember, with_kwargs=True).remove)
        for key, module in modules.items():
            for handle in register_last(module, keeper(module, aliases[key]), with_kwargs=True):
                stack.callback(handle.remove)
        yield found


def _embedding(model: TransformerLensModel) -> nn.Module:
    """What reads the tokens, also where TransformerLens has no name for it."""
    own = cast(nn.Module, model)._modules.get("embed")
    inner = cast("PreTrainedModel", getattr(model, "original_model", None))
    return inner.get_input_embeddings() if own is None else own


def forward(model: TransformerLensModel, tokens: Int[Tensor, "batch pos"], stop_at_layer: int | None) -> None:
    """One pass for its hooks' sake: no gradients, no cache, no draw from the global RNG."""
    options: dict[str, object] = {"return_type": "logits", **without_cache(model)}
    if stop_at_layer is not None and stop_at_layer < model.cfg.n_layers:
        options["stop_at_layer"] = stop_at_layer
    with torch.no_grad(), rng_untouched(model), _padding_at_the_end():
        model(tokens, **options)


@contextmanager
def _padding_at_the_end() -> Iterator[None]:
    """Without transformers' advice to pass a mask: what is read here comes before any padding, which it cannot see."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_such_advice)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_such_advice)


def _is_no_such_advice(record: logging.LogRecord) -> bool:
    return "since your input_ids may be padded" not in record.getMessage()


def last_layer(names: Sequence[str]) -> int | None:
    """The first block that need not run; None where something after the blocks is wanted."""
    if not all(name.startswith("blocks.") for name in names):
        return None
    return max(int(name.split(".")[1]) for name in names) + 1
