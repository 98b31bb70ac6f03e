"""Modules under the names they had before 0.2.0, for one release: whatever is taken from one warns and names its room.

An old name stands in `sys.modules` and not as an attribute of the package, where `readout`, `backward_lens` and
`top_pairs` are functions.
"""

import importlib
import sys
import warnings
from types import ModuleType

MOVED = {
    "asked": "text.asked",
    "backward_lens": "lens.backward_lens",
    "blocks": "weights.blocks",
    "bootstrap": "_support.bootstrap",
    "capture": "gradients.capture",
    "capture_memory": "gradients.capture",
    "cases": "text.cases",
    "controls": "model.controls",
    "examples": "gradients.examples",
    "expert_learning": "lens.expert_learning",
    "extents": "text.extents",
    "extremes": "vocabulary.extremes",
    "factors": "weights.factors",
    "fresh": "model.controls",
    "gradient_cache": "gradients.cache",
    "head": "model.head",
    "hook_points": "gradients.hook_points",
    "layout": "weights.layout",
    "lens_reading": "lens.reading",
    "loading": "model.loading",
    "losses": "gradients.losses",
    "model_inputs": "model.inputs",
    "prompts": "text.prompts",
    "readout": "vocabulary.readout",
    "recorder": "gradients.recorder",
    "segments": "lens.segments",
    "similarity": "gradients.similarity",
    "sites": "weights",
    "subjects": "text.subjects",
    "sweep_checkpoint": "lens.sweep_checkpoint",
    "sweep_result": "lens.sweep_result",
    "sweeps": "lens.sweeps",
    "text_files": "text.files",
    "token_ids": "text.ids",
    "top_pairs": "vocabulary.top_pairs",
    "weight_inputs": "weights.rows",
    "written_by": "weights.blocks",
    "render.atlas": "render.params_page",
    "render.atlas_places": "embedding_space.atlas",
    "render.coherence_figure": "render.coherence",
    "render.compare_report": "render.compare_page",
    "render.comparison_figures": "render.compare_page",
    "render.edit_report": "render.edit_page",
    "render.export": "render.tables",
    "render.feature_map": "render.invert_page",
    "render.filter_table": "render.tables",
    "render.invert_report": "render.invert_page",
    "render.lens_data": "render.key_figures",
    "render.map_report": "render.map_page",
    "render.match_report": "render.match_page",
    "render.params_report": "render.params_page",
    "render.preimage_samples": "render.samples",
    "render.report": "render.lens_page",
    "render.stitching_report": "render.stitching_page",
    "render.sweep_report": "render.sweep_page",
    "render.token_gaps": "render.key_figures",
    "render.words_texts": "render.report_texts",
    "alignment.study": "studies.alignment",
    "dissimilarity.findings": "studies.dissimilarity",
    "dissimilarity.memory": "dissimilarity.plan",
    "dissimilarity.moments": "dissimilarity.measures.moments",
    "dissimilarity.stitching.descent": "dissimilarity.stitching.sgd",
    "dissimilarity.stitching.grid": "dissimilarity.stitching.stitches",
    "dissimilarity.stitching.model": "alignment.stitched",
    "dissimilarity.stitching.texts": "dissimilarity.stitching.penalty",
    "dissimilarity.tally": "dissimilarity.gather",
    "inversion.agreement": "inversion.features",
    "inversion.chains": "inversion.search",
    "inversion.comparison": "inversion.inverting",
    "inversion.distances": "inversion.query",
    "inversion.edits": "inversion.search",
    "inversion.proposals": "inversion.preimage",
    "inversion.scoring": "inversion.query",
    "inversion.sites": "inversion",
    "inversion.sources": "text.data",
    "inversion.texts": "text.encoded",
    "inversion.study": "studies.inversion",
    "zoo.activations": "model.loading.solu",
    "zoo.cue_task": "zoo.classification",
    "zoo.recall": "zoo.facts_task",
    "zoo.relation_task": "zoo.classification",
    "zoo.trained": "zoo.train",
    "zoo.training": "zoo.train",
}


class _Moved(ModuleType):
    """A module under its old name: attributes are looked up in the module that replaced it, with a warning."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        new = MOVED[self.__name__.removeprefix("tl_backward.")]
        value = getattr(importlib.import_module(f"tl_backward.{new}"), name)
        warnings.warn(
            f"{self.__name__}.{name} is now tl_backward.{new}.{name}; the old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return value


def register() -> None:
    """Register the old module names with the import system."""
    for old in MOVED:
        sys.modules.setdefault(f"tl_backward.{old}", _Moved(f"tl_backward.{old}", f"Now tl_backward.{MOVED[old]}."))
