"""Bad input, degenerate input, warnings, dtypes, and what is left behind."""

import re
import sys
import warnings

import plain
import pytest
import torch

from dissimilarity.data import INSTALLED, random, related
from tl_backward.dissimilarity import get_measure, measures

NAMES = INSTALLED
WHITENED = ["cca", "cca_squared", "cca_yanai", "pwcca", "pwcca_y", "linear_regression", "linear_regression_y_to_x"]


def one_sentence(error, *parts):
    text = str(error.value)
    assert text.startswith("Expected") and text.endswith(".") and "\n" not in text
    for part in parts:
        assert part in text, (part, text)


@pytest.mark.parametrize("name", NAMES)
class TestEveryMeasureRefuses:
    def test_different_samples(self, name):
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(random(20, 3), random(21, 3))
        one_sentence(error, "20 and 21 rows", "same samples")

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_samples(self, name, n):
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(random(n, 3), random(n, 3))
        one_sentence(error, f"got {n}", "samples")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_values_that_are_not_finite(self, name, bad):
        x, y = related(20, 3, 4)
        y[7, 2] = y[9, 1] = bad
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(x, y)
        one_sentence(error, "2 NaN or infinite values in y", "row 7")

    def test_constant_activations(self, name):
        x, y = related(20, 3, 4)
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(x[:1].expand(20, -1), y)
        one_sentence(error, "x to vary over samples", "20 identical rows")

    def test_what_is_no_matrix(self, name):
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(random(2, 10, 3), random(20, 3))
        one_sentence(error, "[2, 10, 3]", ".flatten(0, 1)")
        with pytest.raises(TypeError) as error:
            get_measure(name).bound(random(20, 3), torch.ones(20, 3, dtype=torch.int64))
        one_sentence(error, "y as a floating-point tensor", "int64")
        with pytest.raises(TypeError) as error:
            get_measure(name).bound([["a"]], random(20, 3))
        one_sentence(error, "list")
        with pytest.raises(ValueError) as error:
            get_measure(name).bound(random(20, 0), random(20, 3))
        one_sentence(error, "[20, 0]")


MINIMUM = {"cka_biased": 3, "cka_debiased": 4, "cka_rbf": 4, "cca": 3, "svcca": 3, "procrustes": 2, "rsa": 3, "gulp": 3,
           "distance_correlation": 3, "distance_correlation_debiased": 4, "hard_match": 3}  # fmt: skip


@pytest.mark.parametrize("name", MINIMUM)
def test_the_fewest_samples(name):
    n = MINIMUM[name]
    with pytest.raises(ValueError) as error:
        get_measure(name)(random(n - 1, 3), random(n - 1, 2))
    one_sentence(error, f"at least {n} samples for {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.isfinite(get_measure(name)(random(n, 3), random(n, 2, seed=1)))


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda x, y: measures.svcca(x, y, variance=0.0), ["0 < variance <= 1", "got 0.0"]),
        (lambda x, y: measures.svcca(x, y, variance=1.5), ["got 1.5"]),
        (lambda x, y: measures.shape_partial(x, y, alpha=-0.1), ["0 <= alpha <= 1", "got -0.1"]),
        (lambda x, y: measures.gulp(x, y, regularization=-1.0), ["regularization >= 0", "got -1.0"]),
        (lambda x, y: measures.gulp(x, y, regularization=float("nan")), ["got nan"]),
        (lambda x, y: measures.cka_rbf(x, y, bandwidth=0.0), ["bandwidth > 0"]),
        (lambda x, y: measures.mutual_knn(x, y, k=19), ["n - 2 = 18", "got k=19"]),
        (lambda x, y: measures.jaccard(x, y, k=0), ["got k=0"]),
        (lambda x, y: measures.cka_rbf(torch.cat([x[:1].expand(18, -1), x[:2]]), y), ["x in which at least half"]),
    ],
)
def test_options_out_of_range(call, parts):
    with pytest.raises(ValueError) as error:
        call(*related(20, 3, 4))
    one_sentence(error, *parts)


def test_options_that_are_no_choice():
    """In a process of its own, without the type checker of the tests, which would speak first."""
    script = """
import torch
from tl_backward.dissimilarity import measures
x, y = torch.randn(20, 3), torch.randn(20, 4)
for name, option in [("cca", "mean"), ("pwcca", "weights"), ("linear_regression", "direction"), ("rsa", "distance"),
                     ("rsa", "comparison"), ("rsm_difference", "norm"), ("rsm_difference", "distance"),
                     ("mutual_knn", "metric"), ("cknna", "metric")]:
    try:
        getattr(measures, name)(x, y, **{option: "manhattan"})
    except ValueError as error:
        print(option, error)
"""
    lines = plain.run(script).stdout.splitlines()
    assert len(lines) == 9
    for line in lines:
        option, text = line.split(" ", 1)
        assert text.startswith(f"Expected {option} among '") and text.endswith(", got 'manhattan'; choose one of them.")


@pytest.mark.parametrize("name", WHITENED)
def test_saturation_warns(name):
    """Once a side spans n - 1 dimensions, whitening makes everything alike."""
    measure = get_measure(name)
    x, y = random(12, 15), random(12, 20, seed=1)
    with pytest.warns(UserWarning, match="is 1 whatever the representations") as caught:
        assert abs(float(measure(x, y)) - 1) < 1e-9
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(measure(random(40, 10), random(40, 8, seed=1))) < 0.999


