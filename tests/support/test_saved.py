"""Results come back from their files as they were, or are refused with the reason."""

import pandas
import pytest
import torch

import tl_backward as tlb
from tl_backward._support.saved import Saved
from tl_backward._support.storage import load_tensors, save_tensors

PROMPTS, TARGETS = ["Anna Berg lives in the city of", "The pet of Anna Berg is a"], [" Oslo", " cat"]
QUIET = {"show_progress": False}


@pytest.fixture(scope="module")
def model():
    return tlb.zoo.load("facts")


def again(result, path, tokenizer):
    """A result from its file, which says the same as it did."""
    assert result.save(path) == path
    loaded = tlb.load_result(path, tokenizer=tokenizer)
    assert type(loaded) is type(result) and repr(loaded) == repr(result)
    if hasattr(result, "to_frame"):
        pandas.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    if hasattr(result, "_repr_html_"):
        assert loaded._repr_html_() == result._repr_html_()
    return loaded


def results(model):
    case, other = tlb.zoo.edit_cases("test")[0], tlb.zoo.edit_cases("validation")[:1]
    methods = {"shift": tlb.editing.shift_method(2, 0.75)}
    texts = [case.prompt for case in tlb.zoo.edit_cases("test")[:6]]
    edit = tlb.shift_edit(model, PROMPTS[0], TARGETS[0], layer=2, scale=0.75)
    preimage = tlb.inversion.pool_preimage(model, PROMPTS[0], ("resid_post", 1), 7, texts)
    space = tlb.embedding_space
    return [
        tlb.readout(model, model.W_U.T[:3].detach(), target=" Oslo"),
        tlb.gradient_similarity(model, PROMPTS, **QUIET),
        tlb.evaluate_edit(model, edit, case, n_tokens=0),
        tlb.editing.edit_effect(model, edit, PROMPTS[0]),
        tlb.compare_edits(model, [case], methods, n_tokens=0, **QUIET),
        tlb.find_layer(model, PROMPTS[0], TARGETS[0], validation=other, scales=[0.5], layers=[2], **QUIET),
        tlb.head_pairs(model, "VO", 1, 1, k=5, **QUIET),
        tlb.project_parameter(model, "W_out", 2),
        space.related_pairs(model, "KV", 2, k=20, **QUIET),
        space.parameter_coherence(model, "W_out", 2, n_gaussian=20),
        tlb.alignment.match_parameters(model, model, "W_out", **QUIET),
        tlb.dissimilarity.compare(model, model, texts, measures=["cka"], **QUIET),
        preimage,
        tlb.inversion.common_features(preimage, {"length": len}),
    ]


def test_results_come_back(model, tmp_path):
    for result in results(model):
        again(result, tmp_path / "result.safetensors", model.tokenizer)


def test_a_lens_comes_back(model, tmp_path):
    path = tmp_path / "lens.safetensors"
    lens = tlb.backward_lens(model, PROMPTS, TARGETS, control="random_init", subject="Anna Berg")
    again(lens, path, model.tokenizer)
    loaded = tlb.load_lens(path)
    assert loaded.shift[-1].top_ids.equal(lens.shift[3].top_ids) and loaded.tokens == lens.tokens
    assert loaded.control.stacked("norm").equal(lens.control.stacked("norm"))
    assert loaded.cache.factors["W_out", 2].gradient().equal(lens.cache.factors["W_out", 2].gradient())


def test_a_cache_comes_back(model, tmp_path):
    path = tmp_path / "cache.safetensors"
    _, cache = tlb.run_with_gradient_cache(model, PROMPTS, tlb.target_loss(TARGETS), weights=lambda name: True)
    again(cache, path, model.tokenizer)
    loaded = tlb.load_cache(path)
    assert list(loaded) == list(cache) and all(loaded[name].equal(cache[name]) for name in cache)
    for name, factors in cache.factors.items():
        for layout in ("tl", "parameter"):
            assert loaded.factors[name].gradient(layout).equal(factors.gradient(layout))
    for name, gradient in cache.parameter_gradients.items():
        assert loaded.parameter_gradients[name].equal(gradient)
    assert loaded.account().equals(cache.account()) and loaded.factors["W_out", -1].norm() > 0
    with pytest.raises(KeyError, match="several layers have one, add the layer"):
        loaded.factors["W_out"]
    _, own = tlb.run_with_gradient_cache(model, PROMPTS[0], lambda logits, tokens: logits.sum())
    assert own.bound is not None and again(own, path, None).bound is None


def test_what_shares_memory_is_kept_once(model, tmp_path):
    _, cache = tlb.run_with_gradient_cache(model, PROMPTS[0], tlb.target_loss(TARGETS[0]), names_filter=[])
    size = cache.save(tmp_path / "cache.safetensors").stat().st_size
    factors = cache.factors.values()
    held = {side.data_ptr(): side.nbytes for each in factors for side in (each.inputs, each.deltas)}
    assert sum(held.values()) + cache.logits.nbytes < size < sum(held.values()) + cache.logits.nbytes + 40_000


