"""Partial forward passes: up to the end of a layer, or on from one, with the hooks of the layers that run.

A layer is the index of its block and stands for the residual stream at its end (`resid_post`), -1 for the embedding
that block 0 reads: n blocks have run at layer n - 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_backward._support.types import HookFn, TransformerLensModel
from tl_backward.model.checks import model_kind
from tl_backward.model.guard import rng_untouched
from tl_backward.model.inputs import without_cache
from tl_backward.model.torch_hooks import register_last, without_hooks

Start: TypeAlias = tuple[int, Tensor]
"""A layer, and the stream at its end."""
Hooks: TypeAlias = Sequence[tuple[str, HookFn]]


class _Reached(Exception):
    """Raised by a hook to end a pass at the wanted layer."""


def end_of(layer: int) -> str:
    """Name of the hook point at a layer's output; for layer -1, before the first block."""
    return "blocks.0.hook_resid_pre" if layer < 0 else f"blocks.{layer}.hook_resid_post"


def streams_after(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    start: Start | None = None,
    hooks: Hooks = (),
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The residual stream after each of some layers, from the tokens or from a stream, as it leaves every hook on it.

    Nothing behind the last of them is computed.
    """
    last, streams = max(layers), {}
    if start is not None and start[0] == last:
        return {last: start[1]}

    def keep(layer: int) -> HookFn:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            streams[layer] = out
            if layer == last:
                raise _Reached

        return hook

    with ExitStack() as stack:
        stack.enter_context(rng_untouched(model))
        for layer in layers:
            for handle in register_last(model.hook_dict[end_of(layer)], keep(layer)):
                stack.callback(handle.remove)
        with suppress(_Reached):
            _run(model, tokens, mask, start, hooks)
    if last not in streams:
        raise RuntimeError(
            f"Expected the pass to come by {end_of(last)}, but it never did; this architecture cannot be cut there."
        )
    return streams


def logits_after(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    stream: Float[Tensor, "batch pos d_model"],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    hooks: Hooks = (),
) -> Float[Tensor, "batch pos d_vocab"]:
    """A model's logits with `stream` in place of its own residual stream after a layer; tokens only say how many."""
    return _run(model, tokens, mask, (layer, stream), hooks)


def _run(model: TransformerLensModel, tokens: Tensor, mask: Tensor | None, start: Start | None, hooks: Hooks) -> Tensor:
    options: dict[str, object] = {"return_type": "logits"} | without_cache(model)
    device = model.W_U.device
    if mask is not None:
        options["attention_mask"] = mask.long().to(device)
    with ExitStack() as stack:
        stack.enter_context(rng_untouched(model))
        if hooks:
            stack.enter_context(model.hooks(fwd_hooks=list(hooks), bwd_hooks=[]))
        if start is None:
            return model(tokens.to(device), **options)
        layer, stream = start
        # Shortformer's blocks read positions from the pass over tokens.
        shortformer = getattr(model.cfg, "positional_embedding_type", None) == "shortformer"
        if model_kind(model) == "HookedTransformer" and not shortformer:
            return model(stream, start_at_layer=layer + 1, **options)
        stack.enter_context(_entering(model, layer + 1, stream))
        # Of another vocabulary, perhaps; what they embed to is discarded.
        return model(torch.zeros_like(tokens, device=device), **options)


@contextmanager
def _entering(model: TransformerLensModel, block: int, stream: Tensor) -> Iterator[None]:
    """Context in which a pass from the tokens continues from `stream` at a block, or at the final norm after the last.

    TransformerLens 3's bridge knows no start_at_layer. As 4's does, the pass computes what lies before and discards it;
    here on copies of those modules without hooks, so that nobody sees it.
    """
    root = cast(nn.Module, model)
    blocks = list(root.get_submodule("blocks").children())
    early = [root._modules.get(name) for name in ("embed", "pos_embed")] + blocks[:block]
    target = blocks[block] if block < len(blocks) else root.get_submodule("ln_final")

    def replace(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): stream})

    patched = [module for module in early if module is not None and "forward" not in vars(module)]
    with ExitStack() as stack:
        stack.callback(target.register_forward_pre_hook(replace, with_kwargs=True).remove)
        for module in patched:
            stack.callback(vars(module).pop, "forward", None)
            # Not setattr: a Bridge component hands attributes on to what it wraps.
            vars(module)["forward"] = _unheard(module)
        yield


def _unheard(module: nn.Module) -> Callable[..., object]:
    """A forward function that runs a copy of the module without hooks."""

    def forward(*args: object, **kwargs: object) -> object:
        copy = without_hooks(module)
        del vars(copy)["forward"]  # this one
        out = copy.forward(*args, **kwargs)
        # What TransformerLens 4 lets a pass leave for a positional embedding to read, once: the copy has read it.
        vars(module).update({name: vars(copy)[name] for name in ("_current_batch_size",) if name in vars(copy)})
        return out

    return forward
