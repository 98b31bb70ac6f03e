"""Measures of (dis)similarity on tensors: two matrices of the same samples in, one number out.

Every measure is a function `(x [sample, d1], y [sample, d2]) -> scalar` on the inputs' device, row i of both from the
same input; options are keyword-only. Results are float64 where an input is, else float32, and within 1e-4 of the
float64 value for float32 inputs. `list_measures()` says of each its range, invariances, and whether it is a metric.

The topological one, `rtd`, rests on gudhi (the extra `topology`); IMD is absent, for its package is not on PyPI, where
the name `msid` belongs to something else. `soft_match` is Li et al.'s; the optimal transport form of soft matching
(Khosla & Williams 2024) is `soft_match_transport`, and rests on POT (the extra `transport`).
"""

from tl_backward.dissimilarity.measures._cca import cca as cca
from tl_backward.dissimilarity.measures._cca import pwcca as pwcca
from tl_backward.dissimilarity.measures._cca import svcca as svcca
from tl_backward.dissimilarity.measures._cka import cka_angular as cka_angular
from tl_backward.dissimilarity.measures._cka import cka_biased as cka_biased
from tl_backward.dissimilarity.measures._cka import cka_debiased as cka_debiased
from tl_backward.dissimilarity.measures._cka import cka_hollow as cka_hollow
from tl_backward.dissimilarity.measures._kernels import cka_rbf as cka_rbf
from tl_backward.dissimilarity.measures._kernels import distance_correlation as distance_correlation
from tl_backward.dissimilarity.measures._kernels import distance_correlation_debiased as distance_correlation_debiased
from tl_backward.dissimilarity.measures._kernels import distance_correlation_squared as distance_correlation_squared
from tl_backward.dissimilarity.measures._matching import hard_match as hard_match
from tl_backward.dissimilarity.measures._matching import permutation_procrustes as permutation_procrustes
from tl_backward.dissimilarity.measures._matching import soft_match as soft_match
from tl_backward.dissimilarity.measures._matching import soft_match_transport as soft_match_transport
from tl_backward.dissimilarity.measures._neighbours import cknna as cknna
from tl_backward.dissimilarity.measures._neighbours import jaccard as jaccard
from tl_backward.dissimilarity.measures._neighbours import mutual_knn as mutual_knn
from tl_backward.dissimilarity.measures._neighbours import second_order_cosine as second_order_cosine
from tl_backward.dissimilarity.measures._regression import eigenspace_overlap as eigenspace_overlap
from tl_backward.dissimilarity.measures._regression import gulp as gulp
from tl_backward.dissimilarity.measures._regression import gulp_squared as gulp_squared
from tl_backward.dissimilarity.measures._regression import linear_regression as linear_regression
from tl_backward.dissimilarity.measures._rsa import rsa as rsa
from tl_backward.dissimilarity.measures._rsa import rsm_difference as rsm_difference
from tl_backward.dissimilarity.measures._shape import bures_similarity as bures_similarity
from tl_backward.dissimilarity.measures._shape import procrustes as procrustes
from tl_backward.dissimilarity.measures._shape import procrustes_disparity as procrustes_disparity
from tl_backward.dissimilarity.measures._shape import procrustes_normalised as procrustes_normalised
from tl_backward.dissimilarity.measures._shape import procrustes_squared as procrustes_squared
from tl_backward.dissimilarity.measures._shape import shape_angular as shape_angular
from tl_backward.dissimilarity.measures._shape import shape_partial as shape_partial
from tl_backward.dissimilarity.measures._topology import rtd as rtd

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
