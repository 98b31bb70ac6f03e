"""The three findings of Brown et al. 2023 (EMNLP, arXiv 2310.14993), to run on models of one's own or of the zoo.

``python -m tl_backward.studies.dissimilarity solu --out DIR`` trains the zoo's models for one of them and prints it.
"""

from tl_backward._support.submodules import offer
from tl_backward.studies.dissimilarity.asymmetry import StitchingAsymmetry, activation_asymmetry
from tl_backward.studies.dissimilarity.heuristics import Heuristics, heuristics
from tl_backward.studies.dissimilarity.outliers import OutlierSearch, find_outliers, planted
from tl_backward.studies.dissimilarity.statistics import GroupGap, group_gap, over_seeds
from tl_backward.studies.dissimilarity.widths import WidthsAndDepths, widths_and_depths

__all__ = [
    # GeLU and SoLU
    "activation_asymmetry",
    "StitchingAsymmetry",
    # rules and shortcuts
    "heuristics",
    "Heuristics",
    "group_gap",
    "GroupGap",
    # widths and depths
    "widths_and_depths",
    "WidthsAndDepths",
    "find_outliers",
    "OutlierSearch",
    "planted",
    # means over seeds
    "over_seeds",
]

offer(__name__, {})
