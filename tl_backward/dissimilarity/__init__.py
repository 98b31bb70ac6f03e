"""Do two models compute the same thing? Dissimilarity of representations, streamed over data, and stitching."""

from tl_backward.dissimilarity.additive import ADDITIVE
from tl_backward.dissimilarity.comparison import compare
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.statistics import CovarianceStatistics

__all__ = ["ADDITIVE", "Comparison", "CovarianceStatistics", "compare"]
