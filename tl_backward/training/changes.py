"""What really changed between two models, in directions and words, and how much of it was watched."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.checks import check_k, nearest
from tl_backward._support.lengths import frobenius_norm
from tl_backward._support.sentences import count_text, no_comparison
from tl_backward._support.shown import Shown
from tl_backward._support.streams import own_stream
from tl_backward._support.types import DataFrame, TransformerLensModel, Weights, typed
from tl_backward.model.checks import check_model
from tl_backward.text.token_strings import output_size
from tl_backward.training.directions import Directions, directions_of, first_directions
from tl_backward.training.record import as_matrix, matrix_shape
from tl_backward.training.result import NO_CONTROL, WatchResult
from tl_backward.training.sketch import Approximation
from tl_backward.weights import WeightSite, layer_of, select_sites, weight_sites

if TYPE_CHECKING:
    import plotly.graph_objects

_EXACT = 2**18
"""Up to how many entries a change is decomposed exactly."""
_FURTHER = 8
"""Columns that a randomized SVD takes beside those asked for: with 16 in all products take two thirds of 18's time."""
_ROUNDING = 3e-7
"""How far the norm of a change may be from that of the same change rounded to float32, and added in it."""


_NO_CONTROL = Absent("a control", "give a model that was trained on shuffled targets to difference(..., control=...)")
_NO_NOISE = Absent("noise beside it", "ask for it with difference(..., noise=True)")


@dataclass(frozen=True, repr=False, eq=False)
class Difference(Shown):
    """after - before, weight by weight. Its file has what was found, without the two models' weights."""

    _report = "difference_report"

    weights: tuple[str, ...]
    """Full names, in the model's order."""
    changes: Mapping[str, Directions]
    """The leading directions of each change."""
    size: Mapping[str, float]
    """|after - before| / |before| (Frobenius)."""
    control: "Difference | Absent" = _NO_CONTROL
    """The same between `before` and the control; false where there is none."""
    noise: "Difference | Absent" = _NO_NOISE
    """The same with Gaussian noise of each change's norm in its place; false where there is none."""
    before: Mapping[str, WeightSite] = field(default_factory=dict)
    after: Mapping[str, WeightSite] = field(default_factory=dict)

    def __repr__(self) -> str:
        beside = [name for name in ("control", "noise") if getattr(self, name)]
        return f"Difference({len(self.weights)} weights{''.join(f', {name}' for name in beside)}: {self.summary()})"

    def change(self, weight: str) -> Float[Tensor, "d_in d_out"]:
        """The change itself, in float64.

        Raises:
            ValueError: a weight that was not compared, or has changed since; a difference that was read from a file.
        """
        if weight not in self.weights:
            raise ValueError(
                f"Expected a weight that was compared, got {weight!r}; the nearest are {nearest(weight, self.weights)}."
            )
        if weight not in self.before or weight not in self.after:
            raise ValueError(
                f"Expected a difference with its two models, got one from a file, without {weight} itself; call "
                "difference(...) anew."
            )
        change = _change(self.before[weight], self.after[weight])
        told = self.changes[weight].norm
        if abs(frobenius_norm(change) - told) > _ROUNDING * max(told, 1e-300):
            raise ValueError(
                f"Expected models as they were compared, got {weight} changed since; call difference(...) anew, with a "
                "copy of what goes on training."
            )
        return change

    def summary(self) -> str:
        """One sentence: which weight changed most, and in how few directions, beside the controls."""
        changed = {name: each for name, each in self.changes.items() if each.norm > 0}
        if not changed:
            return f"None of {len(self.weights)} weights differs."
        name = max(changed, key=lambda each: changed[each].norm)
        total = sum(each.norm**2 for each in changed.values())
        said = (
            f"{len(changed)} of {len(self.weights)} weights differ, most of all {name} "
            f"({changed[name].norm ** 2 / total:.0%} of the squared change): {_directions_hold(len(changed[name].S))} "
            f"{changed[name].share:.0%} of it"
        )
        if self.control:
            said += f", of the control model's change there {self.control.changes[name].share:.0%}"
        if self.noise:
            said += f", of noise of its norm {self.noise.changes[name].share:.0%}"
        if not self.control:
            return f"{said}{no_comparison(0, NO_CONTROL, 'any training')}."
        return f"{said}; one control has no spread, so no difference between them is claimed."

    def to_frame(self) -> DataFrame:
        """A row a weight and direction: sizes, shares, words; `noise` and `control` are the shares of theirs."""
        import pandas

        rows = []
        for name in self.weights:
            each = self.changes[name]
            beside = {of: other.changes[name] for of in ("control", "noise") if (other := getattr(self, of))}
            for j, size in enumerate(each.S.tolist()):
                rows.append(
                    {
                        "weight": name,
                        "layer": layer_of(name),
                        "relative": self.size[name],
                        "direction": j,
                        "size": size,
                        "share": _share(each, j),
                        **{of: _share(other, j) for of, other in beside.items()},
                        "imprint": None if each.imprint is None else each.imprint.top_tokens[j],
                        "shift": None if each.shift is None else each.shift.top_tokens[j],
                    }
                )
        return pandas.DataFrame(rows)

    def plot(self) -> "plotly.graph_objects.Figure":
        """The singular values of the largest change beside its controls', as a plotly figure."""
        return import_module("tl_backward.render").difference_curves(self)

    def packed(self) -> dict[str, Any]:
        """What `save` writes: all but the two models' weights."""
        return {name: value for name, value in super().packed().items() if name not in ("before", "after")}

    def _repr_html_(self) -> str:
        """The first direction of each weight, as a static table."""
        return first_directions(self.to_frame(), self.summary())


