"""One forward and one activation-only backward pass: x and delta of every chosen weight; the model stays unchanged."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_backward._support.checks import (
    LargeCaptureWarning,
    check_callable_loss,
    check_grad_enabled,
    check_gradient,
    check_loss,
    nearest,
)
from tl_backward._support.hints import show_as
from tl_backward._support.public import public
from tl_backward._support.types import HookFn, NamesFilter, Prompts, TransformerLensModel, Weights
from tl_backward.gradients.cache import FactorMap, GradientCache, GradientMap
from tl_backward.gradients.losses import OWN_LOSSES, Loss, check_has_next, next_token_loss, takes_mask
from tl_backward.gradients.recorder import NOT_IN_PLACE, Recorder
from tl_backward.model.checks import check_checkpointing, check_model, model_kind
from tl_backward.model.guard import rng_untouched
from tl_backward.model.inputs import check_inputs, main_input
from tl_backward.model.points import hook_points
from tl_backward.model.stamp import unchanged
from tl_backward.text.asked import mask_token
from tl_backward.text.prompts import Batch, encode_prompts, extend, forward, with_inputs
from tl_backward.weights import WeightSite, WeightSites, select_sites, sites_of_batch, sites_of_longer
from tl_backward.weights.account import DID_NOT_RUN, account_rows, check_gradients_pass
from tl_backward.weights.watch import LossWatch

HookList: TypeAlias = Sequence[tuple[str | Callable[[str], bool], HookFn]]
show_as(HookList, "HookList")

NOTICE_BYTES = 4 * 2**30
"""From how many bytes of factors on a capture says so."""


@public
def run_with_gradient_cache(
    model: TransformerLensModel,
    prompts: Prompts | None,
    loss: Loss,
    *,
    weights: Weights = None,
    names_filter: NamesFilter = None,
    fwd_hooks: HookList = (),
    bwd_hooks: HookList = (),
    prepend_bos: bool | None = None,
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
    **inputs: object,
) -> tuple[Float[Tensor, ""], GradientCache]:
    """The loss, and the rank-1 factors of its gradient with respect to every chosen weight.

    For a weight used as y = x @ W, dL/dW = sum_i outer(x_i, delta_i) with delta_i = dL/dy_i (Katz et al. 2024, sec. 4).
    One forward and one backward pass yield all x_i and delta_i; no weight gradient is formed. Raw sign: a descent step
    subtracts. Hooks already on the model (`with model.hooks(...)`, `add_hook`) and those given here take part, and the
    factors are those of the hooked computation. The model, its hooks, flags, `.grad` and the RNG are left as found.

    Experts that share a parameter have factors with the example, token and expert of each row
    (`cache.factors["experts.gate_up_proj", 3].origin`). A vector, scalar or kernel has no factors: its gradient is in
    `cache.parameter_gradients`. What a pass left out, and why, is in `cache.account()` and `cache.missing`.

    Args:
        model: a HookedTransformer or TransformerBridge; frozen parameters are fine.
        prompts: text, a list of texts (padded and masked), or tokens [batch, pos]; what the encoder of an
            encoder-decoder reads; None where the model reads no text.
        loss: `loss(logits, tokens) -> scalar`, see `tl_backward.gradients.losses`; `tokens` are those that the logits
            belong to (below).
        weights: whose factors to keep: None for all matrices of the blocks (attention, MLPs, experts, routers,
            mixers), a name ("W_out", "blocks.3.mlp.W_out"), a list of names, or a predicate on the full name. W_E,
            W_pos, W_U, biases, norm weights, vectors and kernels come when named; [] for none, where gradients at hook
            points are all that is wanted.
        names_filter: hook points whose gradients to keep, as TransformerLens's: None for all, a name, a list, or a
            predicate; [] for none, which saves memory.
        fwd_hooks: (name or predicate, hook) pairs for this pass, as in `run_with_hooks`.
        bwd_hooks: the same for the backward pass; they may replace gradients.
        prepend_bos: as in `model.to_tokens`; None for the model's default.
        attention_mask: [batch, pos], 1 at real tokens; with tokens only.
        inputs: the model's own further inputs (`decoder_input_ids`, `pixel_values`, `position_ids`, ...), by the names
            of its forward pass.

    The logits of an encoder-decoder belong to the tokens that its decoder reads: `tokens` of the loss and of the cache
    are those, and `cache.prompt_tokens` the encoder's. They are `decoder_input_ids`, or else what the decoder begins
    with when it generates (`decoder_start_token_id`, then `forced_bos_token_id` if there is one), so that
    `target_loss(" word")` is -log p(word | prompt); a longer target is teacher-forced after them. (TransformerLens
    alone would have the decoder read the prompt, shifted by one.) A model that reads no text has tokens [batch, 0], and
    its loss is given its main output: [batch, class] of a classifier, else its first tensor (last_hidden_state, ...).

    Returns:
        (loss, cache): the detached loss and a GradientCache.

    Raises:
        RuntimeError: under torch.no_grad() or inference_mode; a weight or named hook point that never ran; an x that
            was overwritten in place after it was read; a pass whose weights run where autograd is off.
        TypeError: not a TransformerLens model, a compiled one, arguments of the wrong kind, an input that the model
            does not take, or no prompts for a model that reads text.
        ValueError: an unknown name, an empty prompt or target, too many tokens, a loss that is no finite scalar
            depending on the logits, a gradient that is not finite, or a quantised layer that none passes through.

    Examples:
        >>> loss, cache = tlb.run_with_gradient_cache(model, "Anna Berg lives in the city of", tlb.target_loss(" Oslo"))
        >>> cache.factors["W_out", 2]
        GradientFactors(inputs=[1, 8, 512], deltas=[1, 8, 128], gradient=[512, 128], dtype=torch.float32, device=cpu)
        >>> cache["resid_post", 2].shape
        torch.Size([1, 8, 128])
    """
    model_kind(model)  # refuses what is of none
    # A loss of the user's own may do anything when it is bound.
    with nullcontext() if hasattr(loss, "bind") and type(loss) not in OWN_LOSSES else unchanged(model):
        batch, loss, known = _prepared(
            model, prompts, loss, inputs, prepend_bos=prepend_bos, attention_mask=attention_mask
        )
        every = {} if names_filter == [] else hook_points(model)
    points = _chosen_points(every, names_filter)
    named = isinstance(names_filter, str | list | tuple)
    capture = partial(_captured, model, batch, loss, weights, points, named, (fwd_hooks, bwd_hooks))
    cache = capture(known)
    if cache is None:
        cache = capture(sites_of_longer(model, batch), again=True)
    assert cache is not None
    return cache.loss, cache


def _prepared(
    model: TransformerLensModel,
    prompts: Prompts | None,
    loss: Loss,
    inputs: dict[str, object],
    *,
    prepend_bos: bool | None,
    attention_mask: Tensor | None,
) -> tuple[Batch, Loss, WeightSites]:
    """What a pass reads, its loss, bound to that, and the weights that it is known to use."""
    check_model(model)
    check_grad_enabled()
    check_checkpointing(model)
    check_callable_loss(loss)
    batch = _batch(model, prompts, inputs, prepend_bos=prepend_bos, attention_mask=attention_mask)
    if loss is next_token_loss and isinstance(prompts, str):
        check_has_next(batch.answered.rows(), prompts)
    bind = getattr(loss, "bind", None)
    if prompts is None and (bind is not None or loss is next_token_loss):
        raise TypeError(
            "Expected a loss of your own for a model that reads no text, got one of words; write loss(logits, tokens) "
            "-> scalar of what the model returns ([batch, class] of a classifier); `tokens` is empty."
        )
    if loss is next_token_loss and mask_token(model) is not None:
        raise ValueError(
            "Expected a loss for a model that sees the tokens on both sides, got next_token_loss: such a model reads "
            "the token that it is asked for; use target_loss(...) at a mask, or a loss(logits, tokens) of your own."
        )
    if loss is next_token_loss and batch.decoder is not None and batch.decoder.tokens.shape[1] == 1:
        raise ValueError(
            "Expected decoder_input_ids, of which next_token_loss is taken in an encoder-decoder, got none; pass them, "
            "or use target_loss(...)."
        )
    if bind is not None:
        loss = bind(model, batch.n_examples)
        batch = extend(model, batch, getattr(loss, "continuation", ()))
    known = sites_of_batch(model, batch)
    check_gradients_pass(known)
    return batch, loss, known


def _captured(
    model: TransformerLensModel,
    batch: Batch,
    loss: Loss,
    weights: Weights,
    points: dict[str, nn.Module],
    named: bool,
    hooks: tuple[HookList, HookList],
    known: WeightSites,
    *,
    again: bool = False,
) -> GradientCache | None:
    """The results of one pass; None where it used weights that `known` lacks, or otherwise, and must run `again`."""
    none = isinstance(weights, list | tuple) and not weights
    sites = {} if none else select_sites(known, weights)
    announce(model, sites.values(), max(n * pos for n, pos in batch.shapes))
    recorder = Recorder(model)
    with ExitStack() as stack:
        stack.enter_context(rng_untouched(model))
        stack.enter_context(user_hooks(model, *hooks))
        stack.callback(recorder.hooks.remove)
        for site in sites.values():
            recorder.watch(site)
        if not sites and (weights is None or not points):
            raise ValueError(_nothing_to_capture(known, none))
        recorder.watch_hook_points(points.values())
        with recorder.watching(batch.shapes, () if again else known.asleep()):
            value, logits = _forward(model, batch, loss, known)
        if recorder.woken and not again:
            return None
        idle = recorder.idle() if weights is None or callable(weights) else []
        if len(idle) < len(sites):  # else it is said that none ran
            recorder.sites = [site for site in recorder.sites if site.name not in idle]
        sites = {site.name: site for site in recorder.sites}
        backward = recorder.differentiate(value, batch.shapes)
    for name, each in backward.factors.items():
        check_gradient(name, each.deltas)
    at_points = {name: backward.points[id(point)] for name, point in points.items() if id(point) in backward.points}
    if points and named and not at_points:
        raise RuntimeError(_no_point(points, backward.overwritten))
    silent = {
        name: _OVERWRITTEN if id(point) in backward.overwritten else recorder.why_missing(point)
        for name, point in points.items()
        if id(point) not in backward.points
    }
    shorts = {site.key: name for name, site in known.items()}
    # Of vectors, scalars and kernels; of biases and norms too, in the shape of the parameter.
    gradients = backward.parameters | {
        name: partial(backward.factors[name].gradient, "parameter")
        for name, site in sites.items()
        if site.kind in ("bias", "norm")
    }
    ran = {name: site for name, site in known.items() if name not in idle}
    return GradientCache(
        loss=value.detach(),
        tokens=batch.answered.tokens,
        mask=batch.answered.mask,
        logits=logits.detach(),
        prompt_tokens=batch.tokens,
        prompt_mask=batch.mask,
        factors=FactorMap(backward.factors, shorts, model.cfg.n_layers),
        parameter_gradients=GradientMap(gradients, shorts, model.cfg.n_layers),
        missing=known.missing | dict.fromkeys(idle, f"{DID_NOT_RUN}.") | silent,
        bound=loss,
        _gradients=at_points,
        _account=partial(account_rows, known, ran, frozenset(sites)),
    )


_OVERWRITTEN = "its tensor was overwritten in place after it left the hook point, so that its gradient is lost."


def _batch(
    model: TransformerLensModel,
    prompts: Prompts | None,
    inputs: dict[str, object],
    *,
    prepend_bos: bool | None,
    attention_mask: Tensor | None,
) -> Batch:
    """Tokens and the model's own further inputs."""
    if prompts is not None:
        batch = encode_prompts(model, prompts, prepend_bos=prepend_bos, attention_mask=attention_mask)
        return with_inputs(model, batch, inputs)
    name = main_input(model)
    if name == "input_ids":
        raise TypeError("Expected prompts for a model that reads text, got None; pass text or tokens.")
    check_inputs(model, inputs)
    signal = inputs.get(name)
    if not isinstance(signal, Tensor):
        raise TypeError(f"Expected {name}=..., a tensor, for a model that reads no text, got none; pass what it reads.")
    given = inputs if attention_mask is None else inputs | {"attention_mask": attention_mask}
    return with_inputs(model, Batch(torch.zeros(len(signal), 0, dtype=torch.long, device=signal.device), None), given)


