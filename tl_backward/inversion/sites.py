"""Sites: the places in a model whose activations are read, a hook point or one head's part of it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tl_backward._support.checks import check_head, check_layers, nearest
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import check_model

_WITH_HEADS = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_result")
_PLAIN = ("hook_in", "hook_out")  # TransformerBridge's own names, which TransformerLens's old ones are aliases of
_WRITTEN = re.compile(r"(.+)\[(-?\d+)\]")
_SHORT = re.compile(r"([^,\s]+)\s*,\s*(-?\d+)(?:\s*,\s*(-?\d+))?")  # a tuple, written on a command line


@dataclass(frozen=True, order=True)
class Site:
    """One place in a model; it is hashable, sorts by name, and `resolve_site` reads its text back."""

    name: str
    """The hook point's full name, the same in both TransformerLens worlds where they share one."""
    head: int | None = None

    def __str__(self) -> str:
        return self.name if self.head is None else f"{self.name}[{self.head}]"

    @property
    def layer(self) -> int | None:
        """The block that it lies in; None for what stands before or after the blocks."""
        return int(self.name.split(".")[1]) if self.name.startswith("blocks.") else None

    @property
    def is_result(self) -> bool:
        """Whether it is one head's output z W_O [d_model], which is computed from hook_z without use_attn_result."""
        return self.name.endswith(".attn.hook_result")

    @property
    def read_at(self) -> str:
        """The hook point that a forward pass is watched at."""
        return self.name.replace("hook_result", "hook_z") if self.is_result else self.name


SiteLike: TypeAlias = Site | str | tuple[str, int] | tuple[str, int, int]


def resolve_site(model: TransformerLensModel, site: SiteLike) -> Site:
    """A site by any of its names.

    Args:
        model: a HookedTransformer or TransformerBridge.
        site: a full hook name ("blocks.1.hook_resid_mid", also as `str(site)` writes it: "blocks.1.attn.hook_z[0]");
            TransformerLens's short name and a layer, negative ones from the end (("resid_mid", 1)); a head's part
            (("z", layer, head)), or its output before the sum over heads (("result", layer, head)). Such tuples may
            be written as one string, "result,1,0".

    Raises:
        ValueError: a site that the model lacks, the nearest are named; or a head where the site has none.
        IndexError: a layer or head out of range.
        TypeError: anything but a name or such a tuple.

    Example:
        >>> str(tlb.inversion.resolve_site(model, ("result", 1, 0)))
        'blocks.1.attn.hook_result[0]'
    """
    check_model(model)
    if isinstance(site, Site):
        name, head = site.name, site.head
    elif isinstance(site, str) and (short := _SHORT.fullmatch(site)):
        name, head = _of_tuple(model, (short[1], *(int(number) for number in short.groups()[1:] if number)))
    elif isinstance(site, str):
        written = _WRITTEN.fullmatch(site)
        name, head = (site, None) if written is None else (written[1], int(written[2]))
    else:
        name, head = _of_tuple(model, site)
    known = model.hook_dict
    watched = Site(name, head).read_at
    if watched not in known:
        raise ValueError(
            f"Expected a site of the model, got {name!r}, which it lacks; the nearest are {nearest(name, known)}."
        )
    if not Site(name).is_result:
        name = _canonical(name, [other for other in known if known[other] is known[name]])
    return Site(name, _checked_head(model, name, head))


def resolve_sites(model: TransformerLensModel, sites: SiteLike | list[SiteLike]) -> list[Site]:
    """One site or several, in order and each once; a tuple is one site, so several come as a list.

    Raises:
        ValueError: no site at all, or as for `resolve_site`.
    """
    given = sites if isinstance(sites, list) else [sites]
    if not given:
        raise ValueError("Expected at least one site, got an empty list; for example [('resid_post', 0)].")
    return list(dict.fromkeys(resolve_site(model, site) for site in given))


def _of_tuple(model: TransformerLensModel, site: object) -> tuple[str, int | None]:
    from transformer_lens.utilities.components_utils import get_act_name

    parts = list(site) if isinstance(site, Sequence) else []
    if len(parts) not in (2, 3) or not isinstance(parts[0], str) or not all(isinstance(i, int) for i in parts[1:]):
        raise TypeError(
            f"Expected a site as a hook name, (short name, layer) or (short name, layer, head), got {site!r}; for "
            "example ('resid_post', 0) or ('result', 1, 0)."
        )
    (layer,) = check_layers(parts[1], model.cfg.n_layers)
    return get_act_name(parts[0], layer), parts[2] if len(parts) == 3 else None


def _canonical(name: str, aliases: Iterable[str]) -> str:
    """Of all names of one hook point the shortest of TransformerLens's own."""
    classical = [alias for alias in aliases if alias.rpartition(".")[2] not in _PLAIN]
    return min(classical, key=len, default=name)


def _checked_head(model: TransformerLensModel, name: str, head: int | None) -> int | None:
    last = name.rpartition(".")[2]
    if head is None:
        if last == "hook_result":
            raise ValueError(
                f"Expected a head for {name!r}, which holds one vector a head, got none; pass ('result', layer, head)."
            )
        return None
    if last not in _WITH_HEADS:
        raise ValueError(f"Expected no head for {name!r}, which has none, got head={head}; leave it out.")
    shared = getattr(model.cfg, "n_key_value_heads", None) if last in ("hook_k", "hook_v", "hook_rot_k") else None
    return check_head(head, shared or model.cfg.n_heads)
