"""An argument of the wrong type gets one sentence: what was expected and what came, not the model with all its parts."""

import re

import pytest
import torch

import tl_backward as tlb
from tl_backward.inversion import distances


def test_a_wrong_type_gets_a_sentence_without_the_model():
    model = tlb.zoo.load("facts")
    kind = type(model).__name__
    for call, expected in (
        (
            lambda: tlb.readout(model, torch.ones(2, 128, dtype=torch.int64)),
            "vectors of readout to be tensor of floats [*lead, d_model], got ",
        ),
        (
            lambda: tlb.top_pairs(torch.ones(5, 3), torch.ones(4, 3), "k"),
            "k of top_pairs to be int, got 'k'; see help(",
        ),
        (
            lambda: distances(torch.ones(3, 4), torch.ones(5)),
            "query of distances to be tensor of floats [d] where d = 4, got f32[5](torch); see help(",
        ),
        (
            lambda: tlb.readout(model, model),
            f"[*lead, d_model], got {kind}; the order is readout(model, vectors); see help(",
        ),
        (lambda: tlb.readout(model, torch.ones(128), target=1.5), "None, got 1.5; see help("),
    ):
        with pytest.raises(TypeError, match="Expected .*" + re.escape(expected)) as caught:
            call()
        assert "\n" not in str(caught.value) and "HookPoint" not in str(caught.value)