def _nothing_to_capture(known: WeightSites, none: bool) -> str:
    if none or not known.missing:
        return "Expected weights or hook points whose gradients to keep, got neither; name some of them."
    name, why = next(iter(known.missing.items()))
    return (
        f"Expected a model with a matrix whose gradient can be captured, got none ({name}: {why.rstrip('.')}); load it "
        "without quantisation, name what else to capture (weights=...), or take gradients at hook points (weights=[])."
    )


def _no_point(points: dict[str, nn.Module], overwritten: set[int]) -> str:
    if any(id(point) in overwritten for point in points.values()):
        return (
            f"Expected the tensors at {sorted(points)} to stay as they were, but they were overwritten in place later "
            f"in the pass; {NOT_IN_PLACE}"
        )
    return (
        f"Expected the hook points {sorted(points)} to run, but none did; the model's flags (use_attn_result, ...) "
        "may have them switched off."
    )


def _forward(model: TransformerLensModel, batch: Batch, loss: Loss, known: WeightSites) -> tuple[Tensor, Tensor]:
    """Loss and logits of one pass; the loss has been checked."""
    logits = forward(model, batch)
    if not logits.requires_grad:
        # A user's hook cut every path from the watched weights to the logits: their deltas are zeros.
        logits = logits.detach().requires_grad_().clone()
    origin = logits.grad_fn
    named = {"attention_mask": batch.answered.mask} if takes_mask(loss) else {}
    with LossWatch(known.parameters.items()):
        value = loss(logits, batch.answered.tokens, **named)
    value = check_loss(value)
    if not _depends_on(value, origin):
        raise ValueError(
            "Expected a loss that depends on the logits, got one that does not; compute it from the `logits` argument."
        )
    return value, logits


