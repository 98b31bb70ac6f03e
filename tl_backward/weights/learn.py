"""Derive a model's weight sites from one pass: which weights it uses, how, and whether every use is known.

Every floating-point parameter is asked for a gradient during the pass, without anyone's hooks; then autograd's own
graph is walked: the edges that lead into a parameter must be those of the uses that were seen. Where there are more, or
an operation is not known, the parameter's gradient is asked of autograd whole (kind "parameter"): always exact.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor, nn

from tl_backward.model.guard import hooks_off
from tl_backward.model.modules import is_hook_point
from tl_backward.model.torch_hooks import Hooks
from tl_backward.weights._site import WeightSite
from tl_backward.weights.account import CUT_OFF, DID_NOT_RUN, NO_GRAD, NOT_FLOAT, QUANTISED, WeightSites, account_rows
from tl_backward.weights.forms import Geometries, joint_sites, site_of, way_of
from tl_backward.weights.layout import Layout
from tl_backward.weights.names import Named
from tl_backward.weights.rows import axes_of, examples_of
from tl_backward.weights.token_rows import Shapes
from tl_backward.weights.watch import Seen, Watch, asking, weights_of


@dataclass
class _Uses:
    """The uses of one parameter in one pass."""

    parameter: nn.Parameter
    ways: list[Named]
    aliases: tuple[Tensor, ...]
    """Tensors that modules keep beside it and that are it."""
    first: int = 0
    """When it was first used, counted over the operations of the pass."""
    seen: list[Seen] = field(default_factory=list)
    nodes: list[object] = field(default_factory=list)
    """The node of autograd's graph that each use made; None where it made none."""

    def note(self, number: int, seen: Seen) -> None:
        """Add one use, by the pass's operation of that number."""
        self.first = self.first or number
        self.seen.append(seen)
        self.nodes.append(None if seen.use.y is None else seen.use.y.grad_fn)

    def of(self, site: WeightSite) -> list[Seen]:
        """The uses through which a site's gradient comes."""
        return [seen for seen in self.seen if seen.use.kind == site.kind and not seen.known.cut]

    def live(self, aliases: Container[int] = ()) -> list[tuple[Seen, object]]:
        """The uses through which a gradient flows, each with its node of the graph."""
        return [
            (seen, node)
            for seen, node in zip(self.seen, self.nodes, strict=True)
            if node is not None
            and not seen.known.cut
            and (seen.use.weight.requires_grad or id(seen.known.base) in aliases)
        ]


