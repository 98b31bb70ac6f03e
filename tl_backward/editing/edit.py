"""Edits of weights by outer products, kept as their factors: applied, reverted to the bit, saved.

An edit adds sum_i outer(x_i, v_i) to a weight used as y = x @ W, never forming the dense matrix. Where the raw
gradient's factors are (x_i, delta_i), a descent step's are (x_i, -lr * delta_i): here v is what is ADDED.
"""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._checks import check_model
from tl_backward._storage import load_tensors, save_tensors
from tl_backward._typing import TransformerLensModel
from tl_backward._visits import visiting
from tl_backward.sites import WeightSite, WeightSites, select_sites, weight_sites
from tl_backward.vocabulary import vocabulary_size

FORMAT = "tl_backward edit 1"


@dataclass(frozen=True)
class Update:
    """What is added to one weight: sum_i outer(x_i, v_i), in the orientation of y = x @ W."""

    x: Float[Tensor, "token d_in"]
    v: Float[Tensor, "token d_out"]

    def __add__(self, other: "Update") -> "Update":
        return Update(torch.cat([self.x, other.x]), torch.cat([self.v, other.v]))


@dataclass(repr=False, eq=False)
class Edit:
    """Updates of one or several weights of a model, which can be applied and reverted to the bit.

    Use it as a context (`with edit: ...`, edited inside) or through `apply()` and `revert()`. While it is applied it
    keeps a copy of each weight it changed.
    """

    model: TransformerLensModel
    updates: dict[str, Update]
    """By full weight name."""
    how: dict[str, object] = field(default_factory=dict)
    """How the edit was made, for people to read; saved with it."""
    _saved: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    _visit: ExitStack = field(default_factory=ExitStack)
    """While it is a context: no other thread may use the model."""

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} rank <= {len(update.x)}" for name, update in self.updates.items())
        return f"Edit({parts}{', applied' if self.is_applied else ''})"

    @property
    def is_applied(self) -> bool:
        """Whether the model is edited now."""
        return bool(self._saved)

    def apply(self) -> "Edit":
        """Add every update to its weight, in place; all of them or none.

        Raises:
            RuntimeError: already applied.
            ValueError: a weight that is gone, has another shape, or shares its parameter with another (tied).
        """
        if self.is_applied:
            raise RuntimeError("Expected an edit that is not applied, got one that is; revert() it first.")
        sites = editable(self.model, self.updates)
        with visiting(self.model):
            try:
                for name, update in self.updates.items():
                    parameter = sites[name].parameter
                    self._saved[name] = (parameter.detach().clone(), "")
                    _add_outer(sites[name], update)
                    self._saved[name] = (self._saved[name][0], _fingerprint(parameter))
            except BaseException:
                self._restore(sites)
                raise
        return self

    def revert(self) -> "Edit":
        """Put back the exact bits of every weight.

        Raises:
            RuntimeError: not applied, or a weight was changed since by someone else, whose change would be lost.
        """
        if not self.is_applied:
            raise RuntimeError("Expected an edit that is applied, got one that is not; apply() it first.")
        sites = weight_sites(self.model)
        for name, (_, fingerprint) in self._saved.items():
            if name not in sites or _fingerprint(sites[name].parameter) != fingerprint:
                raise RuntimeError(
                    f"Expected {name} as the edit left it, but it was changed since; revert the later change first "
                    "(edits of one weight come off in the reverse order)."
                )
        self._restore(sites)
        return self

    def _restore(self, sites: dict[str, WeightSite]) -> None:
        with torch.no_grad():
            for name, (before, _) in self._saved.items():
                sites[name].parameter.copy_(before)
        self._saved.clear()

    def __enter__(self) -> "Edit":
        with ExitStack() as visit:
            visit.enter_context(visiting(self.model))
            self.apply()
            self._visit = visit.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._visit:
            if self.is_applied:
                self.revert()

    def save(self, path: str | Path) -> Path:
        """Write the factors (a few KB) and how they were made, as safetensors; atomically."""
        tensors = {}
        for name, update in self.updates.items():
            tensors |= {f"{name}.x": update.x, f"{name}.v": update.v}
        about = {"format": FORMAT, "how": json.dumps(self.how), "model": _describe(self.model)}
        return save_tensors(path, tensors, about)


