"""What is easily mistaken gets one sentence that says what to write instead, or is understood."""

import functools

import numpy as np
import pytest
import torch

import tl_backward as tlb

PROMPT, TARGET = "Anna Berg lives in the city of", " Oslo"


@pytest.fixture(scope="module")
def model():
    return tlb.zoo.load("facts")


@pytest.fixture(scope="module")
def cache(model):
    return tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(TARGET))[1]


def test_a_weight_is_asked_for_by_layer_and_of_the_factors(cache):
    with pytest.raises(KeyError, match=r"several layers have one, add the layer: \['W_out', 3\]"):
        cache.factors["W_out"]
    with pytest.raises(
        KeyError, match=r"got the weight \('W_out', 3\), whose factors are cache.factors\[\('W_out', 3\)"
    ):
        cache["W_out", 3]
    with pytest.raises(KeyError, match="Expected a hook point whose gradient was kept, got .*; kept nearest to it: "):
        cache["resid_posts", 3]


def test_factors_are_no_array(cache):
    with pytest.raises(TypeError, match=r"got factors, which are two; take \.inputs, \.deltas or \.gradient\(\)"):
        np.asarray(cache.factors["W_out", 2])


def test_measures_in_any_case(model):
    assert tlb.dissimilarity.get_measure("CKA_Debiased") is tlb.dissimilarity.get_measure("cka_debiased")
    with pytest.raises(ValueError, match="got 'CKA'; the nearest are 'cka_biased', 'cka_debiased', "):
        tlb.dissimilarity.get_measure("CKA")
    texts = [f"w{i} {PROMPT}" for i in range(5)]
    found = tlb.dissimilarity.compare(model, model, texts, measures=["CKA", "Procrustes"], show_progress=False)
    assert found.measures == ("cka", "procrustes")


@pytest.mark.parametrize("loss", [lambda logits: logits.sum(), lambda: 0, lambda logits, tokens, weight: logits.sum()])
def test_a_loss_takes_logits_and_tokens(model, loss):
    with pytest.raises(TypeError, match=r"Expected a loss\(logits, tokens\) -> scalar, got one of \("):
        tlb.run_with_gradient_cache(model, PROMPT, loss)


def test_losses_that_take_more(model):
    class Summed:
        def __call__(self, logits, tokens, *, scale=1.0):
            return scale * logits.sum()

    @functools.wraps(lambda logits: None)
    def wrapped(*args):
        return args[0].sum()

    def masked(logits, tokens, attention_mask):
        return logits.sum()

    for loss in (Summed(), wrapped, masked, lambda *args: args[0].sum(), lambda logits, tokens=None, k=3: logits.sum()):
        tlb.run_with_gradient_cache(model, PROMPT, loss, weights="W_out", names_filter=[])


def test_a_report_of_another_result(model):
    lens = tlb.backward_lens(model, PROMPT, TARGET)
    for report, name in (
        (tlb.render.sweep_report, "Sweep"),
        (tlb.render.compare_report, "Comparison"),
        (tlb.render.map_report, "ModelDistances"),
        (tlb.render.stitching_report, "StitchingGrid"),
    ):
        with pytest.raises(TypeError, match=f"of {report.__name__} to be {name}, got BackwardLens; see help"):
            report(lens)


def test_a_head_by_its_usual_name(model):
    said, usual = (tlb.head_pairs(model, name, 1, 0, k=5, show_progress=False) for name in ("VO", "OV"))
    assert said.circuit == usual.circuit and torch.equal(said.pairs.values, usual.pairs.values)


def test_dir_is_what_there_is_to_use():
    names = dir(tlb)
    assert {*tlb.__all__} <= {*names} and "importlib" not in names and "ModuleType" not in names
    assert all(hasattr(tlb, name) for name in names)


def test_an_edit_of_one_prompt_by_known_factors(model):
    with pytest.raises(ValueError, match="Expected scaling among 'unit', 'raw', got 'norm'; choose one of them"):
        tlb.shift_edit(model, PROMPT, TARGET, layer=2, scaling="norm")
    with pytest.raises(TypeError):
        tlb.shift_edit(model, [PROMPT, PROMPT], TARGET, layer=2)
