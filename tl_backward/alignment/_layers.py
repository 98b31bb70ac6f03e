"""Some of a model's layers: run up to a cut, or on from one, with the user's hooks of those layers and no others."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import model_kind
from tl_backward.model.guard import rng_untouched
from tl_backward.model.inputs import without_cache
from tl_backward.model.torch_hooks import register_last, without_hooks
from tl_backward.text.prompts import Batch
from tl_backward.weights._site import first_input

Start = tuple[int, Tensor]


class _Reached(Exception):
    """The pass is where it was to end, with the stream there as its argument."""


def stream_at(
    model: TransformerLensModel, batch: Batch, cut: int, start: Start | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream before block `cut` (n_layers: after the last), from the tokens or from a stream.

    It is taken after every user hook on it. Nothing behind it is computed.
    """
    if start is not None and start[0] == cut:
        return start[1]
    name = f"blocks.{cut - 1}.hook_resid_post" if cut else "blocks.0.hook_resid_pre"

    def leave(module: nn.Module, args: tuple, out: Tensor) -> None:
        raise _Reached(out)

    with ExitStack() as stack:
        for handle in register_last(model.hook_dict[name], leave):
            stack.callback(handle.remove)
        try:
            logits_from(model, batch, start)
        except _Reached as reached:
            return reached.args[0]
    raise RuntimeError(f"Expected the pass to come by {name}, but it never did; this architecture cannot be cut there.")


def logits_from(model: TransformerLensModel, batch: Batch, start: Start | None) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits from a stream before block `start[0]` (n_layers: before the final norm), or from the tokens."""
    mask = {} if batch.mask is None else {"attention_mask": batch.mask.long()}
    options = {"return_type": "logits", **mask, **without_cache(model)}
    with rng_untouched(model):
        if start is None:
            return model(batch.tokens, **options)
        if model_kind(model) == "HookedTransformer":
            return model(start[1], start_at_layer=start[0], **options)
        with _entering(model, *start):  # the tokens are of another vocabulary, perhaps; what they embed to is discarded
            return model(torch.zeros_like(batch.tokens), **options)


@contextmanager
def _entering(model: TransformerLensModel, cut: int, stream: Tensor) -> Iterator[None]:
    """Make a TransformerBridge's pass go on from `stream` at a cut.

    TransformerLens 3's knows no start_at_layer. As 4's does, the pass computes what lies before and discards it; here
    on copies of those modules without hooks, so that nobody sees it.
    """
    root = cast(nn.Module, model)
    blocks = list(root.get_submodule("blocks").children())
    target = blocks[cut] if cut < len(blocks) else root.get_submodule("ln_final")
    early = [root._modules.get("embed"), root._modules.get("pos_embed"), *blocks[:cut]]
    with ExitStack() as stack:
        handle = target.register_forward_pre_hook(
            lambda module, args, kwargs: first_input.replace(args, kwargs, stream), with_kwargs=True
        )
        stack.callback(handle.remove)
        for module in early:
            if module is not None and "forward" not in vars(module):
                # Not setattr: a Bridge component hands attributes on to what it wraps.
                vars(module)["forward"] = without_hooks(module).forward
                stack.callback(vars(module).pop, "forward")
        yield
