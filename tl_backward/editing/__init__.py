"""Edits with one forward pass, their scores, and the choice of a layer for them (Katz et al. 2024, sec. 7)."""

from tl_backward._support.submodules import offer
from tl_backward.editing.comparison import (
    LRS,
    SCALES,
    EditComparison,
    compare_edits,
    edit_methods,
    gradient_method,
    shift_method,
    tuned_methods,
)
from tl_backward.editing.edit import Edit, LostUpdateWarning, Update, load_edit
from tl_backward.editing.layers import LayerGrid, find_layer, shift_probabilities
from tl_backward.editing.methods import gradient_edit, rank_one_edit, shift_edit
from tl_backward.editing.neighbours import neighbour_prompts
from tl_backward.editing.scores import METRICS, EditEffect, EditScores, edit_effect, evaluate_edit

__all__ = [
    # edits
    "Edit",
    "Update",
    "LostUpdateWarning",
    "shift_edit",
    "gradient_edit",
    "rank_one_edit",
    "load_edit",
    "edit_effect",
    "EditEffect",
    "neighbour_prompts",
    # scores
    "EditScores",
    "METRICS",
    "evaluate_edit",
    "compare_edits",
    "EditComparison",
    "edit_methods",
    "shift_method",
    "gradient_method",
    "tuned_methods",
    "SCALES",
    "LRS",
    # the choice of a layer
    "find_layer",
    "LayerGrid",
    "shift_probabilities",
]

offer(__name__, {})
