"""What a training wrote: watch it, compare with what really changed, find who wrote it."""

from typing import TYPE_CHECKING

from tl_backward._support.submodules import offer
from tl_backward.training.authors import Authors, who_wrote
from tl_backward.training.changes import Difference, difference, explained
from tl_backward.training.merging import merge
from tl_backward.training.result import WatchResult, load_watch
from tl_backward.training.store import GradientStore
from tl_backward.training.watching import TrainingWatch, UnwatchedWarning, watch

if TYPE_CHECKING:
    from tl_backward.training.callback import WatchCallback

__all__ = [
    "Authors",
    "Difference",
    "GradientStore",
    "TrainingWatch",
    "UnwatchedWarning",
    "WatchCallback",
    "WatchResult",
    "difference",
    "explained",
    "load_watch",
    "merge",
    "watch",
    "who_wrote",
]

offer(__name__, {"WatchCallback": "training.callback"})  # whose base class takes a second to import
