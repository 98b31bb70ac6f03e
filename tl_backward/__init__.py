"""What learning writes into a transformer, and what its weights and activations say: a TransformerLens plugin.

Start with `backward_lens(model, prompt, target)`: what one gradient step on a prompt would write into each layer, in
words. `run_with_gradient_cache` gives the gradients' rank-1 factors underneath it.
"""

from tl_backward import dissimilarity, zoo
from tl_backward.backward_lens import BackwardLens, backward_lens
from tl_backward.capture import run_with_gradient_cache
from tl_backward.editing import Edit, gradient_edit, load_edit, rank_one_edit, shift_edit
from tl_backward.factors import GradientFactors
from tl_backward.gradient_cache import GradientCache
from tl_backward.hook_points import extend, unextend
from tl_backward.losses import logit_difference, next_token_loss, target_loss
from tl_backward.readout import Readout, readout
from tl_backward.sites import WeightSite, weight_sites

__all__ = [
    # capture
    "run_with_gradient_cache",
    "GradientCache",
    "GradientFactors",
    "WeightSite",
    "weight_sites",
    # losses
    "next_token_loss",
    "target_loss",
    "logit_difference",
    # reading in words
    "backward_lens",
    "BackwardLens",
    "readout",
    "Readout",
    # editing
    "shift_edit",
    "gradient_edit",
    "rank_one_edit",
    "load_edit",
    "Edit",
    # weight hook points
    "extend",
    "unextend",
    # comparing representations
    "dissimilarity",
    # small trained models
    "zoo",
]
