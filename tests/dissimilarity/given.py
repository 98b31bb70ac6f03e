"""Option objects of a comparison from fields by name, for tables of cases."""

from dataclasses import fields

from tl_backward.dissimilarity import RunOptions, SampleOptions
from tl_backward.text.options import TextOptions

OBJECTS = {"text_options": TextOptions, "sample_options": SampleOptions, "run_options": RunOptions}


def given(**options):
    """Keywords of `compare`: fields of its option objects are put into them, the rest stays."""
    made = {}
    for parameter, kind in OBJECTS.items():
        own = {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
        if own:
            made[parameter] = kind(**own)
    return options | made
