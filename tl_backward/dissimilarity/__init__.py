"""Do two models compute the same thing? Dissimilarity of representations, streamed over data, and stitching."""

from tl_backward.dissimilarity.statistics import CovarianceStatistics

__all__ = ["CovarianceStatistics"]
