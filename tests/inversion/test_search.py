"""Metropolis walks against the exact distribution: the kernel edit by edit, and the chains by enumeration."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy
import pytest
import torch
from leaves_no_trace import assert_same, state
from models import worlds

from inversion.oracle import domain, scores
from inversion.tiny import cached
from tl_backward import zoo
from tl_backward.inversion import Closeness, SearchOptions, search_preimage
from tl_backward.inversion.options import EDITS
from tl_backward.inversion.search import TokenEdits, _independent, effective_sample_size
from tl_backward.zoo import counting

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
WORDS = ["w5", "w6", "w40"]
DOMAIN = domain(WORDS, 3)
SITE, HOOK = ("resid_mid", 1), ("blocks.1.hook_resid_mid", None, False)


def middles(n):
    """A draw that picks each of n things."""
    return [(i + 0.5) / n for i in range(n)]


@pytest.mark.parametrize("edits", [EDITS, ("substitute",), ("relabel",), ("insert", "delete"), ("substitute", "swap")])
@pytest.mark.parametrize("start", [0, 1])
def test_every_kernel_leaves_the_target_as_it_is(edits, start):
    """pi P = pi over all rows of one to three tokens, P built from every draw there is; one token is not writable."""
    prefix = (0,) * start
    rows = [prefix + row for n in (1, 2, 3) for row in product((7, 8, 9), repeat=n)]
    space = TokenEdits(edits, (7, 8), start, 3 + start)  # 9 is kept
    pi = numpy.random.default_rng(0).random(len(rows)) + 0.1
    number = {row: index for index, row in enumerate(rows)}
    kernel = numpy.zeros((len(rows), len(rows)))
    for row in rows:
        n = len(row) - start
        # A grid that divides evenly for every number of things that is picked among.
        grid = list(product(middles(len(edits)), middles(math.lcm(n, n + 1)), middles(2), middles(math.lcm(n, 2))))
        for draws in grid:
            move = space.propose(row, draws)
            to, accepted = number[row], 0.0
            if move is not None and move[0] in number:
                to = number[move[0]]
                accepted = min(1.0, pi[to] / pi[number[row]] * math.exp(move[1]))
            kernel[number[row], to] += accepted / len(grid)
            kernel[number[row], number[row]] += (1 - accepted) / len(grid)
    numpy.testing.assert_allclose(kernel.sum(1), 1)
    numpy.testing.assert_allclose(pi @ kernel, pi, atol=1e-12)
    flow = pi[:, None] * kernel
    numpy.testing.assert_allclose(flow, flow.T, atol=1e-12)  # detailed balance


@every_world
@pytest.mark.parametrize(
    ("plateau", "token_edits", "log_prior"),
    [(0.0, EDITS, None), (None, EDITS, None), (0.0, ("substitute", "swap"), lambda text: -0.7 * text.count("w6"))],
)
def test_the_chains_reach_the_exact_distribution(world, plateau, token_edits, log_prior):
    """Total variation to pi, which is enumerated by brute force, within what as many independent draws would show."""
    model = cached(world)
    fixed = token_edits == ("substitute", "swap")
    space = [text for text in DOMAIN if not fixed or len(text.split()) == 3]
    distance, _ = scores(model, space, "w6 w5", HOOK, -1)
    epsilon = float(numpy.quantile(distance, 0.4)) * (
        1 + 1e-9
    )  # texts tie, and a tie at epsilon is decided by rounding
    tau = float(max(distance) - (epsilon if plateau is None else plateau)) / 3
    energy = numpy.maximum(numpy.array(distance) - (epsilon if plateau is None else plateau), 0) / tau
    pi = numpy.exp([(log_prior(text) if log_prior else 0.0) - e for text, e in zip(space, energy, strict=True)])
    pi /= pi.sum()
    found = search_preimage(
        model, "w6 w5", SITE, -1, proposals=space, epsilon=epsilon, search_options=SearchOptions(chains=200, steps=500, burn_in=100, thin=4, tau=tau, plateau=plateau, log_prior=log_prior, token_edits=token_edits), valid=lambda text: text in space, seed=1, **QUIET,
    )  # fmt: skip
    counts = Counter(found.texts)
    observed = numpy.array([counts[text] for text in space]) / len(found)
    assert len(found) == 200 * 100 and set(found.texts) <= set(space)
    # E TV of n independent draws is sum_x sqrt(p(1-p) / (2 pi n)); chains' draws are worth n / 10 or more here.
    assert numpy.abs(observed - pi).sum() / 2 < 3 * numpy.sqrt(pi * (1 - pi) / (2 * math.pi * len(found) / 10)).sum()
    # Uniform draws are far outside that, so the bound can fail.
    assert numpy.abs(numpy.full(len(space), 1 / len(space)) - pi).sum() / 2 > 0.05
    # Weighted, the texts inside are the prior itself restricted to the preimage.
    inside = numpy.array(distance) <= epsilon
    restricted = numpy.where(inside, numpy.exp([log_prior(text) if log_prior else 0.0 for text in space]), 0)
    restricted /= restricted.sum()
    weighted = Counter()
    for text, weight in zip(found.texts, found.weights.tolist(), strict=True):
        weighted[text] += weight
    assert numpy.abs(numpy.array([weighted[text] for text in space]) - restricted).sum() / 2 < 0.05
    d = found.diagnostics
    assert d.distinct == int(inside.sum()) and 0 < d.acceptance < 1 and d.well_formed == 1
    assert d.chance == pytest.approx(inside.mean()) and d.effective_sample_size > 500


@every_world
def test_every_distance_is_the_models_and_no_trace_is_left(world):
    model = cached(world)
    before = state(model)
    found = search_preimage(
        model,
        "w6 w5",
        SITE,
        -1,
        proposals=DOMAIN[:5],
        search_options=SearchOptions(chains=6, steps=20, thin=3),
        epsilon=Closeness(metric="cosine", match="same"),
        **QUIET,
    )
    assert_same(before, state(model))
    expected, at = scores(model, found.texts, "w6 w5", HOOK, -1, "cosine", "same")
    numpy.testing.assert_allclose(found.distances.numpy(), expected, atol=1e-11)
    assert found.best_positions.tolist() == at and found.method == "search"
    assert len(found) == 6 * 4


def test_seeds_proposals_and_what_is_never_touched():
    model = cached("bridge")
    short = SearchOptions(chains=5, steps=30)

    class Decoder:
        def sample(self, query, n, *, seed):
            return [query.text] * 3 + ["w9 w9"] * (n - 3)

    runs = [search_preimage(model, "w6 w5", SITE, -1, proposals=lambda n, seed: DOMAIN[seed : seed + n], seed=seed,
                            search_options=replace(short, n_proposals=7), **QUIET) for seed in (3, 3, 4)]  # fmt: skip
    assert runs[0].texts == runs[1].texts != runs[2].texts
    by_decoder = search_preimage(
        model, "w6 w5", SITE, -1, proposals=Decoder(), search_options=replace(short, n_proposals=9), **QUIET
    )
    assert by_decoder.diagnostics.chance is None and runs[0].diagnostics.chance is not None
    # Edits write and erase w5 and w6 alone: w40 stays, and there is one of it in every text.
    ids = [model.to_tokens(word)[0, -1].item() for word in ("w5", "w6")]
    fixed = search_preimage(
        model,
        "w6 w40",
        SITE,
        -1,
        proposals=["w5 w40 w6"],
        search_options=replace(short, tau=5.0, vocabulary=ids),
        **QUIET,
    )
    assert all(text.split().count("w40") == 1 for text in fixed.texts) and len(set(fixed.texts)) > 5
    assert all(set(text.split()) <= {"w5", "w6", "w40"} for text in fixed.texts)


def test_chains_that_do_not_move():
    model = cached("bridge")
    stuck = search_preimage(model, "w6 w5", SITE, -1, proposals=DOMAIN[:4], valid=lambda text: text in DOMAIN[:4], search_options=SearchOptions(chains=4, steps=20, burn_in=0, token_edits=("swap",)), **QUIET)  # fmt: skip
    assert stuck.diagnostics.acceptance == 0 and len(set(stuck.texts)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "Expected epsilon > 0"),
        (
            {"search_options": SearchOptions(token_edits=("flip",))},
            "Expected token_edits among substitute, swap, relabel, insert, delete, got ['flip']",
        ),
        (
            {"search_options": SearchOptions(token_edits=("insert", "swap"))},
            "Expected insert and delete together, got ['insert', 'swap']",
        ),
        ({"search_options": SearchOptions(vocabulary=[])}, "Expected at least one token to write, got none"),
        ({"valid": lambda text: False}, "Expected a proposal that is valid and has the position, got none among 39"),
        ({"valid": lambda text: 1 / 0}, "Expected valid(text) to give a bool, got ZeroDivisionError"),
        (
            {"search_options": SearchOptions(log_prior=lambda text: text + 1)},
            "Expected log_prior(text) to give a number, got TypeError",
        ),
        ({"proposals": []}, "Expected at least one text, got none; the list, or the generator behind it, is empty."),
        ({"proposals": lambda n, seed: iter(())}, "Expected at least one text, got none"),
        ({"position": 9}, "Expected a position in the query's 3 tokens"),
    ],
)
def test_refused(change, message):
    options = {"proposals": DOMAIN, "position": -1} | change | QUIET
    with pytest.raises(ValueError, match=re.escape(message)):
        search_preimage(cached("bridge"), "w6 w5", SITE, options.pop("position"), **options)


def autoregressive(phi, n, m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, generator=generator, dtype=torch.float64)
    rows = []
    for _ in range(n):
        x = phi * x + math.sqrt(1 - phi**2) * torch.randn(m, generator=generator, dtype=torch.float64)
        rows.append(x)
    return torch.stack(rows)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_a_known_process(phi):
    """An AR(1) process has n (1 - phi) / (1 + phi) independent draws' worth."""
    n, m = 2000, 16
    assert effective_sample_size(autoregressive(phi, n, m)) == pytest.approx(n * m * (1 - phi) / (1 + phi), rel=0.15)


def test_effective_sample_size_of_chains_that_disagree_or_stand_still():
    apart = autoregressive(0.0, 500, 4) + 50 * torch.arange(4)
    assert effective_sample_size(apart) < 10
    assert effective_sample_size(torch.arange(3.0).double().expand(50, 3)) < 3
    assert effective_sample_size(torch.zeros(50, 3)) == 3 and effective_sample_size(torch.zeros(2, 5)) == 5


def test_chains_that_stand_still_on_one_text_are_one_draw():
    a, b, c = (1, 2), (1, 3), (1, 4)
    assert _independent([[a, a, a, b], [a, a, a, b]]) == 2 / 4
    assert _independent([[a, a, b, c], [a, c, b, b]]) == 4 / 4
    model = zoo.load("counting")
    pool = list(counting.prompts(40, split="held_out"))
    alone = search_preimage(
        model, pool[0], ("resid_mid", 1), -1, proposals=pool[:1], valid=lambda text: text == pool[0], search_options=SearchOptions(chains=32, steps=20),
        show_progress=False,
    )  # fmt: skip
    assert alone.diagnostics.distinct == 1 and alone.diagnostics.effective_sample_size == 1
