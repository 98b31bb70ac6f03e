"""From the operations that used a weight to its site: kind, layout and orientation.

A matrix may be computed from several parameters: weight norm, a low-rank update that is added before use. What such a
matrix reads and writes is as well defined as any other's, so it is a site under its own name. Where the name belongs to
one of the parameters (W + B A is called what W is), that one's gradient is pulled back from it; where it belongs to
none (weight norm's size and direction), each parameter's own gradient is captured whole beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from tl_backward.weights._site import WeightSite
from tl_backward.weights.layout import Layout
from tl_backward.weights.names import Named, is_norm
from tl_backward.weights.operations import Kind, Orientation
from tl_backward.weights.watch import Seen, same_layout, weights_of


@dataclass(frozen=True)
class Geometry:
    """How a model splits its attention matrices into heads."""

    n_heads: int
    d_head: int
    d_value: int

    def width(self, letter: str) -> int:
        """How many columns of W_Q, W_K or W_V (entries of b_Q, ...) a head has; 0 for any other weight."""
        return {"Q": self.d_head, "K": self.d_head, "V": self.d_value}.get(letter[2:], 0)


Geometries: TypeAlias = Callable[[Named], Geometry | None]


def way_of(ways: list[Named], kind: str) -> Named:
    """The name for a kind of use: a tied parameter is an embedding under one name and a matrix under another."""
    wanted = {"embedding": True, "matrix": False}.get(kind)
    return next((way for way in ways if isinstance(way.module, nn.Embedding) is wanted), ways[0])


def site_of(
    parameter: nn.Parameter, kind: Kind, seen: list[Seen], way: Named, geometry: Geometries
) -> list[WeightSite] | None:
    """The sites of one kind of use; None where they do not fit one form."""
    bases = [each.known.base for each in seen]
    shape, is_function = tuple(bases[0].shape), any(each.known.link == "function" for each in seen)
    joint = any(len(weights_of(each.known)) > 1 for each in seen)
    # Each function would be pulled back apart.
    if joint or any(tuple(base.shape) != shape or (is_function and base is not bases[0]) for base in bases):
        return None
    if kind == "embedding":
        bias = "bias" in way.attribute and not isinstance(way.module, nn.Embedding)
        if bias or len(shape) != 2 or any(each.use.weight.shape != shape for each in seen):  # one of several tables
            return None
        scale = float(getattr(way.module, "embed_scale", getattr(way.module, "scalar_embed_scale", 1.0)))
        return [WeightSite(way.name, kind, parameter, Layout(shape), is_function=is_function, scale=scale)]
    if kind in ("norm", "bias"):
        fits = kind == "bias" or way.name.endswith(".w") or is_norm(way.module)
        whole = parameter.ndim == 1 and all(each.use.weight.numel() == parameter.numel() for each in seen)
        if not fits or not whole:
            return None
        of = geometry(way) if kind == "bias" else None
        width = 0 if of is None else of.width(way.name.rsplit(".", 1)[-1])
        layout = Layout(shape)
        if width and shape[0] % width == 0:
            layout = Layout((shape[0] // width, width), "out", "in_out", shape)
        return [WeightSite(way.name, kind, parameter, layout, is_function=is_function)]
    stored = _stored(seen, way, geometry)
    return stored and _matrix_sites(parameter, shape, stored, way, geometry(way), is_function)


def _matrix_sites(
    parameter: nn.Parameter,
    shape: tuple[int, ...],
    stored: Orientation,
    way: Named,
    of: Geometry | None,
    function: bool,
) -> list[WeightSite]:
    """A matrix's site; two where queries and the gates of their heads share one."""
    site = partial(WeightSite, kind="matrix", parameter=parameter, is_function=function)
    layout = partial(Layout, stored=stored, stored_shape=shape)
    d_in, d_out = shape[-2:] if stored == "in_out" else shape[:-3:-1]
    if len(shape) == 3:
        return [site(way.name, layout=layout((shape[0], d_in, d_out), experts=True), may_be_silent=True)]
    letter = way.name.rsplit(".", 1)[-1]
    width = 0 if of is None else of.width(letter)
    if of is not None and letter == "W_Q" and d_out == 2 * of.n_heads * width:
        # Each head's query is followed by its output's gate.
        query, gate = (layout((of.n_heads, d_in, width), "out", part=(which, 2)) for which in range(2))
        return [site(way.name, layout=query), site(f"{way.name}_gate", layout=gate)]
    if width and d_out % width == 0:
        return [site(way.name, layout=layout((d_out // width, d_in, width), "out"))]
    if of is not None and letter == "W_O" and d_in % of.n_heads == 0:
        return [site(way.name, layout=layout((of.n_heads, d_in // of.n_heads, d_out), "in"))]
    return [site(way.name, layout=layout((d_in, d_out)))]


def _stored(seen: list[Seen], way: Named, geometry: Geometries) -> Orientation | None:
    """Orientation in which the parameter is stored, "in_out" or "out_in"; None where uses differ or leave it open."""
    orientations: set[Orientation | None] = {_orientation_of(each, way, geometry) for each in seen}
    return orientations.pop() if len(orientations) == 1 else None


def _orientation_of(seen: Seen, way: Named, geometry: Geometries) -> Orientation | None:
    """Whether the base of what was used is stored as [.., d_in, d_out] or turned; None where it was used in part."""
    weight, base, use = seen.use.weight, seen.known.base, seen.use
    turned: Orientation = "in_out" if use.orientation == "out_in" else "out_in"
    if use.blocks == "head":
        return _head_orientation(weight, base, use.orientation, way, geometry)
    if seen.known.picked is not None:
        if weight.is_contiguous() and weight.shape[1:] == base.shape[1:]:
            return use.orientation
        return turned if weight.mT.is_contiguous() and weight.shape[1:] == base.mT.shape[1:] else None
    if base.ndim == 3 and weight.ndim == 2:
        if base.stride(0) == 0 or weight.storage_offset() < base.storage_offset():
            return None
        index, rest = divmod(int(weight.storage_offset() - base.storage_offset()), int(base.stride(0)))
        if rest or index >= len(base):
            return None
        base = base[index]
    views: list[tuple[Tensor, Orientation]] = [(base, use.orientation), (base.mT, turned)] if base.ndim > 1 else []
    return next((orientation for view, orientation in views if same_layout(weight, view)), None)


def _head_orientation(
    weight: Tensor, base: Tensor, orientation: Orientation, way: Named, geometry: Geometries
) -> Orientation | None:
    """In which orientation the matrix is stored that a weight [head, .., ..] is a view of; None where it is of none."""
    if geometry(way) is None or base.ndim != 2:
        return None
    seen = weight if orientation == "in_out" else weight.mT
    heads, d_in, d_out = seen.shape
    is_output = way.name.endswith("W_O")
    shape = (heads * d_in, d_out) if is_output else (d_in, heads * d_out)
    stores: list[tuple[Tensor, Orientation]] = [(base, "in_out"), (base.mT, "out_in")]
    for matrix, stored in stores:
        if matrix.shape == shape:
            split = matrix.unflatten(0, (heads, d_in)) if is_output else matrix.unflatten(1, (heads, d_out))
            if same_layout(split if is_output else split.transpose(0, 1), seen):
                return stored
    return None


def joint_sites(
    every: Sequence[nn.Parameter],
    seen: Sequence[Sequence[Seen]],
    ways: Sequence[list[Named]],
    geometry: Geometries,
) -> dict[int, WeightSite]:
    """The sites of jointly computed matrices, by the number of the parameter that each is named after.

    Where there is none they come under numbers below zero.

    Args:
        every: the parameters.
        seen: the uses of each.
        ways: what each is called.
        geometry: see `learn`.
    """
    uses: dict[tuple[int, ...], list[Seen]] = {}
    for number, each in enumerate(seen):
        for use in each:
            roots = weights_of(use.known)
            if len(roots) > 1 and roots[0] == number:
                uses.setdefault(roots, []).append(use)
    sites: dict[int, WeightSite] = {}
    for roots, used in uses.items():
        site = _joint(roots, used, every, ways, geometry)
        if site is not None and site[0] not in sites:
            named, one = site
            sites[-1 - len(sites) if named is None else named] = one
    return sites


def _joint(
    roots: tuple[int, ...],
    used: list[Seen],
    every: Sequence[nn.Parameter],
    ways: Sequence[list[Named]],
    geometry: Geometries,
) -> tuple[int | None, WeightSite] | None:
    base = used[0].known.base
    alike = all(each.use.kind == "matrix" and each.known.base is base for each in used)
    if base.ndim != 2 or base.grad_fn is None or not alike:
        return None
    sized = [root for root in roots if every[root].shape == base.shape]
    computed = {ways[root][0].computed for root in roots}
    named = None
    if len(computed) == 1 and "" not in computed:
        way = replace(ways[roots[0]][0], name=computed.pop())
    elif len(sized) == 1:
        named, way = sized[0], ways[sized[0]][0]
    else:
        return None
    stored = _stored(used, way, geometry)
    parameter = every[sized[0] if sized else roots[0]]
    sites = stored and _matrix_sites(parameter, tuple(base.shape), stored, way, geometry(way), True)
    if not sites or len(sites) != 1:
        return None
    names = () if named is not None else tuple(ways[root][0].name for root in roots)
    return named, replace(sites[0], roots=tuple(every[root] for root in roots), computed_from=names)
