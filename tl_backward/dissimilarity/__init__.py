"""Do two models compute the same thing? Measures of (dis)similarity, streamed over data, and stitching."""

from tl_backward._support.submodules import offer
from tl_backward.dissimilarity import measures as measures
from tl_backward.dissimilarity.comparison import compare
from tl_backward.dissimilarity.distances import LayerMap, ModelDistances, classical_mds, model_distances
from tl_backward.dissimilarity.measures.registry import ADDITIVE, Measure, get_measure, list_measures
from tl_backward.dissimilarity.options import FitOptions, RunOptions, SampleOptions
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.stitching import Stitch, StitchedModel, StitchingGrid, stitch, stitching_grid

__all__ = [
    # measures on tensors
    "measures",
    "Measure",
    "get_measure",
    "list_measures",
    # two models over data
    "compare",
    "Comparison",
    "CovarianceStatistics",
    "ADDITIVE",
    "SampleOptions",
    "RunOptions",
    # many models
    "model_distances",
    "ModelDistances",
    "classical_mds",
    "LayerMap",
    # stitching
    "stitch",
    "stitching_grid",
    "FitOptions",
    "Stitch",
    "StitchedModel",
    "StitchingGrid",
]

offer(__name__, {})
