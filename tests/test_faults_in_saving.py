"""Struck while it saves or renders: the old file is there as it was, nothing lies beside it, and the model is what it was."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from faults import CASE, ERRORS, TEXTS, Fault
from inversion.small import trained
from leaves_no_trace import assert_same, open_files, state
from models import build, worlds

import tl_backward as tlb
from tl_backward._support import html
from tl_backward.dissimilarity import CovarianceStatistics, RunOptions, compare
from tl_backward.dissimilarity import gather as compare_run
from tl_backward.render import page
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}


@pytest.fixture(scope="module")
def model():
    return build(worlds()[0])


@pytest.fixture(scope="module")
def decoder(model):
    return trained(worlds()[0], model=model)


def edit(model, decoder, path):
    x, v = (torch.ones(n, dtype=torch.float64) for n in tlb.weight_sites(model)["blocks.0.mlp.W_in"].layout.shape)
    made = tlb.rank_one_edit(model, "blocks.0.mlp.W_in", x, v)
    return lambda: made.save(path)


def sweep(model, decoder, path):
    made = tlb.sweep(model, [CASE], n_draws=1, **QUIET)
    return lambda: made.save(path)


def statistics(model, decoder, path):
    made = CovarianceStatistics([3], [4])
    made.update([torch.randn(9, 3)], [torch.randn(9, 4)])
    return lambda: made.save(path)


def report(model, decoder, path):
    made = tlb.render.lens_report(tlb.backward_lens(model, "w5 w6", "w9"))
    return lambda: made.save(path)


def decoder_tensors(model, decoder, path):
    return lambda: decoder.save(path.parent)


SAVERS = {
    "edit": (edit, "edit"),
    "sweep": (sweep, "sweep"),
    "statistics": (statistics, "sums"),
    "report": (report, "report.html"),
    "decoder": (decoder_tensors, "decoder.safetensors"),
    "decoder's description": (decoder_tensors, "decoder.json"),
}
STEPS = {
    "writing tensors": (safetensors.torch, "save_file"),
    "writing text": (Path, "write_text"),
    "writing bytes": (Path, "write_bytes"),
    "to the disk": (os, "fsync"),
    "in place": (os, "replace"),
}


def steps_of(name):
    inner = {"report": "writing bytes", "decoder's description": "writing text"}.get(name, "writing tensors")
    return [inner, "to the disk", "in place"]


@pytest.mark.parametrize("name", SAVERS)
def test_faults_in_saving_leave_the_old_file(name, model, decoder, tmp_path, monkeypatch):
    make, file = SAVERS[name]
    path = tmp_path / file
    save = make(model, decoder, path)
    save()
    beside = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    before, count = state(model), 0
    for step in steps_of(name):
        owner, attribute = STEPS[step]
        whole = getattr(owner, attribute)
        for error in ERRORS.values():
            # The decoder's description is the second of the two files that it writes.
            fault = Fault(error, at=2 if name == "decoder's description" and step != "writing text" else 1)
            fault.armed = True

            def failing(*args, fault=fault, whole=whole, **options):
                fault()
                return whole(*args, **options)

            with monkeypatch.context() as patch:
                patch.setattr(owner, attribute, failing)
                with pytest.raises(type(error()), match="struck"):
                    save()
            assert fault.struck
            left = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
            assert left.keys() == beside.keys() and left[file] == beside[file]
            assert_same(before, state(model))
            count += 1
    assert count == 9
    assert not [target for target in open_files().values() if str(tmp_path) in target]
    save()
    assert path.stat().st_size == len(beside[file])


@pytest.mark.parametrize("error", ERRORS)
def test_faults_in_saving_a_checkpoint_leave_the_last_one(error, model, tmp_path, monkeypatch):
    """The run ends with the fault, and goes on from the checkpoint before."""
    monkeypatch.setattr(compare_run, "SAVE_EVERY", 1)
    path, options = tmp_path / "run", {"text_options": TextOptions(batch_size=2), **QUIET}
    whole = compare(model, model, TEXTS, **options).values
    before, fault, save = state(model), Fault(ERRORS[error], at=2), safetensors.torch.save_file
    fault.armed = True

    def failing(*args, **options):
        fault()
        return save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", failing)
        with pytest.raises(type(ERRORS[error]()), match="struck"):
            compare(model, model, TEXTS, run_options=RunOptions(checkpoint=path), **options)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(compare(model, model, TEXTS, run_options=RunOptions(checkpoint=path), **options).values, whole)
    assert_same(before, state(model))


def test_faults_in_rendering_leave_no_trace(model, tmp_path, monkeypatch):
    """In every section of a report, and in the tables of results."""
    lens = tlb.backward_lens(
        model, "w5 w6 w7", "w9", control="random_init", names_filter=tlb.render.pattern_names(model)
    )
    tlb.render.lens_report(lens, model)
    before, section, count = state(model), page.Page.section, 0
    n_sections = len(tlb.render.lens_report(lens, model)._sections)
    for at in range(1, n_sections + 1):
        make = list(ERRORS.values())[at % 3]
        fault = Fault(make, at)
        fault.armed = True

        def failing(*args, fault=fault, **kwargs):
            fault()
            return section(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(page.Page, "section", failing)
            with pytest.raises(type(make()), match="struck"):
                tlb.render.lens_report(lens, model).save(tmp_path / "report.html")
        assert not list(tmp_path.iterdir())
        count += 1
    assert count == n_sections >= 7
    for make in ERRORS.values():
        fault = Fault(make)
        fault.armed = True
        with monkeypatch.context() as patch:
            patch.setattr(html, "table", fault)
            found = tlb.sweep(model, [CASE], control=None, **QUIET)
            with pytest.raises(type(make()), match="struck"):
                found._repr_html_()
    assert_same(before, state(model))
