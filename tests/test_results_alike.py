"""Every result can be asked in the same four ways: summary, to_frame, save and a notebook's table."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import replace

import pandas
import pytest
import torch

import tl_backward as tlb
from tl_backward.inversion.features import FeatureConsistency, FeatureTable, Rate

PROMPT = "Anna Berg lives in the city of"
WAYS = ("summary", "to_frame", "save", "_repr_html_")
WITHOUT = {
    "Measure": {"to_frame", "save", "_repr_html_"},  # an entry of the registry, whose summary says what it measures
    "Stitch": {"save"},  # holds the stitched model; the grid of stitches is saved
    "DecoderRates": {"summary", "save", "_repr_html_"},  # of a decoder, and in its file
    "TopPairs": {"summary"},  # ids and products of any two matrices; HeadPairs says them in words
    "ExpertLearning": {"summary"},  # a part of a lens, whose sentence is the lens's
}


def classes():
    """Every class of the package that can be asked in one of the ways that are a result's alone."""
    for module in pkgutil.walk_packages(tlb.__path__, "tl_backward."):
        if "__main__" in module.name or ".studies" in module.name or ".cli" in module.name:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(kind) and kind.__module__ == module.name and not name.startswith("_")
            if own and {"summary", "to_frame", "_repr_html_"} & set(dir(kind)) and not module.name.count(".render"):
                yield kind


def test_every_result_is_asked_in_the_same_ways():
    found = {kind.__name__: set(WAYS) - set(dir(kind)) for kind in classes()}
    assert len(found) > 25 and {name: lacking for name, lacking in found.items() if lacking} == WITHOUT


@pytest.fixture(scope="module")
def model():
    return tlb.zoo.load("facts")


def asked(result):
    """A result's sentence; its frame and table are what they say they are."""
    sentence, frame = result.summary(), result.to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) and "<table" in result._repr_html_()
    assert isinstance(sentence, str) and sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("applied", [False, True])
def test_an_edit_says_what_it_adds(model, applied):
    """Rank and norms are those of the dense difference, whether the edit is applied or not."""
    made = [tlb.shift_edit(model, PROMPT, " Oslo", layer=2), tlb.gradient_edit(model, PROMPT, " Oslo", lr=0.01)]
    for edit in made:
        sites = tlb.weight_sites(model)
        before = {name: sites[name].parameter.detach().double().clone() for name in edit.updates}
        with edit:
            changes = {name: sites[name].parameter.detach().double() - before[name] for name in edit.updates}
            shown = (asked(edit), edit.to_frame()) if applied else ("", None)
        sentence, frame = shown if applied else (asked(edit), edit.to_frame())
        assert frame["weight"].tolist() == list(edit.updates)
        share = torch.tensor([float(changes[name].norm() / before[name].norm()) for name in edit.updates])
        torch.testing.assert_close(torch.tensor(frame["relative_norm"].to_numpy()).float(), share, rtol=1e-4, atol=0)
        assert frame["written"].notna().all() or not applied
        assert sentence.startswith(f'The edit "{PROMPT}" -> "␣Oslo" adds ')
        assert sentence.endswith("; it is applied." if applied else "; it is not applied.")
    one, all_layers = (edit.summary() for edit in made)
    assert "adds a matrix of rank 1 to blocks.2.mlp.W_out, 0.26 of that weight's norm" in one
    assert " to W_out in layers 0-3, " in all_layers and made[0].to_frame()["rank"].tolist() == [1]


def test_an_edit_of_nothing(model):
    edit = tlb.rank_one_edit(model, "blocks.2.mlp.W_out", torch.zeros(512), torch.ones(128))
    assert asked(edit) == ("The edit changes nothing: what it adds to blocks.2.mlp.W_out is zero; it is not applied.")


def test_gradients_say_which_is_largest(model, tmp_path):
    _, cache = tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(" Oslo"))
    norms = {name: float(factors.gradient().norm()) for name, factors in cache.factors.items()}
    largest = max(norms, key=norms.get)
    assert asked(cache) == (
        f"The loss of ␣Oslo is {float(cache.loss):.4g} over 8 tokens; of the gradients of W_Q, W_K, W_V, W_O, W_in and "
        f"W_out in layers 0-3 that of {largest} is largest (norm {norms[largest]:.3g})."
    )
    assert largest in cache._repr_html_() and tlb.load_cache(cache.save(tmp_path / "c")).summary() == cache.summary()
    _, none = tlb.run_with_gradient_cache(model, [PROMPT] * 2, tlb.next_token_loss, weights="b_out")
    assert "over 16 tokens of 2 prompts; of the gradients of b_out in layers 0-3 that of " in asked(none)


