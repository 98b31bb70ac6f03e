"""One row's columns: what a capture covers and how exact it is, the lens, readout, control and hook points."""

import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

import tl_backward as tlb
from tl_backward.model.controls import random_init
from tl_backward.weights.account import DID_NOT_RUN

from .build import bridge, hugging_face, no_processors, passes
from .double import InDouble
from .table import Inputs, Row
from .uses import USES

EXACT, ROUNDED, SINGLE = 1e-9, 1e-5, 1e-5
"""Errors allowed in float64; where transformers rounds to float32 inside; and in float32."""


@dataclass
class Pass:
    """What one pass of a model said."""

    silent: float = 0.0
    """Share of the elements that get a gradient: in no site, and without a reason."""
    listed: float = 0.0
    """In no site, with a reason."""
    captured: float = 0.0
    whole: float = 0.0
    """Share of the elements whose gradient is captured without factors: vectors, scalars, kernels, tables."""
    whole_matrices: list[str] = field(default_factory=list)
    """Those of them with two axes or more."""
    worst: float = 0.0
    """Largest error over all parameters."""
    of: str = ""
    """The parameter with that error."""
    rounded: bool = False
    """Whether it is transformers' rounding: `exact` is the error without it."""
    exact: float = 0.0
    single: float = 0.0
    """The worst error of the model in float32, where that was measured."""
    reasons: dict[str, int] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    """Silent parameters, by name."""
    wrong: dict[str, float] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    """Weights that no token reached: experts."""


@dataclass
class Result:
    """A row of the table."""

    name: str
    architecture: str
    boots: str = "yes"
    """Or what transformers or TransformerLens said."""
    runs: bool = False
    """Whether some pass runs in plain TransformerLens."""
    elements: int = 0
    passes: dict[str, Pass] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Passes that TransformerLens does not run, or that a capture raised in."""
    errors: dict[str, str] = field(default_factory=dict)
    lens: str = ""
    readout: str = ""
    control: str = ""
    points: str = ""
    uses: dict[str, str] = field(default_factory=dict)
    """What the rest of the package says to it, by column."""
    logits: str = ""
    """Whether TransformerLens's logits are transformers'."""
    seconds: float = 0.0


def projection(logits: Tensor, tokens: Tensor) -> Tensor:
    """A loss that no architecture is blind to, whatever the shape of its output."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (logits * weights.to(logits.dtype)).sum() + 0.1 * logits.square().sum()


def first_of_decoder(config) -> int:
    """As transformers and its papers say: decoder_start_token_id, T5Gemma's BOS, T5's pad token."""
    parts = (getattr(config, "decoder", None), config, getattr(config, "text_config", None))
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    return next(v for name in names for part in parts if (v := getattr(part, name, None)) is not None)


def run(model, tokens: Tensor | None, inputs: Inputs) -> Tensor:
    """The model's own answer through TransformerLens; a decoder begins with its first token where nothing is given."""
    given = {name: value for name, value in inputs.items()}
    main = tokens
    config = getattr(getattr(model, "original_model", None), "config", None)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in given and tokens is not None:
        given["decoder_input_ids"] = torch.full((len(tokens), 1), first_of_decoder(config))
    if main is None:
        main = given.pop(next(iter(given)))
    return model(main, return_type="logits", **given)


def every_parameter(model) -> dict[str, nn.Parameter]:
    """Those of the Bridge, and what the Hugging Face model inside has beside them."""
    named = dict(model.named_parameters())
    known = {id(p) for p in named.values()}
    inner = getattr(model, "original_model", None)
    if isinstance(inner, nn.Module):
        named |= {f"original_model.{name}": p for name, p in inner.named_parameters() if id(p) not in known}
    return named


