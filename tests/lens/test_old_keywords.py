"""Keywords of before 0.2.0 of the lens, sweeps and similarity: the same numbers as the option objects', and a warning."""

import pytest
from models import build, worlds

import tl_backward as tlb
from tl_backward.lens.control import RandomInit, control_of
from tl_backward.text.options import TextOptions

PROMPTS, TARGETS = ["w5 w6 w7", "w8 w9"], ["w3", "w4"]
QUIET = {"show_progress": False}


def lens(model, **how):
    return tlb.backward_lens(model, PROMPTS[0], TARGETS[0], **how).control.to_frame()


def sweep(model, **how):
    return tlb.sweep(model, PROMPTS, TARGETS, **QUIET, **how).to_frame()


def similarity(model, **how):
    return tlb.gradient_similarity(model, PROMPTS, **QUIET, **how).to_frame()


@pytest.mark.parametrize(
    ("function", "old", "new", "named"),
    [
        (lens, {"control": "random_init", "seed": 3}, {"control": RandomInit(seed=3)}, r"control=RandomInit\(seed="),
        (sweep, {"n_draws": 1, "seed": 3}, {"control": RandomInit(1, 3)}, r"control=RandomInit\(n_draws="),
        (
            sweep,
            {"batch_size": 1},
            {"text_options": TextOptions(batch_size=1)},
            r"text_options=TextOptions\(batch_size=",
        ),
        (
            similarity,
            {"prepend_bos": False, "batch_size": 1},
            {"text_options": TextOptions(batch_size=1, prepend_bos=False)},
            r"TextOptions\(prepend_bos=",
        ),
    ],
)
def test_an_old_keyword_does_what_the_option_does(function, old, new, named):
    model = build(worlds()[0])
    with pytest.warns(DeprecationWarning, match=named):
        found = function(model, **old)
    assert found.equals(function(model, **new))


def test_what_is_switched_off_stays_off():
    with pytest.warns(DeprecationWarning):
        assert not tlb.sweep(build(worlds()[0]), PROMPTS, TARGETS, control=None, seed=3, **QUIET).control


def test_one_definition_of_a_control():
    assert control_of(None) is None and control_of("random_init") == RandomInit() == RandomInit(n_draws=5, seed=0)
    with pytest.raises(ValueError, match="Expected control to be None, 'random_init' .* got 'noise'"):
        control_of("noise")
    with pytest.raises(ValueError, match="Expected n_draws of at least 1, got 0"):
        RandomInit(n_draws=0)


def test_options_without_use_are_refused():
    with pytest.raises(ValueError, match="with batch_size and prepend_bos alone, got TextOptions"):
        similarity(build(worlds()[0]), text_options=TextOptions(n_batches=3))