def test_pages_of_results_alone(model, tmp_path, monkeypatch):
    """Whatever has a page shows it and saves it the same way; what needs its model for one says what to call."""
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    space = tlb.inversion
    texts = [PROMPT, "Anna Berg lives in", "Anna Berg lives in the city of Graz"]
    edit = tlb.shift_edit(model, PROMPT, " Oslo", layer=2)
    preimage = space.pool_preimage(model, PROMPT, ("resid_mid", 1), -1, texts, epsilon=0.5, show_progress=False)
    results = {
        "sweep": tlb.sweep(model, tlb.zoo.edit_cases("test")[:3], collect=["answer_rank"], show_progress=False),
        "effect": tlb.editing.edit_effect(model, edit, PROMPT),
        "reading": space.read_preimage(model, preimage),
    }
    for name, result in results.items():
        page = result.save(tmp_path / f"{name}.html").read_text()
        assert page == str(result.page()) and page.startswith("<!DOCTYPE html>") and 'class="finding"' in page
        assert result.show().read_text() == page and len(opened) == 1 + list(results).index(name)
        assert result.save(tmp_path / name).stat().st_size and "<!DOCTYPE" not in repr(result)
    assert tlb.load_sweep(tmp_path / "sweep").summary() == results["sweep"].summary()
    assert "The edit: " not in str(results["effect"].page())
    for result, call in (
        (edit, "edit_effect(model, edit, prompt).save"),
        (preimage, "read_preimage(model, preimage).save"),
    ):
        with pytest.raises(ValueError, match=f"ends in .safetensors, got .*needs its model: tlb.*{re.escape(call)}"):
            result.save(tmp_path / "other.html")
        with pytest.raises(ValueError, match="ends in .safetensors.*, got .*other.png.*(tables are|so)"):
            result.save(tmp_path / "other.png")


def test_names_in_tables_are_escaped(model):
    edit = tlb.shift_edit(model, "<b>Anna</b> Berg", " Oslo", layer=2)
    _, cache = tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(" Oslo"))
    hostile = replace(cache, bound=tlb.target_loss("<img src=x>"))
    for shown in (edit._repr_html_(), hostile._repr_html_()):
        assert "<b>Anna" not in shown and "<img" not in shown and "&lt;" in shown


def test_weights_in_words(model):
    space, quiet = tlb.embedding_space, {"show_progress": False}
    words = space.parameter_words(model, "W_O", 2, head=1, n_pairs=5, **quiet)
    assert asked(words) == words.coherence.summary() and words.to_frame().equals(words.coherence.to_frame())
    atlas = space.parameter_atlas(model, weights=["W_out", "W_O"], layers=[1, 2], n_pairs=0, **quiet)
    asked(atlas)
    frame = atlas.to_frame()
    assert list(frame.groupby(["weight", "layer"]).groups) == sorted(atlas.coherence)
    assert len(frame) == sum(len(each.score) for each in atlas.coherence.values())
    assert "W_out's 512 vectors the longest" in asked(space.project_parameter(model, "W_out", 2)).replace(
        "blocks.2.mlp.", ""
    )
    assert "OV pairs of head 1 in layer 2 are" in asked(space.head_pairs(model, "VO", 2, 1, k=5, **quiet))
    assert asked(tlb.readout(model, model.W_U[:, 5], k=3)).startswith("In words, 1 vector: top ")


def test_pairs_and_their_controls(model):
    related = tlb.embedding_space.related_pairs(model, "KV", 3, k=20, show_progress=False)
    ahead = replace(related, aligned=related.shuffled + torch.linspace(0.4, 0.6, len(related.index)))
    assert "no clear difference" not in asked(ahead)
    same = replace(related, aligned=related.shuffled)
    assert asked(same).endswith("no clear difference.")
    parts = {name: getattr(ahead, name)[:3] for name in ("index", "aligned", "shuffled", "gaussian")}
    assert "so few pairs" in replace(ahead, **parts).summary()
    overlap = tlb.embedding_space.parameter_activation_overlap(
        model, ["Anna Berg lives in the city of"], "W_out", 2, show_progress=False
    )
    asked(overlap)
    assert "no clear difference" in replace(overlap, aligned=overlap.shuffled).summary()


def test_what_an_activation_knows(model, tmp_path):
    task = tlb.inversion.task_of("facts")
    few = tlb.inversion.InversionOptions(n=20, n_pool=50)
    found = tlb.inversion.invert(
        model, "Anna Berg lives in the city of", ("resid_post", 3), [-1, -2], task, options=few, epsilon=0.4,
        show_progress=False,
    )  # fmt: skip
    asked(found)
    frame = found.to_frame()
    assert set(frame["asked_at"]) == {each.preimage.position for each in found.readings}
    assert asked(found.readings[0]) and asked(found.readings[0].features)
    loaded = tlb.load_result(found.save(tmp_path / "found.safetensors"), tokenizer=model.tokenizer)
    assert loaded.summary() == found.summary() and loaded._repr_html_() == found._repr_html_()
    pandas.testing.assert_frame_equal(loaded.to_frame(), frame)
    assert str(loaded.page()) == str(found.page()) and str(found.page()).startswith("<!DOCTYPE html>")
    check = tlb.inversion.verify_by_patching(model, found.readings[0].preimage, n=10)
    assert asked(check).startswith("With the activation of texts inside the most likely token stays in ")
    equal = replace(check, kept=torch.ones_like(check.kept))
    assert "no clear difference" in equal.summary()


def test_one_feature(tmp_path):
    apart = FeatureConsistency("<b>", "x", Rate(1.0, 0.9, 1.0, 30.0), Rate(0.2, 0.1, 0.3, 30.0))
    assert asked(apart) == "100 % of the texts near it have the query's <b>, 20 % of others."
    assert "<b>" not in apart._repr_html_()
    near = replace(apart, prior=Rate(0.9, 0.8, 0.95, 30.0))
    assert asked(near).endswith("90 % of others: no clear difference.")
    assert asked(replace(apart, prior=None)).endswith("beside no others.")
    table = FeatureTable((apart, near), "two")
    pandas.testing.assert_frame_equal(table.to_frame().head(1), apart.to_frame())
    assert tlb.load_result(apart.save(tmp_path / "one.safetensors")) == apart