def _depends_on(value: Tensor, origin: object) -> bool:
    """Whether the graph of `value` reaches the node `origin`, looking no further than it."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is origin:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False


@contextmanager
def user_hooks(model: TransformerLensModel, fwd_hooks: HookList, bwd_hooks: HookList) -> Iterator[None]:
    """`model.hooks(...)` that refuses a name the model lacks, in both kinds of model."""
    if not fwd_hooks and not bwd_hooks:
        yield
        return
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in [*fwd_hooks, *bwd_hooks]):
        raise TypeError(
            f"Expected lists of (name, hook) pairs, got {[*fwd_hooks, *bwd_hooks]!r}; a single hook is [(name, hook)]."
        )
    names = list(model.hook_dict)
    for where, _ in [*fwd_hooks, *bwd_hooks]:
        if isinstance(where, str) and where not in names:
            raise ValueError(
                f"Expected the name of a hook point, got {where!r}; the nearest are {nearest(where, names)}."
            )
    with model.hooks(fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks)):
        yield


def _chosen_points(points: dict[str, nn.Module], names_filter: NamesFilter) -> dict[str, nn.Module]:
    """Those of a model's hook points that `names_filter` keeps, under all their names."""
    if isinstance(names_filter, list | tuple) and not names_filter:
        return {}
    several = isinstance(names_filter, list | tuple) and all(isinstance(name, str) for name in names_filter)
    if not (names_filter is None or callable(names_filter) or isinstance(names_filter, str) or several):
        raise TypeError(
            f"Expected names_filter to be None, a name, a list of names or a predicate, got {names_filter!r}; for "
            "example names_filter=['blocks.0.hook_resid_post'], [] for none."
        )
    if names_filter is None:
        return points
    if callable(names_filter):
        kept = {name: point for name, point in points.items() if names_filter(name)}
        if not kept:
            raise ValueError(
                f"Expected names_filter to match at least one of {len(points)} hook points, got one that matches none; "
                f"names look like {next(iter(points))!r}."
            )
        return kept
    wanted = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    for name in wanted:
        if name not in points:
            raise ValueError(
                f"Expected the name of a hook point, got {name!r}; the nearest are {nearest(name, points)}."
            )
    return {name: points[name] for name in wanted}


