"""Place: the one name of an activation, a hook point or one head's or one token's part of it, however it is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from tl_backward._support.checks import check_head, check_layers, nearest
from tl_backward._support.hints import say_as, show_as
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import check_model

_WITH_HEADS = ("hook_z", "hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_result")
_PLAIN = ("hook_in", "hook_out")  # TransformerBridge's own names, which TransformerLens's old ones are aliases of
_IN_A_BLOCK = re.compile(r"blocks\.(-?\d+)\.(hook_.+|.+\..+)")
_WRITTEN = re.compile(r"([^,\s\[@]+)(?:\s*,\s*(-?\d+))?(?:\s*,\s*(-?\d+)|\[(-?\d+)\])?(?:@(-?\d+))?")


@dataclass(frozen=True, order=True)
class Place(Saved):
    """Which activation is meant: `Place("resid_mid", 1)`, `Place("z", 1, head=0)`, `Place("ln_final.hook_normalized")`.

    It is hashable and sorts; `resolve_place` reads back what `str` writes, "blocks.1.attn.hook_z[0]".

    Attributes:
        hook: TransformerLens's short name ("resid_mid", "z"), or a hook point's full name; kept as the name within its
            block ("hook_resid_mid", "attn.hook_z"), or in full where it is in none.
        layer: the block; negative from the end, until `resolve_place` counts it. None for what stands before or after
            the blocks, and in a short name's place for every block.
        head: one head's part; None for the whole of it. A head of "result" is its output z W_O [d_model] before the sum
            over heads, computed from hook_z whether or not the model has use_attn_result on.
        position: one token's, by its index, BOS counted, negative from the text's own end; None for every token's.
    """

    hook: str
    layer: int | None = None
    head: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.layer, self.head, self.position)
        if not isinstance(self.hook, str) or not all(number is None or isinstance(number, int) for number in numbers):
            raise _unreadable((self.hook, *numbers))
        name = self.hook
        if self.layer is not None and "." not in name and not name.startswith("hook_"):
            from transformer_lens.utilities.components_utils import get_act_name

            name = get_act_name(name, self.layer)
        if parts := _IN_A_BLOCK.fullmatch(name):
            object.__setattr__(self, "layer", int(parts[1]))
            object.__setattr__(self, "hook", parts[2])

    def __str__(self) -> str:
        head = "" if self.head is None else f"[{self.head}]"
        return f"{self.name}{head}" if self.position is None else f"{self.name}{head}@{self.position}"

    @property
    def name(self) -> str:
        """The hook point's full name, the same in both kinds of model where they share one."""
        return self.hook if self.layer is None else f"blocks.{self.layer}.{self.hook}"

    @property
    def is_result(self) -> bool:
        """Whether it is one head's output z W_O [d_model], which is computed from hook_z."""
        return self.head is not None and self.name.endswith(".attn.hook_result")

    @property
    def read_at(self) -> str:
        """The hook point that a forward pass is watched at."""
        return self.name.replace("hook_result", "hook_z") if self.is_result else self.name


PlaceLike: TypeAlias = (
    Place
    | str
    | tuple[str, int | None]
    | tuple[str, int | None, int | None]
    | tuple[str, int | None, int | None, int | None]
)
say_as(PlaceLike, "hook name | (short name, layer) | (short name, layer, head)")
show_as(PlaceLike, "PlaceLike")
Places: TypeAlias = PlaceLike | Sequence[PlaceLike]
show_as(Places, "Places")


@public
def resolve_place(model: TransformerLensModel, place: PlaceLike) -> Place:
    """Resolve one place of a model, given in any of its notations.

    Args:
        model: a HookedTransformer or TransformerBridge.
        place: a full hook name ("blocks.1.hook_resid_mid", also as `str(place)` writes it: "blocks.1.attn.hook_z[0]");
            a `Place`, or a tuple of its fields: TransformerLens's short name and a layer, negative ones from the end
            (("resid_mid", 1)); a head's part (("z", layer, head)), or its output before the sum over heads (("result",
            layer, head)). Such tuples may be written as one string, "result,1,0".

    Raises:
        ValueError: a hook point that the model lacks, the nearest are named; a short name without a layer; or a head
            where there is none.
        IndexError: a layer or head out of range.
        TypeError: anything but a name or such a tuple.

    Examples:
        >>> from tl_backward.model.place import resolve_place
        >>> str(resolve_place(model, ("result", 1, 0)))
        'blocks.1.attn.hook_result[0]'
    """
    resolved = resolve_places(model, [place])
    if len(resolved) > 1:
        raise ValueError(
            f"Expected one place, got {str(place)!r}, which each of {len(resolved)} layers has; name one as "
            f"({str(place)!r}, 0), or by its full name."
        )
    return resolved[0]


