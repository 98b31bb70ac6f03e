"""The modules of a model's head, derived from one short pass observed from the last block on.

Which modules lead to the unembedding, what is done after it, and what tells that both are still those they were.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.inputs import probe_logits, probe_tokens
from tl_backward.model.modules import root_of
from tl_backward.model.torch_hooks import without_hooks


@dataclass(frozen=True)
class Step:
    """A module of the head, and the factor that its output is multiplied by."""

    path: str
    """The module's path from the root that the pass runs through."""
    factor: float
    is_norm: bool = False
    """Whether it is a norm, the one that `ln=False` leaves out."""
    within: str = ""
    """Where in it the unembedding is, which is left out of it; "" where it is not in it."""


@dataclass(frozen=True)
class Learnt:
    """The head as one pass shows it. No module is held: a cache by model must not keep the model alive."""

    steps: tuple[Step, ...]
    first: float
    """Factor on the stream itself, before any step."""
    d_model: int
    width: int
    """How wide the unembedding's input is; d_model but for a projection."""
    d_vocab: int
    dtype: torch.dtype
    is_plain: bool
    """Whether the unembedding is x @ W + b with W and b as they are stored."""
    scale: float
    cap: float
    offset: Tensor | None
    """[d_vocab], added after the unembedding's own bias; in units of the unembedding's output."""
    signature: tuple = field(repr=False)


def unembed_of(model: TransformerLensModel) -> nn.Module:
    return cast(nn.Module, model).get_submodule("unembed")


def innermost(unembed: nn.Module) -> nn.Module:
    """The module that a Bridge's component wraps; a HookedTransformer's module itself."""
    return getattr(unembed, "original_component", None) or unembed


def alone(module: nn.Module) -> nn.Module:
    """A module without hooks or dropout, sharing its parameters."""
    return without_hooks(module).eval()


def runnable(model: TransformerLensModel, step: Step) -> nn.Module:
    """A step's module as a function, ending at the unembedding's input."""
    module = alone(root_of(model).get_submodule(step.path))
    if step.within:
        parent, _, name = step.within.rpartition(".")
        module.get_submodule(parent)._modules[name] = nn.Identity()
    return module


def unembedding(model: TransformerLensModel) -> Callable[[Tensor], Tensor]:
    """The model's unembedding on rows [n, d]."""
    module = alone(unembed_of(model))
    return lambda rows: module(rows[None])[0]


def stored(model: TransformerLensModel) -> tuple[Tensor, Tensor]:
    """W_U [d, d_vocab] and b_U as the unembedding holds them."""
    leaf = innermost(unembed_of(model))
    if type(leaf) is nn.Linear:
        bias = leaf.weight.new_zeros(leaf.weight.shape[0]) if leaf.bias is None else leaf.bias
        return leaf.weight.detach().T, bias.detach()
    try:
        return model.W_U.detach(), model.b_U.detach()
    except (AttributeError, AssertionError) as error:  # TransformerLens's own, of what holds no weight itself
        raise ValueError(
            "Expected an unembedding with a weight of its own, got a module around one, which TransformerLens reads no "
            "W_U from; put the module in its place by itself."
        ) from error


def may_be_plain(model: TransformerLensModel) -> bool:
    """Whether the unembedding is of a class that multiplies by its weight and does nothing else."""
    leaf = innermost(unembed_of(model))
    hooked = type(leaf).__name__ == "Unembed" and type(leaf).__module__.startswith("transformer_lens.")
    if not (hooked or type(leaf) is nn.Linear) or "forward" in leaf.__dict__:
        return False
    return all(
        type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()
        for weight in (*leaf._parameters.values(), *leaf._buffers.values())
        if weight is not None
    )


def name_of(model: TransformerLensModel) -> str:
    return type(root_of(model)).__name__


