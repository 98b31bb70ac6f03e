"""What learning writes into a transformer, and what its weights and activations say: a TransformerLens plugin.

Start with `backward_lens(model, prompt, target)`: what one gradient step on a prompt would write into each layer, in
words. `run_with_gradient_cache` gives the gradients' rank-1 factors underneath it.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tl_backward import _moved, zoo
from tl_backward import embedding_space as embedding_space
from tl_backward._support.saved import load_result as load_result
from tl_backward.editing import Edit as Edit
from tl_backward.editing import (
    compare_edits,
    evaluate_edit,
    find_layer,
    gradient_edit,
    load_edit,
    rank_one_edit,
    shift_edit,
)
from tl_backward.embedding_space import head_pairs, project_parameter
from tl_backward.gradients.cache import GradientCache as GradientCache
from tl_backward.gradients.cache import load_cache as load_cache
from tl_backward.gradients.capture import run_with_gradient_cache
from tl_backward.gradients.hook_points import extend, unextend
from tl_backward.gradients.losses import logit_difference, next_token_loss, target_loss
from tl_backward.gradients.similarity import gradient_similarity
from tl_backward.lens.backward_lens import backward_lens
from tl_backward.lens.lens_result import BackwardLens as BackwardLens
from tl_backward.lens.lens_result import load_lens as load_lens
from tl_backward.lens.sweep_result import load_sweep as load_sweep
from tl_backward.lens.sweep_result import merge
from tl_backward.lens.sweeps import sweep
from tl_backward.model.loading import load
from tl_backward.text.cases import EditCase as EditCase
from tl_backward.text.cases import load_cases
from tl_backward.vocabulary.basis import Basis as Basis
from tl_backward.vocabulary.latents import LatentReadout as LatentReadout
from tl_backward.vocabulary.readout import Readout as Readout
from tl_backward.vocabulary.readout import readout
from tl_backward.vocabulary.top_pairs import top_pairs
from tl_backward.weights import WeightSite as WeightSite
from tl_backward.weights import weight_sites
from tl_backward.weights.factors import GradientFactors as GradientFactors

if TYPE_CHECKING:
    from tl_backward import alignment as alignment
    from tl_backward import dissimilarity as dissimilarity
    from tl_backward import inversion as inversion
    from tl_backward import render as render
    from tl_backward import training as training

__version__ = "0.2.0"

_moved.register()

# Whole capabilities, loaded when they are first used.
_LAZY = ("alignment", "dissimilarity", "inversion", "render", "studies", "training")
_FILES = ("load_cache", "load_lens", "load_result", "load_sweep")
_ROOMS = ("editing", "embedding_space", "gradients", "lens", "model", "text", "vocabulary", "weights")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"tl_backward.{name}")
    raise AttributeError(f"module 'tl_backward' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, *_FILES, *_ROOMS, "__version__"})


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