def resolve_places(
    model: TransformerLensModel,
    places: Places,
    *,
    layers: int | Sequence[int] | None = None,
    which: str = "the model",
) -> list[Place]:
    """Resolve one place or several, in order, without repeats; a name without a layer ("resid_post") means every layer.

    Args:
        model: a HookedTransformer or TransformerBridge.
        places: see `resolve_place`; one or a list.
        layers: those of short names without one; None for all, negative from the end.
        which: what messages call the model.

    Raises:
        ValueError: no place at all, `layers` for what is not a short name, or as for `resolve_place`.
    """
    check_model(model)
    given = _listed(places)
    if not given:
        raise ValueError("Expected at least one place, got an empty list; for example [('resid_post', 0)].")
    parsed = []
    for each in given:
        place = _parsed(each)
        if place.layer is None and place.hook.isidentifier() and place.hook not in model.hook_dict:
            parsed += [replace(place, layer=layer) for layer in check_layers(layers, model.cfg.n_layers)]
        elif layers is not None:
            raise ValueError(
                f"Expected layers only with a short hook name such as 'resid_post', got layers={layers!r} beside "
                f"{str(place)!r}; leave layers out of {which}."
            )
        elif place.layer is None or (isinstance(each, str) and "." in each):
            parsed.append(place)
        else:
            parsed.append(replace(place, layer=check_layers(place.layer, model.cfg.n_layers)[0]))
    return list(dict.fromkeys(_checked(model, place, which) for place in parsed))


def _listed(places: Places) -> list[PlaceLike]:
    """The places as a list; a tuple with a number in it is one place."""
    one = not isinstance(places, Sequence) or isinstance(places, str)
    if one or (isinstance(places, tuple) and any(isinstance(part, int) for part in places)):
        return [cast(PlaceLike, places)]
    return list(cast(Sequence[PlaceLike], places))


def _parsed(given: PlaceLike) -> Place:
    """Parse a place from its notation; names and indices are checked later."""
    if isinstance(given, Place):
        return given
    if isinstance(given, str):
        if (parts := _WRITTEN.fullmatch(given)) is None:
            return Place(given)
        layer, after, within, position = (None if part is None else int(part) for part in parts.groups()[1:])
        return Place(parts[1], layer, within if after is None else after, position)
    if not isinstance(given, Sequence) or not 2 <= len(given) <= 4:
        raise _unreadable(given)
    hook, *numbers = given
    return Place(cast(str, hook), *cast(list[int | None], numbers))  # which says what is neither


def _unreadable(given: object) -> TypeError:
    return TypeError(
        f"Expected a place as a hook name, (short name, layer) or (short name, layer, head), got {given!r}; for "
        "example ('resid_post', 0) or ('result', 1, 0)."
    )


def _checked(model: TransformerLensModel, place: Place, which: str) -> Place:
    """The place with its canonical hook name and a non-negative head; refused where the model has none."""
    known = model.hook_dict
    if place.read_at not in known:
        raise ValueError(
            f"Expected a hook point of {which}, got {place.name!r}, which it lacks; the nearest are "
            f"{nearest(place.name, known)}."
        )
    if not place.is_result:
        # Of all names of one hook point the shortest of TransformerLens's own.
        names = [name for name, point in known.items() if point is known[place.name]]
        named = min([name for name in names if name.rpartition(".")[2] not in _PLAIN], key=len, default=place.name)
        place = Place(named, head=place.head, position=place.position)
    last = place.hook.rpartition(".")[2]
    if place.head is None:
        if last == "hook_result" and not getattr(model.cfg, "use_attn_result", False):
            raise ValueError(
                f"Expected a head for {place.name!r}, which holds one vector a head, got none; pass ('result', layer, "
                "head)."
            )
        return place
    if last not in _WITH_HEADS:
        raise ValueError(f"Expected no head for {place.name!r}, which has none, got head={place.head}; leave it out.")
    shared = getattr(model.cfg, "n_key_value_heads", None) if last in ("hook_k", "hook_v", "hook_rot_k") else None
    return replace(place, head=check_head(place.head, shared or model.cfg.n_heads))
