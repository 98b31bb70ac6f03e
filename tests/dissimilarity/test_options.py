"""Options of comparisons and stitches: old keywords do what the new form does and name it; few parameters are left."""

import inspect
import warnings

import pytest
import torch
from models import bridge

from dissimilarity.given import given
from tl_backward import dissimilarity
from tl_backward.dissimilarity import FitOptions, RunOptions, compare, model_distances, stitch, stitching_grid
from tl_backward.dissimilarity.stitching.sgd import Descent
from tl_backward.studies.dissimilarity import activation_asymmetry, find_outliers, widths_and_depths
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
TEXTS = ["w5 w6 w7 w8 w9", "w3 w3 w41 w10 w12", "w9 w4", "w30 w31 w32", "w11 w8 w7 w5 w5", "w21 w22 w23 w24"]
OLD = {
    "batching": (2, "batch_size"), "n_batches": (2, ""), "max_tokens": (4, ""), "prepend_bos": (False, ""),
    "exclude_first": (True, ""), "text_key": ("text", ""), "sample": ("mean", ""), "mask": (lambda tokens: tokens > 4, ""),
    "align": ("characters", ""), "heads": ("flatten", ""), "hook_b": ("mlp_out", ""), "jackknife": (2, ""),
    "estimator": ("minibatch_ratio_of_means", ""), "permutations": (2, ""), "sample_size": (9, ""), "seed": (3, ""),
    "max_memory": (10**8, ""), "checkpoint": (None, ""), "show_plan": (True, ""),
}  # fmt: skip


@pytest.mark.parametrize("old", OLD)
def test_compare_takes_old_keywords(old):
    value, new = OLD[old]
    model = bridge("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.warns(
            DeprecationWarning, match=rf"compare\({old}=\.\.\.\) is now compare\(.*_options=.*Options\("
        ) as said:
            found = compare(model, model, TEXTS, **{old: value}, **QUIET)
        expected = compare(model, model, TEXTS, **given(**{new or old: value}), **QUIET)
    for name in ("values", "standard_errors", "permutation_means"):
        assert torch.equal(getattr(found, name).nan_to_num(9), getattr(expected, name).nan_to_num(9))
    assert all(warning.filename == __file__ for warning in said if warning.category is DeprecationWarning)


def test_stitches_take_old_keywords():
    model, text = bridge("llama"), {"text_options": TextOptions(batch_size=2, exclude_first=True)}
    with pytest.warns(DeprecationWarning):
        found = stitch(
            model, 0, model, 1, TEXTS, batching=2, exclude_first=True, held_out_data=TEXTS[:2], fit="sgd",
            descent=Descent(steps=3), ridge=0.1, layer_norm=False, **QUIET,
        )  # fmt: skip
    options = FitOptions(steps=3, ridge=0.1, layer_norm=False)
    new = stitch(model, 0, model, 1, TEXTS, held_out=TEXTS[:2], fit="sgd", fit_options=options, **text, **QUIET)
    assert found.losses == new.losses and found.penalty == new.penalty
    with pytest.warns(DeprecationWarning):
        old = stitching_grid(model, model, TEXTS, batching=2, exclude_first=True, ridge=0.1, **QUIET)
    grid = stitching_grid(model, model, TEXTS, fit_options=FitOptions(ridge=0.1), **text, **QUIET)
    assert old.penalties == grid.penalties


def test_model_distances_takes_old_keywords():
    models = {"a": bridge("llama"), "b": bridge("gpt2")}
    with pytest.warns(DeprecationWarning, match=r"is now model_distances\(text_options=TextOptions\(batch_size="):
        found = model_distances(models, TEXTS, batching=2, **QUIET)
    new = model_distances(models, TEXTS, text_options=TextOptions(batch_size=2), **QUIET)
    assert torch.equal(found.values, new.values)


def test_a_grid_with_a_layer_norm_is_its_stitches():
    model, options = bridge("llama"), FitOptions(layer_norm=True, ridge=0.1)
    text = {"text_options": TextOptions(batch_size=2)}
    grid = stitching_grid(model, model, TEXTS, fit_options=options, baselines=False, **text, **QUIET)
    one = stitch(model, 1, model, 0, TEXTS, fit_options=options, **text, **QUIET)
    assert grid.nats("A->B")[1, 0] == pytest.approx(one.penalty.nats, abs=1e-6)


@pytest.mark.parametrize(
    "function",
    [compare, stitch, stitching_grid, model_distances, activation_asymmetry, widths_and_depths, find_outliers,
     dissimilarity.plan.plan_memory],
)  # fmt: skip
def test_at_most_eight_parameters_beside_models_and_data(function):
    given = [name for name in inspect.signature(function).parameters if not name.startswith(("model", "data", "famil"))]
    assert len(given) <= 8, given


@pytest.mark.parametrize("name", ["jackknife", "permutations", "sample_size"])
def test_numbers_are_checked_where_they_are_given(name):
    with pytest.raises(ValueError, match=f"Expected {name} of at least ., got -1; give a larger one."):
        RunOptions(**{name: -1})