def _directions_hold(n: int) -> str:
    return f"{count_text(n, 'direction')} {'holds' if n == 1 else 'hold'}"


def _share(each: Directions, j: int) -> float:
    return min(1.0, float(each.S[j]) ** 2 / each.norm**2) if j < len(each.S) and each.norm else 0.0


@typed
def difference(
    before: TransformerLensModel,
    after: TransformerLensModel,
    weights: Weights = None,
    *,
    control: TransformerLensModel | None = None,
    noise: bool = True,
    rank: int = 8,
    k: int = 10,
    seed: int = 0,
) -> Difference:
    """What changed in each weight between two models, in its leading directions and their words.

    D = W_after - W_before = U diag(S) V^T: an input along U_j comes to write S_j V_j more. Changes of up to
    262,144 entries are decomposed exactly, others by randomized SVD (Halko, Martinsson and Tropp 2011) with two power
    iterations and eight further columns, which underestimates a flat spectrum, as of noise, by some percent.

    Args:
        before: the model that training began with.
        after: what came out, of the same architecture; its vocabulary gives the words.
        weights: as in `run_with_gradient_cache`.
        control: a model that was trained for as long on shuffled targets: what any training does.
        noise: whether to decompose Gaussian noise of each change's norm beside it: what no training does.
        rank: directions of each weight.
        k: words of each.
        seed: of the randomized SVD and of the noise.

    Raises:
        ValueError: models whose weights have other names or shapes, or are not finite; an unknown weight.

    Examples:
        >>> import copy
        >>> after = copy.deepcopy(model)
        >>> with torch.no_grad():
        ...     _ = after.blocks[2].mlp.W_out.add_(torch.outer(torch.randn(512), model.W_U[:, 7]))
        >>> changes = tlb.training.difference(model, after, "W_out").changes
        >>> changes["blocks.2.mlp.W_out"].shift.top_ids[0, 0].item(), changes["blocks.1.mlp.W_out"].norm
        (7, 0.0)
    """
    models = {"before": before, "after": after} | ({} if control is None else {"control": control})
    for model in models.values():
        check_model(model)
    check_k(k, output_size(after) or after.cfg.d_vocab)
    if rank < 1:
        raise ValueError(f"Expected rank of at least 1, got {rank}.")
    sites = {of: select_sites(weight_sites(model), weights) for of, model in models.items()}
    for of, each in sites.items():
        _check_alike(sites["before"], each, of)
    names = [name for name, site in sites["before"].items() if site.kind == "matrix" and not site.is_function]
    options = {"rank": rank, "k": k, "seed": seed}
    found = {
        of: _difference(after, {name: sites["before"][name] for name in names}, each, options)
        for of, each in sites.items()
        if of != "before"
    }
    result = found["after"]
    beside = _noise(after, result, options) if noise else _NO_NOISE
    return Difference(
        result.weights,
        result.changes,
        result.size,
        found.get("control", _NO_CONTROL),
        beside,
        result.before,
        result.after,
    )


def _difference(
    model: TransformerLensModel,
    before: Mapping[str, WeightSite],
    after: Mapping[str, WeightSite],
    options: dict[str, int],
) -> Difference:
    changes, size = {}, {}
    for name, site in before.items():
        stored = site.parameter.detach()
        # A large change is decomposed in float32: it is formed there too.
        small = math.prod(matrix_shape(site)) <= _EXACT
        dtypes = (torch.float64 if small else torch.float32, stored.dtype, after[name].parameter.dtype)
        change = _change(site, after[name], reduce(torch.promote_types, dtypes))
        try:
            changes[name] = _decomposed(change, options["rank"], options["seed"])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        norm = site.norm_of(stored)
        size[name] = changes[name].norm / norm if norm else float("nan")
    read = directions_of(model, {name: (change, None) for name, change in changes.items()}, options["k"])
    own = {name: after[name] for name in before}
    return Difference(tuple(before), read, size, before=before, after=own)


