"""A model's sites by name, and for each parameter its site or the reason why it has none."""

from collections.abc import Container, Iterable, Mapping
from typing import NoReturn, TypeAlias

from torch import Tensor, nn

from tl_backward._support.checks import nearest
from tl_backward._support.types import DataFrame
from tl_backward.weights._site import WeightSite
from tl_backward.weights.watch import storage_of

DID_NOT_RUN = "did not run in this pass"
NOT_FLOAT = "not a floating-point parameter"
QUANTISED = "a quantised weight, which has no gradient"
CUT_OFF = "a quantised weight, whose layer lets no gradient through"
NO_GRAD = "used only where autograd is off"
NOT_ASKED = "not asked for (choose with weights=...)"
REASONS = (DID_NOT_RUN, NOT_FLOAT, QUANTISED, CUT_OFF, NO_GRAD, NOT_ASKED)
"""Every reason that an account gives."""


Row: TypeAlias = tuple[str, int, int, tuple[str, ...], str]
"""parameter, elements, captured, sites, reason"""


class WeightSites(dict[str, WeightSite]):
    """Sites by name; `missing` maps the names of weights that cannot be captured to the reason."""

    def __init__(self, parameters: dict[str, nn.Parameter] | None = None) -> None:
        super().__init__()
        self.missing: dict[str, str] = {}
        self.parameters = parameters or {}
        """The model's `named_parameters()`."""
        self.unused: dict[int, str] = {}
        """Why a parameter has no site, by its identity."""

    def __missing__(self, name: object) -> NoReturn:
        known = nearest(str(name), self)
        raise KeyError(
            f"Expected the full name of a weight that can be captured, got {name!r}; the nearest are {known}."
        )

    def add(self, *sites: WeightSite) -> None:
        """Insert sites under their names."""
        self.update({site.name: site for site in sites})

    def asleep(self) -> list[nn.Parameter]:
        """The parameters that the model's probe pass did not use."""
        return [p for p in self.parameters.values() if self.unused.get(id(p)) == DID_NOT_RUN]

    def account(self) -> DataFrame:
        """One row a tensor of `model.named_parameters()`: what of it is captured under which names, or why it is not.

        Columns: parameter (its name there), elements, captured (elements), sites (names; a tied W_E has two), reason
        (one of `REASONS`; "" where it is captured). Never both of the last two empty.
        """
        return account_frame(account_rows(self, self))

    def left_out(self) -> str:
        """What the pass used and cannot be captured, in one line with the reasons; "" where there is nothing."""
        return left_out(account_rows(self, self))


def check_gradients_pass(sites: WeightSites) -> None:
    """Refuse a model in which gradients end at quantised layers: autograd's would be those of what is around them."""
    cut = next((name for name, why in sites.missing.items() if why == f"{CUT_OFF}."), None)
    if cut is not None:
        raise ValueError(
            f"Expected layers that gradients pass through, got a quantised one at {cut} whose output has none (rounded "
            "activations have no derivative); quantise the weights alone, or load the model without quantisation."
        )


def account_frame(rows: list[Row]) -> DataFrame:
    """The rows of an account as a frame."""
    import pandas

    columns = ["parameter", "elements", "captured", "sites", "reason"]
    return pandas.DataFrame(rows, columns=columns).astype({"parameter": object, "reason": object})


def account_rows(
    sites: WeightSites, by_name: Mapping[str, WeightSite], taken: Container[str] | None = None
) -> list[Row]:
    """The rows of an account; `taken` are the names that a capture took, None for all."""
    names: dict[int, list[str]] = {}
    regions: dict[int, list[tuple[Tensor, str]]] = {}
    for name, site in by_name.items():
        if site.computed_from:  # its parameters have sites of their own
            continue
        names.setdefault(id(site.parameter), []).append(name)
        regions.setdefault(storage_of(site.parameter), []).append((site.parameter, name))
    rows = []
    for parameter, tensor in sites.parameters.items():
        captured = names.get(id(tensor)) or _overlapping(tensor, regions.get(storage_of(tensor), ()))
        chosen = [name for name in captured if taken is None or name in taken]
        reason = sites.unused.get(id(tensor), DID_NOT_RUN) if not captured else "" if chosen else NOT_ASKED
        rows.append((parameter, tensor.numel(), tensor.numel() if chosen else 0, tuple(chosen), reason))
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


def _overlapping(tensor: Tensor, others: Iterable[tuple[Tensor, str]]) -> list[str]:
    """Sites of parameters that share memory with a tensor: the parts of a joint one, or the whole of a part."""
    if type(tensor) not in (nn.Parameter, Tensor) or not tensor.numel():
        return []
    start, end = _extent(tensor)
    plain = ((name, _extent(other)) for other, name in others if type(other) in (nn.Parameter, Tensor))
    return [name for name, (first, last) in plain if first < end and start < last]


def _extent(tensor: Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (reach + 1) * tensor.element_size()
