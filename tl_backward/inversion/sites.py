"""Places under the names they had before 0.2.0, for one release."""

from tl_backward._support.types import TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.model.place import Place, PlaceLike, resolve_place


class Site:
    """Now `Place(name, head=head)`."""

    def __new__(cls, name: str, head: int | None = None) -> Place:
        """The place."""
        warn_user(
            "tl_backward.inversion.Site(name, head) is now Place(name, head=head); the old name goes with the next "
            "release.",
            DeprecationWarning,
        )
        return Place(name, head=head)


def resolve_site(model: TransformerLensModel, site: PlaceLike) -> Place:
    """Now `resolve_place`."""
    warn_user(
        "tl_backward.inversion.resolve_site is now resolve_place; the old name goes with the next release.",
        DeprecationWarning,
    )
    return resolve_place(model, site)
