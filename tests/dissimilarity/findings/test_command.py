"""The command trains what it lacks, prints its tables and saves them; here with recipes of a few steps."""

from dataclasses import replace

import pandas
import pytest

from tl_backward.studies.dissimilarity import __main__ as command
from tl_backward.zoo.families import SMALL
from tl_backward.zoo.fine_tuning import FineTuning

TINY = replace(SMALL, n_layers=2, d_model=8, n_heads=2, steps=2, warmup_steps=1, batch_size=4)


def run(finding, out, *options):
    assert command.main([finding, "--out", str(out), *options]) == 0


def test_solu(tmp_path, monkeypatch, capsys):
    pair = {"gelu": TINY, "solu": replace(TINY, activation="solu")}
    monkeypatch.setattr(command, "ACTIVATION_PAIRS", {"2l": pair})
    run("solu", tmp_path, "--seeds", "2", "--rows", "8")
    frame = pandas.read_csv(tmp_path / "solu-2l.csv")
    assert set(frame["n_seeds"]) == {2} and "solu->gelu minus gelu->solu" in set(frame["quantity"])
    assert "solu-2l" in capsys.readouterr().out
    assert len(list((tmp_path / "models").iterdir())) == 4
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/model.safetensors")}
    run("solu", tmp_path, "--seeds", "2", "--rows", "8")
    assert frame.equals(pandas.read_csv(tmp_path / "solu-2l.csv"))
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    run("solu", tmp_path, "--seeds", "2", "--rows", "8", "--sgd-steps", "10")
    assert not frame.equals(pandas.read_csv(tmp_path / "solu-2l-sgd.csv"))


def test_widths(tmp_path, monkeypatch):
    names = {"a": TINY, "64d-4l": replace(TINY, n_layers=3, d_model=16), "b": replace(TINY, d_model=12)}
    monkeypatch.setattr(command, "WIDTHS_AND_DEPTHS", names)
    run("widths", tmp_path, "--seeds", "2", "--rows", "16")
    for what in ("trained", "untrained"):
        assert len(pandas.read_csv(tmp_path / f"widths-{what}.csv")) == 3 + 6
        assert len(pandas.read_csv(tmp_path / f"widths-{what}-blocks.csv")) == 9
    outliers = pandas.read_csv(tmp_path / "outliers.csv")
    assert outliers["size"].tolist() == [*command.SIZES] * 2
    largest, control = outliers[outliers["size"] == 100], outliers[outliers["size"] == 0]
    assert largest["right"].all() and not control["right"].any() and not control["n_found"].any()


def test_heuristics(tmp_path, monkeypatch):
    recipes = tuple(FineTuning(n_crossed=n, seed=seed, steps=30) for n in (0, 120) for seed in (0, 1))
    monkeypatch.setattr(command, "BY_SHARE", recipes)
    monkeypatch.setattr(command, "BY_SEED", recipes)
    run("heuristics", tmp_path, "--prompts", "40")
    models = pandas.read_csv(tmp_path / "heuristics-by-share-models.csv")
    assert models["n_crossed"].tolist() == [0, 0, 120, 120] and models["accuracy"].min() > 0.9
    assert models["generalises"].tolist() == [False, False, True, True]
    frame = pandas.read_csv(tmp_path / "heuristics-by-share.csv")
    assert len(frame) == 16 and frame["p"].between(1 / 6, 1).all()


def test_it_needs_a_finding(capsys):
    with pytest.raises(SystemExit):
        command.main(["--out", "somewhere"])
    assert "finding" in capsys.readouterr().err
