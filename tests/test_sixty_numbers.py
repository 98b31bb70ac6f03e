"""Thirty inputs about numbers that could break the package, listed before the first was run, each with its right value.

31 factors indexed by a mask over examples alone
32 factors indexed by True: no token
33 factors indexed by a list or a NumPy array of booleans over tokens
34 the rank of float16 factors whose token norms are beyond float16
35 cosines of gradients of norm 1e-100 and 1e100, in float64
36 project_parameter of a tensor of 2^-120, float32: tokens, scores and norms
37 match_parameters of neurons that are permuted, at a scale of 2^-70
38 the norm of a lookup's gradient with repeated rows, in whole numbers
39 a sweep's gradient norms, shares and ranks for prompts of 1, 3 and 6 words: each one alone by autograd
40 gradient_similarity with an example twice, whatever the batches
41 readout of a float32 vector of 1e25 through LayerNorm: normalised it is itself, else one sentence
42 readout of a float32 vector of 1e-25, normalised, without the norm: its values and its length
43 readout where columns of W_U tie: ranks count what is strictly larger
44 rank_one_edit with NaN, infinity: refused before anything is written
45 an update that bfloat16 rounds away whole: 0 written, said, and nothing moved
46 gradient_edit with a learning rate of NaN or infinity: refused
47 two edits of one weight: they come off in reverse order alone, to the bit; loaded ones are equal
48 every measure that no scale changes, float32 at 2^120 and 2^-120
49 the same in float64 at 2^300 and 2^-300
50 distance correlation of points on a line, in fractions
51 linear regression on a column that is there twice and one of zeros, in fractions
52 biased, debiased and hollow CKA of whole numbers, in fractions
53 neighbours of whole numbers around 2^23, float32, with ties: the first sample
54 permutation Procrustes and hard_match of other widths and a constant neuron: every arrangement
55 RSA and rsm_difference of whole numbers in float16
56 squared CCA of two partitions, whose indicators are collinear: chi squared
57 classical_mds of a rectangle with a corner twice, at 2^600 and 2^-600
58 inversion's distances at 1e-200 and 1e200
59 top_pairs of float16 whose products are beyond float16, and of zeros of both signs
60 bootstrap of a column of NaN, of one item, of groups
"""

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from dissimilarity.data import INSTALLED, TABLE, related
from models import build, worlds
from weights.test_factors import KINDS, make, whole

import tl_backward as tlb
from tl_backward._support.bootstrap import bootstrap
from tl_backward.alignment import match_parameters
from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics, classical_mds, get_measure, measures
from tl_backward.editing.edit import LostUpdateWarning
from tl_backward.inversion import distances
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.layout import Layout

