"""The form of a weight's sites: from how operations used it to its kind, layout and orientation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from tl_backward.weights._site import WeightSite
from tl_backward.weights.layout import Layout
from tl_backward.weights.names import Named, is_norm
from tl_backward.weights.watch import Seen, weights_of


@dataclass(frozen=True)
class Geometry:
    """How a model splits its attention matrices into heads."""

    n_heads: int
    d_head: int
    d_value: int


def way_of(ways: list[Named], kind: str) -> Named:
    """The name that fits a use: a tied parameter is looked up under one and multiplied by under another."""
    if kind == "embedding":
        return next((way for way in ways if isinstance(way.module, nn.Embedding)), ways[0])
    if kind == "matrix" and len(ways) > 1:
        return next((way for way in ways if not isinstance(way.module, nn.Embedding)), ways[0])
    return ways[0]


def site_of(
    parameter: nn.Parameter,
    kind: str,
    seen: list[Seen],
    way: Named,
    geometry: Callable[[Named], Geometry | None],
) -> list[WeightSite] | None:
    """The sites of one kind of use; None where they do not fit one form."""
    if any(len(weights_of(each.known)) > 1 for each in seen):
        return None
    bases = [each.known.base for each in seen]
    is_function = any(each.known.link == "function" for each in seen)
    if is_function and any(base is not bases[0] for base in bases):  # each would be pulled back apart
        return None
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
    orientations = {orientation_of(each, way, geometry) for each in seen}
    if len(orientations) != 1 or None in orientations:
        return None
    stored = orientations.pop()
    return matrix_sites(parameter, shape, cast(str, stored), way, geometry(way), is_function)


def matrix_sites(
    parameter: nn.Parameter, shape: tuple[int, ...], stored: str, way: Named, of: Geometry | None, is_function: bool
) -> list[WeightSite]:
    """A matrix's site; two where queries and the gates of their heads share one."""
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


def orientation_of(seen: Seen, way: Named, geometry: Callable[[Named], Geometry | None]) -> str | None:
    """Whether the base of what was used is stored as [.., d_in, d_out] or turned; None where it was used in part."""
    weight, base, use = seen.use.weight, seen.known.base, seen.use
    turned = "in_out" if use.orientation == "out_in" else "out_in"
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
