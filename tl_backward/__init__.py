"""What learning writes into a transformer, and what its weights and activations say: a TransformerLens plugin.

Start with `backward_lens(model, prompt, target)`: what one gradient step on a prompt would write into each layer, in
words. `run_with_gradient_cache` gives the gradients' rank-1 factors underneath it.
"""

from typing import TYPE_CHECKING

from tl_backward import _moved
from tl_backward._support.submodules import offer

if TYPE_CHECKING:
    from tl_backward import alignment as alignment
    from tl_backward import dissimilarity as dissimilarity
    from tl_backward import editing as editing
    from tl_backward import embedding_space as embedding_space
    from tl_backward import gradients as gradients
    from tl_backward import inversion as inversion
    from tl_backward import lens as lens
    from tl_backward import model as model
    from tl_backward import render as render
    from tl_backward import studies as studies
    from tl_backward import text as text
    from tl_backward import training as training
    from tl_backward import vocabulary as vocabulary
    from tl_backward import weights as weights
    from tl_backward import zoo as zoo
    from tl_backward._support.saved import load_result as load_result
    from tl_backward.editing import Edit as Edit
    from tl_backward.editing import compare_edits as compare_edits
    from tl_backward.editing import evaluate_edit as evaluate_edit
    from tl_backward.editing import find_layer as find_layer
    from tl_backward.editing import gradient_edit as gradient_edit
    from tl_backward.editing import load_edit as load_edit
    from tl_backward.editing import rank_one_edit as rank_one_edit
    from tl_backward.editing import shift_edit as shift_edit
    from tl_backward.embedding_space import head_pairs as head_pairs
    from tl_backward.embedding_space import project_parameter as project_parameter
    from tl_backward.gradients.cache import GradientCache as GradientCache
    from tl_backward.gradients.cache import load_cache as load_cache
    from tl_backward.gradients.capture import run_with_gradient_cache as run_with_gradient_cache
    from tl_backward.gradients.hook_points import extend as extend
    from tl_backward.gradients.hook_points import unextend as unextend
    from tl_backward.gradients.losses import logit_difference as logit_difference
    from tl_backward.gradients.losses import next_token_loss as next_token_loss
    from tl_backward.gradients.losses import target_loss as target_loss
    from tl_backward.gradients.similarity import gradient_similarity as gradient_similarity
    from tl_backward.lens.backward_lens import backward_lens as backward_lens
    from tl_backward.lens.lens_result import BackwardLens as BackwardLens
    from tl_backward.lens.lens_result import load_lens as load_lens
    from tl_backward.lens.sweep_result import load_sweep as load_sweep
    from tl_backward.lens.sweep_result import merge as merge
    from tl_backward.lens.sweeps import sweep as sweep
    from tl_backward.model.loading import load as load
    from tl_backward.text.cases import EditCase as EditCase
    from tl_backward.text.cases import load_cases as load_cases
    from tl_backward.vocabulary.basis import Basis as Basis
    from tl_backward.vocabulary.latents import LatentReadout as LatentReadout
    from tl_backward.vocabulary.readout import Readout as Readout
    from tl_backward.vocabulary.readout import readout as readout
    from tl_backward.vocabulary.top_pairs import top_pairs as top_pairs
    from tl_backward.weights import WeightSite as WeightSite
    from tl_backward.weights import weight_sites as weight_sites
    from tl_backward.weights.factors import GradientFactors as GradientFactors

__version__ = "0.2.0"

_moved.register()

_ROOMS = (
    "alignment",
    "dissimilarity",
    "editing",
    "embedding_space",
    "gradients",
    "inversion",
    "lens",
    "model",
    "render",
    "studies",
    "text",
    "training",
    "vocabulary",
    "weights",
    "zoo",
)
_FROM = {
    # models
    "load": "model.loading",
    # capture
    "run_with_gradient_cache": "gradients.capture",
    "weight_sites": "weights",
    # losses
    "next_token_loss": "gradients.losses",
    "target_loss": "gradients.losses",
    "logit_difference": "gradients.losses",
    # reading in words
    "backward_lens": "lens.backward_lens",
    "readout": "vocabulary.readout",
    # data sets of prompts
    "sweep": "lens.sweeps",
    "merge": "lens.sweep_result",
    "gradient_similarity": "gradients.similarity",
    # editing
    "shift_edit": "editing",
    "gradient_edit": "editing",
    "rank_one_edit": "editing",
    "load_edit": "editing",
    "load_cases": "text.cases",
    "find_layer": "editing",
    "evaluate_edit": "editing",
    "compare_edits": "editing",
    # parameters in words
    "project_parameter": "embedding_space",
    "head_pairs": "embedding_space",
    "top_pairs": "vocabulary.top_pairs",
    # weight hook points
    "extend": "gradients.hook_points",
    "unextend": "gradients.hook_points",
    # files
    "load_cache": "gradients.cache",
    "load_lens": "lens.lens_result",
    "load_result": "_support.saved",
    "load_sweep": "lens.sweep_result",
    # types
    "BackwardLens": "lens.lens_result",
    "Basis": "vocabulary.basis",
    "Edit": "editing",
    "EditCase": "text.cases",
    "GradientCache": "gradients.cache",
    "GradientFactors": "weights.factors",
    "LatentReadout": "vocabulary.latents",
    "Readout": "vocabulary.readout",
    "WeightSite": "weights",
}
"""Each name and the module it is taken from when it is first used: importing the package loads no PyTorch."""

offer(__name__, {**_FROM, **dict.fromkeys(_ROOMS)})


def __dir__() -> list[str]:
    return sorted({*_ROOMS, *_FROM, "__version__"})


__all__ = [
    # models
    "load",
    # capture
    "run_with_gradient_cache",
    "weight_sites",
    # losses
    "next_token_loss",
    "target_loss",
    "logit_difference",
    # reading in words
    "backward_lens",
    "readout",
    # data sets of prompts
    "sweep",
    "merge",
    "gradient_similarity",
    # editing
    "shift_edit",
    "gradient_edit",
    "rank_one_edit",
    "load_edit",
    "load_cases",
    "find_layer",
    "evaluate_edit",
    "compare_edits",
    # parameters in words
    "project_parameter",
    "head_pairs",
    "top_pairs",
    # weight hook points
    "extend",
    "unextend",
    # comparing representations
    "dissimilarity",
    # small trained models
    "zoo",
]