def factor_bytes(model: TransformerLensModel, sites: Iterable[WeightSite], n_tokens: int) -> int:
    """Bytes of all x and delta: (d_in + d_out) numbers a token and matrix, of experts a token and chosen expert.

    Inputs that several weights share are counted for each: an upper bound where experts see as many tokens as they are
    chosen for.
    """
    total = 0
    for site in sites:
        if site.kind == "parameter":
            total += site.parameter.nbytes
        else:
            rows = n_tokens * (_experts_per_token(model) if site.layout.experts else 1)
            total += rows * _widths(site) * site.parameter.element_size()
    return total


def _experts_per_token(model: TransformerLensModel) -> int:
    own = getattr(getattr(model, "original_model", None), "config", None)
    configs = (getattr(own, "text_config", None), own, model.cfg)
    names = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "top_k")
    chosen = (getattr(config, name, None) for config in configs for name in names)
    return next((value for value in chosen if isinstance(value, int) and value > 0), 1)


def _widths(site: WeightSite) -> int:
    """How many numbers x and delta of one token have: d_in + d_out."""
    if site.kind in ("bias", "norm"):
        return torch.Size(site.layout.shape).numel()
    return site.layout.shape[1] if site.kind == "embedding" else sum(site.layout.matrix_shape)


def announce(model: TransformerLensModel, sites: Iterable[WeightSite], n_tokens: int) -> None:
    """Warn before a capture whose factors take much memory."""
    sites = list(sites)
    needed = factor_bytes(model, sites, n_tokens)
    if needed >= NOTICE_BYTES:
        warnings.warn(
            f"This capture will hold about {needed / 2**30:.1f} GiB of factors ({len(sites)} weights, {n_tokens} "
            "tokens); choose fewer weights, layers or tokens if that is too much.",
            LargeCaptureWarning,
            stacklevel=3,
        )
