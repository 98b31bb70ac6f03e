"""Every file that is read back is refused, with its name and the reason, when it is cut or one of its bits is another."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from faults import CASE, TEXTS
from inversion.small import options, trained
from models import build, worlds

import tl_backward as tlb
from tl_backward.dissimilarity import CovarianceStatistics, FitOptions, RunOptions, compare
from tl_backward.inversion import _trainer
from tl_backward.text.files import read_data
from tl_backward.text.options import TextOptions

WORLD, QUIET = worlds()[0], {"show_progress": False}
REFUSED = "Expected a file that tl_backward saved, got '{}', damaged or another's"


@pytest.fixture(scope="module")
def model():
    return build(WORLD)


@pytest.fixture(scope="module")
def decoder_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    trained(WORLD, model=model, out=folder)
    return folder


def edit(model, folder):
    x, v = (
        torch.arange(1.0, n + 1, dtype=torch.float64) for n in tlb.weight_sites(model)["blocks.0.mlp.W_in"].layout.shape
    )
    path = tlb.rank_one_edit(model, "blocks.0.mlp.W_in", x, v).save(folder / "edit")
    return path, lambda: tlb.load_edit(model, path).updates


def sweep(model, folder):
    path = tlb.sweep(model, [CASE], n_draws=1, **QUIET).save(folder / "sweep")
    return path, lambda: tlb.load_sweep(path).values


def sweep_checkpoint(model, folder):
    path = folder / "checkpoint"

    def run():
        return tlb.sweep(model, [CASE], n_draws=1, checkpoint=path, **QUIET).values

    run()
    return path, run


def statistics(model, folder):
    sums, path = CovarianceStatistics([3, 5], [4]), folder / "sums"
    sums.update([torch.randn(9, 3), torch.randn(9, 5)], [torch.randn(9, 4)])
    sums.save(path)
    return path, lambda: CovarianceStatistics.load(path).tensors()


def compare_checkpoint(model, folder):
    path = folder / "run"

    def run():
        return compare(model, model, TEXTS, run_options=RunOptions(checkpoint=path), **QUIET).values

    run()
    return path, run


def descent_checkpoint(model, folder):
    path = folder / "descent"
    options = FitOptions(steps=3, warmup_steps=1, checkpoint=path)

    def run():
        return tlb.dissimilarity.stitch(
            model,
            0,
            model,
            1,
            TEXTS,
            text_options=TextOptions(batch_size=3),
            held_out=0.5,
            fit="sgd",
            fit_options=options,
            **QUIET,
        ).losses

    run()
    return path, run


FILES = {f.__name__: f for f in (edit, sweep, sweep_checkpoint, statistics, compare_checkpoint, descent_checkpoint)}


def damages(whole, n, seed):
    """Cut files and files with one bit flipped, drawn over all of it: its header, its data, its end."""
    drawn = random.Random(seed)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        yield whole[:length]
    places = [*range(0, 64), *drawn.sample(range(len(whole)), min(len(whole), n))]
    for place in drawn.sample(places, n):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << drawn.randrange(8)
        yield bytes(flipped)


def refused(path, load, n=40, seed=0, sentence=REFUSED):
    """Each damage of a file is refused, or changes nothing that it says; returns how many were refused."""
    whole, said = path.read_bytes(), load()
    count = 0
    for damaged in damages(whole, n, seed):
        path.write_bytes(damaged)
        try:
            found = load()
        except ValueError as error:
            assert sentence.format(path) in str(error), error
            count += 1
        else:
            assert same(found, said), f"{path.name} was read as something else"
    path.write_bytes(whole)
    assert same(load(), said)
    return count


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
    if hasattr(a, "x"):
        return torch.equal(a.x, b.x) and torch.equal(a.v, b.v)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("kind", FILES)
def test_damaged_tensors_are_refused(kind, model, tmp_path):
    path, load = FILES[kind](model, tmp_path)
    assert refused(path, load, n=12) >= 12


@pytest.mark.parametrize("name", ["decoder.json", "decoder.safetensors"])
def test_a_damaged_decoder_is_refused(name, model, decoder_folder, tmp_path):
    folder = Path(shutil.copytree(decoder_folder, tmp_path / "d"))
    load = lambda: tlb.inversion.load(folder, model=model).description  # noqa: E731
    assert refused(folder / name, load, n=12) >= 10


def test_a_damaged_training_checkpoint_is_refused(model, tmp_path, monkeypatch):
    """All three of its files."""
    monkeypatch.setattr(_trainer, "remove_checkpoints", lambda out: None)
    made = options(save_every=4)
    trained(WORLD, model=model, out=tmp_path, options=made)
    for name in ("decoder.json", "decoder.safetensors"):
        (tmp_path / name).unlink()
    checkpoint = _trainer.latest_checkpoint(tmp_path)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "checkpoint.safetensors",
        "run.json",
        "trainer_state.json",
    ]
    for path in checkpoint.iterdir():
        whole = path.read_bytes()
        for damaged in [*damages(whole.rstrip(), 2, 0)][1:]:
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged or another's") as caught:
                trained(WORLD, model=model, out=tmp_path, options=made)
            assert str(path) in str(caught.value)
        path.write_bytes(whole)
    (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="trainer_state.json.*it is missing"):
        trained(WORLD, model=model, out=tmp_path, options=made)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_of_the_zoo_is_refused(name, tmp_path):
    folder = Path(shutil.copytree(tlb.model.shipped.WEIGHTS / "counting", tmp_path / "counting"))
    path = folder / name
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 4
    for damaged in (whole[:-2], bytes(middle)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or another's") as caught:
            tlb.zoo.load(folder)
        assert str(path) in str(caught.value)
    path.write_bytes(whole)
    tlb.zoo.load(folder)
    (folder / "metrics.json").write_text(json.dumps({"of": "somebody else's"}))
    tlb.zoo.load(folder)  # which says nothing of its files


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_damaged_cases_are_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"cases{suffix}"
    rows = {
        ".json": '[{"prompt": "w5 w6", "target": "w9"}]', ".jsonl": '{"prompt": "w5 w6", "target": "w9"}\n',
        ".csv": "prompt,target\nw5 w6,w9\n",
    }  # fmt: skip
    whole = rows[suffix].encode()
    path.write_bytes(whole)
    assert tlb.load_cases(path)[0].target == "w9"
    for damaged in (
        whole[: len(whole) // 2],
        whole.replace(b"w5", b"\xff\xfe"),
        whole.replace(b"target", b"targe\x00"),
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"cases{suffix}"):
            tlb.load_cases(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
def test_damaged_texts_are_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"texts{suffix}"
    whole = {".json": b'["w5", "w6"]', ".jsonl": b'"w5"\n"w6"\n', ".txt": b"w5\nw6\n"}[suffix]
    path.write_bytes(whole)
    assert read_data(path, "text") == ["w5", "w6"]
    cut = [] if suffix == ".txt" else [whole[:-2]]
    for damaged in (*cut, whole.replace(b"w5", b"\xff\xfe"), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"texts{suffix}"):
            read_data(path, "text")