def signature_of(model: TransformerLensModel, steps: tuple[Step, ...]) -> tuple:
    """Cache key of a head: its modules, and every number of the configuration and the root module."""
    root = root_of(model)
    unembed = getattr(model, "unembed", None)
    modules = [] if unembed is None else list(unembed.modules())
    for step in steps:
        try:
            modules += root.get_submodule(step.path).modules()
        except AttributeError:
            return ()
    weights = [type(weight) for module in modules for weight in module._parameters.values()]
    plain = unembed is not None and may_be_plain(model)
    held = [_settings(part) for part in (model, root, model.cfg, getattr(root, "config", None))]
    return (*map(id, modules), *weights, plain, *held)


def _settings(owner: object) -> tuple:
    kinds = (float, bool, str, type(None))
    values = vars(owner) if hasattr(owner, "__dict__") else {}
    return tuple((name, value) for name, value in values.items() if name != "training" and isinstance(value, kinds))


def close(one: Tensor, other: Tensor, *, like: torch.dtype | None = None) -> bool:
    """Whether two tensors agree to the rounding of a dtype, by the size of the larger."""
    allowed = min(0.05, 256 * torch.finfo(like or other.dtype).eps) * float(other.double().abs().max())
    one, other = one.double(), other.double()
    return one.shape == other.shape and bool((one - other).abs().max() <= allowed)


_BLOCK = re.compile(r"(\w*blocks\.\d+)\.hook_\w+")


class Call(NamedTuple):
    """One call of a module: its input tensor and its output tensor."""

    path: str
    given: Tensor
    made: Tensor


