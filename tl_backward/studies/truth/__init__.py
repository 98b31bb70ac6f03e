"""Does `who_wrote` tell the truth? Planted sentences, found by a query that shares no word with them.

``python -m tl_backward.studies.truth --out DIR`` trains, measures and prints the tables of docs/training.md.
"""

from tl_backward._support.submodules import offer
from tl_backward.studies.truth.agreement import lds, precision_at, rank_correlation
from tl_backward.studies.truth.overlap import bm25
from tl_backward.studies.truth.planting import Planting, Sentence, planting

__all__ = ["Planting", "Sentence", "bm25", "lds", "planting", "precision_at", "rank_correlation"]

offer(__name__, {})
