"""An outlier planted on purpose is found where it is, and none is found without it."""

import pytest
import torch
from leaves_no_trace import assert_same, state
from models import worlds

from tl_backward.studies.dissimilarity import find_outliers, planted

from .family import gram_cka, model, stream, tokens

every_world = pytest.mark.parametrize("world", worlds())
ROWS = tokens(24)


@pytest.fixture(scope="module", params=worlds())
def family(request):
    shapes = {"one": {"noise_seed": 0}, "two": {"noise_seed": 1}, "three": {"noise_seed": 2}}
    return {name: model(request.param, noise=0.03, n_layers=3, **shape) for name, shape in shapes.items()}


def test_it_is_found_where_it_was_planted(family):
    before = state(family["two"])
    with planted(family["two"], 1, position=4, dimension=7, size=200.0):
        found = find_outliers(family, ROWS)
    assert_same(before, state(family["two"]))
    top, *others = found.found
    assert (top.model, top.layer, top.dimension, top.position) == ("two", 1, 7, 4) and not others
    assert top.cka < 0.5 and top.dimension_gain > 0.3 and top.position_gain > 0.3
    frame = found.to_frame()
    assert len(frame) == 9 and frame["found"].sum() == 1 and "OutlierSearch(9 layers on 192 samples" in repr(found)
    assert found._repr_html_().count("<tr") == 10


def test_nothing_is_found_without_it(family):
    found = find_outliers(family, ROWS)
    assert not found.found
    assert max(each.dimension_gain for each in found.layers) < 0.1
    with planted(family["two"], 1, position=4, dimension=7, size=0.0):
        assert find_outliers(family, ROWS).layers == found.layers


def test_its_numbers_are_medians_over_partners(family):
    with planted(family["one"], 0, position=2, dimension=3, size=30.0):
        found = find_outliers(family, ROWS, exclude_first=False).layers[0]
        x = stream(family["one"], ROWS, 0).flatten(0, 1)
    partners = [stream(family[name], ROWS, 0).flatten(0, 1) for name in ("two", "three")]
    whole = sorted(gram_cka(x, y) for y in partners)
    assert found.cka == pytest.approx(whole[0], abs=1e-9)  # of two, torch's median is the lower
    less = torch.arange(x.shape[1]) != found.dimension
    rows = (torch.arange(len(x)) % ROWS.shape[1]) != found.position
    assert (found.dimension, found.position) == (3, 2)
    assert found.dimension_gain == pytest.approx(
        min(gram_cka(x[:, less], y) - gram_cka(x, y) for y in partners), abs=1e-9
    )
    assert found.position_gain == pytest.approx(
        min(gram_cka(x[rows], y[rows]) - gram_cka(x, y) for y in partners), abs=1e-9
    )


@every_world
def test_a_planted_model_computes_what_it_did(world):
    here = model(world, n_layers=3)
    own, clean = here(ROWS).detach(), stream(here, ROWS, 0)
    with planted(here, 0, position=3, dimension=5, size=50.0) as same:
        assert same is here
        torch.testing.assert_close(here(ROWS).detach(), own, rtol=1e-9, atol=1e-9)
        difference = stream(here, ROWS, 0) - clean
    expected = torch.zeros_like(clean)
    expected[:, 3, 5] = 50
    torch.testing.assert_close(difference, expected)
    assert torch.equal(here(ROWS).detach(), own)


@pytest.mark.parametrize("layer, dimension", [(2, 0), (-1, 0), (0, 99)])
def test_bad_places(layer, dimension):
    here = model(worlds()[0], n_layers=3)
    with pytest.raises(
        ValueError, match=r"Expected a layer in \[0, 2\) and a dimension in \[0, .*takes the outlier off"
    ):
        with planted(here, layer, position=1, dimension=dimension, size=1.0):
            pass


def test_two_models_are_too_few(family):
    with pytest.raises(ValueError, match="Expected three or more models, got 2; between two, no one can say"):
        find_outliers({name: family[name] for name in ("one", "two")}, ROWS)