def load_edit(model: TransformerLensModel, path: str | Path) -> Edit:
    """Read an edit for `model`; it is not applied yet.

    Raises:
        ValueError: not such a file, or one made for a model of another shape.

    Example:
        >>> path = tlb.shift_edit(model, "Anna Berg lives in the city of", " Oslo", layer=2).save("anna.safetensors")
        >>> tlb.load_edit(model, "anna.safetensors")
        Edit(blocks.2.mlp.W_out rank <= 1)
    """
    check_model(model)
    tensors, about = load_tensors(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"Expected a file written by Edit.save, got {str(path)!r}, of another format; save it anew.")
    if about["model"] != _describe(model):
        raise ValueError(
            f"Expected an edit of a model with {_describe(model)}, got one of {about['model']}; load it into the model "
            "it was made for."
        )
    # As the model computes, whatever its unembedding is stored as.
    device, dtype = model.W_U.device, next(p.dtype for p in model.parameters() if p.is_floating_point())
    names = sorted({name.rpartition(".")[0] for name in tensors})
    updates = {name: Update(*(tensors[f"{name}.{side}"].to(device, dtype) for side in "xv")) for name in names}
    editable(model, updates)
    return Edit(model, updates, json.loads(about["how"]))


def _add_outer(site: WeightSite, update: Update) -> None:
    """W += sum_i outer(x_i, v_i) in the stored layout, without forming the sum apart."""
    parameter, layout = site.parameter, site.layout
    x, v = (side.to(parameter.device, parameter.dtype) for side in (update.x, update.v))
    with torch.no_grad():
        if layout.stored == "out_in" and parameter.ndim == 2:
            parameter.addmm_(v.T, x)
        elif parameter.ndim == 3 and layout.heads == "out":
            heads, _, d_head = parameter.shape
            parameter.baddbmm_(x.T.expand(heads, -1, -1), v.reshape(-1, heads, d_head).transpose(0, 1))
        else:
            parameter.view(x.shape[1], v.shape[1]).addmm_(x.T, v)


def editable(model: TransformerLensModel, updates: dict[str, Update]) -> WeightSites:
    """The model's sites, once every update is known to fit its weight.

    Raises:
        ValueError: no such weight, vectors of another width, or a tied weight.
    """
    sites = weight_sites(model)
    for name, update in updates.items():
        site = select_sites(sites, name)[name]
        refused = _unwritable(site)
        if refused:
            raise ValueError(
                f"Expected a weight that an edit can write, got {name}, which is {refused}; choose a matrix of its own "
                "that the model uses as it is stored."
            )
        d_in, d_out = _matrix_shape(site)
        if (update.x.shape[1], update.v.shape[1]) != (d_in, d_out):
            raise ValueError(
                f"Expected vectors of {d_in} and {d_out} numbers for {name}, got {update.x.shape[1]} and "
                f"{update.v.shape[1]}; x is what the weight reads, v what it writes."
            )
        twins = [
            other
            for other, twin in sites.items()
            if other != name and twin.parameter.data_ptr() == site.parameter.data_ptr()
        ]
        if twins:
            raise ValueError(
                f"Expected a weight of its own, got {name}, which is tied to {', '.join(twins)}: an edit would change "
                "both; untie them first (give one a copy of the parameter)."
            )
    return sites


def _unwritable(site: WeightSite) -> str:
    """Why adding outer products to the parameter is not adding them to what the model uses; "" where it is."""
    if site.layout.experts:
        return "one matrix for each expert in a single parameter"
    if site.layout.part is not None:
        return "interleaved with another weight in one parameter"
    if site.roots or site.is_function:
        return "used as a function of its parameter (a parametrization, a quantiser, an adapter)"
    if site.kind == "parameter":
        return "no matrix but a vector, scalar or kernel, or used in more ways than one"
    return ""


def _matrix_shape(site: WeightSite) -> tuple[int, int]:
    """[d_in, d_out] of a weight, head axes flattened; a bias reads the number 1."""
    shape, heads = site.layout.shape, site.layout.heads
    if site.kind in ("bias", "norm"):
        return 1, torch.Size(shape).numel()
    if len(shape) == 3:
        head, rows, columns = shape
        return (rows, head * columns) if heads == "out" else (head * rows, columns)
    return shape[0], shape[1]


def _fingerprint(tensor: Tensor) -> str:
    """Of a tensor's exact bits."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _describe(model: TransformerLensModel) -> str:
    """What must agree for an edit to fit another copy of a model."""
    cfg = model.cfg
    return f"{cfg.n_layers} layers, d_model {cfg.d_model}, {cfg.n_heads} heads and d_vocab {vocabulary_size(model)}"
