"""The hooks of one capture: every x is held by reference, every y as the autograd edge of its gradient.

Each delta is torch.autograd.grad(loss, edge of y), so the engine runs only the backward steps that lead to some y and
never the matrix product that would form a weight's gradient.

Hooks are bound methods and partials, not closures: a run-time type checker decorates a function each time it is
defined, which costs more than a pass of a small model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.edges import Written, delta_at, trace, unwatched, written_at
from tl_backward.model.guard import check_visitor
from tl_backward.model.torch_hooks import Hooks, as_shown
from tl_backward.weights import Read, WeightSite, watched
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.rows import Recorded, factors_of
from tl_backward.weights.token_rows import Shapes
from tl_backward.weights.watch import Seen, Watch, asking, weights_of

NOT_IN_PLACE = "let what does so, a hook or an in-place activation of the model's own, return a new tensor."


@dataclass(frozen=True)
class _Multiplied:
    """One use of a weight by an operation."""

    seen: Seen
    written: Written
    version: int
    """x's version when the operation read it."""


@dataclass(frozen=True)
class Differentiated:
    """The gradients of a capture's backward pass."""

    factors: dict[str, GradientFactors]
    parameters: dict[str, Tensor]
    """The gradient of each weight that has no factors, in its own shape."""
    points: dict[int, Tensor]
    """The gradient at each hook point that ran, by its identity."""
    overwritten: set[int]
    """Hook points whose tensor was changed in place after it left them."""


