"""What learning writes into a transformer, and what its weights and activations say: a TransformerLens plugin."""

from tl_backward.backward_lens import BackwardLens as BackwardLens
from tl_backward.backward_lens import backward_lens as backward_lens
from tl_backward.capture import run_with_gradient_cache as run_with_gradient_cache
from tl_backward.factors import GradientFactors as GradientFactors
from tl_backward.gradient_cache import GradientCache as GradientCache
from tl_backward.hook_points import extend as extend
from tl_backward.hook_points import unextend as unextend
from tl_backward.losses import logit_difference as logit_difference
from tl_backward.losses import next_token_loss as next_token_loss
from tl_backward.losses import target_loss as target_loss
from tl_backward.readout import Readout as Readout
from tl_backward.readout import readout as readout
from tl_backward.sites import WeightSite as WeightSite
from tl_backward.sites import weight_sites as weight_sites
