"""What a training wrote: watch it, compare with what really changed."""

from tl_backward.training.difference import Difference, difference, explained
from tl_backward.training.result import WatchResult
from tl_backward.training.watching import TrainingWatch, UnwatchedWarning, watch

__all__ = ["Difference", "TrainingWatch", "UnwatchedWarning", "WatchResult", "difference", "explained", "watch"]