@dataclass
class Recorder:
    """Registers the hooks of one capture and holds the inputs and outputs that they recorded."""

    model: TransformerLensModel
    hooks: Hooks = field(default_factory=Hooks)
    thread: int = field(default_factory=get_ident)
    """Which thread's pass is recorded."""
    own: bool = True
    """Whether the pass is one of ours, in which tensors may be replaced to give them a gradient; else the user's."""
    sites: list[WeightSite] = field(default_factory=list)
    reads: dict[int, list[tuple[Tensor, int]]] = field(default_factory=dict)
    writes: dict[tuple[int, str], list[Written]] = field(default_factory=dict)
    points: dict[int, list[Written]] = field(default_factory=dict)
    converters: dict[int, nn.Module] = field(default_factory=dict)
    asked: dict[str, GradientEdge] = field(default_factory=dict)
    """Where the gradient of each weight arrives that autograd gives whole, or pulls back through a function."""
    silent: dict[int, str] = field(default_factory=dict)
    """Why no gradient could be asked for at hook points that ran."""
    woken: bool = False
    """Whether the pass used a weight that none of the model's own did, or used one otherwise than all of those did."""
    uses: dict[tuple[int, ...], list[_Multiplied]] = field(default_factory=dict)
    """What operations did with each parameter, or what is computed from several, by their identities."""

    def _check_thread(self) -> None:
        if get_ident() != self.thread:
            check_visitor(self.model)

    def watch(self, site: WeightSite) -> None:
        """Record the site's x and y on every call; a bias shares its matrix's y."""
        self.sites.append(site)
        if site.write is None:
            self.uses.setdefault(site.used, [])
            return
        key, module = (id(site.write.module), site.write.at), site.write.module
        if key not in self.writes:
            written = self.writes[key] = []
            if site.write.at == "input":
                self.hooks.first_in(module, partial(self._enters, written))
            else:
                self.hooks.first_out(module, partial(self._leaves, written))
        for read in (site.read, site.otherwise):
            if read is not None and id(read) not in self.reads:  # a gate reads what its W_in does
                keep = partial(self._keep_input, read, self.reads.setdefault(id(read), []))
                self.hooks.last(read.module, keep, with_kwargs=True)

    def _seen(self, site: WeightSite) -> list[tuple[Tensor, int]]:
        """The x of each call of a site, from whichever of its two modules ran."""
        seen = [] if site.read is None else self.reads[id(site.read)]
        return seen if seen or site.otherwise is None else self.reads[id(site.otherwise)]

    @contextmanager
    def watching(self, shapes: Shapes, asleep: Sequence[nn.Parameter] = ()) -> Iterator[None]:
        """Context in which operations over [batch, pos] tokens are watched for uses of the sites' weights.

        Args:
            shapes: of each sequence that the pass reads.
            asleep: parameters that have no site, since no pass of the model's own used them.
        """
        site_of = {site.used: site for site in self.sites if site.write is None}
        # A gradient that autograd gives whole, or pulls back through a function, needs a graph behind the parameter.
        through = [site for site in site_of.values() if site.kind == "parameter" or site.is_function]
        by_operation = [site for site in site_of.values() if site.by_operation]
        tensors, keys = watched(by_operation)
        tensors += [(parameter, len(keys) + i) for i, parameter in enumerate(asleep)]
        wanted: dict[tuple[int, ...], set[str]] = {}
        for site in self.sites:
            wanted.setdefault(site.used, set()).add(site.kind)
        as_stored = {
            (site.used, site.kind) for site in self.sites if not (site.is_function or site.computed_from or site.write)
        }

        def report(seen: list[Seen]) -> Tensor | None:
            awake = seen
            if asleep:
                awake = [each for each in seen if all(root < len(keys) for root in weights_of(each.known))]
                self.woken = self.woken or len(awake) < len(seen)
            return self._used(awake, keys, wanted, as_stored, shapes)

        with asking([root for site in through for root in site.roots or (site.parameter,)]):
            self.asked = {site.name: get_gradient_edge(site.parameter) for site in through}
            if not by_operation:
                yield
                return
            followed = shapes if any(site.gathered for site in by_operation) else ()
            with Watch(tensors, report, followed, ours=self.own):
                yield

    def _used(
        self,
        seen: list[Seen],
        keys: list[int],
        wanted: dict[tuple[int, ...], set[str]],
        as_stored: set[tuple[tuple[int, ...], str]],
        shapes: Shapes,
    ) -> Tensor | None:
        self._check_thread()
        written: Written | None = None
        replacement: Tensor | None = None
        for each in seen:
            use = each.use
            key = tuple(sorted(keys[root] for root in weights_of(each.known)))
            if key not in self.uses:  # weights that meet in no pass of the model's own
                self._unknown(each, key)
                continue
            if use.y is None or use.kind not in wanted[key] or each.known.cut:
                if use.kind == "other" or each.known.cut:
                    use.y = None
                    self.uses[key].append(_Multiplied(each, written_at(None, use.weight), 0))
                continue
            if each.known.link == "function" and (key, use.kind) in as_stored:
                self.woken = True  # a flag or a patch has changed how the model computes since it was learnt
            if written is None:
                y = use.y
                if self.own and use.kind == "embedding" and self._is_of_positions(y, shapes):
                    # Positions are looked up once for the batch, which their sum with the tokens spreads them over:
                    # spread before it, each example has a gradient of its own there.
                    y = replacement = y.expand(shapes[0][0], -1, -1)
                written, traced = trace(y, private=True, replace=self.own)
                replacement = replacement if traced is None else traced
            # In the use's place: y itself, which nothing needs but its edge, would be kept for nothing.
            use.y = None
            self.uses[key].append(_Multiplied(each, written, 0 if use.x is None else use.x._version))
        return replacement

    def _is_of_positions(self, y: Tensor, shapes: Shapes) -> bool:
        """Whether a lookup is [1, pos, d_model] for several examples; biases between positions are as wide as heads."""
        n, lead = shapes[0][0], tuple(y.shape[:-1])
        return n > 1 and y.shape[-1] == self.model.cfg.d_model and any(lead == (1, pos) for _, pos in shapes)

    def _unknown(self, seen: Seen, roots: tuple[int, ...]) -> None:
        seen.use.kind, seen.use.y = "other", None
        for root in roots:
            if (root,) in self.uses:
                self.uses[root,].append(_Multiplied(seen, written_at(None, seen.use.weight), 0))

    def watch_hook_points(self, points: Iterable[nn.Module]) -> None:
        """Record the gradient of the tensor at each HookPoint, summed over everything that reads it.

        TransformerLens's own bwd hooks see the same, but for a Bridge's input points (`q.hook_in`, `ln2.hook_in`),
        where they give the one reader's share.
        """
        self.converters = {id(point): point for point in points}
        self.points = {key: [] for key in self.converters}
        keep = partial(self._keep_edge, self.points)
        for point in self.converters.values():
            self.hooks.passing(point, keep)

    def why_missing(self, point: nn.Module) -> str:
        """Why there is no gradient at a hook point that was watched."""
        if self.points[id(point)]:
            return "it ran several times with tensors of different shapes, whose gradients do not add up."
        return self.silent.get(id(point), "it did not run in this pass.")

    def _enters(self, written: list[Written], module: nn.Module, args: tuple) -> tuple | None:
        replacement = self._leaves(written, module, args, args[0])
        return None if replacement is None else (replacement, *args[1:])

    def _leaves(
        self, written: list[Written], module: nn.Module, args: tuple, output: Tensor, *, private: bool = True
    ) -> Tensor | None:
        self._check_thread()
        with unwatched(output):
            entry, replacement = trace(output, private=private, replace=self.own)
        written.append(entry)
        return replacement

    def _keep_input(
        self,
        read: Read,
        seen: list[tuple[Tensor, int]],
        module: nn.Module,
        args: tuple,
        kwargs: dict,
        output: object,
    ) -> None:
        self._check_thread()
        x = read.take(args, kwargs, output)
        with unwatched(x):
            seen.append((x, x._version))

    def _keep_edge(
        self, points: dict[int, list[Written]], module: nn.Module, args: tuple, output: object
    ) -> Tensor | None:
        with unwatched(output):
            if not isinstance(output, Tensor) or not output.is_floating_point():
                self.silent[id(module)] = "what passes there is no floating-point tensor."
            elif not torch.is_grad_enabled():
                self.silent[id(module)] = _BESIDE
            else:
                return self._leaves(points[id(module)], module, args, output, private=False)
        self._check_thread()
        return None

    def differentiate(self, loss: Tensor, shapes: Shapes) -> Differentiated:
        """Factors of every site, the gradients of those that have none, and the gradient at every hook point that ran.

        Args:
            loss: the scalar to differentiate.
            shapes: [batch, pos] of the tokens, of each sequence that the pass reads.
        """
        # Gradient checkpointing runs the hooks again in the backward pass: what they see then is not this pass's.
        self.points = {key: list(entered) for key, entered in self.points.items()}
        self.writes = {key: list(entered) for key, entered in self.writes.items()}
        self.reads = {key: list(seen) for key, seen in self.reads.items()}
        overwritten = self.check_complete()
        entries = self.entries()
        whole = [site for site in self.sites if site.kind == "parameter"]
        wanted = (*(entry.edge for entry in entries), *(self.asked[site.name] for site in whole))
        edges = [edge for edge in dict.fromkeys(wanted) if edge is not None]  # one tensor passes several hook points
        through = any(site.is_function for site in self.sites)
        found = torch.autograd.grad(loss, edges, allow_unused=True, retain_graph=through) if edges else ()
        gradients: dict[GradientEdge | None, Tensor | None] = {None: None, **dict(zip(edges, found, strict=True))}
        deltas = {id(entry): delta_at(entry, gradients[entry.edge]) for entry in entries}
        parameters = {}
        for site in whole:
            gradient = gradients[self.asked[site.name]]
            parameters[site.name] = torch.zeros_like(site.parameter) if gradient is None else gradient
        factors = {site.name: self.factors(site, deltas, shapes) for site in self.sites if site.kind != "parameter"}
        at: dict[int, Tensor] = {}
        for key, entered in self.points.items():
            parts = [deltas[id(entry)] for entry in entered]
            if parts and key not in overwritten and (len(parts) == 1 or len({part.shape for part in parts}) == 1):
                # ln1 runs for q, k and v
                at[key] = as_shown(self.converters[key], parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
        return Differentiated(factors, parameters, at, overwritten)

    def entries(self) -> list[Written]:
        """Every y that the pass wrote and whose gradient is wanted, once."""
        multiplied = [[each.written for each in used] for used in self.uses.values()]
        every = chain(*self.writes.values(), *multiplied, *self.points.values())
        return list({id(entry): entry for entry in every}.values())

    def factors(self, site: WeightSite, deltas: dict[int, Tensor], shapes: Shapes) -> GradientFactors:
        """The factors of a site, from the gradient at each entry, by its identity."""
        if site.by_operation:
            return factors_of(site, self._recorded(site, deltas), shapes, self.asked.get(site.name))
        return site.factors(self._calls(site, deltas))

    def idle(self) -> list[str]:
        """Sites that the pass did not use."""
        return [
            site.name
            for site in self.sites
            if site.by_operation
            and not site.may_be_silent
            and not any(each.seen.use.kind in (site.kind, "other") for each in self.uses[site.used])
        ]

    def _recorded(self, site: WeightSite, deltas: dict[int, Tensor]) -> list[Recorded]:
        """Each use of a site's weight that is of its kind, with the gradient at what it wrote."""
        recorded = []
        for each in self.uses[site.used]:
            if each.seen.use.kind == "other" and not each.seen.known.cut:
                raise RuntimeError(
                    f"Expected {site.name} to be used as in a pass of the model's own, got an operation "
                    f"({each.seen.use.operation}) that is not known for it; a user's hook or the inputs may have "
                    "changed how the model computes: choose others with weights=..."
                )
            if each.seen.use.kind == site.kind and not each.seen.known.cut:
                recorded.append(Recorded(each.seen, deltas[id(each.written)]))
        return recorded

    def _calls(self, site: WeightSite, deltas: dict[int, Tensor]) -> list[tuple[Tensor | None, Tensor]]:
        """(x, delta) of every call of a site whose module's hooks tell."""
        assert site.write is not None
        wrote = [deltas[id(entry)] for entry in self.writes[id(site.write.module), site.write.at]]
        read = [None] * len(wrote) if site.read is None else [x.detach() for x, _ in self._seen(site)]
        if len(read) != len(wrote):
            raise RuntimeError(
                f"Expected {site.name} to write once for each time it reads, got {len(read)} reads and "
                f"{len(wrote)} writes; the model calls it in a way that is not known here."
            )
        # Under autocast the product sees a rounded x.
        read = [
            x if x is None or x.dtype == delta.dtype or not x.is_floating_point() else x.to(delta.dtype)
            for x, delta in zip(read, wrote, strict=True)
        ]
        return list(zip(read, wrote, strict=True))

    def check_complete(self) -> set[int]:
        """Refuse sites that did not run or were overwritten; returns ids of the hook points that were overwritten."""
        for site in self.sites:
            if not (self.has_run(site) or site.kind == "parameter" or site.may_be_silent):
                raise RuntimeError(
                    f"Expected {site.name} to run in the forward pass, but it never did; a user's hook or the model's "
                    "flags bypass it, or it is called in a way that is not known here. Choose others with weights=..."
                )
            self.check_site(site)
        return {key for key, entered in self.points.items() if any(entry.is_stale for entry in entered)}

    def has_run(self, site: WeightSite) -> bool:
        """Whether the pass used a weight."""
        if site.write is not None:
            return bool(self.writes[id(site.write.module), site.write.at])
        return any(each.seen.use.kind in (site.kind, "other") for each in self.uses[site.used])

    def check_site(self, site: WeightSite) -> None:
        """Refuse a weight that ran where autograd was off, or whose x or y was changed in place after that.

        Raises:
            RuntimeError: so it is.
        """
        if site.write is None:
            used = [each for each in self.uses[site.used] if each.seen.use.kind == site.kind]
            if site.kind == "parameter" or site.may_be_silent:
                return
            written = [each.written for each in used]
            seen = [(x, each.version) for each in used if (x := each.seen.use.x) is not None]
        else:
            written, seen = self.writes[id(site.write.module), site.write.at], self._seen(site)
        if written and all(entry.edge is None for entry in written):
            raise RuntimeError(
                f"Expected {site.name} to run where autograd is on, but it ran inside torch.no_grad(), as reentrant "
                "gradient checkpointing does; switch that off (gradient_checkpointing_disable(), use_reentrant=False "
                "or model.eval()) or choose others with weights=...."
            )
        if any(x._version != version for x, version in seen):
            raise RuntimeError(
                f"Expected the input of {site.name} to stay as it was read, but it was overwritten in place later in "
                f"the forward pass; {NOT_IN_PLACE}"
            )
        if any(entry.is_stale for entry in written):
            raise RuntimeError(
                f"Expected what {site.name} wrote to stay as it was, but it was changed in place later in the forward "
                f"pass; {NOT_IN_PLACE}"
            )


_BESIDE = "no gradient flows through it: TransformerLens computes it beside the model's own path, with autograd off."
