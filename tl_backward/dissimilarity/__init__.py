"""Do two models compute the same thing? Measures of (dis)similarity between their representations."""

from tl_backward.dissimilarity import measures as measures
from tl_backward.dissimilarity.measures.registry import Measure as Measure
from tl_backward.dissimilarity.measures.registry import get_measure as get_measure
from tl_backward.dissimilarity.measures.registry import list_measures as list_measures

__all__ = ["Measure", "get_measure", "list_measures", "measures"]