every_world = pytest.mark.parametrize("world", worlds())
W_OUT = "blocks.1.mlp.W_out"


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_31_a_mask_over_examples(kind):
    factors = make(kind, batch=3)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(whole(factors[mask]), whole(factors[0]) + whole(factors[2]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factors[mask].norm(), whole(factors[mask]).norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("index", [True, np.True_, (slice(None), False)])
def test_32_true_is_no_token(index):
    with pytest.raises((IndexError, TypeError)):
        make()[index]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [list, np.array, torch.tensor])
def test_33_booleans_over_tokens(kind, of):
    factors = make(kind, pos=4)
    expected = whole(factors[:, 1]) + whole(factors[:, 3])
    torch.testing.assert_close(whole(factors[:, of([False, True, False, True])]), expected, rtol=1e-12, atol=1e-12)


def test_34_ranks_beyond_float16():
    x, d = torch.zeros(1, 3, 4), torch.zeros(1, 3, 5)
    x[0, 0, 0], x[0, 1, 1], x[0, 2, 0], d[0, 0, 0], d[0, 1, 1], d[0, 2, 0] = 600, 500, 300, 400, 400, 400
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert GradientFactors(x.to(dtype), d.to(dtype), Layout((4, 5))).rank() == 2


@pytest.mark.parametrize("power", [-332, 332])
def test_35_cosines_of_any_size(power):
    a, b = make(seed=1), make(seed=2)
    expected = whole(a).flatten() @ whole(b).flatten() / whole(a).norm() / whole(b).norm()
    big = [GradientFactors(f.inputs * 2.0 ** (power // 2), f.deltas * 2.0 ** (power // 2), f.layout) for f in (a, b)]
    torch.testing.assert_close(big[0].cosine(big[1]), expected, rtol=1e-10, atol=0)
    assert float(big[0].cosine(big[0])) == pytest.approx(1, abs=1e-12)


@every_world
def test_36_projections_of_any_size(world):
    model = build(world, dtype=torch.float32)
    vectors = draw(5, model.cfg.d_model, dtype=torch.float32)
    plain = tlb.project_parameter(model, vectors, k=4)
    small = tlb.project_parameter(model, vectors * 2.0**-120, k=4)
    assert torch.equal(small.top_ids, plain.top_ids) and torch.equal(small.bottom_ids, plain.bottom_ids)
    torch.testing.assert_close(small.top_scores * 2.0**120, plain.top_scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small.norm * 2.0**120, plain.norm, rtol=1e-5, atol=0)


@every_world
def test_37_matching_of_small_neurons(world):
    a, b = build(world), build(world)
    order = torch.randperm(tlb.weight_sites(a)[W_OUT].layout.shape[0], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        site = tlb.weight_sites(b)[W_OUT]
        moved = site.parameter[:, order] if site.layout.stored == "out_in" else site.parameter[order]
        site.parameter.copy_(moved * 2.0**-70)
    found = match_parameters(a, b, "W_out", layers_a=1, layers_b=1, n_chance=2, show_progress=False)
    for space in found.spaces().values():
        assert torch.equal(order[space.assignment[0, 0]], torch.arange(len(order)))
        torch.testing.assert_close(space.similarity[0, 0], torch.ones(len(order)).double(), rtol=0, atol=1e-9)


def test_38_repeated_rows():
    ids, deltas = torch.tensor([[2, 0, 2], [2, 1, 0]]), torch.arange(12.0, dtype=torch.float64).reshape(2, 3, 2) - 4
    rows = {row: [0, 0] for row in range(3)}
    for place, row in enumerate(ids.flatten().tolist()):
        for side in range(2):
            rows[row][side] += 2 * place + side - 4
    squared = sum(value * value for row in rows.values() for value in row)
    for dtype in (torch.int16, torch.uint8, torch.int64):
        factors = GradientFactors(ids.to(dtype), deltas, Layout((4, 2)))
        assert float(factors.norm() ** 2) == pytest.approx(squared, rel=1e-14)
        assert float(factors.svd().S.square().sum()) == pytest.approx(squared, rel=1e-12)
        assert float(factors.token_products().sum()) + 2 * float(factors[0].inner(factors[1])) == pytest.approx(squared)


@every_world
def test_39_a_sweep_of_lengths(world):
    model = build(world)
    prompts = ["w4", "w5 w6 w7", "w8 w9 w10 w11 w12 w13"]
    found = tlb.sweep(
        model, prompts, ["w20", "w21", "w22 w23"], collect=["gradient_norm", "share", "rank"], weights="W_out", control=None,
        batch_size=3, show_progress=False,
    )  # fmt: skip
    for i, (prompt, ids) in enumerate(zip(prompts, ([20], [21], [22, 23]), strict=True)):
        row = torch.cat([model.to_tokens(prompt)[0], torch.tensor(ids[:-1], dtype=torch.long)])
        logits = model(row[None], return_type="logits")[0, -len(ids) :].log_softmax(-1)
        loss = -logits.gather(1, torch.tensor(ids)[:, None]).mean()
        for j, name in enumerate(found.weights):
            (gradient,) = torch.autograd.grad(loss, tlb.weight_sites(model)[name].parameter, retain_graph=True)
            assert float(found.values["gradient_norm"][i, j]) == pytest.approx(float(gradient.norm()), rel=1e-6)
            assert float(found.values["rank"][i, j]) == int(torch.linalg.matrix_rank(gradient))
            assert float(found.values["share"][i, j].nansum()) == pytest.approx(1, abs=1e-6)


@every_world
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_40_an_example_twice(world, batch_size):
    texts = ["w5 w6 w7 w8", "w9 w4", "w5 w6 w7 w8", "w6 w6 w3 w11 w12", "w9 w4"]
    found = tlb.gradient_similarity(
        build(world), texts, weights=["W_out", "W_Q"], batch_size=batch_size, show_progress=False
    )
    for one, other in ((0, 2), (1, 4)):
        torch.testing.assert_close(found.matrix[one], found.matrix[other], rtol=1e-11, atol=1e-14)
        assert found.names_a[one] == found.names_a[other]
    torch.testing.assert_close(found.matrix, found.matrix.T, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(found.matrix.diagonal(), found.norms_a.square().sum(0), rtol=1e-11, atol=0)


@every_world
def test_41_a_long_vector_through_the_norm(world):
    model = build(world, dtype=torch.float32)
    vector = draw(3, model.cfg.d_model, dtype=torch.float32)
    plain, long = (tlb.readout(model, vector * size, k=5, normalize=True) for size in (2.0**10, 2.0**83))
    assert torch.equal(long.top_ids, plain.top_ids)
    torch.testing.assert_close(long.top_values, plain.top_values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(long.norm, plain.norm * 2.0**73, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="Expected vectors whose squares .* normalize=True"):
        tlb.readout(model, vector * 2.0**83)


@every_world
def test_42_a_short_vector_without_the_norm(world):
    model = build(world, dtype=torch.float32)
    vector = draw(3, model.cfg.d_model, dtype=torch.float32)
    for ln in (False, True):
        plain, short = (tlb.readout(model, vector * size, k=5, ln=ln, normalize=True) for size in (1.0, 2.0**-83))
        assert torch.equal(short.top_ids, plain.top_ids)
        torch.testing.assert_close(short.top_values, plain.top_values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(short.norm, plain.norm * 2.0**-83, rtol=1e-5, atol=0)


@every_world
def test_43_ranks_of_tied_columns(world):
    model = build(world)
    head = model.unembed.W_U if world == "hooked" else model.original_model.lm_head.weight
    if world == "bridge":
        model.original_model.lm_head.weight = torch.nn.Parameter(head.detach().clone())
        head = model.original_model.lm_head.weight
    with torch.no_grad():
        head.copy_(torch.round(head * 4))
        columns = head if world == "hooked" else head.T
        columns[:, 11], columns[:, 30] = columns[:, 4].clone(), columns[:, 4].clone()
    vector = torch.round(draw(model.cfg.d_model) * 4)
    logits = vector @ model.W_U
    for token in (4, 11, 30, 7):
        found = tlb.readout(model, vector, k=50, ln=False, target=token)
        assert int(found.target_rank) == int((logits > logits[token]).sum())
        assert found.top_values.tolist() == logits.sort(descending=True).values.tolist()


@every_world
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_44_edits_that_are_not_finite(world, bad):
    model = build(world)
    d_in, d_out = tlb.weight_sites(model)[W_OUT].layout.shape
    x, v = torch.ones(d_in).double(), torch.ones(d_out).double()
    before = tlb.weight_sites(model)[W_OUT].parameter.detach().clone()
    for options in ({"x": x * bad}, {"v": v * bad}, {"scale": bad}):
        with pytest.raises(ValueError, match="^Expected.*finite"):
            tlb.rank_one_edit(model, W_OUT, **{"x": x, "v": v, **options}).apply()
    assert torch.equal(tlb.weight_sites(model)[W_OUT].parameter, before)


@every_world
def test_45_an_update_that_is_rounded_away(world):
    """At 256 bfloat16 goes in steps of 2: adding 1 is a tie, which goes to the even 256."""
    model = build(world, dtype=torch.bfloat16)
    site = tlb.weight_sites(model)[W_OUT]
    with torch.no_grad():
        site.parameter.fill_(256)
    edit = tlb.rank_one_edit(model, W_OUT, *(torch.ones(d, dtype=torch.bfloat16) for d in site.layout.shape))
    with pytest.warns(LostUpdateWarning, match="0.00"):
        edit.apply()
    assert edit.written == {W_OUT: 0.0} and bool((site.parameter == 256).all())
    edit.revert()
    with tlb.rank_one_edit(
        model, W_OUT, *(torch.ones(d, dtype=torch.bfloat16) for d in site.layout.shape), scale=2.0
    ) as two:
        assert two.written == {W_OUT: 1.0} and bool((site.parameter == 258).all())


@every_world
@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [1, 2])
def test_46_learning_rates_that_are_not_finite(world, lr, steps):
    model = build(world)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="^Expected.*finite"):
        tlb.gradient_edit(model, "w4 w5", "w9", lr=lr, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every_world
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_47_edits_on_top_of_each_other(world, dtype, tmp_path):
    model = build(world, dtype=dtype)
    site = tlb.weight_sites(model)[W_OUT]
    before = site.parameter.detach().clone()
    first, second = (
        tlb.rank_one_edit(model, W_OUT, *(draw(d, seed=seed, dtype=dtype) for d in site.layout.shape))
        for seed in (1, 2)
    )
    with first:
        between = site.parameter.detach().clone()
        with second:
            with pytest.raises(RuntimeError, match="reverse order"):
                first.revert()
            again = tlb.load_edit(model, second.save(tmp_path / "second.safetensors"))
        assert torch.equal(site.parameter, between)
        for side in "xv":
            assert torch.equal(getattr(again.updates[W_OUT], side), getattr(second.updates[W_OUT], side))
    assert torch.equal(site.parameter, before)


SCALE_FREE = [name for name in INSTALLED if "isotropic scaling" in TABLE.invariances[name] and name != "rtd"]


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize(
    "dtype, power",
    [
        pytest.param(torch.float32, 120, id="48 long"),
        pytest.param(torch.float32, -120, id="48 short"),
        pytest.param(torch.float64, 300, id="49 long"),
        pytest.param(torch.float64, -300, id="49 short"),
    ],
)
def test_measures_at_any_scale(name, dtype, power):
    x, y = (side.to(dtype) for side in related(30, 4, 3, seed=5))
    measure, far = get_measure(name), (x * 2.0**power)
    expected = float(measure(x, y))
    found = {"tensors": float(measure(far, y)), "both": float(measure(far, y * 2.0**power))}
    if name in ADDITIVE:
        sums = CovarianceStatistics([4], [3])
        sums.update([far], [y * 2.0**power])
        if dtype == torch.float64 and name.startswith("cka"):  # fourth powers of these are no numbers
            with pytest.raises(ValueError, match="Expected activations whose fourth powers float64 holds"):
                ADDITIVE[name](sums.pair(0, 0))
        else:
            found["sums"] = ADDITIVE[name](sums.pair(0, 0))
    for value in found.values():
        assert value == pytest.approx(expected, abs=1e-6 if dtype == torch.float32 else 1e-10), found


def fractions(matrix):
    return [[Fraction(int(value)) for value in row] for row in matrix]


def hsic(a, b, kind):
    """n^2 HSIC of two Gram matrices in fractions: of centred ones, of U-centred ones, or without their diagonals."""
    n = len(a)
    if kind == "debiased":
        a, b = ([[0 if i == j else value for j, value in enumerate(row)] for i, row in enumerate(g)] for g in (a, b))
        rows_a, rows_b = ([sum(row) for row in g] for g in (a, b))
        both = sum(a[i][j] * b[j][i] for i in range(n) for j in range(n))
        return (both + Fraction(sum(rows_a) * sum(rows_b), (n - 1) * (n - 2))
                - Fraction(2, n - 2) * sum(p * q for p, q in zip(rows_a, rows_b, strict=True)))  # fmt: skip
    centred = []
    for g in (a, b):
        means, all_of_it = [Fraction(sum(row), n) for row in g], Fraction(sum(map(sum, g)), n * n)
        centred.append([[g[i][j] - means[i] - means[j] + all_of_it for j in range(n)] for i in range(n)])
    return sum(centred[0][i][j] * centred[1][i][j] for i in range(n) for j in range(n) if kind == "biased" or i != j)


def root_ratio(ab, aa, bb):
    return float(ab) / float(aa) ** 0.5 / float(bb) ** 0.5


LINE_A, LINE_B = [0, 3, 3, 7, 12, -5, 1], [2, 2, 9, -4, 0, 0, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_50_distances_on_a_line(dtype):
    a, b = ([[Fraction(abs(p - q)) for q in side] for p in side] for side in (LINE_A, LINE_B))
    x, y = (torch.tensor(side, dtype=dtype)[:, None] for side in (LINE_A, LINE_B))
    squared = root_ratio(hsic(a, b, "biased"), hsic(a, a, "biased"), hsic(b, b, "biased"))
    near = dict(abs=1e-12 if dtype == torch.float64 else 1e-6)
    assert float(measures.distance_correlation_squared(x, y)) == pytest.approx(squared, **near)
    assert float(measures.distance_correlation(x, y)) == pytest.approx(squared**0.5, **near)
    debiased = root_ratio(hsic(a, b, "debiased"), hsic(a, a, "debiased"), hsic(b, b, "debiased"))
    assert float(measures.distance_correlation_debiased(x, y)) == pytest.approx(debiased, **near)


def test_51_regression_on_columns_that_repeat():
    a, b = LINE_A, LINE_B
    mean_a, mean_b = Fraction(sum(a), 7), Fraction(sum(b), 7)
    cross = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    expected = cross**2 / sum((p - mean_a) ** 2 for p in a) / sum((q - mean_b) ** 2 for q in b)
    column, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)[:, None]
    x = torch.stack([column, column, torch.zeros(7).double(), -3 * column + 1], 1)
    assert float(measures.linear_regression(x, y)) == pytest.approx(float(expected), abs=1e-12)
    sums = CovarianceStatistics([4], [1])
    for one, other in zip(x.split(2), y.split(2), strict=True):
        sums.update([one], [other])
    assert ADDITIVE["linear_regression"](sums.pair(0, 0)) == pytest.approx(float(expected), abs=1e-12)
    assert float(measures.cca(x, y)) == pytest.approx(float(expected) ** 0.5, abs=1e-12)


@pytest.mark.parametrize("kind", ["biased", "debiased", "hollow"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_52_cka_of_whole_numbers(kind, dtype):
    x = torch.randint(-3, 4, (6, 3), generator=torch.Generator().manual_seed(1))
    y = torch.randint(-2, 3, (6, 2), generator=torch.Generator().manual_seed(2))
    a, b = (fractions(side @ side.T) for side in (x, y))
    expected = root_ratio(hsic(a, b, kind), hsic(a, a, kind), hsic(b, b, kind))
    near = dict(abs=1e-12 if dtype == torch.float64 else 1e-6)
    assert float(get_measure(f"cka_{kind}")(x.to(dtype), y.to(dtype))) == pytest.approx(expected, **near)
    sums = CovarianceStatistics([3], [2])
    for one, other in zip(x.to(dtype), y.to(dtype), strict=True):
        sums.update([one[None]], [other[None]])
    assert ADDITIVE[f"cka_{kind}"](sums.pair(0, 0)) == pytest.approx(expected, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_53_neighbours_far_from_zero(dtype, seed):
    x, y = (torch.randint(0, 4, (25, 2), generator=torch.Generator().manual_seed(seed + s)) for s in (0, 100))
    near = []
    for side in (x.tolist(), y.tolist()):
        square = [[sum((p - q) ** 2 for p, q in zip(one, two, strict=True)) for two in side] for one in side]
        near.append(
            [set(sorted((j for j in range(25) if j != i), key=lambda j: (square[i][j], j))[:4]) for i in range(25)]
        )
    shared = [len(a & b) for a, b in zip(*near, strict=True)]
    far = [(side + 2**23).to(dtype) for side in (x, y)]
    near = dict(abs=1e-12 if dtype == torch.float64 else 1e-7)  # values come in their inputs' dtype
    assert float(measures.mutual_knn(*far, k=4, metric="euclidean")) == pytest.approx(sum(shared) / 100, **near)
    jaccard = float(sum(Fraction(s, 8 - s) for s in shared) / 25)
    assert float(measures.jaccard(*far, k=4, metric="euclidean")) == pytest.approx(jaccard, **near)


def test_54_every_arrangement():
    x, y = torch.round(draw(8, 5) * 3), torch.round(draw(8, 3, seed=1) * 3)
    y[:, 1] = 4
    wide = torch.cat([y, torch.zeros(8, 2).double()], 1)
    best = min(float((x - wide[:, list(order)]).norm()) for order in itertools.permutations(range(5)))
    assert float(measures.permutation_procrustes(x, y, center=False)) == pytest.approx(best, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = np.nan_to_num(np.corrcoef(x.T.numpy(), y.T.numpy())[:5, 5:])
    most = max(sum(r[i, j] for j, i in enumerate(order)) for order in itertools.permutations(range(5), 3)) / 3
    assert float(measures.hard_match(x, y)) == pytest.approx(most, abs=1e-12)
    assert float(measures.soft_match(x, y)) == pytest.approx((r.max(0).mean() + r.max(1).mean()) / 2, abs=1e-12)


def test_55_whole_numbers_in_float16():
    x, y = (torch.randint(-30, 31, (12, 4), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    far = [np.sqrt(((side[:, None] - side[None]) ** 2).sum(-1).double().numpy()) for side in (x, y)]
    expected = np.linalg.norm(far[0] - far[1])
    halves = (x.to(torch.float16), y.to(torch.float16))
    assert float(measures.rsm_difference(*halves)) == pytest.approx(expected, rel=1e-6)
    largest = np.abs(np.linalg.eigvalsh(far[0] - far[1])).max()
    assert float(measures.rsm_difference(*halves, norm="spectral")) == pytest.approx(largest, rel=1e-6)
    upper = np.triu_indices(12, 1)
    for comparison, values in (("pearson", np.corrcoef(far[0][upper], far[1][upper])[0, 1]),):
        assert float(measures.rsa(*halves, comparison=comparison)) == pytest.approx(values, abs=1e-6)


def test_56_two_partitions():
    """Of indicators the squared canonical correlations add up to chi squared over n."""
    generator = torch.Generator().manual_seed(4)
    a = torch.randint(3, (40,), generator=generator)
    b = torch.where(torch.rand(40, generator=generator) < 0.5, a, torch.randint(4, (40,), generator=generator))
    table = torch.zeros(3, 4, dtype=torch.long).index_put_((a, b), torch.tensor(1), accumulate=True).tolist()
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    total = sum(Fraction(table[i][j] ** 2, rows[i] * columns[j]) for i in range(3) for j in range(4)) - 1
    x, y = torch.eye(3).double()[a], torch.eye(4).double()[b]
    assert float(measures.cca(x, y, mean="rho2")) == pytest.approx(float(total / 2), abs=1e-12)
    sums = CovarianceStatistics([3], [4])
    sums.update([x], [y])
    assert ADDITIVE["cca_squared"](sums.pair(0, 0)) == pytest.approx(float(total / 2), abs=1e-12)
    assert float(measures.gulp_squared(x, y, regularization=0.0)) == pytest.approx(float(2 + 3 - 2 * total), abs=1e-10)


@pytest.mark.parametrize("power", [0, 600, -600])
def test_57_a_rectangle_of_any_size(power):
    corners = torch.tensor([[0, 0], [3, 0], [3, 4], [0, 4], [3, 4]]).double()
    expected = torch.tensor(
        [
            [sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 for b in corners.tolist()]
            for a in corners.tolist()
        ]
    )
    found = classical_mds(expected.double() * 2.0**power)
    between = (found.points[:, None] * 2.0**-power - found.points * 2.0**-power).norm(dim=-1)
    torch.testing.assert_close(between, expected.double(), rtol=1e-6, atol=1e-6)
    assert found.stress < 1e-6


@pytest.mark.parametrize("size", [2.0**-660, 1.0, 2.0**660])
def test_58_distances_of_any_size(size):
    query = torch.tensor([3.0, 4.0]).double() * size
    others = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0]]).double() * size
    assert distances(others, query).tolist() == pytest.approx([0, 1, 1, 2**0.5, 2], abs=1e-12)
    assert distances(others, query, "cosine").tolist() == pytest.approx([0, 1, 0, 1, 2], abs=1e-12)


def test_59_pairs_beyond_float16():
    left, right = torch.tensor([[60000.0], [-0.0], [-2.0]]).half(), torch.tensor([[60000.0], [0.0], [-60000.0]]).half()
    found = tlb.top_pairs(left, right, 9, show_progress=False)
    table = sorted(
        ((-float(a) * float(b), i, j) for i, a in enumerate(left) for j, b in enumerate(right)),
        key=lambda p: (p[0] + 0.0, *p[1:]),
    )
    assert found.values.tolist() == [-value for value, _, _ in table]
    assert list(zip(found.rows.tolist(), found.cols.tolist(), strict=True)) == [pair[1:] for pair in table]


def test_60_means_of_what_is_there():
    values = torch.tensor([[1.0, torch.nan, 4.0], [3.0, torch.nan, torch.nan]])
    found = bootstrap(values, n_boot=200)
    assert found.n.tolist() == [2, 0, 1] and found.mean[0] == 2 and found.mean[2] == found.low[2] == found.high[2] == 4
    assert all(bool(side[1].isnan()) for side in (found.mean, found.low, found.high))
    assert float(found.low[0]) == 1 and float(found.high[0]) == 3
    one = bootstrap(torch.tensor([[7.0]]), n_boot=10)
    assert float(one.low) == float(one.mean) == float(one.high) == 7
    grouped = bootstrap(torch.tensor([[1.0], [1.0], [5.0]]), groups=torch.tensor([4, 4, 9]), n_boot=300)
    assert float(grouped.mean) == pytest.approx(7 / 3) and float(grouped.low) == 1 and float(grouped.high) == 5
