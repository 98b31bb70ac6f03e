"""Edits with one forward pass, their scores, and the choice of a layer for them (Katz et al. 2024, sec. 7)."""

from tl_backward.editing.edit import Edit, Update, load_edit
from tl_backward.editing.methods import gradient_edit, rank_one_edit, shift_edit

__all__ = ["Edit", "Update", "load_edit", "gradient_edit", "rank_one_edit", "shift_edit"]
