"""Do two models compute the same thing? Dissimilarity of representations, streamed over data, and stitching."""

from tl_backward.dissimilarity.additive import ADDITIVE
from tl_backward.dissimilarity.comparison import compare
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.stitching import Stitch, StitchedModel, StitchingGrid, stitch, stitching_grid

__all__ = [
    "ADDITIVE",
    "Comparison",
    "CovarianceStatistics",
    "Stitch",
    "StitchedModel",
    "StitchingGrid",
    "compare",
    "stitch",
    "stitching_grid",
]
