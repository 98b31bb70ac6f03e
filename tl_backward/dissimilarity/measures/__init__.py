"""Measures of (dis)similarity on tensors: two matrices of the same samples in, one number out.

Every measure is a function `(x [sample, d1], y [sample, d2]) -> scalar` on the inputs' device, row i of both from the
same input; options are keyword-only. Results are float64 where an input is, else float32, and within 1e-4 of the
float64 value for float32 inputs. `list_measures()` says of each its range, invariances, and whether it is a metric.

The topological one, `rtd`, rests on gudhi (the extra `topology`); IMD is absent, for its package is not on PyPI, where
the name `msid` belongs to something else. `soft_match` is Li et al.'s; the optimal transport form of soft matching
(Khosla & Williams 2024) is `soft_match_transport`, and rests on POT (the extra `transport`).
"""

from tl_backward._support.submodules import offer
from tl_backward.dissimilarity.measures._cka import cka_angular, cka_biased, cka_debiased, cka_hollow
from tl_backward.dissimilarity.measures._matching import (
    hard_match,
    permutation_procrustes,
    soft_match,
    soft_match_transport,
)
from tl_backward.dissimilarity.measures._neighbours import cknna, jaccard, mutual_knn, second_order_cosine
from tl_backward.dissimilarity.measures._rdms import (
    cka_rbf,
    distance_correlation,
    distance_correlation_debiased,
    distance_correlation_squared,
    rsa,
    rsm_difference,
)
from tl_backward.dissimilarity.measures._shape import (
    bures_similarity,
    procrustes,
    procrustes_disparity,
    procrustes_normalised,
    procrustes_squared,
    shape_angular,
    shape_partial,
)
from tl_backward.dissimilarity.measures._spans import (
    cca,
    eigenspace_overlap,
    gulp,
    gulp_squared,
    linear_regression,
    pwcca,
    svcca,
)
from tl_backward.dissimilarity.measures._topology import rtd

__all__ = [
    # centred kernel alignment
    "cka_biased",
    "cka_debiased",
    "cka_hollow",
    "cka_angular",
    "cka_rbf",
    # canonical correlations
    "cca",
    "svcca",
    "pwcca",
    # shape distances
    "procrustes",
    "procrustes_squared",
    "procrustes_normalised",
    "procrustes_disparity",
    "shape_angular",
    "shape_partial",
    "bures_similarity",
    # neuron by neuron
    "permutation_procrustes",
    "hard_match",
    "soft_match",
    "soft_match_transport",
    # prediction
    "linear_regression",
    "gulp",
    "gulp_squared",
    "eigenspace_overlap",
    # distances between samples
    "rsa",
    "rsm_difference",
    "distance_correlation",
    "distance_correlation_squared",
    "distance_correlation_debiased",
    # neighbours
    "mutual_knn",
    "jaccard",
    "second_order_cosine",
    "cknna",
    # topology
    "rtd",
]

offer(__name__, {})
