"""The registry knows every measure, and says nothing that is not so."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import tl_backward as tlb
from dissimilarity.data import INSTALLED, related
from tl_backward.dissimilarity import Measure, get_measure, list_measures, measures


def test_every_measure_is_registered():
    functions = {function.__name__ for function in (get_measure(name).function for name in list_measures().name)}
    assert functions == set(measures.__all__)


def test_the_frame():
    frame = list_measures()
    assert {"name", "function", "options", "kind", "range", "invariances", "metric", "additive", "oracle"} <= set(frame)
    assert frame.name.is_unique and frame.oracle.dropna().is_unique
    assert all(oracle is None or isinstance(oracle, str) for oracle in frame.oracle)
    assert frame.summary.str.len().min() > 20
    assert all(frame[name].dtype == bool for name in ("metric", "symmetric", "additive"))
    limits = frame.set_index("name")[["most", "package"]].loc[["cka_biased", "rtd"]].values.tolist()
    assert limits == [[None, None], [300, "gudhi"]]
    x, y = related(30, 5, 4)
    for row in frame[frame.name.isin(INSTALLED)].itertuples():
        assert torch.equal(row.function(x, y), get_measure(row.name)(x, y))
        assert row.kind in ("similarity", "distance") and row.range[0] < row.range[1]


def test_a_measure():
    measure = get_measure("rsa_correlation_pearson")
    assert isinstance(measure, Measure)
    assert repr(measure) == (
        "Measure('rsa_correlation_pearson': similarity, rsa(x, y, distance='correlation', comparison='pearson'))"
    )
    x, y = related(30, 5, 4)
    assert torch.equal(measure(x, y), measures.rsa(x, y, distance="correlation", comparison="pearson"))
    assert torch.equal(
        measure(x, y, comparison="cosine"), measures.rsa(x, y, distance="correlation", comparison="cosine")
    )
    with pytest.raises(TypeError):
        measure.options["distance"] = "euclidean"


def test_an_unknown_measure_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"^Expected the name of a measure, got 'cka_biasd'; the nearest are 'cka_biased'.*\.$"
    ):
        get_measure("cka_biasd")


@pytest.mark.parametrize("name", measures.__all__)
def test_docstrings_say_what_one_needs(name):
    function = getattr(measures, name)
    text = function.__doc__
    assert "A similarity" in text or "metric" in text, name
    assert "nchanged by" in text or "up to" in text or "square of" in text or "nvariances as" in text, name
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["x", "y"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])
    for parameter in parameters[2:]:
        assert f"{parameter.name}:" in text, (name, parameter.name)


def test_reached_from_the_top():
    assert tlb.dissimilarity.list_measures is list_measures


def test_the_guide_names_what_there_is():
    guide = (Path(__file__).parents[2] / "docs" / "dissimilarity.md").read_text(encoding="utf-8")
    families = [
        line.split("|")[3] for line in guide.splitlines() if line.startswith("| ") and "`" in line.split("|")[3]
    ]
    named = {name for cell in families for name in re.findall("`([a-z_]+)`", cell)}
    assert len(families) == 8 and named - {"cka", "topology", "transport"} <= set(list_measures().name)
    assert {get_measure(name).function for name in named - {"cka", "topology", "transport"}} >= {
        measures.cka_biased,
        measures.rtd,
    }
