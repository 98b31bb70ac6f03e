"""Parameters in embedding space: what the weights say in words, with no data (Dar et al. 2022)."""

from tl_backward._support.submodules import offer
from tl_backward.embedding_space.atlas import ParameterAtlas, ParameterWords, parameter_atlas, parameter_words
from tl_backward.embedding_space.coherence import Coherence, parameter_coherence
from tl_backward.embedding_space.heads import HeadPairs, head_pairs
from tl_backward.embedding_space.options import PairOptions, VectorOptions, token_mask, without_bytes
from tl_backward.embedding_space.overlap import (
    ActivationOverlap,
    RelatedPairs,
    parameter_activation_overlap,
    related_pairs,
)
from tl_backward.embedding_space.projection import Projection, project_parameter

__all__ = [
    "project_parameter",
    "Projection",
    "token_mask",
    "without_bytes",
    "VectorOptions",
    "related_pairs",
    "RelatedPairs",
    "parameter_activation_overlap",
    "ActivationOverlap",
    "parameter_coherence",
    "Coherence",
    "head_pairs",
    "HeadPairs",
    "PairOptions",
    "parameter_words",
    "ParameterWords",
    "parameter_atlas",
    "ParameterAtlas",
]

offer(__name__, {})
