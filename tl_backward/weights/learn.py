"""Learn from one pass which weights a model uses, how, and whether that is all it does with them.

Every floating-point parameter is asked for a gradient during the pass, without anyone's hooks; then autograd's own
graph is walked: the edges that lead into a parameter must be those of the uses that were seen. Where there are more, or
an operation is not known, the parameter's gradient is asked of autograd whole (kind "parameter"): always exact.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import cast

import torch
from torch import Tensor, nn

from tl_backward.weights._site import WeightSite, WeightSites
from tl_backward.weights.account import DID_NOT_RUN, NO_GRAD, NOT_FLOAT, QUANTISED, account_rows
from tl_backward.weights.forms import Geometry, site_of, way_of
from tl_backward.weights.joint import joint_sites
from tl_backward.weights.layout import Layout
from tl_backward.weights.names import Named, is_hook_point
from tl_backward.weights.rows import axes_of, examples_of
from tl_backward.weights.token_rows import Shapes
from tl_backward.weights.watch import Seen, Watch, asking, weights_of


@dataclass
class _Uses:
    """What one pass did with one parameter."""

    first: int = 0
    """When it was first used, counted over the operations of the pass."""
    seen: list[Seen] = field(default_factory=list)
    nodes: list[object] = field(default_factory=list)
    """The node of autograd's graph that each use made; None where it made none."""


def learn(
    parameters: dict[str, nn.Parameter],
    ways: dict[int, list[Named]],
    run: Callable[[], object],
    shapes: Shapes,
    modules: Sequence[nn.Module],
    geometry: Callable[[Named], Geometry | None],
    leave: frozenset[int] = frozenset(),
) -> WeightSites:
    """The sites of a model's weights, found by one pass.

    Args:
        parameters: `named_parameters()`.
        ways: what each parameter is called, by its identity.
        run: makes the pass; returns its outputs.
        shapes: [batch, pos] of each sequence of tokens that the pass reads.
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
            for root in weights_of(each.known):
                uses[root].first = uses[root].first or number
                uses[root].seen.append(each)
                uses[root].nodes.append(None if y is None else y.grad_fn)

    constants = _constants(modules)
    numbered = [(p, i) for i, p in enumerate(every)] + [(alias, i) for i, held in aliases.items() for alias in held]
    numbered += [(buffer, -1 - i) for i, buffer in enumerate(constants)]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(asking(every))
        stack.enter_context(_without_hooks([module for module in modules if is_hook_point(module)]))
        stack.enter_context(_attributes_kept(modules))
        stack.enter_context(_statistics_kept(modules))
        with Watch(numbered, report, shapes):
            outputs = run()
        reached, edges = _graph(outputs)
        sites = WeightSites(parameters)
        names = [ways.get(id(parameter)) or [_plain(parameter, parameters)] for parameter in every]
        joint = joint_sites(every, [use.seen for use in uses], names, geometry)
        for number, parameter in enumerate(every):
            held = joint.get(number)
            if held is not None and all(len(weights_of(seen.known)) > 1 for seen in uses[number].seen):
                live = _live(uses[number], ())
                if _explained(parameter, live, edges.get(id(parameter), []), reached):
                    sites.add(replace(held, order=uses[number].first))
                    continue
            found = _decide(parameter, uses[number], names[number], aliases.get(number, ()), reached, edges, geometry)
            if isinstance(found, str):
                sites.unused[id(parameter)] = found
            else:
                sites.add(*(site for site in found if site.name not in sites))
        sites.add(*(site for number, site in joint.items() if number < 0 and site.name not in sites))
        for name, site in sites.items():
            sites[name] = _completed(site, every, uses, constants, shapes)
        for name in _misplaced(sites, every, uses, outputs, shapes):
            sites[name] = replace(sites[name], placed=False)
    _complete_experts(sites, every, ways)
    for name, _, _, _, reason in account_rows(sites, sites):
        if reason:
            known = ways.get(id(parameters[name]))
            sites.missing[known[0].name if known else name] = f"{reason}."
    return sites


def _constants(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Numbers that modules keep beside their parameters: masks of pruning, a spectral norm's vectors."""
    found = (buffer for module in modules for buffer in module._buffers.values() if buffer is not None)
    return list({id(buffer): buffer for buffer in found if buffer.is_floating_point()}.values())


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


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A pass after which buffers hold what they held: in train mode a batch norm counts it."""
    buffers = [b for module in modules if module.training for b in module._buffers.values() if b is not None]
    kept = [(buffer, buffer.clone()) for buffer in buffers if not buffer.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                if buffer.shape == before.shape:
                    buffer.copy_(before)


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
    uses: _Uses,
    ways: list[Named],
    aliases: Sequence[Tensor],
    reached: set[object],
    edges: dict[int, list[object]],
    geometry: Callable[[Named], Geometry | None],
) -> list[WeightSite] | str:
    """The sites of one parameter, or the reason why it has none."""
    if not parameter.is_floating_point():  # bitsandbytes packs its numbers into integers of a class of its own
        return NOT_FLOAT if type(parameter) is nn.Parameter else QUANTISED
    if type(parameter) is not nn.Parameter and not _plain_class(parameter):
        return QUANTISED
    known_alias = {id(alias) for alias in aliases}
    live = _live(uses, known_alias)
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
        site = None if kind == "other" else site_of(parameter, kind, mine, way_of(ways, kind), geometry)
        if site is None:
            return whole
        found += [replace(each, aliases=tuple(aliases), order=uses.first) for each in site]
    # One name for two kinds of use: tied, with no second module that would name the other one.
    return found if len({site.name for site in found}) == len(found) else whole


def _live(uses: _Uses, aliases: Container[int]) -> list[tuple[Seen, object]]:
    """The uses through which a gradient flows, each with its node of the graph."""
    return [
        (seen, node)
        for seen, node in zip(uses.seen, uses.nodes, strict=True)
        if node is not None and not seen.known.cut and (seen.use.weight.requires_grad or id(seen.known.base) in aliases)
    ]


def _completed(
    site: WeightSite,
    every: Sequence[nn.Parameter],
    uses: Sequence[_Uses],
    constants: Sequence[Tensor],
    shapes: Shapes,
) -> WeightSite:
    """A site with what its uses have in common."""
    mine = _uses_of(site, every, uses)
    trailing = 2 if any(seen.use.blocks == "head" for seen in mine) else 1
    written = (seen.use.delta_rows(seen.use.y.detach()) for seen in mine if seen.use.y is not None)
    axes = {axes_of(tuple(rows.shape[:-trailing]), shapes) for rows in written}
    return replace(
        site,
        constants=_constants_of(site, every, uses, constants),
        axes=axes.pop() if len(axes) == 1 else None,
        gathered=site.layout.experts or any(seen.token is not None for seen in mine),
    )


def _uses_of(site: WeightSite, every: Sequence[nn.Parameter], uses: Sequence[_Uses]) -> list[Seen]:
    """The uses through which a site's gradient comes."""
    number = next((i for i, parameter in enumerate(every) if parameter is site.parameter), None)
    if number is None:
        return []
    return [seen for seen in uses[number].seen if seen.use.kind == site.kind and not seen.known.cut]