def learn(
    parameters: dict[str, nn.Parameter],
    ways: dict[int, list[Named]],
    run: Callable[[], object],
    shapes: Shapes,
    modules: Sequence[nn.Module],
    geometry: Geometries,
    paths: Mapping[str, nn.Module],
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
        paths: modules by what they are called where their weights have no names.
        leave: parameters (by identity) whose places are known otherwise.
    """
    # Those of the modules too, which `named_parameters()` may leave out.
    held = (ways_to[0].module._parameters.get(ways_to[0].attribute) for ways_to in ways.values())
    every = {id(p): p for p in (*parameters.values(), *held) if p is not None and id(p) not in leave}
    aliases = _aliases(ways, every)
    uses = {
        key: _Uses(p, ways.get(key) or [_plain(p, parameters)], tuple(aliases.get(key, ()))) for key, p in every.items()
    }
    numbered = list(uses.values())
    operation = count(1)

    def report(seen: list[Seen]) -> None:
        number = next(operation)
        for each in seen:
            for root in weights_of(each.known):
                numbered[root].note(number, each)

    constants = _constants(modules)
    watched = [(tensor, i) for i, used in enumerate(numbered) for tensor in (used.parameter, *used.aliases)]
    watched += [(buffer, -1 - i) for i, buffer in enumerate(constants)]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(asking(list(every.values())))
        stack.enter_context(hooks_off([module for module in modules if is_hook_point(module)]))
        stack.enter_context(_state_restored(modules))
        with Watch(watched, report, shapes), _cut_off(modules) as cut:
            outputs = run()
        reached, edges = _graph(outputs)
        sites = WeightSites(parameters)
        lost = {id(parameter) for module in cut for parameter in _quantised(module)}
        joint = joint_sites(
            [used.parameter for used in numbered],
            [used.seen for used in numbered],
            [used.ways for used in numbered],
            geometry,
        )
        for number, used in enumerate(numbered):
            whole, into = joint.get(number), edges.get(id(used.parameter), [])
            if whole is not None and all(len(weights_of(seen.known)) > 1 for seen in used.seen):
                if _explained(used.parameter, used.live(), into, reached):
                    sites.add(replace(whole, order=used.first))
                    continue
            decided = _decide(used, into, reached, geometry)
            if id(used.parameter) in lost:
                sites.unused[id(used.parameter)] = CUT_OFF
            elif isinstance(decided, str):
                sites.unused[id(used.parameter)] = decided
            else:
                sites.add(*(site for site in decided if site.name not in sites))
        sites.add(*(site for number, site in joint.items() if number < 0 and site.name not in sites))
        sites.add(*(_completed(site, uses[id(site.parameter)], constants, shapes) for site in sites.values()))
        sites.add(*(replace(site, placed=False) for site in _misplaced(sites, uses, outputs, shapes)))
    _complete_experts(sites, uses)
    for name, _, _, _, reason in account_rows(sites, sites):
        if reason:
            known = ways.get(id(parameters[name]))
            sites.missing[known[0].name if known else name] = f"{reason}."
    packed = {id(module) for module in cut if not _quantised(module)}
    sites.missing |= {f"{path}.weight": f"{CUT_OFF}." for path, module in paths.items() if id(module) in packed}
    return sites


def _constants(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Numbers that modules keep beside their parameters: masks of pruning, a spectral norm's vectors."""
    buffers = (buffer for module in modules for buffer in module._buffers.values() if buffer is not None)
    return list({id(buffer): buffer for buffer in buffers if buffer.is_floating_point()}.values())


def _plain(parameter: nn.Parameter, parameters: dict[str, nn.Parameter]) -> Named:
    name = next(name for name, value in parameters.items() if value is parameter)
    return Named(name, nn.Module(), name.rsplit(".", 1)[-1], None, 0)


def _aliases(ways: dict[int, list[Named]], every: dict[int, nn.Parameter]) -> dict[int, list[Tensor]]:
    """Module attributes that are an alias of a whole parameter, by the parameter's id."""
    plain = {key: p for key, p in every.items() if p.numel() and type(p) is nn.Parameter}
    place = {(p.data_ptr(), p.shape): key for key, p in plain.items()}
    modules = {id(m): m for held in ways.values() for way in held for m in (way.module, way.parent) if m is not None}
    aliases: dict[int, list[Tensor]] = {}
    for value in (value for module in modules.values() for value in vars(module).values() if type(value) is Tensor):
        if (value.data_ptr(), value.shape) in place:
            aliases.setdefault(place[value.data_ptr(), value.shape], []).append(value)
    return aliases


@contextmanager
def _state_restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Context of a pass after which the modules' attributes are restored.

    None has a tensor of the pass (TransformerLens keeps the last attention pattern, for one), and buffers have the
    numbers they had: in train mode a batch norm counts the pass.
    """
    states = [(vars(module), dict(vars(module))) for module in modules]
    buffers = [b for module in modules if module.training for b in module._buffers.values() if b is not None]
    numbers = [(buffer, buffer.clone()) for buffer in buffers if not buffer.is_meta]
    try:
        yield
    finally:
        for state, before in states:
            for name in [name for name, value in state.items() if isinstance(value, Tensor | tuple) or value is None]:
                if name not in before:
                    del state[name]
                elif state[name] is not before[name]:
                    state[name] = before[name]
        with torch.no_grad():
            for buffer, copy in numbers:
                if buffer.shape == copy.shape:
                    buffer.copy_(copy)


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
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _tensors(item)


def _decide(uses: _Uses, into: list[object], reached: set[object], geometry: Geometries) -> list[WeightSite] | str:
    """The sites of one parameter, or the reason why it has none."""
    parameter, ways, aliases = uses.parameter, uses.ways, uses.aliases
    if _is_quantised(parameter):
        return QUANTISED
    if not parameter.is_floating_point():
        return NOT_FLOAT
    known_alias = {id(alias) for alias in aliases}
    live = uses.live(known_alias)
    if not live and not into:
        return NO_GRAD if uses.seen else DID_NOT_RUN
    through_alias = any(id(seen.known.base) in known_alias for seen, _ in live)
    whole = [WeightSite(ways[0].name, "parameter", parameter, Layout(tuple(parameter.shape)), aliases=aliases)]
    if not through_alias and not _explained(parameter, live, into, reached):
        return whole
    sites: list[WeightSite] = []
    for kind in dict.fromkeys(seen.use.kind for seen, _ in live):
        mine = [seen for seen, _ in live if seen.use.kind == kind]
        site = None if kind == "other" else site_of(parameter, mine[0].use.kind, mine, way_of(ways, kind), geometry)
        if site is None:
            return whole
        sites += [replace(each, aliases=aliases, order=uses.first) for each in site]
    # One name for two kinds of use: tied, with no second module that would name the other one.
    return sites if len({site.name for site in sites}) == len(sites) else whole


def _completed(site: WeightSite, uses: _Uses, constants: Sequence[Tensor], shapes: Shapes) -> WeightSite:
    """A site completed from its uses: their common axes, and the buffers that the used tensor depends on."""
    mine = uses.of(site)
    trailing = 2 if any(seen.use.blocks == "head" for seen in mine) else 1
    written = (seen.use.delta_rows(seen.use.y.detach()) for seen in mine if seen.use.y is not None)
    axes = {axes_of(tuple(rows.shape[:-trailing]), shapes) for rows in written}
    roots = dict.fromkeys(root for seen in uses.seen for root in seen.known.roots if root < 0)
    return replace(
        site,
        constants=tuple(constants[-1 - root] for root in roots) if site.is_function else (),
        axes=axes.pop() if len(axes) == 1 else None,
        gathered=site.layout.experts or any(seen.token is not None for seen in mine),
    )


def _misplaced(sites: WeightSites, uses: dict[int, _Uses], outputs: object, shapes: Shapes) -> list[WeightSite]:
    """Sites at whose rows of other examples the gradient of one example's output arrives too."""
    n = shapes[0][0]
    watched = [site for site in sites.values() if site.by_operation]
    wrote = [(site, seen, seen.use.y) for site in watched for seen in uses[id(site.parameter)].of(site)]
    ys = {id(y): y for _, _, y in wrote if y is not None and y.requires_grad}
    outs = [out for out in _tensors(outputs) if out.requires_grad and out.ndim and len(out) == n]
    if n < 2 or not outs or not ys:
        return []
    wrong: dict[str, WeightSite] = {}
    for example in range(2):  # of two, each tells of itself and of the others
        losses = [out[example].float().square().sum() for out in outs]
        gradients = torch.autograd.grad(losses, list(ys.values()), allow_unused=True, retain_graph=True)
        arrived = dict(zip(ys, gradients, strict=True))
        for site, seen, y in wrote:
            gradient = arrived.get(id(y))
            if gradient is None or site.name in wrong or (site.kind == "embedding" and len(gradient) == 1):
                continue  # positions: looked up once, and spread over the batch where they are captured
            examples = examples_of(site, seen, gradient, shapes)
            if examples is None or any(each != example for each in examples.tolist()):
                wrong[site.name] = site
    return list(wrong.values())


def _is_quantised(parameter: nn.Parameter) -> bool:
    # bitsandbytes packs its numbers into integers of a class of its own
    return type(parameter) is not nn.Parameter and not (parameter.is_floating_point() and _plain_class(parameter))


_UNKNOWN = "torch::autograd::WarnNotImplemented"
"""PyTorch's node of an operation without a derivative: it warns, and gives none."""


def _quantised(module: nn.Module) -> list[nn.Parameter]:
    return [each for each in module._parameters.values() if each is not None and _is_quantised(each)]


def _is_packed(module: nn.Module) -> bool:
    """Whether a module keeps a quantised weight where parameters are not: in PyTorch's own objects, integer buffers."""
    small = (torch.int8, torch.uint8, torch.int16, torch.int32)
    buffers = (buffer for buffer in module._buffers.values() if buffer is not None)
    return type(module).__module__.startswith("torch.ao.nn.") or any(b.ndim > 1 and b.dtype in small for b in buffers)


def _has_derivative(tensor: Tensor) -> bool:
    """Whether autograd goes on behind a tensor, and does not end at an operation that it knows no derivative of."""
    node = tensor.grad_fn
    while node is not None and node.name() != _UNKNOWN:
        others = [other for other, _ in node.next_functions if other is not None and not hasattr(other, "variable")]
        if len(others) != 1:  # the operation itself, or what is made of its output: another shape, a bias beside it
            return True
        (node,) = others
    return node is None and tensor.requires_grad


@contextmanager
def _cut_off(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Context that collects the quantised modules that read what has a gradient and return numbers that have none.

    Where activations are quantised too the product is one of integers, and autograd does not see it.
    """
    cut: list[nn.Module] = []

    def look(module: nn.Module, args: tuple, output: object) -> None:
        numbers = [tensor for tensor in _tensors(output) if tensor.is_floating_point()]  # indices have no gradient
        read = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args))
        if read and numbers and not any(map(_has_derivative, numbers)):
            cut.append(module)

    hooks = Hooks()
    try:
        for module in modules:
            if _quantised(module) or _is_packed(module):
                hooks.first_out(module, look)
        yield cut
    finally:
        hooks.remove()


def _plain_class(parameter: nn.Parameter) -> bool:
    """A subclass of Parameter that is an ordinary tensor, not one that stores its numbers in a way of its own."""
    return type(parameter).__torch_function__ is nn.Parameter.__torch_function__ or not hasattr(
        type(parameter), "__tensor_flatten__"
    )


def _explained(
    parameter: nn.Parameter, live: list[tuple[Seen, object]], into: list[object], reached: set[object]
) -> bool:
    """Whether the recorded uses account for all autograd edges into a parameter."""
    direct = sum(node in reached for seen, node in live if seen.use.weight is parameter)
    functions = [seen.use.weight for seen, _ in live if seen.use.weight is not parameter]
    behind = {node for weight in functions for node in _graph(weight)[1].get(id(parameter), ())}
    return direct + len(behind & reached) >= len(into)


def _complete_experts(sites: WeightSites, uses: dict[int, _Uses]) -> None:
    """Experts with modules of their own that no token reached: as their siblings are, with a zero gradient."""
    known = {_family(name): site for name, site in sites.items() if ".expert" in name}
    for key, used in uses.items():
        name, parameter = used.ways[0].name, used.parameter
        like = known.get(_family(name)) if ".expert" in name and sites.unused.get(key) == DID_NOT_RUN else None
        if like is not None and like.parameter.shape == parameter.shape:
            del sites.unused[key]
            sites.add(replace(like, name=name, parameter=parameter, aliases=()))
    own = [site for name, site in sites.items() if ".expert" in name and _family(name) != name]
    sites.add(*(replace(site, may_be_silent=True) for site in own))


def _family(name: str) -> str:
    """An expert's weight without the expert's number, and a block's without the block's."""
    return ".".join(
        "#" if any(c.isdigit() for c in part) and ("expert" in part or part.isdigit()) else part
        for part in name.split(".")
    )
