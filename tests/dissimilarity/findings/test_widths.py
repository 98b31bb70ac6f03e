"""Families layer by layer, against CKA from Gram matrices; blocks and matches on grids made by hand."""

import pytest
import torch
from models import worlds

from tl_backward.studies.dissimilarity import WidthsAndDepths, widths_and_depths
from tl_backward.studies.dissimilarity.widths import largest_block

from .family import gram_cka, model, stream, tokens

ROWS = tokens(10)
QUIET = {"show_progress": False}


@pytest.fixture(scope="module", params=worlds())
def families(request):
    shapes = {"narrow": {"d_model": 8, "n_heads": 2}, "deep": {"n_layers": 4}}
    return [{name: model(request.param, seed=seed, **shape) for name, shape in shapes.items()} for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def found(families):
    return widths_and_depths(families, ROWS, **QUIET)


def test_every_grid_is_the_one_it_is_called(families, found):
    assert list(found.cka) == [("narrow", "narrow"), ("narrow", "deep"), ("deep", "deep")]
    assert found.n_samples == 80

    def expected(a, layer_a, b, layer_b):
        x, y = (stream(each, ROWS, layer)[:, 1:].flatten(0, 1) for each, layer in ((a, layer_a), (b, layer_b)))
        return pytest.approx(gram_cka(x, y, debiased=True), abs=1e-8)

    for seed, family in enumerate(families):
        assert found.cka["narrow", "deep"][seed].shape == (2, 4)
        assert found.cka["narrow", "deep"][seed, 1, 2] == expected(family["narrow"], 1, family["deep"], 2)
        assert found.cka["deep", "deep"][seed, 3, 0] == expected(family["deep"], 3, family["deep"], 0)
        following = families[(seed + 1) % 3]
        assert found.other_seed["deep", "deep"][seed, 1, 3] == expected(family["deep"], 1, following["deep"], 3)
        assert found.other_seed["narrow", "deep"][seed, 1, 3] == expected(family["narrow"], 1, following["deep"], 3)


def test_frames(found, families):
    frame = found.to_frame()
    assert frame["seeds"].tolist() == ["same", "other", "other", "other"]
    assert list(zip(frame["a"], frame["b"], strict=True)) == [("narrow", "deep"), *found.other_seed]
    assert set(frame["n_seeds"]) == {3} and (frame["low"] <= frame["cka"]).all()
    grid = found.cka["narrow", "deep"]
    values = (grid[:, 0, 1] + grid[:, 1, 3]) / 2
    assert frame["cka"][0] == pytest.approx(float(values.mean()))
    assert frame["high"][0] - frame["low"][0] == pytest.approx(2 * 4.302652730 * float(values.std()) / 3**0.5)
    blocks = found.blocks_frame()
    assert len(blocks) == 6 and set(blocks["model"]) == {"narrow", "deep"}
    ends = blocks[(blocks["model"] == "deep") & (blocks["quantity"] == "CKA of first and last layer")].iloc[0]
    assert ends["mean"] == pytest.approx(float(found.cka["deep", "deep"][:, 0, 3].mean()))
    assert repr(found) == "WidthsAndDepths(narrow, deep; 3 seeds, 80 samples)"
    assert found._repr_html_().count("<tr") == 2 + len(frame) + len(blocks)
    alone = widths_and_depths(families[:1], ROWS, **QUIET)
    assert not alone.other_seed and len(alone.to_frame()) == 1 and alone.to_frame()["low"].isna().all()


def made(grid):
    """A result of one seed whose shallow member has 2 layers and whose deep one has 4."""
    grid = torch.as_tensor(grid, dtype=torch.float64)
    return WidthsAndDepths(("deep", "shallow"), {("deep", "shallow"): grid[None]}, {}, 0.9, 5)


def test_relative_depth():
    along = [[0.2, 0.1], [0.8, 0.1], [0.3, 0.4], [0.1, 0.6]]
    assert made(along).aligned("deep", "shallow").tolist() == pytest.approx([0.7])
    assert made(along).best_matches("deep", "shallow").tolist() == [0.0]
    against = [[0.2, 0.9], [0.1, 0.2], [0.3, 0.4], [0.9, 0.6]]
    assert made(against).aligned("deep", "shallow").tolist() == pytest.approx([0.35])
    assert made(against).best_matches("deep", "shallow").tolist() == [(2 / 4 + 3 / 4) / 2]


def test_blocks():
    grid = torch.eye(5)
    assert largest_block(grid, 0.9) == 1
    grid[1:4, 1:4] = 0.95
    assert largest_block(grid, 0.9) == 3 and largest_block(grid, 0.96) == 1
    grid[1, 3] = 0.5
    assert largest_block(grid, 0.9) == 2
    assert largest_block(torch.ones(5, 5), 0.9) == 5


def test_families_have_to_match(families):
    for wrong in ([], [families[0], {"deep": families[0]["deep"]}], [families[0], dict(reversed(families[1].items()))]):
        with pytest.raises(ValueError, match="Expected one family a seed with the same names .* for every seed"):
            widths_and_depths(wrong, ROWS, **QUIET)
