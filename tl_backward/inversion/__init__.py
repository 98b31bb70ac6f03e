"""What does an activation know? The inputs that give nearly the same one (InversionView, Huang et al. 2024)."""

from tl_backward.inversion.activations import collect
from tl_backward.inversion.distances import distances
from tl_backward.inversion.preimage import Diagnostics, Preimage, preimage_of
from tl_backward.inversion.query import Query, read_query
from tl_backward.inversion.sites import Site, resolve_site

__all__ = [
    # sites and activations
    "Site",
    "resolve_site",
    "collect",
    "Query",
    "read_query",
    "distances",
    # preimages
    "Preimage",
    "Diagnostics",
    "preimage_of",
]
