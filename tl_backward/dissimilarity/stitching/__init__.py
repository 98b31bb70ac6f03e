"""Stitching: the head of one model, a simple map, the tail of another; what it costs says what the two share.

Lenc & Vedaldi 2015; Bansal, Nakkiran & Barak 2021; Brown et al. 2023 (EMNLP). f of A up to layer l, a map phi of one
family, g of B from layer m + 1 on: the penalty is the loss of g(phi(f(x))) minus that of B itself.
"""

from tl_backward._support.submodules import offer
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.dissimilarity.stitching.maps import StitchMap
from tl_backward.dissimilarity.stitching.stitches import Stitch, StitchingGrid, stitch, stitching_grid

__all__ = ["Stitch", "StitchMap", "StitchedModel", "StitchingGrid", "stitch", "stitching_grid"]

offer(__name__, {})
