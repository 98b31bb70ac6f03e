"""Watch a training: what its own passes write into each weight, kept in little memory."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from tl_backward._support.checks import check_k
from tl_backward._support.types import TransformerLensModel, Weights, typed
from tl_backward.model.checks import check_model
from tl_backward.text.token_strings import output_size
from tl_backward.training.largest import keep_largest
from tl_backward.training.passes import Pass, Passes
from tl_backward.training.record import Record
from tl_backward.training.result import WatchResult, result_of
from tl_backward.training.saving import load_records, save_records
from tl_backward.weights import WeightSite, select_sites, weight_sites
from tl_backward.weights.account import check_gradients_pass

_NOTHING = nullcontext()


_KINDS = {
    "bias": "a bias",
    "norm": "the scale of a norm",
    "embedding": "a table of embeddings",
    "parameter": "no matrix that tokens multiply",
}


class UnwatchedWarning(UserWarning):
    """Something of a training could not be watched; the training itself goes on as it would have."""


@runtime_checkable
class Scaler(Protocol):
    """What multiplies a loss: `torch.amp.GradScaler`."""

    def get_scale(self) -> float:
        """By how much."""
        ...


class TrainingWatch:
    """A watch of one training: a context around its loop. Made by `watch`."""

    def __init__(
        self,
        model: TransformerLensModel,
        sites: list[WeightSite],
        *,
        every: int,
        k: int,
        rank: int,
        n_examples: int,
        optimizer: torch.optim.Optimizer | None,
        scaler: Scaler | None,
        seed: int,
        resume: str | Path | None,
        left_out: Mapping[str, str],
    ) -> None:
        self.model, self.k, self.every = model, k, every
        self._optimizer, self._scaler, self._n_examples = optimizer, scaler, n_examples
        self._options = {"rank": rank, "n_examples": n_examples, "seed": seed}
        self.steps = 0
        """Backward passes that were seen."""
        self.records = {site.name: Record(site, rank, seed) for site in sites}
        if resume is not None:
            self.steps = load_records(resume, self.records, self._about())
        self._passes = Passes(model, list(sites), self._finish)
        self._handles: list[RemovableHandle] = []
        self._nodes: list[Node] = []
        self._frozen = {name for name, record in self.records.items() if not record.site.parameter.requires_grad}
        self._arrived_any = self._warned_fused = False
        self._lost: dict[str, str] = dict(left_out)

    def __repr__(self) -> str:
        return f"TrainingWatch({len(self.records)} weights, {self.steps} backward passes)"

    def __enter__(self) -> "TrainingWatch":
        """Begin to watch."""
        self._passes.open()
        for name, record in self.records.items():
            if name not in self._frozen:
                # Of what is accumulated, after the user's own hooks; nothing comes here for torch.autograd.grad.
                node = get_gradient_edge(record.site.parameter).node
                self._nodes.append(node)
                self._handles.append(node.register_prehook(partial(self._arrived, record)))
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(self._optimizer.register_step_post_hook(self._after_step))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take everything off; what was seen is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()
        self._passes.close()

    @property
    def missing(self) -> dict[str, str]:
        """What is not watched, or not wholly, and why."""
        said = self._passes.left_out | self._lost
        if self._optimizer is not None:
            given = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
            others = (name for name, record in self.records.items() if id(record.site.parameter) not in given)
            said |= {name: "it is none of the optimizer's parameters." for name in others if name not in said}
        for name, record in self.records.items():
            if record.n_bad and name not in said:
                said[name] = f"{record.n_bad} of its gradients were not finite, and are not in its sum."
        return said

    def result(self) -> WatchResult:
        """What was written until now; may be asked for inside the loop.

        Raises:
            ValueError: no backward pass was seen.
        """
        if not self.steps and not any(record.norms for record in self.records.values()):
            raise ValueError(
                "Expected a loop with a backward pass inside the watch, got none; call the model (or the Hugging Face "
                "model in it) and loss.backward() within `with watch(model) as w:`."
            )
        now = weight_sites(self.model)
        for name, record in self.records.items():
            if name not in now or now[name].parameter is not record.site.parameter:
                self._lost[name] = "its parameter was replaced: what came after that is not in it."
        return result_of(self.model, self.records, self.missing, self.steps, self.k, self._about())

    def save(self, path: str | Path) -> Path:
        """Write the running state, with which `watch(..., resume=path)` goes on to the same bits; atomically."""
        return save_records(path, self.records, self.steps, self._about())

    def _about(self) -> dict[str, object]:
        summed = (
            "gradients of each backward pass"
            if self._optimizer is None
            else "learning rate times what the optimizer read"
        )
        return {**self._options, "every": self.every, "summed": summed}

    def _scale(self) -> float:
        return 1.0 if self._scaler is None else 1.0 / self._scaler.get_scale()

    def _arrived(self, record: Record, gradients: tuple[Tensor | None, ...]) -> None:
        """The training's own gradient of a weight, as it is accumulated."""
        self._arrived_any = True
        if self._optimizer is not None or gradients[0] is None:
            return
        try:
            with _without_autocast(gradients[0]):
                record.add(gradients[0], self.steps, unit=self._scale())
        except Exception as error:  # the training must go on
            self._lose(record, error)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if not _has_closure(args, kwargs):
            self._read_step(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if _has_closure(args, kwargs):  # which made the gradient within the step
            self._read_step(optimizer)

    def _read_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add what the optimizer reads, times the learning rates."""
        found = getattr(optimizer, "found_inf", None)
        if found is not None and float(found):
            return  # a scaler has it skip the step
        scale = getattr(optimizer, "grad_scale", None)  # a fused one unscales within its step
        rates = {
            id(p): float(group["lr"]) * (-1 if group.get("maximize") else 1)
            for group in optimizer.param_groups
            for p in group["params"]
        }
        self._check_fused(optimizer)
        for record in self.records.values():
            parameter = record.site.parameter
            if parameter.grad is None or id(parameter) not in rates:
                continue
            try:
                unit = 1.0 if scale is None else 1.0 / float(scale)
                record.add(parameter.grad, max(0, self.steps - 1), rates[id(parameter)], unit)
            except Exception as error:
                self._lose(record, error)

    def _check_fused(self, optimizer: torch.optim.Optimizer) -> None:
        """Say once that torch's fused steps on a CPU read a gradient as if it lay in memory as its parameter does."""
        scrambled = not self._warned_fused and any(
            p.grad is not None and p.device.type == "cpu" and _places(p.grad) != _places(p)
            for group in optimizer.param_groups
            if group.get("fused")
            for p in group["params"]
        )
        if scrambled:
            self._warned_fused = True
            warnings.warn(
                "The optimizer is a fused one on a CPU, whose steps go to the wrong entries of parameters that are "
                "views, as GPT-2's q, k and v are in a TransformerBridge; train with one that is not fused (of a "
                "Trainer optim='adamw_torch').",
                stacklevel=2,
            )

    def _finish(self, passes: list[Pass]) -> None:
        """At the end of a backward: the factors of the passes that it went through."""
        if not self._arrived_any and len(self._frozen) < len(self.records):
            return  # torch.autograd.grad: nothing is accumulated
        self._arrived_any = False
        watched, scale = self.steps % self.every == 0, self._scale()
        for seen in passes:
            noted: dict[str, Tensor] = {}
            for site in list(seen.recorder.sites):
                record, frozen = self.records[site.name], site.name in self._frozen
                if site.parameter.requires_grad == frozen:
                    self._lose(record, RuntimeError("it was frozen or thawed within the watch"))
                    continue
                if not (watched or frozen):
                    continue
                try:
                    with _without_autocast(site.parameter):
                        factors = seen.factors(site)
                        if frozen:
                            record.add_factors(factors, scale)
                        norms = record.see(factors) if watched else None
                    if norms is not None:
                        noted[site.name] = norms if scale == 1 else scale * norms
                except Exception as error:
                    self._lose(record, error)
            self._keep(seen, noted)
        self.steps += 1

    def _keep(self, seen: Pass, noted: dict[str, Tensor]) -> None:
        """Put a pass's contributions among the largest, those of weights that read the same tokens together."""
        groups: dict[tuple[bool, torch.Size], list[str]] = {}
        for name, norms in noted.items():
            groups.setdefault((name.startswith("decoder"), norms.shape), []).append(name)
        for (_, shape), names in groups.items():
            ids = seen.ids_of(self.records[names[0]].site, shape)
            heaps = [(self.records[name].tokens, self.records[name].examples) for name in names]
            keep_largest(heaps, [noted[name] for name in names], self._n_examples, self.steps, ids)

    def _lose(self, record: Record, error: Exception) -> None:
        name = record.site.name
        if name not in self._lost:
            self._lost[name] = f"from backward pass {self.steps} on: {error}"
            warnings.warn(f"{name} is no longer watched: {error}", UnwatchedWarning, stacklevel=2)


def _places(tensor: Tensor) -> list[int]:
    """How far apart a tensor's numbers lie along each axis that has more than one."""
    return [step for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def _has_closure(args: tuple, kwargs: dict) -> bool:
    return kwargs.get("closure") is not None or any(callable(each) for each in args)


def _without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Sums are taken in their own precision, also where the backward runs within autocast."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


@typed
def watch(
    model: TransformerLensModel,
    weights: Weights = None,
    *,
    every: int = 1,
    k: int = 10,
    rank: int = 8,
    n_examples: int = 20,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: Scaler | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
) -> TrainingWatch:
    """Watch a training: what its own forward and backward passes write into each weight.

    A context around any loop that calls `model`, or the Hugging Face model inside a TransformerBridge, and
    `loss.backward()`. Nothing is computed twice, nothing is replaced: losses, gradients, parameters and the random
    state are those of the loop without it, to the bit. Of each weight is kept: the norm of every gradient; a sketch of
    their sum (`training.sketch`), from which its leading directions come; a sketch of the weight when the watch began,
    so that what was really written since, by whatever optimizer, is known too; the tokens and examples that contributed
    most, each by the norm |x_i| |delta_i| of its own term.

    Args:
        model: a HookedTransformer or TransformerBridge.
        weights: as in `run_with_gradient_cache`; None for all matrices of the blocks that are trained.
        every: look at the tokens of every n-th backward; sums and norms have all.
        k: words for each direction.
        rank: how many directions are kept of each weight.
        n_examples: how many tokens, and how many examples, are kept of each weight.
        optimizer: where given, gradients are summed as it reads them (accumulated, clipped, unscaled), times the
            learning rate of the moment: what plain gradient descent writes. Else each backward's gradient counts once.
        scaler: multiplies the loss; its factor is divided out.
        seed: of the sketches.
        resume: what `TrainingWatch.save` wrote; the watch goes on from there.

    Raises:
        ValueError: an unknown weight, or one that is computed from parameters; nothing to watch; a quantised
            layer that no gradient passes through; a model that is watched already; the state of another watch, or of
            other weights.

    Examples:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tokens = model.to_tokens("Anna Berg lives in the city of Oslo")
        >>> with tlb.training.watch(model, "W_out", optimizer=optimizer) as w:
        ...     model(tokens, return_type="loss").backward()
        ...     optimizer.step()
        >>> w.result().weights[0]
        'blocks.0.mlp.W_out'
    """
    check_model(model)
    check_k(k, output_size(model) or model.cfg.d_vocab)
    for name, value in (("every", every), ("rank", rank), ("n_examples", n_examples)):
        if value < 1:
            raise ValueError(f"Expected {name} of at least 1, got {value}.")
    known = weight_sites(model)
    check_gradients_pass(known)
    chosen = select_sites(known, weights)
    sites = [site for site in chosen.values() if weights is not None or site.parameter.requires_grad]
    computed = [site.name for site in sites if site.is_function or site.computed_from or site.kind != "matrix"]
    other = next((site for site in sites if site.kind != "matrix"), None)
    if other is not None and weights is not None:
        raise ValueError(
            f"Expected matrices, got {other.name}, which is {_KINDS[other.kind]}; name matrices alone, or leave "
            "weights out for all of the blocks."
        )
    if computed and weights is not None:
        raise ValueError(
            f"Expected matrices that are used as they are stored, got {computed[0]}; watch its parameters instead "
            "(of an adapter its two matrices)."
        )
    sites = [site for site in sites if site.name not in computed]
    if not sites:
        raise ValueError(
            "Expected a weight that is trained, got a model all of whose matrices are frozen or computed; "
            "requires_grad_(True) what you train, or name weights=... ."
        )
    return TrainingWatch(
        model,
        sites,
        every=every,
        k=k,
        rank=rank,
        n_examples=n_examples,
        optimizer=optimizer,
        scaler=scaler,
        seed=seed,
        resume=resume,
        left_out=dict.fromkeys(computed, "what is used is computed from its parameters; watch those by name."),
    )