@dataclass
class Pass:
    """The module calls of one pass after its last block, recorded by hooks."""

    stream: Tensor = field(init=False)
    """[batch, pos, d_model], the last block's output."""
    read: Tensor = field(init=False)
    """[batch, pos, d], the unembedding's input."""
    unembedded: Tensor = field(init=False)
    """[batch, pos, d_vocab], its own output."""
    put: Tensor = field(init=False)
    """Known numbers that were put in its place."""
    logits: Tensor = field(init=False)
    """What the model made of them."""
    calls: list[Call] = field(default_factory=list)
    """Calls of modules between the stream and the unembedding, in the order in which they ended."""
    begun: dict[str, Tensor] = field(default_factory=dict)
    """Modules that had begun then and not ended, outermost first, and what each was given."""

    @property
    def between(self) -> bool:
        """Whether a block has ended, and the unembedding not begun."""
        return "stream" in vars(self) and "read" not in vars(self)

    def at_block(self, module: nn.Module, args: tuple, output: object) -> None:
        """A block ended; the last to do so before the unembedding is the one that the head reads."""
        first = output[0] if isinstance(output, tuple | list) else output
        if "read" not in vars(self) and isinstance(first, Tensor):
            self.stream = first
            self.calls.clear()
            self.begun.clear()

    def at_start(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = _tensors(args, kwargs)
        if self.between and len(given) == 1 and given[0].is_floating_point():
            self.begun[path] = given[0]

    def at_end(self, path: str, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if self.between:
            self.begun.pop(path, None)
            given = _tensors(args, kwargs)
            if len(given) == 1 and isinstance(output, Tensor) and given[0] is not output:
                self.calls.append(Call(path, given[0], output))

    def at_read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.read = _tensors(args, kwargs)[0]

    def at_unembedded(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        self.unembedded, self.put = output, _known_numbers(output)
        return self.put.clone()


def watch(model: TransformerLensModel) -> Pass:
    """One short pass in which the unembedding's output is replaced by known numbers; within `unobserved(model)`.

    Raises:
        ValueError: no unembedding or no stream, a pass that fails, or one that does not come from one stream.
    """
    name, unembed, every_block = name_of(model), getattr(model, "unembed", None), blocks(model)
    if not isinstance(unembed, nn.Module) or not every_block:
        what = "an unembedding" if every_block else "blocks that write to a stream"
        raise ValueError(
            f"Expected a model with a head that turns its last residual stream into logits, got {name} without {what}; "
            "take its factors instead, which need no head."
        )
    seen = Pass()
    for path, module in root_of(model).named_modules():
        if path:
            module.register_forward_pre_hook(partial(seen.at_start, path), with_kwargs=True)
            module.register_forward_hook(partial(seen.at_end, path), with_kwargs=True)
    for block in every_block:
        block.register_forward_hook(seen.at_block)
    unembed.register_forward_pre_hook(seen.at_read, with_kwargs=True)
    unembed.register_forward_hook(seen.at_unembedded)
    try:
        seen.logits = probe_logits(model, probe_tokens(model))
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"Expected a pass over a few tokens, from which the head of {name} is learnt, got {type(error).__name__}: "
            f"{why}; its stream cannot be read in words."
        ) from error
    if not {"stream", "read", "unembedded"} <= vars(seen).keys():
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
    if not all(torch.isfinite(part).all() for part in (seen.stream, seen.read, seen.unembedded)):
        raise ValueError(
            "Expected finite numbers in the last residual stream and the logits, got NaN or inf; load or train the "
            "model anew, or use a wider dtype."
        )
    return seen


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
    around = [(path, given) for path, given in seen.begun.items() if inside.startswith(f"{path}.")]
    ends = [(given, [Step(path, 1.0, within=inside.removeprefix(f"{path}."))]) for path, given in around]
    for target, last in [(seen.read, []), *ends]:
        chain = _chain(seen, target, len(seen.calls))
        if chain is not None:
            steps = [Step(call.path, factor, _is_norm(model, call.path)) for call, factor in chain[1]]
            return chain[0], (*steps, *last)
    return None


def _chain(seen: Pass, target: Tensor, stop: int) -> tuple[float, list[tuple[Call, float]]] | None:
    """The calls that lead from the stream to `target`, searched backwards, outermost first, with their scales."""
    factor = _ratio(target, seen.stream)
    if factor is not None:
        return factor, []
    for index in reversed(range(stop)):
        call = seen.calls[index]
        factor = _ratio(target, call.made)
        if factor is None or _ratio(call.given, call.made) is not None:
            continue
        chain = _chain(seen, call.given, index)
        if chain is not None:
            return chain[0], [*chain[1], (call, factor)]
    return None


def _ratio(target: Tensor, made: Tensor) -> float | None:
    """The c such that target = c * made; None where there is none."""
    if target.shape != made.shape:
        return None
    if target is made or torch.equal(target, made):
        return 1.0
    wide, other = target.double(), made.double()
    square = float((other * other).sum())
    factor = float((wide * other).sum()) / square if square else 0.0
    return factor if factor and close(other * factor, wide, like=target.dtype) else None


_SMALL, _MODERATE, _LARGE = 2.0**-6, 64.0, 2.0**14


def _known_numbers(output: Tensor) -> Tensor:
    """Logits [batch, pos, d_vocab] to put in the unembedding's place: zeros, small, moderate and large ones."""
    put = torch.zeros_like(output)
    ramp = torch.linspace(-1, 1, output[0].numel(), dtype=output.dtype, device=output.device).reshape(output[0].shape)
    put[1], put[2], put[3] = ramp * _SMALL, ramp * _MODERATE, _LARGE
    return put


def after_unembedding(seen: Pass, name: str) -> tuple[float, float, Tensor | None]:
    """Scale, softcap (0 for none) and offset that turn the known numbers into `logits`."""
    if seen.logits.shape != seen.put.shape:
        raise ValueError(
            f"Expected logits {list(seen.put.shape)}, as many as the unembedding gives, got {list(seen.logits.shape)} "
            f"of {name}; its stream cannot be read in words."
        )
    logits, wide, exact = seen.logits, seen.put.double(), seen.logits.double()
    offset = exact[0, 0]
    large = (exact[3] - offset).flatten()[0]
    scale, cap = float(large / _LARGE), 0.0
    if not close(wide * scale + offset, exact, like=logits.dtype):
        cap = float(large)  # what a large number is capped to
        slope = (exact[1] / cap).atanh() * cap
        scale = float((slope * wide[1]).sum() / (wide[1] * wide[1]).sum())
        if cap <= 0 or offset.any() or not close(cap * (wide * scale / cap).tanh(), exact, like=logits.dtype):
            raise ValueError(
                f"Expected logits that are the unembedding's output but for a scale and a softcap, got more of {name}; "
                "its stream cannot be read in words."
            )
    return scale, cap, (offset / scale).to(logits.dtype) if offset.any() else None
