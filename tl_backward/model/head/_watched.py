"""One short pass, watched from the last block on: which modules lead to the unembedding, and what is done after it."""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.head._parts import Step, close, innermost, name_of, root_of, unembed_of
from tl_backward.model.probe import probe_logits, probe_tokens

_BLOCK = re.compile(r"(\w*blocks\.\d+)\.hook_\w+")


@dataclass
class Call:
    path: str
    given: Tensor
    made: Tensor


@dataclass(frozen=True)
class Pass:
    """What was seen after the last block of a pass."""

    stream: Tensor
    """[batch, pos, d_model], the last block's output."""
    read: Tensor
    """[batch, pos, d], the unembedding's input."""
    said: Tensor
    """[batch, pos, d_vocab], its own output."""
    put: Tensor
    """Known numbers that were put in its place."""
    logits: Tensor
    """What the model made of them."""
    calls: list[Call]
    """Calls of modules between the stream and the unembedding, in the order in which they ended."""
    begun: dict[str, Tensor]
    """Modules that had begun then and not ended, outermost first, and what each was given."""


@dataclass
class _Watch:
    """Hooks of one pass, and what they saw."""

    stream: Tensor | None = None
    read: Tensor | None = None
    said: Tensor | None = None
    put: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    begun: dict[str, Tensor] = field(default_factory=dict)

    def at_block(self, module: nn.Module, args: tuple, output: object) -> None:
        """A block ended; the last to do so before the unembedding is the one that the head reads."""
        first = output[0] if isinstance(output, tuple | list) else output
        if self.read is None and isinstance(first, Tensor):
            self.stream = first
            self.calls.clear()
            self.begun.clear()

    def at_start(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = _tensors(args, kwargs)
        if self.stream is not None and self.read is None and len(given) == 1 and given[0].is_floating_point():
            self.begun[path] = given[0]

    def at_end(self, path: str, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if self.stream is None or self.read is not None:
            return
        self.begun.pop(path, None)
        given = _tensors(args, kwargs)
        if len(given) == 1 and isinstance(output, Tensor) and given[0] is not output:
            self.calls.append(Call(path, given[0], output))

    def at_read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.read = _tensors(args, kwargs)[0]

    def at_said(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        self.said, self.put = output, _known_numbers(output)
        return self.put.clone()


def watch(model: TransformerLensModel) -> Pass:
    """One short pass in which the unembedding's output is replaced by known numbers; within `unobserved(model)`.

    Raises:
        ValueError: no unembedding or no stream, a pass that fails, or one that does not come from one stream.
    """
    name, unembed, found = name_of(model), getattr(model, "unembed", None), blocks(model)
    if not isinstance(unembed, nn.Module) or not found:
        what = "an unembedding" if found else "blocks that write to a stream"
        raise ValueError(
            f"Expected a model with a head that turns its last residual stream into logits, got {name} without {what}; "
            "take its factors instead, which need no head."
        )
    seen = _Watch()
    for path, module in root_of(model).named_modules():
        if path:
            module.register_forward_pre_hook(partial(seen.at_start, path), with_kwargs=True)
            module.register_forward_hook(partial(seen.at_end, path), with_kwargs=True)
    for block in found:
        block.register_forward_hook(seen.at_block)
    unembed.register_forward_pre_hook(seen.at_read, with_kwargs=True)
    unembed.register_forward_hook(seen.at_said)
    try:
        logits = probe_logits(model, probe_tokens(model))
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"Expected a pass over a few tokens, from which the head of {name} is learnt, got {type(error).__name__}: "
            f"{why}; its stream cannot be read in words."
        ) from error
    if seen.stream is None or seen.read is None or seen.said is None or seen.put is None:
        raise ValueError(
            f"Expected a pass through the last block and then the unembedding, got one of {name} in which they did not "
            "run in that order; its stream cannot be read in words."
        )
    if seen.stream.shape[:-1] != seen.read.shape[:-1]:
        raise ValueError(
            f"Expected one residual stream [batch, pos, d_model] under the head, got {list(seen.stream.shape)} for "
            f"{list(seen.read.shape)} in {name}, whose head mixes several streams first; take factors, which need no "
            "head."
        )
    if not all(torch.isfinite(part).all() for part in (seen.stream, seen.read, seen.said)):
        raise ValueError(
            "Expected finite numbers in the last residual stream and the logits, got NaN or inf; load or train the "
            "model anew, or use a wider dtype."
        )
    return Pass(seen.stream, seen.read, seen.said, seen.put, logits, seen.calls, seen.begun)


def blocks(model: TransformerLensModel) -> list[nn.Module]:
    """Every block, an encoder's and a tower's too, by the names of its hook points."""
    paths = dict.fromkeys(match[1] for name in model.hook_dict if (match := _BLOCK.fullmatch(name)))
    return [cast(nn.Module, model).get_submodule(path) for path in paths]


def _is_norm(model: TransformerLensModel, path: str) -> bool:
    module = root_of(model).get_submodule(path)
    names = (type(part).__name__ for part in (module, innermost(module)))
    return any("norm" in name.lower() or name.startswith(("LN", "RMS")) for name in names)


def _tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def steps_to(model: TransformerLensModel, seen: Pass) -> tuple[float, tuple[Step, ...]] | None:
    """The steps from the stream to the unembedding, the last of which may be a module that ends in it (RoBERTa's)."""
    inside = next(path for path, module in root_of(model).named_modules() if module is unembed_of(model))
    ends: list[tuple[Tensor, tuple[Step, ...]]] = [(seen.read, ())]
    for path, given in seen.begun.items():
        if inside.startswith(f"{path}."):
            ends.append((given, (Step(path, 1.0, within=inside.removeprefix(f"{path}.")),)))
    for target, last in ends:
        chain = _chain(seen, target, len(seen.calls))
        if chain is not None:
            return chain[0], (
                *(Step(call.path, factor, _is_norm(model, call.path)) for call, factor in chain[1]),
                *last,
            )
    return None


def _chain(seen: Pass, target: Tensor, stop: int) -> tuple[float, list[tuple[Call, float]]] | None:
    """Calls that lead from the stream to `target`, found backwards, outermost modules first, with their factors."""
    factor = _ratio(target, seen.stream)
    if factor is not None:
        return factor, []
    for index in reversed(range(stop)):
        call = seen.calls[index]
        factor = _ratio(target, call.made)
        if factor is None or _ratio(call.given, call.made) is not None:
            continue
        found = _chain(seen, call.given, index)
        if found is not None:
            return found[0], [*found[1], (call, factor)]
    return None


def _ratio(target: Tensor, made: Tensor) -> float | None:
    """The c such that target = c * made; None where there is none."""
    if target.shape != made.shape:
        return None
    if target is made or torch.equal(target, made):
        return 1.0
    wide, other = target.double(), made.double()
    square = float((other * other).sum())
    if not square:
        return None
    factor = float((wide * other).sum()) / square
    return factor if factor and close(other * factor, wide, like=target.dtype) else None


_SMALL, _MODERATE, _LARGE = 2.0**-6, 64.0, 2.0**14


def _known_numbers(output: Tensor) -> Tensor:
    """Numbers [batch, pos, d_vocab] for the unembedding to say: zeros, small ones, moderate ones and large ones."""
    put = torch.zeros_like(output)
    n = output[0].numel()
    ramp = torch.linspace(-1, 1, n, dtype=output.dtype, device=output.device).reshape(output[0].shape)
    put[1], put[2], put[3] = ramp * _SMALL, ramp * _MODERATE, _LARGE
    return put


def after_unembedding(seen: Pass, name: str) -> tuple[float, float, Tensor | None]:
    """Scale, softcap (0 for none) and offset that make `logits` of the numbers that were put there."""
    if seen.logits.shape != seen.put.shape:
        raise ValueError(
            f"Expected logits {list(seen.put.shape)}, as many as the unembedding gives, got {list(seen.logits.shape)} "
            f"of {name}; its stream cannot be read in words."
        )
    logits, wide, said = seen.logits, seen.put.double(), seen.logits.double()
    offset = said[0, 0]
    large = (said[3] - offset).flatten()[0]
    scale, cap = float(large / _LARGE), 0.0
    if not close(wide * scale + offset, said, like=logits.dtype):
        cap = float(large)  # what a large number is capped to
        slope = (said[1] / cap).atanh() * cap
        scale = float((slope * wide[1]).sum() / (wide[1] * wide[1]).sum())
        if cap <= 0 or offset.any() or not close(cap * (wide * scale / cap).tanh(), said, like=logits.dtype):
            raise ValueError(
                f"Expected logits that are the unembedding's output but for a scale and a softcap, got more of {name}; "
                "its stream cannot be read in words."
            )
    return scale, cap, (offset / scale).to(logits.dtype) if offset.any() else None
