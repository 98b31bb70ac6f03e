"""The Backward Lens: one prompt's gradient in words, the segments of a prompt, and sweeps over data sets."""

from tl_backward._support.submodules import offer
from tl_backward.lens.backward_lens import backward_lens as backward_lens
from tl_backward.lens.control import RandomInit

__all__ = ["RandomInit"]

offer(__name__)
