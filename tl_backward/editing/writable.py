"""Which weights an edit can write, so that the model uses what is written and gives it back when it is taken off."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.guard import rng_untouched
from tl_backward.model.modules import every_module, is_hook_point
from tl_backward.model.stamp import kept
from tl_backward.text.prompts import forward, probe_batch
from tl_backward.weights import WeightSite, WeightSites, select_sites, weight_sites

_REMEDY = "choose a matrix of its own that the model uses as it is stored (gradient_edit(..., weights='W_O'), say)"


def check_writable(model: TransformerLensModel, names: Iterable[str]) -> WeightSites:
    """Check that an edit of these weights changes what the model computes and can be reverted; returns the sites.

    Raises:
        ValueError: no such weight, one that is tied, that is used as a function of its parameter, or that the model
            makes anew at each use.
    """
    names, sites = list(names), weight_sites(model)
    for name in names:
        chosen = select_sites(sites, name)
        if name not in chosen:
            raise ValueError(f"Expected the full name of a weight, got {name!r}; such are {', '.join([*chosen][:3])}.")
        site = chosen[name]
        refused = _unwritable(site)
        if refused:
            raise ValueError(f"Expected a weight that an edit can write, got {name}, which is {refused}; {_REMEDY}.")
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
    _check_persistent(model, {name: sites[name].parameter for name in names})
    return sites


def check_widths(site: WeightSite, n_x: int, n_v: int) -> None:
    """Refuse vectors whose widths differ from the weight's [d_in, d_out].

    Raises:
        ValueError: they are not.
    """
    d_in, d_out = matrix_shape(site)
    if (n_x, n_v) != (d_in, d_out):
        raise ValueError(
            f"Expected vectors of {d_in} and {d_out} numbers for {site.name}, got {n_x} and {n_v}; x is what the "
            "weight reads, v what it writes."
        )


def matrix_shape(site: WeightSite) -> tuple[int, int]:
    """[d_in, d_out] of a weight, head axes flattened; [1, d] of a bias."""
    is_vector = site.kind in ("bias", "norm")
    return (1, torch.Size(site.layout.shape).numel()) if is_vector else site.layout.matrix_shape


def _unwritable(site: WeightSite) -> str:
    """Why adding outer products to the parameter is not adding them to what the model uses; "" where it is."""
    if site.layout.experts:
        return "one matrix for each expert in a single parameter"
    if site.layout.part is not None:
        return "interleaved with another weight in one parameter"
    if site.roots or site.computed_from or site.is_function:
        return "used as a function of its parameter (a parametrization, a quantiser, an adapter)"
    if site.kind == "parameter":
        return "no matrix but a vector, scalar or kernel, or used in more ways than one"
    return ""


def _check_persistent(model: TransformerLensModel, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse weights that a pass overwrites: one number of each is changed, looked for after a pass, and put back.

    Raises:
        ValueError: something (a forward pre-hook, an offloading library) makes one anew at each use.
    """
    checked: set[str] = kept(model).setdefault("persistent", set())
    asked = {name: parameter for name, parameter in parameters.items() if name not in checked}
    if not asked:
        return
    with rng_untouched(model), torch.no_grad(), _without_hooks(model):
        before = {name: _first(parameter).clone() for name, parameter in asked.items()}
        try:
            for name, parameter in asked.items():
                _first(parameter).copy_(_other(before[name]))
            forward(model, probe_batch(model))
            held = {id(p) for p in cast(nn.Module, model).parameters()}
            lost = [
                name
                for name, parameter in asked.items()
                if id(parameter) not in held or not torch.equal(_first(parameter), _other(before[name]))
            ]
        finally:
            for name, parameter in asked.items():
                _first(parameter).copy_(before[name])
    if lost:
        raise ValueError(
            f"Expected a weight that keeps what is written to it, got {lost[0]}, which each pass of the model makes "
            "anew (a forward pre-hook, an offloading library); take that off first, or edit what it is made from."
        )
    checked.update(asked)


def _first(parameter: nn.Parameter) -> Tensor:
    """The first number of a parameter, as a view whose writing autograd does not count as a change of it."""
    return parameter.data[(slice(0, 1),) * parameter.ndim]


def _other(number: Tensor) -> Tensor:
    """A number that differs from the given one: 1 for 0, and 0 for any other."""
    return (number == 0).to(number.dtype)


@contextmanager
def _without_hooks(model: TransformerLensModel) -> Iterator[None]:
    """Context without hooks at hook points; those of other modules stay, since some compute weights."""
    states = [vars(point) for point in every_module(model) if is_hook_point(point)]
    hooks_of = [(state, {name: state[name] for name in ("_forward_hooks", "_forward_pre_hooks")}) for state in states]
    for state, hooks in hooks_of:
        state.update({name: type(value)() for name, value in hooks.items()})
    try:
        yield
    finally:
        for state, hooks in hooks_of:
            state.update(hooks)