def test_a_function_of_a_parameter_is_not_saved(tmp_path):
    from tl_backward.weights.factors import GradientFactors
    from tl_backward.weights.layout import Layout

    factors = GradientFactors(torch.ones(1, 2, 3), torch.ones(1, 2, 4), Layout((3, 4), pull_back=lambda g: 2 * g))
    factors.save(tmp_path / "factors.safetensors")
    loaded = tlb.load_result(tmp_path / "factors.safetensors")
    assert loaded.gradient().equal(factors.gradient())
    with pytest.raises(ValueError, match="which is not saved; take gradient.'tl'., or capture anew"):
        loaded.gradient("parameter")


def test_files_of_other_kinds(model, tmp_path):
    readout = tlb.readout(model, model.W_U.T[:3].detach())
    path = readout.save(tmp_path / "readout.safetensors")
    with pytest.raises(
        ValueError, match=r"by BackwardLens.save, got .*, of another format; .* tl_backward.load_result\(path\)"
    ):
        tlb.load_lens(path)
    edit = tlb.shift_edit(model, PROMPTS[0], TARGETS[0], layer=2).save(tmp_path / "edit.safetensors")
    with pytest.raises(
        ValueError, match=r"by a result's save, got .*, of another format; .* tl_backward.load_edit\(model, path\)"
    ):
        tlb.load_result(edit)
    with pytest.raises(ValueError, match="there is no such file"):
        tlb.load_cache(tmp_path / "nothing")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged or another's"):
        tlb.load_result(path)
    # Classes are made by name, of this package's own results alone.
    for kind in ("os:system", "builtins:dict", "tl_backward._support.storage:replacing", "tl_backward.no:Thing"):
        forged = save_tensors(path, {}, {"format": "tl_backward result 1", "kind": kind, "tree": "null"})
        with pytest.raises(ValueError, match="of another format"):
            tlb.load_result(forged)


def test_what_is_no_number(tmp_path):
    class Odd(Saved):
        def packed(self):
            return {"model": lambda: None}

    with pytest.raises(TypeError, match="of numbers and texts to save, got function as Odd.model; save its to_frame"):
        Odd().save(tmp_path / "odd.safetensors")
    assert not (tmp_path / "odd.safetensors").exists()


def test_plots_and_pages_of_a_lens(model, tmp_path, monkeypatch):
    lens = tlb.backward_lens(model, PROMPTS, TARGETS, control="random_init")
    figure = lens.plot(example=1)
    names = [trace.name for trace in figure.data]
    assert [name.split(",")[0] for name in names] == 2 * ["target ␣cat", f"old answer ␣{lens.answer[1].strip()}"]
    at = int(lens.answer_position[1])
    assert list(figure.data[0].y) == [float(read.target_rank[1, at]) for read in lens.shift.values()]
    assert list(figure.data[2].y) == [float(read.target_rank[1, at]) for read in lens.control.shift.values()]
    with pytest.raises(ValueError, match="Expected a readout among imprint, shift, got 'shifts'"):
        lens.plot("shifts")
    with pytest.raises(IndexError, match=r"Expected an example in \[-2, 2\), got 2"):
        lens.plot(example=2)
    assert lens.save(tmp_path / "lens.html").read_text().startswith("<!DOCTYPE html>")
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = lens.show(example=1)
    assert opened == [path.as_uri()] and path.read_text() == str(lens.page(example=1))


def test_a_class_that_has_moved_within_its_room_is_found(model, tmp_path):
    words = tlb.readout(model, model.W_U.T[:3].detach(), k=2)
    words.save(tmp_path / "a")
    tensors, about = load_tensors(tmp_path / "a")
    for kind, is_found in (
        ("tl_backward.vocabulary.long_ago:Readout", True),  # the module is gone
        ("tl_backward.vocabulary.extremes:Readout", True),  # there, without the class
        ("tl_backward.lens.readout:Readout", False),  # in another room
        ("tl_backward.vocabulary.readout:Readouts", False),
        ("elsewhere.vocabulary.readout:Readout", False),
    ):
        was = "tl_backward.vocabulary.readout:Readout"
        renamed = {key: value.replace(f'"{was}"', f'"{kind}"') for key, value in about.items()} | {"kind": kind}
        save_tensors(tmp_path / "b", tensors, renamed)
        if is_found:
            assert repr(tlb.load_result(tmp_path / "b", tokenizer=model.tokenizer)) == repr(words)
        else:
            with pytest.raises(ValueError, match="of another format|this version knows"):
                tlb.load_result(tmp_path / "b")
