"""What does an activation know? The inputs that give nearly the same one (InversionView, Huang et al. 2024)."""

from tl_backward._support.submodules import offer
from tl_backward.inversion._old_calls import Site as Site
from tl_backward.inversion._old_calls import resolve_site as resolve_site
from tl_backward.inversion.activations import collect
from tl_backward.inversion.decoder import Decoder
from tl_backward.inversion.enumeration import ActivationIndex, enumerate_preimage
from tl_backward.inversion.evaluation import DecoderRates
from tl_backward.inversion.features import (
    FeatureConsistency,
    FeatureTable,
    common_features,
    compare_with_exact,
    feature_consistency,
)
from tl_backward.inversion.inverting import Inversion, SiteComparison, compare_sites, invert
from tl_backward.inversion.network import DecoderConfig
from tl_backward.inversion.options import (
    Closeness,
    Edit,
    InversionOptions,
    Match,
    Metric,
    SamplingOptions,
    SearchOptions,
)
from tl_backward.inversion.patching import PatchCheck, verify_by_patching
from tl_backward.inversion.preimage import Diagnostics, Preimage, pool_preimage, preimage_of
from tl_backward.inversion.query import Query, distances, read_query
from tl_backward.inversion.search import search_preimage
from tl_backward.inversion.shipped import load, names
from tl_backward.inversion.site_reading import ShownText, SiteReading, read_preimage
from tl_backward.inversion.stream import Drawing
from tl_backward.inversion.tasks import Task, task_of, task_of_texts
from tl_backward.inversion.training import TrainingOptions, train
from tl_backward.model.place import Place, resolve_place

__all__ = [
    # places and activations
    "Place",
    "resolve_place",
    "collect",
    "Query",
    "read_query",
    "distances",
    "Closeness",
    "Metric",
    "Match",
    # preimages
    "Preimage",
    "Diagnostics",
    "preimage_of",
    "enumerate_preimage",
    "ActivationIndex",
    "search_preimage",
    "SearchOptions",
    "Edit",
    "pool_preimage",
    "compare_with_exact",
    # all of it at once
    "invert",
    "Inversion",
    "InversionOptions",
    # decoders
    "load",
    "names",
    "train",
    "Decoder",
    "DecoderConfig",
    "TrainingOptions",
    "Drawing",
    "SamplingOptions",
    "DecoderRates",
    # reading them
    "feature_consistency",
    "common_features",
    "FeatureConsistency",
    "FeatureTable",
    "compare_sites",
    "SiteComparison",
    "verify_by_patching",
    "PatchCheck",
    "read_preimage",
    "SiteReading",
    "ShownText",
    # tasks of the zoo's models
    "task_of",
    "task_of_texts",
    "Task",
]

offer(__name__, {})
