"""Two models, one vocabulary: parameters matched, models stitched, classifiers translated (Dar et al. 2022, sec. 5)."""

from tl_backward._support.submodules import offer
from tl_backward.alignment.classifiers import Classifier, fine_tune, transfer_head
from tl_backward.alignment.kernels import random_kernel, translation
from tl_backward.alignment.matching import ParameterMatch, SpaceMatch, match_parameters
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.alignment.stitching import zero_shot_stitch
from tl_backward.alignment.vocabularies import TokenMap, token_map

__all__ = [
    "match_parameters",
    "ParameterMatch",
    "SpaceMatch",
    "translation",
    "random_kernel",
    "zero_shot_stitch",
    "StitchedModel",
    "transfer_head",
    "fine_tune",
    "Classifier",
    "token_map",
    "TokenMap",
]

offer(__name__, {})