def oracle(model, tokens: Tensor | None, inputs: Inputs) -> tuple[Tensor, dict[int, Tensor]]:
    """(loss, autograd's gradient by the identity of each parameter)."""
    parameters = {id(p): p for p in every_parameter(model).values() if p.is_floating_point()}
    flags = {key: p.requires_grad for key, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        loss = projection(run(model, tokens, inputs), tokens)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for key, p in parameters.items():
            p.requires_grad_(flags[key])
    return loss.detach(), {
        key: g for key, g in zip(parameters, found, strict=True) if g is not None and g.abs().max() > 0
    }


def capture(model, tokens: Tensor | None, inputs: Inputs):
    """(loss, cache, sites) of every weight."""
    sites = tlb.weight_sites(model, tokens, **inputs)
    loss, cache = tlb.run_with_gradient_cache(
        model, tokens, projection, weights=lambda name: True, names_filter=[], **inputs
    )
    return loss, cache, sites


def measure_pass(model, tokens: Tensor | None, inputs: Inputs) -> Pass:
    """What a pass captures, against autograd."""
    value, truth = oracle(model, tokens, inputs)
    loss, cache, sites = capture(model, tokens, inputs)
    found = Pass()
    account = sites.account().set_index("parameter")
    assert account.equals(cache.account().set_index("parameter")), "what the pass did is what was announced"
    named = every_parameter(model)
    assert list(account.index) == [name for name, _ in model.named_parameters()], "a row for each parameter"
    total = sum(named[name].numel() for name in named if id(named[name]) in truth) or 1
    unseen = listed = 0
    for name, parameter in named.items():
        if name not in account.index:
            if id(parameter) in truth:
                unseen += parameter.numel()
                found.unseen.append(name)
            continue
        line = account.loc[name]
        assert bool(line["sites"]) != bool(line["reason"]), f"{name}: never both, never neither"
        if id(parameter) not in truth or line["sites"]:
            continue
        if line["reason"] == DID_NOT_RUN:
            unseen += parameter.numel()
            found.unseen.append(name)
        else:
            listed += parameter.numel()
            found.reasons[line["reason"]] = found.reasons.get(line["reason"], 0) + parameter.numel()
    without = {id(s.parameter): s for s in sites.values() if s.kind == "parameter"}
    for site in sites.values():
        if site.kind != "parameter":
            without.pop(id(site.parameter), None)
    found.whole = sum(s.parameter.numel() for s in without.values() if id(s.parameter) in truth) / total
    found.whole_matrices = [s.name for s in without.values() if s.parameter.squeeze().ndim > 1]
    found.unreached = [name for name, factors in cache.factors.items() if not float(factors.norm())]
    found.silent, found.listed = unseen / total, listed / total
    found.captured = 1 - found.silent - found.listed
    limit = EXACT if next(model.parameters()).dtype == torch.float64 else SINGLE
    floor = 1e-3 * max((float(g.abs().max()) for g in truth.values()), default=1.0)
    sums: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for name, site in sites.items():
        dense = (
            cache.parameter_gradients[name] if site.kind == "parameter" else cache.factors[name].gradient("parameter")
        )
        key = id(site.parameter)
        assert dense.shape == site.parameter.shape, f"{name}: {list(dense.shape)} for {list(site.parameter.shape)}"
        sums[key] = sums[key] + dense if key in sums else dense
        names[key] = f"{names[key]}+{name}" if key in names else name
    for key, dense in sums.items():
        real = truth.get(key)
        scale = floor if real is None else max(float(real.abs().max()), floor)
        error = float((dense if real is None else dense - real).abs().max()) / scale
        if not error <= limit:
            found.wrong[names[key]] = error
        if not error <= found.worst:
            found.worst, found.of = error, names[key]
    if not torch.equal(loss, value) and abs(float(loss - value)) > limit * max(1.0, abs(float(value))):
        found.wrong["the loss"] = abs(float(loss - value))
    return found


@contextmanager
def default_dtype(dtype: torch.dtype):
    """A default dtype, for models that make tensors in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def said(call: Callable[[], str]) -> str:
    """What a check says: its own words, a refusal in one sentence of ours, or ERROR."""
    try:
        return call()
    except (ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if text.startswith("Expected") and "tl_backward" in traceback.extract_tb(error.__traceback__)[-1].filename:
            return f"refused: {text}"
        return failure(error)
    except Exception as error:  # whatever a library raises: the table says so
        return failure(error)


def failure(error: BaseException) -> str:
    """An exception in a line, and where it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = frame.filename.rpartition("site-packages/")[2].rpartition("/tl_backward/")[2]
    return f"ERROR {type(error).__name__}: {' '.join(str(error).split())[:200]} [{place}:{frame.lineno}]"


def check_lens(model, row: Row, inputs: Inputs) -> str:
    """The lens of a short prompt."""
    prompt = "w10 w11 <mask> w12" if row.masked else "w10 w11 w12"
    lens = tlb.backward_lens(model, prompt, " w20", k=3, **inputs)
    assert lens.layers and torch.isfinite(lens.stacked("norm")).all()
    return "works"


STACKS = ("decoder_blocks", "blocks")
"""What the stack that the head reads may be called."""


@contextmanager
def last_stream(model):
    """What the last block returns, of the stack that the head reads."""
    stack = next(name for name in STACKS if isinstance(getattr(model, name, None), nn.ModuleList))
    kept: list[Tensor] = []

    def keep(module, args, out):
        kept.append(out[0] if isinstance(out, tuple | list) else out)

    handle = getattr(model, stack)[-1].register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def check_readout(model, tokens: Tensor | None, inputs: Inputs) -> str:
    """The last residual stream, read, against the model's logits."""
    if tokens is None:
        return "no head over words"
    if not any(isinstance(getattr(model, name, None), nn.ModuleList) for name in STACKS):
        return "no stack of blocks"
    with torch.no_grad(), last_stream(model) as kept:
        logits = run(model, tokens, inputs)
    read = tlb.readout(model, kept[-1], k=logits.shape[-1], bias=True)
    values = torch.empty_like(logits).scatter_(-1, read.top_ids, read.top_values.to(logits.dtype))
    wrong = float((values - logits).abs().max() / logits.abs().max())
    top = float((read.top_ids[..., 0] == logits.argmax(-1)).double().mean())
    return "exact" if wrong < 1e-6 and top == 1 else f"WRONG by {wrong:.1g}, top token right in {top:.0%}"


def check_control(model, tokens: Tensor | None, inputs: Inputs) -> str:
    """An untrained copy whose logits vary, of a model that stays as it was."""
    before = [p.detach().clone() for p in model.parameters()]
    control = random_init(model, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), "the model was changed"
    with torch.no_grad():
        logits, own = run(control, tokens, inputs), run(model, tokens, inputs)
    flat = logits.flatten(0, -2)
    alive = bool(logits.isfinite().all()) and flat.std(-1).min() > 0 and (len(flat) < 2 or flat.std(0).max() > 0)
    if not alive or torch.equal(logits, own):
        return "WRONG: constant logits" if not alive else "WRONG: the trained logits"
    return "alive"


def check_points(model, tokens: Tensor | None, inputs: Inputs, unreached: list[str]) -> str:
    """Our own hook points: they fire, change nothing, and leave."""
    names = set(model.hook_dict)
    structure = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    own = set(vars(model))
    with torch.no_grad():
        plain = run(model, tokens, inputs)
        tlb.extend(model)
        try:
            added = set(model.hook_dict) - names
            idle = {_point(name, end) for name in unreached for end in ("in", "out")}
            fired = set()
            hooks = [(name, lambda x, hook: fired.add(hook.name)) for name in added]
            with model.hooks(fwd_hooks=hooks):
                hooked = run(model, tokens, inputs)
            same = torch.equal(plain, run(model, tokens, inputs))
            off = float((plain - hooked).abs().max() / plain.abs().max())
        finally:
            tlb.unextend(model)
    left = set(model.hook_dict) != names or set(vars(model)) != own
    left |= structure != [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    flaws = ["output changed"] * (not same) + ["traces left"] * left
    mute = added - fired - idle
    flaws += [f"{len(mute)} of {len(added)} never fire: {min(mute)}"] if mute else []
    flaws += [f"hooks that only look change the output by {off:.0e}"] if off > ROUNDED else []
    # Under a watched pass torch.compile does not compile, and BitNet's quantisers round otherwise.
    return f"WRONG: {', '.join(flaws)}" if flaws else f"{len(added)}" + (f" (hooked: {off:.0e} off)" if off else "")


def _point(name: str, end: str) -> str:
    """What a weight's hook point is called."""
    owner, _, weight = name.rpartition(".")
    return f"{owner}.hook_{weight}_{end}"


def measure(row: Row, everything: bool = True) -> Result:
    """A row's columns; without `everything` only what is captured."""
    result = Result(row.name, row.architecture)
    wide = row.architecture == "XGLMForCausalLM"  # makes a mask of float64's least number in the default dtype
    with InDouble(), default_dtype(torch.float64 if wide else torch.float32), no_processors(), row.making():
        try:
            inner = None if row.boot else hugging_face(row)
        except Exception as error:
            result.boots = f"transformers: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return result
        plain = {} if inner is None else _own_logits(inner, row)
        try:
            model = bridge(row, inner)
        except Exception as error:
            result.boots = f"TransformerLens: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return result
        given = passes(row, getattr(getattr(model, "original_model", None), "config", None))
        result.elements = sum(p.numel() for p in model.parameters())
        for name, (tokens, inputs) in list(given.items()):
            try:
                with torch.no_grad():
                    logits = run(model, tokens, inputs)
                if not isinstance(logits, Tensor) or not logits.isfinite().all():
                    raise RuntimeError("logits that are no finite tensor")
            except Exception as error:
                theirs = plain.get(name)
                who = "transformers" if isinstance(theirs, str) else "TransformerLens"
                result.failed[name] = theirs if isinstance(theirs, str) else f"{who}: {failure(error)[6:]}"
                del given[name]
                continue
            theirs = plain.get(name)
            if isinstance(theirs, Tensor):
                far = float((theirs - logits).abs().max() / theirs.abs().max()) if theirs.shape == logits.shape else 1.0
                if far > 1e-5:
                    result.logits = f"{far:.1g} from transformers'"
        result.runs = bool(given)
        for name, (tokens, inputs) in given.items():
            try:
                result.passes[name] = measure_pass(model, tokens, inputs)
            except Exception as error:
                result.errors[name] = failure(error)
        if given and everything:
            tokens, inputs = next(iter(given.values()))
            unreached = [name for found in result.passes.values() for name in found.unreached]
            reads = {key: value[:1] for key, value in inputs.items() if key == "decoder_input_ids"}
            result.lens = said(lambda: check_lens(model, row, reads)) if row.reads_text else "reads no text"
            result.readout = said(lambda: check_readout(model, tokens, inputs))
            result.control = said(lambda: check_control(model, tokens, inputs))
            result.points = said(lambda: check_points(model, tokens, inputs, unreached))
            if row.reads_text:
                result.uses = {name: said(partial(check, model, row)) for name, check in USES.items()}
    if any(p.wrong for p in result.passes.values()):
        _without_rounding(row, result)
    if row.in_single and result.passes:
        try:
            _in_single(row, result)
        except Exception as error:
            result.errors["float32"] = failure(error)
    return result


def _own_logits(inner: nn.Module, row: Row) -> dict[str, Tensor | str]:
    found: dict[str, Tensor | str] = {}
    for name, (tokens, inputs) in passes(row, inner.config).items():
        given = dict(inputs) if tokens is None else {"input_ids": tokens, **inputs}
        if inner.config.is_encoder_decoder and "decoder_input_ids" not in given and tokens is not None:
            continue
        try:
            with torch.no_grad():
                out = inner(**given)
            found[name] = out.logits if getattr(out, "logits", None) is not None else out[0]
        except Exception as error:
            found[name] = f"transformers: {failure(error)[6:]}"
    return found


def _without_rounding(row: Row, result: Result) -> None:
    """Where the errors are those of float32: measure the model again with transformers' casts to it switched off."""
    if any(error > ROUNDED for p in result.passes.values() for error in p.wrong.values()):
        return
    with InDouble(unrounded=True) as mode, default_dtype(torch.float64):
        model = bridge(row)
        for name, (tokens, inputs) in passes(row, model.original_model.config).items():
            if name in result.passes and result.passes[name].wrong:
                again = measure_pass(model, tokens, inputs)
                result.passes[name].exact = again.worst
                if not again.wrong and mode.casts:
                    result.passes[name].rounded = True
                    result.passes[name].wrong = {}


def _in_single(row: Row, result: Result) -> None:
    """The model in float32, as torch computes its grouped products."""
    inner = hugging_face(row).float()
    model = bridge(row, inner, torch.float32)
    for name, (tokens, inputs) in passes(row, inner.config).items():
        if name in result.passes:
            inputs = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
            again = measure_pass(model, tokens, inputs)
            result.passes[name].single = again.worst
            result.passes[name].wrong |= {f"{which} in float32": error for which, error in again.wrong.items()}