def _misplaced(
    sites: WeightSites, every: Sequence[nn.Parameter], uses: Sequence[_Uses], outputs: object, shapes: Shapes
) -> list[str]:
    """Sites at whose rows of other examples the gradient of one example's output arrives too."""
    n = shapes[0][0]
    wrote = {name: _uses_of(site, every, uses) for name, site in sites.items() if site.by_operation}
    wrote = {name: [seen for seen in held if seen.use.y is not None] for name, held in wrote.items()}
    ys = {id(seen.use.y): cast(Tensor, seen.use.y) for held in wrote.values() for seen in held}
    ys = {key: y for key, y in ys.items() if y.requires_grad}
    outs = [out for out in _tensors(outputs) if out.requires_grad and out.ndim and len(out) == n]
    if n < 2 or not outs or not ys:
        return []
    wrong: list[str] = []
    for example in range(2):  # of two, each tells of itself and of the others
        losses = [out[example].float().square().sum() for out in outs]
        found = torch.autograd.grad(losses, list(ys.values()), allow_unused=True, retain_graph=True)
        arrived = dict(zip(ys, found, strict=True))
        for name, held in wrote.items():
            if name in wrong:
                continue
            for seen in held:
                gradient = arrived.get(id(seen.use.y))
                if gradient is None or (sites[name].kind == "embedding" and len(gradient) == 1):
                    continue  # positions: looked up once, and spread over the batch where they are captured
                examples = examples_of(sites[name], seen, gradient, shapes)
                if examples is None or any(each != example for each in examples.tolist()):
                    wrong.append(name)
                    break
    return wrong


def _constants_of(
    site: WeightSite, every: Sequence[nn.Parameter], uses: Sequence[_Uses], constants: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The buffers that what a site's weight is used as depends on."""
    if not site.is_function:
        return ()
    number = next(i for i, parameter in enumerate(every) if parameter is site.parameter)
    found = dict.fromkeys(root for seen in uses[number].seen for root in seen.known.roots if root < 0)
    return tuple(constants[-1 - root] for root in found)


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
    return ".".join(
        "#" if any(c.isdigit() for c in part) and ("expert" in part or part.isdigit()) else part
        for part in name.split(".")
    )
