"""The account of a model's parameters: each is captured under some name, or there is a reason why not."""

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas

DID_NOT_RUN = "did not run in this pass"
NOT_FLOAT = "not a floating-point parameter"
QUANTISED = "a quantised weight, which has no gradient"
NO_GRAD = "used only where autograd is off"
NOT_ASKED = "not asked for (choose with weights=...)"
REASONS = (DID_NOT_RUN, NOT_FLOAT, QUANTISED, NO_GRAD, NOT_ASKED)
"""Every reason that an account gives."""


@runtime_checkable
class Site(Protocol):
    """What an account needs of a site."""

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter behind it."""
        ...

    @property
    def computed_from(self) -> tuple[str, ...]:
        """The parameters it is computed from, where it is named after none of them."""
        ...


@runtime_checkable
class Sites(Protocol):
    """What an account needs of a model's sites."""

    parameters: dict[str, nn.Parameter]
    unused: dict[int, str]


Row: TypeAlias = tuple[str, int, int, tuple[str, ...], str]
"""parameter, elements, captured, sites, reason"""


def account_frame(rows: list[Row]) -> "pandas.DataFrame":
    """The rows of an account as a frame."""
    import pandas

    frame = pandas.DataFrame(rows, columns=["parameter", "elements", "captured", "sites", "reason"])
    return frame.astype({"parameter": object, "reason": object})


def account_rows(sites: Sites, by_name: Mapping[str, Site], taken: Container[str] | None = None) -> list[Row]:
    """The rows of an account; `taken` are the names that a capture took, None for all."""
    names: dict[int, list[str]] = {}
    regions: dict[int, list[tuple[Tensor, str]]] = {}
    for name, site in by_name.items():
        if site.computed_from:  # its parameters have sites of their own
            continue
        names.setdefault(id(site.parameter), []).append(name)
        regions.setdefault(_storage(site.parameter), []).append((site.parameter, name))
    rows = []
    for parameter, tensor in sites.parameters.items():
        found = names.get(id(tensor)) or _overlapping(tensor, regions.get(_storage(tensor), ()))
        chosen = [name for name in found if taken is None or name in taken]
        reason = sites.unused.get(id(tensor), DID_NOT_RUN) if not found else "" if chosen else NOT_ASKED
        elements = tensor.numel()
        rows.append((parameter, elements, elements if chosen else 0, tuple(chosen), reason))
    return rows


def left_out(rows: list[Row]) -> str:
    """What an account leaves out, in one line; "" where that is nothing that ran and was asked for."""
    why: dict[str, list[str]] = {}
    for parameter, _, _, _, reason in rows:
        if reason not in ("", DID_NOT_RUN, NOT_ASKED):
            why.setdefault(reason, []).append(parameter)
    if not why:
        return ""
    total, captured = sum(row[1] for row in rows), sum(row[2] for row in rows)
    reasons = "; ".join(
        f"{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f", because: {reason}"
        for reason, names in why.items()
    )
    return f"captured {captured / max(1, total):.0%} of {total / 1e6:.3g} M parameters; not: {reasons}"


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _overlapping(tensor: Tensor, others: Iterable[tuple[Tensor, str]]) -> list[str]:
    """Sites of parameters that share memory with a tensor: the parts of a joint one, or the whole of a part."""
    if type(tensor) not in (nn.Parameter, Tensor) or not tensor.numel():
        return []
    start, end = _extent(tensor)
    found = []
    for other, name in others:
        first, last = _extent(other)
        if type(other) in (nn.Parameter, Tensor) and first < end and start < last:
            found.append(name)
    return found


def _extent(tensor: Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (reach + 1) * tensor.element_size()
