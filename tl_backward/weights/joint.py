"""Matrices that are computed from several parameters: weight norm, a low-rank update that is added before use.

What such a matrix reads and writes is as well defined as any other's, so it is a site under its own name. Where the
name belongs to one of the parameters (W + B A is called what W is), that one's gradient is pulled back from it; where
it belongs to none (weight norm's size and direction), each parameter's own gradient is captured whole beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from tl_backward.weights._site import WeightSite
from tl_backward.weights.forms import Geometry, matrix_sites, orientation_of
from tl_backward.weights.names import Named
from tl_backward.weights.watch import Seen, weights_of


def joint_sites(
    every: Sequence[nn.Parameter],
    seen: Sequence[Sequence[Seen]],
    ways: Sequence[list[Named]],
    geometry: Callable[[Named], Geometry | None],
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
    found: dict[int, WeightSite] = {}
    for roots, used in uses.items():
        site = _joint(roots, used, every, ways, geometry)
        if site is not None:
            named, one = site
            number = named if named is not None and named not in found else -1 - len(found)
            if number >= 0 or named is None:
                found[number] = one
    return found


def _joint(
    roots: tuple[int, ...],
    used: list[Seen],
    every: Sequence[nn.Parameter],
    ways: Sequence[list[Named]],
    geometry: Callable[[Named], Geometry | None],
) -> tuple[int | None, WeightSite] | None:
    base = used[0].known.base
    if base.ndim != 2 or any(each.use.kind != "matrix" or each.known.base is not base for each in used):
        return None
    if base.grad_fn is None:
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
    orientations = {orientation_of(each, way, geometry) for each in used}
    stored = orientations.pop()
    if orientations or stored is None:
        return None
    parameter = every[sized[0] if sized else roots[0]]
    sites = matrix_sites(parameter, tuple(base.shape), stored, way, geometry(way), True)
    if len(sites) != 1:
        return None
    names = () if named is not None else tuple(ways[root][0].name for root in roots)
    return named, replace(sites[0], roots=tuple(every[root] for root in roots), computed_from=names)