def _noise(model: TransformerLensModel, result: Difference, options: dict[str, int]) -> Difference:
    changes = {}
    for place, name in enumerate(result.weights):
        generator = own_stream("noise beside a change", options["seed"], place)
        noise = torch.randn(matrix_shape(result.after[name]), generator=generator, dtype=torch.float64)
        noise *= result.changes[name].norm / frobenius_norm(noise)
        changes[name] = _decomposed(noise, options["rank"], options["seed"]), None
    return Difference(result.weights, directions_of(model, changes, options["k"]), result.size)


def _change(before: WeightSite, after: WeightSite, dtype: torch.dtype = torch.float64) -> Tensor:
    new, old = (as_matrix(site, site.parameter.detach()).to("cpu", dtype) for site in (after, before))
    return new - old


def _decomposed(change: Tensor, rank: int, seed: int) -> Approximation:
    r, norm = min(rank, *change.shape), frobenius_norm(change)
    if not math.isfinite(norm):
        raise ValueError("Expected a change of finite numbers, got NaN or inf; compare models whose training held.")
    if not norm:
        u, s, v = (torch.zeros(*shape, dtype=torch.float64) for shape in ((len(change), 0), (0,), (change.shape[1], 0)))
        return Approximation(u, s, v, 0.0, 0.0, s)
    if change.numel() <= _EXACT:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        v, error = vh.T, float(s[r:].square().sum().sqrt())
    else:
        u, s, v = _randomized(change.float(), r, seed)
        error = max(0.0, norm**2 - float(s[:r].square().sum())) ** 0.5
    return Approximation(u[:, :r].double(), s[:r].double(), v[:, :r].double(), norm, error, s.double())


def _randomized(change: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + _FURTHER, *change.shape)
    q = torch.linalg.qr(change @ torch.randn(change.shape[1], width, generator=generator)).Q
    for _ in range(2):
        q = torch.linalg.qr(change @ torch.linalg.qr(_turned(change, q)).Q).Q
    p, r = torch.linalg.qr(_turned(change, q))  # of few columns: their triangle's SVD takes a quarter of their own
    v, s, uh = torch.linalg.svd(r)
    return q @ uh.T, s, p @ v


def _turned(change: Tensor, q: Tensor) -> Tensor:
    """change^T q, by the product that the CPU does faster."""
    return (q.T @ change).T


def _check_alike(before: Mapping[str, WeightSite], other: Mapping[str, WeightSite], of: str) -> None:
    if before.keys() != other.keys():
        name = next(iter(before.keys() ^ other.keys()))
        raise ValueError(
            f"Expected two models of one architecture, got {name} in one of `before` and `{of}` alone; merge adapters "
            "first, and compare a HookedTransformer with a HookedTransformer."
        )
    for name, site in before.items():
        if site.layout.shape != other[name].layout.shape:
            raise ValueError(
                f"Expected two models of one architecture, got {name} of shape {list(site.layout.shape)} in `before` "
                f"and {list(other[name].layout.shape)} in `{of}`; compare models of one configuration."
            )


@typed
def explained(result: WatchResult, change: Difference) -> DataFrame:
    """How much of each weight's change the watched gradients reproduce: a row a weight.

    share = 1 - |D + G|^2 / |D|^2, of the change D and G = sum of (learning rate times) gradients, which plain gradient
    descent subtracts: 1 where that is all that happened. cosine = <D, -G> / (|D| |G|), for sums of another scale: of
    gradients without learning rates, or under an optimizer that preconditions. error = what the sketch of G may have
    left out, as a share of |G|^2: 0 where the sum was kept whole.

    Args:
        result: of a watch.
        change: from `difference`, between the model when the watch began and the one when it ended.

    Raises:
        ValueError: no weight that both know.
    """
    import pandas

    names = [name for name in result.weights if name in change.weights]
    if not names:
        raise ValueError("Expected a watch and a difference of the same weights, got none in common; name the same.")
    rows = []
    for name in names:
        d, g = change.change(name), result.sums[name].dense()
        if d.shape != g.shape:
            raise ValueError(
                f"Expected {name} of shape {list(g.shape)}, as it was watched, got {list(d.shape)}; compare the model "
                "that was watched."
            )
        size, whole, inner = float(d.square().sum()), float(g.square().sum()), -float((d * g).sum())
        share = 1 - float((d + g).square().sum()) / size if size else float("nan")
        cosine = inner / (size * whole) ** 0.5 if size and whole else float("nan")
        error = result.sums[name].error() ** 2 / whole if whole else float("nan")
        rows.append({"weight": name, "layer": layer_of(name), "share": share, "cosine": cosine, "error": error})
    return pandas.DataFrame(rows)
