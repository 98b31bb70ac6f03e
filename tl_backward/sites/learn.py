"""Learn from one pass which weights a model uses, how, and whether that is all it does with them.

Every floating-point parameter is asked for a gradient during the pass, without anyone's hooks; then autograd's own
graph is walked: the edges that lead into a parameter must be those of the uses that were seen. Where there are more, or
an operation is not known, the parameter's gradient is asked of autograd whole (kind "parameter"): always exact.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward.factors import Layout
from tl_backward.sites._site import WeightSite, WeightSites
from tl_backward.sites.account import DID_NOT_RUN, NO_GRAD, NOT_FLOAT, QUANTISED, account_rows
from tl_backward.sites.names import Named, is_hook_point, is_norm
from tl_backward.sites.watch import Seen, Watch, asking


@dataclass
class _Uses:
    """What one pass did with one parameter."""

    first: int = 0
    """When it was first used, counted over the operations of the pass."""
    seen: list[Seen] = field(default_factory=list)
    nodes: list[object] = field(default_factory=list)
    """The node of autograd's graph that each use made; None where it made none."""


@dataclass(frozen=True)
class Geometry:
    """How a model splits its attention matrices into heads."""

    n_heads: int
    d_head: int
    d_value: int


def learn(
    parameters: dict[str, nn.Parameter],
    ways: dict[int, list[Named]],
    run: Callable[[], object],
    n_tokens: int,
    modules: Sequence[nn.Module],
    geometry: Callable[[Named], Geometry | None],
    leave: frozenset[int] = frozenset(),
) -> WeightSites:
    """The sites of a model's weights, found by one pass.

    Args:
        parameters: `named_parameters()`.
        ways: what each parameter is called, by its identity.
        run: makes the pass; returns its outputs.
        n_tokens: tokens of the batch together.
        modules: all of the model's, which are left as they are; hooks of its hook points do not take part.
        geometry: how the attention around a matrix is split into heads.
        leave: parameters (by identity) whose places are known otherwise.
    """
    every = list({id(p): p for p in parameters.values() if id(p) not in leave}.values())
    every += [p for p in _held(ways) if id(p) not in leave and not any(p is q for q in every)]
    aliases = _aliases(ways, every)
    uses = [_Uses() for _ in every]

    operation = count(1)

    def report(seen: list[Seen]) -> None:
        number = next(operation)
        for each in seen:
            y = each.use.y
            for root in each.known.roots:
                uses[root].first = uses[root].first or number
                uses[root].seen.append(each)
                uses[root].nodes.append(None if y is None else y.grad_fn)

    numbered = [(p, i) for i, p in enumerate(every)] + [(alias, i) for i, held in aliases.items() for alias in held]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(asking(every))
        stack.enter_context(_without_hooks([module for module in modules if is_hook_point(module)]))
        stack.enter_context(_attributes_kept(modules))
        with Watch(numbered, report, n_tokens):
            outputs = run()
        reached, edges = _graph(outputs)
        sites = WeightSites(parameters)
        for number, parameter in enumerate(every):
            known = ways.get(id(parameter)) or [_plain(parameter, parameters)]
            found = _decide(parameter, number, uses[number], known, aliases.get(number, ()), reached, edges, geometry)
            if isinstance(found, str):
                sites.unused[id(parameter)] = found
            else:
                sites.add(*(site for site in found if site.name not in sites))
    _complete_experts(sites, every, ways)
    for name, _, _, _, reason in account_rows(sites, sites):
        if reason:
            known = ways.get(id(parameters[name]))
            sites.missing[known[0].name if known else name] = f"{reason}."
    return sites


def _held(ways: dict[int, list[Named]]) -> Iterator[nn.Parameter]:
    """Parameters of the modules, those that `named_parameters()` leaves out too."""
    for held in ways.values():
        value = held[0].module._parameters.get(held[0].attribute)
        if value is not None:
            yield value


def _plain(parameter: nn.Parameter, parameters: dict[str, nn.Parameter]) -> Named:
    name = next(name for name, value in parameters.items() if value is parameter)
    return Named(name, nn.Module(), name.rsplit(".", 1)[-1], None, 0)


