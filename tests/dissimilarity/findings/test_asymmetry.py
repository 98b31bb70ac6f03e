"""Stitching penalties in both directions beside self-stitches: which model's head, which model's tail, and by how much."""

import math

import pytest
import torch
from leaves_no_trace import assert_same, state
from models import worlds

from tl_backward.dissimilarity import stitch
from tl_backward.dissimilarity.options import FitOptions
from tl_backward.studies.dissimilarity import activation_asymmetry
from tl_backward.studies.dissimilarity.asymmetry import STITCHES
from tl_backward.text.options import TextOptions

from .family import model, stream, tokens

FIT, JUDGE = tokens(40, seed=1), tokens(12, seed=2)
QUIET = {"show_progress": False}


@pytest.fixture(scope="module", params=worlds())
def pairs(request):
    first = [model(request.param, seed=seed, n_layers=3) for seed in (0, 1)]
    second = [model(request.param, seed=seed, n_layers=3) for seed in (2, 3)]
    return first, second


@pytest.fixture(scope="module")
def found(pairs):
    return activation_asymmetry(*pairs, FIT, JUDGE, names=("x", "y"), **QUIET)


def loss(logits):
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), JUDGE[:, 1:].flatten()))


def by_hand(head, tail, layer):
    """The penalty of a stitch by lstsq and TransformerLens's own hooks."""
    x, y = (stream(each, FIT, layer).flatten(0, 1) for each in (head, tail))
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    mapped = stream(head, JUDGE, layer) @ solved[:-1] + solved[-1]
    name = f"blocks.{layer}.hook_resid_post"
    with torch.no_grad():
        stitched = tail.run_with_hooks(JUDGE, fwd_hooks=[(name, lambda value, hook: mapped)])
        return loss(stitched) - loss(tail(JUDGE))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stitch_is_the_one_it_is_called(pairs, found, layer, seed):
    (a, b), other = (each[seed] for each in pairs), 1 - seed
    heads_and_tails = [(a, b), (b, a), (a, a), (b, b), (pairs[0][other], a), (pairs[1][other], b)]
    expected = [by_hand(*each, layer) for each in heads_and_tails]
    # A stitch takes its losses, of about 4 nats, in float32.
    torch.testing.assert_close(
        found.penalties[:, seed, layer], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    assert max(abs(each) for each in expected[2:4]) < 1e-6 < min(abs(each) for each in expected[:2])


def test_differences_and_intervals(found):
    forth, back, _, _, other_a, other_b = found.penalties
    torch.testing.assert_close(found.difference, forth - back)
    torch.testing.assert_close(found.excess_difference, (forth - other_b) - (back - other_a))
    frame = found.to_frame()
    assert len(frame) == (len(STITCHES) + 2) * 2 and set(frame["n_seeds"]) == {2}
    row = frame[(frame["quantity"] == "x->y minus y->x") & (frame["layer"] == 1)].iloc[0]
    values = found.difference[:, 1]
    half = 12.706204736 * float(values.std()) / math.sqrt(2)
    assert row["mean_nats"] == pytest.approx(float(values.mean()), rel=1e-9)
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=1e-6)
    assert "y->y of another seed" in set(frame["quantity"])
    assert repr(found) == "StitchingAsymmetry(A=x, B=y; 2 seeds, 2 layers, affine maps by least_squares)"
    assert found._repr_html_().count("<tr") == len(frame) + 1
    with pytest.raises(KeyError, match="Expected one of A->B, .* got 'C->A'"):
        found.interval("C->A")


def test_it_is_the_same_again_and_leaves_no_trace(pairs, found):
    before = state(pairs[0][0])
    again = activation_asymmetry(*pairs, FIT, JUDGE, **QUIET)
    assert_same(before, state(pairs[0][0]))
    assert torch.equal(found.penalties, again.penalties)
    assert found.n_tokens == JUDGE.shape[0] * (JUDGE.shape[1] - 1)


def test_swapping_the_sides_swaps_the_sign(pairs, found):
    swapped = activation_asymmetry(*reversed(pairs), FIT, JUDGE, **QUIET)
    torch.testing.assert_close(swapped.difference, -found.difference)
    torch.testing.assert_close(swapped.excess_difference, -found.excess_difference)


def test_maps_may_be_trained_on_the_task(pairs, found):
    descent = FitOptions(steps=2, warmup_steps=1)
    trained = activation_asymmetry(*pairs, FIT, JUDGE, fit="sgd", fit_options=descent, **QUIET)
    one = stitch(
        pairs[1][0],
        1,
        pairs[0][0],
        1,
        FIT,
        fit="sgd",
        fit_options=descent,
        held_out=JUDGE,
        text_options=TextOptions(batch_size=32),
        **QUIET,
    )
    assert trained.fit == "sgd" and trained.penalties[1, 0, 1] == one.penalty.nats != found.penalties[1, 0, 1]


def test_pairs_have_to_match(pairs):
    (a, b), _ = pairs
    for first, second in (([a], [b]), ([a, b], [a]), ([], [])):
        with pytest.raises(ValueError, match="Expected two or more pairs of models of one depth .* in the same order"):
            activation_asymmetry(first, second, FIT, JUDGE, **QUIET)