def test_saturation_of_one_side_is_enough():
    with pytest.warns(UserWarning, match="12 samples that span rank 11"):
        assert abs(float(measures.cca(random(12, 15), random(12, 3, seed=1))) - 1) < 1e-9
    with pytest.warns(UserWarning, match="rank 11"):
        measures.svcca(random(12, 40), random(12, 30, seed=1), variance=1.0)


def test_samples_without_a_direction_warn():
    x, y = related(20, 4, 3)
    x[3] = 2.5
    with pytest.warns(UserWarning, match="got 1 without one; their correlation"):
        value = measures.rsa(x, y, distance="correlation", comparison="pearson")
    assert torch.isfinite(value)
    with pytest.warns(UserWarning, match="got 20 without one"), pytest.warns(UserWarning, match="0 / 0"):
        assert float(measures.rsa(x[:, :1], y, distance="correlation")) == 0
    x[3] = 0
    with pytest.warns(UserWarning, match="their cosine"):
        measures.rsa(x, y, distance="cosine")
    assert torch.isfinite(measures.mutual_knn(x, y))
    assert torch.isfinite(measures.second_order_cosine(x, y))


@pytest.mark.parametrize(
    "name", ["cka_debiased", "cka_rbf_debiased", "distance_correlation_debiased", "rsa", "rsa_euclidean_pearson"]
)
def test_equal_distances_warn(name):
    """The corners of a simplex: every pair is equally far apart, which leaves nothing to compare."""
    with pytest.warns(UserWarning, match="0 / 0"):
        assert float(get_measure(name)(torch.eye(8, dtype=torch.float64), related(8, 3, 3)[0])) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_read_as_it_is(name, dtype):
    """Half precision gives what float32 gives for the same, rounded, numbers."""
    x, y = (side.to(dtype) for side in related(30, 5, 4))
    value = get_measure(name)(x, y)
    assert value.dtype == torch.float32
    exact = get_measure(name)(x.double(), y.double())
    assert abs(float(value) - float(exact)) <= 1e-4 * max(1, abs(float(exact)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name):
    x, y = related(30, 5, 4)
    x, y = x.T.contiguous().T, y[:, [3, 2, 1, 0]].requires_grad_()  # strided; trainable
    before, state = (x.clone(), y.detach().clone()), torch.get_rng_state()
    value = get_measure(name)(x, y)
    assert not value.requires_grad and value.dtype == torch.float64 and value.shape == ()
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]) and torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        again = get_measure(name)(x, y)
    assert torch.equal(again, value) and torch.is_grad_enabled()


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_inputs_stay_finite(name):
    """Rank 1, duplicates, huge means, subnormal and huge scales, more neurons than samples: a number, in range."""
    low, high = get_measure(name).range
    x, y = related(24, 5, 4)
    cases = {
        "rank 1": (random(24, 1) @ random(1, 6), random(24, 1, seed=1) @ random(1, 3)),
        "doubled": (x[torch.arange(24) // 2], y[torch.arange(24) // 2]),
        "doubled on one side": (x[torch.arange(24) // 2], y),
        "one sample differs": (torch.cat([x[:1].expand(23, -1), x[:1] + 1]), y),
        "huge mean": (x + 1e6, y - 1e6),
        "tiny": (x * 1e-30, y * 1e-30),
        "huge": (x * 1e30, y * 1e30),
        "wide": (random(12, 300), random(12, 200, seed=1)),
        "one neuron": (x[:, :1], y[:, :1]),
        "constant neuron": (torch.cat([x, torch.full((24, 1), 1e5)], 1), y),
    }
    if name == "procrustes_squared":
        cases["huge"] = (x * 1e15, y * 1e15)  # the square of 1e30 is no float32
    for case, (a, b) in cases.items():
        if name.startswith("cka_rbf") and case == "one sample differs":
            continue  # refused: the median distance is 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for dtype in (torch.float64, torch.float32):
                value = float(get_measure(name)(a.to(dtype), b.to(dtype)))
                assert low <= value <= high * (1 + 1e-6) and abs(value) < float("inf"), (case, dtype, value)


def test_messages_name_the_fix():
    """Each message of the boundary says what to do after its semicolon."""
    with pytest.raises(ValueError) as error:
        measures.cka_biased(random(3, 2), random(4, 2))
    assert re.search(r"; .+\.$", str(error.value))


@pytest.mark.parametrize("name", NAMES)
def test_one_side_in_each_dtype(name):
    x, y = related(30, 5, 4)
    value = get_measure(name)(x.float(), y)
    assert value.dtype == torch.float64
    assert abs(float(value) - float(get_measure(name)(x.float().double(), y))) <= 1e-7 * max(1, abs(float(value)))


def test_rtd_asks_for_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(ImportError) as error:
        measures.rtd(*related(20, 3, 4))
    one_sentence(error, "the package gudhi for rtd", "tl-backward[topology]")


def test_rtd_refuses_what_would_take_hours():
    with pytest.raises(ValueError) as error:
        measures.rtd(*related(301, 3, 4))
    one_sentence(error, "at most 300 samples for rtd", "got 301", "sample_size=100")