def _aliases(ways: dict[int, list[Named]], every: list[nn.Parameter]) -> dict[int, list[Tensor]]:
    """Tensors that modules keep beside their parameters and that are one of them, whole, by its number."""
    place = {(p.data_ptr(), tuple(p.shape)): i for i, p in enumerate(every) if p.numel() and type(p) is nn.Parameter}
    modules = {id(m): m for held in ways.values() for way in held for m in (way.module, way.parent) if m is not None}
    found: dict[int, list[Tensor]] = {}
    for module in modules.values():
        for value in vars(module).values():
            if type(value) is Tensor and (value.data_ptr(), tuple(value.shape)) in place:
                found.setdefault(place[value.data_ptr(), tuple(value.shape)], []).append(value)
    return found


@contextmanager
def _without_hooks(points: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context the hook points have no hooks."""
    kept = [(point, point._forward_hooks, point._forward_pre_hooks) for point in points if point._forward_hooks]
    for point, hooks, before in kept:
        point._forward_hooks, point._forward_pre_hooks = type(hooks)(), type(before)()
    try:
        yield
    finally:
        for point, hooks, before in kept:
            point._forward_hooks, point._forward_pre_hooks = hooks, before


@contextmanager
def _attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A pass after which no module holds a tensor of it: TransformerLens keeps the last attention pattern, for one."""
    kept = [(module, dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for module, before in kept:
            state = vars(module)
            for name in [name for name, value in state.items() if isinstance(value, Tensor | tuple) or value is None]:
                if name not in before:
                    del state[name]
                elif state[name] is not before[name]:
                    state[name] = before[name]


def _graph(outputs: object) -> tuple[set[object], dict[int, list[object]]]:
    """The nodes of autograd's graph behind some outputs, and those that lead into each parameter, by its identity."""
    stack = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
    seen: set[object] = set()
    edges: dict[int, list[object]] = {}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            variable = getattr(parent, "variable", None)
            if variable is not None:
                edges.setdefault(id(variable), []).append(node)
            elif parent is not None:
                stack.append(parent)
    return seen, edges


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _decide(
    parameter: nn.Parameter,
    number: int,
    uses: _Uses,
    ways: list[Named],
    aliases: Sequence[Tensor],
    reached: set[object],
    edges: dict[int, list[object]],
    geometry: Callable[[Named], Geometry | None],
) -> list[WeightSite] | str:
    """The sites of one parameter, or the reason why it has none."""
    if type(parameter) is not nn.Parameter and not _plain_class(parameter):
        return QUANTISED
    if not parameter.is_floating_point():
        return NOT_FLOAT
    known_alias = {id(alias) for alias in aliases}
    live = [
        (seen, node)
        for seen, node in zip(uses.seen, uses.nodes, strict=True)
        if node is not None and (seen.use.weight.requires_grad or id(seen.known.base) in known_alias)
    ]
    into = edges.get(id(parameter), [])
    if not live and not into:
        return NO_GRAD if uses.seen else DID_NOT_RUN
    through_alias = any(id(seen.known.base) in known_alias for seen, _ in live)
    whole = [WeightSite(ways[0].name, "parameter", parameter, Layout(tuple(parameter.shape)), aliases=tuple(aliases))]
    if not through_alias and not _explained(parameter, live, into, reached):
        return whole
    found: list[WeightSite] = []
    for kind in dict.fromkeys(seen.use.kind for seen, _ in live):
        mine = [seen for seen, _ in live if seen.use.kind == kind]
        site = None if kind == "other" else _site(parameter, kind, mine, _way(ways, kind), geometry)
        if site is None:
            return whole
        found += [replace(each, aliases=tuple(aliases), order=uses.first) for each in site]
    # One name for two kinds of use: tied, with no second module that would name the other one.
    return found if len({site.name for site in found}) == len(found) else whole


def _plain_class(parameter: nn.Parameter) -> bool:
    """A subclass of Parameter that is an ordinary tensor, not one that stores its numbers in a way of its own."""
    return type(parameter).__torch_function__ is nn.Parameter.__torch_function__ or not hasattr(
        type(parameter), "__tensor_flatten__"
    )


def _explained(
    parameter: nn.Parameter, live: list[tuple[Seen, object]], into: list[object], reached: set[object]
) -> bool:
    """Whether the uses that were seen make all the edges into a parameter."""
    direct = 0
    behind: set[object] = set()
    for seen, node in live:
        if seen.use.weight is parameter:
            direct += node in reached
        else:
            behind |= {each for each in _into(seen.use.weight, parameter) if each in reached}
    return direct + len(behind) >= len(into)


def _into(weight: Tensor, parameter: nn.Parameter) -> Iterator[object]:
    """Nodes behind a function of a parameter that lead into it."""
    stack, seen = [weight.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if getattr(parent, "variable", None) is parameter:
                yield node
            else:
                stack.append(parent)


def _way(ways: list[Named], kind: str) -> Named:
    """The name that fits a use: a tied parameter is looked up under one and multiplied by under another."""
    if kind == "embedding":
        return next((way for way in ways if isinstance(way.module, nn.Embedding)), ways[0])
    if kind == "matrix" and len(ways) > 1:
        return next((way for way in ways if not isinstance(way.module, nn.Embedding)), ways[0])
    return ways[0]


def _site(
    parameter: nn.Parameter,
    kind: str,
    seen: list[Seen],
    way: Named,
    geometry: Callable[[Named], Geometry | None],
) -> list[WeightSite] | None:
    """The sites of one kind of use; None where they do not fit one form."""
    if any(len(each.known.roots) > 1 for each in seen):
        return None
    bases = [each.known.base for each in seen]
    is_function = any(each.known.link == "function" for each in seen)
    if len({tuple(base.shape) for base in bases}) > 1:
        return None
    shape = tuple(bases[0].shape)
    if kind == "embedding":
        if "bias" in way.attribute and not isinstance(way.module, nn.Embedding):
            return None
        if len(shape) != 2 or any(each.use.weight.shape != shape for each in seen):  # one of several tables
            return None
        scale = float(getattr(way.module, "embed_scale", getattr(way.module, "scalar_embed_scale", 1.0)))
        layout = Layout(shape)
        return [WeightSite(way.name, "embedding", parameter, layout, is_function=is_function, scale=scale)]
    if kind in ("norm", "bias"):
        if parameter.ndim != 1 or (kind == "norm" and not (way.name.endswith(".w") or is_norm(way.module))):
            return None
        if any(each.use.weight.numel() != parameter.numel() for each in seen):
            return None
        of = geometry(way) if kind == "bias" else None
        layout = Layout(shape)
        letter = way.name.rsplit(".", 1)[-1]
        if of is not None and letter in ("b_Q", "b_K", "b_V"):
            width = of.d_value if letter == "b_V" else of.d_head
            if shape[0] % width == 0:
                layout = Layout((shape[0] // width, width), "out", "in_out", shape)
        return [WeightSite(way.name, kind, parameter, layout, is_function=is_function)]
    orientations = {_orientation(each, way, geometry) for each in seen}
    if len(orientations) != 1 or None in orientations:
        return None
    stored = orientations.pop()
    return _matrix(parameter, shape, cast(str, stored), way, geometry(way), is_function)


def _matrix(
    parameter: nn.Parameter, shape: tuple[int, ...], stored: str, way: Named, of: Geometry | None, is_function: bool
) -> list[WeightSite]:
    orientation = "out_in" if stored == "out_in" else "in_out"
    d_in, d_out = shape[-2:] if orientation == "in_out" else shape[:-3:-1]
    if len(shape) == 3:
        layout = Layout((shape[0], d_in, d_out), None, orientation, shape, experts=True)
        return [WeightSite(way.name, "matrix", parameter, layout, is_function=is_function, may_be_silent=True)]
    letter = way.name.rsplit(".", 1)[-1]
    tl = (d_in, d_out)
    layout = Layout(tl, None, orientation, shape)
    width = 0 if of is None else of.d_value if letter == "W_V" else of.d_head
    if of is not None and letter in ("W_Q", "W_K", "W_V") and d_out % width == 0:
        heads = d_out // width
        if letter == "W_Q" and heads == 2 * of.n_heads:  # each head's query is followed by its output's gate
            return [
                WeightSite(
                    way.name + end,
                    "matrix",
                    parameter,
                    Layout((of.n_heads, d_in, width), "out", orientation, shape, part=(which, 2)),
                    is_function=is_function,
                )
                for which, end in enumerate(("", "_gate"))
            ]
        layout = Layout((heads, d_in, width), "out", orientation, shape)
    elif of is not None and letter == "W_O" and d_in % of.n_heads == 0:
        layout = Layout((of.n_heads, d_in // of.n_heads, d_out), "in", orientation, shape)
    return [WeightSite(way.name, "matrix", parameter, layout, is_function=is_function)]


def _orientation(seen: Seen, way: Named, geometry: Callable[[Named], Geometry | None]) -> str | None:
    """Whether the base of what was used is stored as [.., d_in, d_out] or turned; None where it was used in part."""
    weight, base, use = seen.use.weight, seen.known.base, seen.use
    turned = "in_out" if use.orientation == "out_in" else "out_in"
    if use.blocks == "head":
        return _head_orientation(weight, base, use.orientation, way, geometry)
    if seen.known.picked is not None:
        return use.orientation if weight.shape[1:] == base.shape[1:] else None
    if base.ndim == 3 and weight.ndim == 2:
        if base.stride(0) == 0 or weight.storage_offset() < base.storage_offset():
            return None
        index, rest = divmod(int(weight.storage_offset() - base.storage_offset()), int(base.stride(0)))
        if rest or index >= len(base):
            return None
        base = base[index]
    for view, orientation in ((base, use.orientation), (base.mT, turned)) if base.ndim > 1 else ():
        if weight.shape == view.shape and weight.stride() == view.stride() and weight.data_ptr() == view.data_ptr():
            return orientation
    return None


def _head_orientation(
    weight: Tensor, base: Tensor, orientation: str, way: Named, geometry: Callable[[Named], Geometry | None]
) -> str | None:
    """Of a weight [head, .., ..] that is a view of a matrix."""
    of = geometry(way)
    if of is None or base.ndim != 2:
        return None
    seen = weight if orientation == "in_out" else weight.mT
    heads, d_in, d_out = seen.shape
    letter = way.name.rsplit(".", 1)[-1]
    for matrix, stored in ((base, "in_out"), (base.mT, "out_in")):
        if letter == "W_O" and matrix.shape == (heads * d_in, d_out):
            view = matrix.unflatten(0, (heads, d_in))
        elif letter != "W_O" and matrix.shape == (d_in, heads * d_out):
            view = matrix.unflatten(1, (heads, d_out)).transpose(0, 1)
        else:
            continue
        if view.shape == seen.shape and view.stride() == seen.stride() and view.data_ptr() == seen.data_ptr():
            return stored
    return None


def _complete_experts(sites: WeightSites, every: list[nn.Parameter], ways: dict[int, list[Named]]) -> None:
    """Experts with modules of their own that no token reached: as their siblings are, with a zero gradient."""
    known = {_family(name): site for name, site in sites.items() if ".expert" in name}
    for parameter in every:
        held = ways.get(id(parameter))
        if held and sites.unused.get(id(parameter)) == DID_NOT_RUN and ".expert" in held[0].name:
            like = known.get(_family(held[0].name))
            if like is not None and like.parameter.shape == parameter.shape:
                del sites.unused[id(parameter)]
                sites.add(replace(like, name=held[0].name, parameter=parameter, aliases=(), may_be_silent=True))
    for name, site in list(sites.items()):
        if ".expert" in name and _family(name) != name:
            sites[name] = replace(site, may_be_silent=True)


def _family(name: str) -> str:
    """An expert's weight without the expert's number, and a block's without the block's."""
    return ".".join("#" if any(c.isdigit() for c in part) and ("expert" in part or part.isdigit()) else part
                    for part in name.split("."))
