"""The Backward Lens: one prompt's gradient in words, the segments of a prompt, and sweeps over data sets."""

from tl_backward.gradients.hook_points import METHODS
from tl_backward.lens.backward_lens import backward_lens
from tl_backward.lens.control import RandomInit

__all__ = ["RandomInit"]

METHODS.append(backward_lens)
