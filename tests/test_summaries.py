"""Every result's sentence claims what its numbers support: of ties, constants, NaNs, chance and the model itself."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, worlds

import tl_backward as tlb
from tl_backward._support.bootstrap import Interval
from tl_backward._support.sentences import beyond, layers_text, listed, overlap, percent, spread
from tl_backward.alignment.summary import match_sentence
from tl_backward.dissimilarity.stitching.summary import Cost, stitches_sentence
from tl_backward.dissimilarity.summary import Alike, comparison_sentence, distances_sentence
from tl_backward.editing.comparison import EditComparison
from tl_backward.editing.scores import METRICS
from tl_backward.editing.summary import comparison_sentence as edits_sentence
from tl_backward.editing.summary import effect_sentence, grid_sentence
from tl_backward.embedding_space.summary import Above, atlas_sentence, coherence_sentence
from tl_backward.gradients.summary import cache_sentence, similarity_sentence
from tl_backward.inversion.features import FeatureConsistency, FeatureTable, Rate
from tl_backward.inversion.summary import Known, known_sentence
from tl_backward.lens.sweep_summary import Mean, Stands, sweep_sentence
from tl_backward.model.controls import random_init
from tl_backward.model.place import resolve_places

NAN = math.nan


def test_words_for_numbers():
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c" and listed([]) == "none"
    assert layers_text([0, 1, 2, 4], range(6)) == "layers 0-2 and 4" and layers_text([0, 1], range(2)) == "every layer"
    assert layers_text([], range(2)) == "no layer" and layers_text([1, 2], range(4)) == "layers 1 and 2"
    assert [percent(each) for each in (0.0, 0.001, 0.5, 0.999, 1.0, NAN)] == [
        "0 %", "under 1 %", "50 %", "over 99 %", "100 %", "an unknown share"
    ]  # fmt: skip
    assert spread([2.0, 1.0, NAN]) == "1 to 2" and spread([NAN]) == "unknown" and spread([3.0, 3.0]) == "3"
    assert overlap((0.0, 1.0), (1.0, 2.0)) and not overlap((0.0, 1.0), (1.1, 2.0)) and overlap((NAN, 1.0), (5.0, 6.0))


@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=9))
def test_a_draw_is_never_beyond_the_draws(draws):
    """So a control given as the model is never told from itself."""
    assert all(beyond(value, draws) is None for value in draws)
    assert beyond(1e9, draws) == "above" and beyond(-1e9, draws) == "below"
    assert beyond(1e9, draws[:4]) is None and beyond(NAN, draws) is None and beyond(1e9, [NAN, *draws]) is None


def test_a_further_draw_is_beyond_one_in_twenty_times():
    drawn = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)).tolist()
    share = sum(beyond(own, draws) is not None for own, *draws in drawn) / len(drawn)
    assert 0.035 < share < 0.065


# edits


def test_an_edit_s_effect():
    moved = effect_sentence("Anna lives in", (" Graz", 0.9, 0.01), (" Oslo", 0.002, 0.64))
    assert "goes from \u2423Graz 90 % to \u2423Oslo 64 %" in moved and "\u2423Oslo had under 1 %" in moved
    assert "says nothing of other prompts" in moved
    both = ((" Graz", 0.9, 0.01), (" Oslo", 0.002, 0.64))
    for others, said in (
        ([(1, 2), (3, 3), (4, 5)], "2 of 3 other prompts have"),
        ([(1, 2)], "1 of 1 other prompt has"),
    ):
        measured = effect_sentence("Anna lives in", *both, others=others)
        assert measured.endswith(f"; {said} another answer now.") and "says nothing" not in measured
    stays = effect_sentence("a", (" Graz", 0.9, 0.7), (" Graz", 0.9, 0.7), others=[(1, 1)])
    assert stays.endswith("90 % -> 70 % with the edit; 0 of 1 other prompt have another answer now.")
    assert "stays \u2423Graz: 90 % -> 70 %" in effect_sentence("a", (" Graz", 0.9, 0.7), (" Graz", 0.9, 0.7))


def methods(scores):
    """A comparison whose first metrics are the given ones [method, case]; all others are unknown."""
    table = torch.full((len(scores), len(scores[0]), len(METRICS)), NAN, dtype=torch.float64)
    table[:, :, list(METRICS).index("efficacy")] = torch.tensor(scores, dtype=torch.float64)
    return EditComparison(table, tuple(f"method {i}" for i in range(len(scores))), tuple(METRICS))


def test_the_best_of_several_edits_is_clearly_ahead_or_not():
    ahead = methods([[0.9, 1.0, 0.8, 0.9, 1.0, 0.9], [0.1, 0.0, 0.2, 0.1, 0.2, 0.1]]).summary()
    assert "the best balance of scores is that of method 0" in ahead and "clearly ahead of method 1" in ahead
    near = methods([[0.9, 0.1, 0.8, 0.2, 0.9, 0.3], [0.8, 0.2, 0.9, 0.1, 0.3, 0.8]]).summary()
    assert "not clearly ahead" in near
    same = methods([[0.5] * 8, [0.5] * 8]).summary()
    assert "not clearly ahead of method 1" in same
    few = methods([[1.0] * 3, [0.0] * 3]).summary()
    assert "so few edits" in few and "clearly ahead" not in few
    assert "nothing was compared" in methods([[1.0] * 8]).summary()
    none = edits_sentence(("a", "b"), torch.tensor([NAN, 1.0]), torch.ones(2, 2), 9, {})
    assert "not every method" in none


# weights in words


def test_coherent_vectors_beside_gaussian_ones():
    more, same = Above("W_out", 60, 128, 1000), Above("W_out", 7, 128, 1000)
    assert "47 % are" in coherence_sentence(more, "a, b") and "stands for a, b" in coherence_sentence(more, "a, b")
    assert "no clear sign" in coherence_sentence(same, "a")
    assert "too few to tell" in coherence_sentence(Above("W_out", 60, 128, 10), "a")
    assert "All vectors of W_out are zero" in coherence_sentence(Above("W_out", 0, 0, 1000), "")
    assert "no clear sign" in coherence_sentence(Above("W_out", 1, 4, 1000), "a")  # one of four is no finding
    every = atlas_sentence([Above("one", 60, 128, 1000), Above("two", 6, 128, 1000)])
    assert "most in one (47 %)" in every
    tied = [Above("one", 60, 128, 1000), Above("two", 60, 128, 1000), Above("three", 6, 128, 1000)]
    assert "5 %; 2 of the matrices have clearly more than that, one and two the most (47 %)." in atlas_sentence(tied)
    many = [Above(f"W{i}", 60, 128, 1000) for i in range(4)]
    assert "4 of the matrices have clearly more than that, 4 of them the most (47 %)." in atlas_sentence(many)
    few = atlas_sentence([Above("small", 1, 2, 1000), Above("one", 60, 128, 1000)])  # one of two vectors is no finding
    assert "most in one (47 %)" in few
    spread_out = [Above(f"W{i}", 11, 128, 1000) for i in range(20)]
    assert "in no one matrix clearly" in atlas_sentence(spread_out)
    assert "no clear sign" in atlas_sentence([Above("one", 6, 128, 1000), Above("two", 7, 128, 1000)])


def test_a_random_model_s_weights_say_nothing_in_words():
    model = random_init(tlb.zoo.load("facts"), seed=1)
    found = tlb.embedding_space.parameter_atlas(model, weights=["W_out", "W_in"], n_pairs=0, show_progress=False)
    assert "no clear sign" in found.summary()
    coherence = found.coherence["W_out", 2]
    assert "no clear sign" in coherence.summary()
    zeros = replace(coherence, score=torch.full_like(coherence.score, NAN))
    assert "are zero" in zeros.summary()


# comparisons


def alike(values, errors=0.01, chance=0.0, deviation=0.01, n=20, similarity=True):
    values = torch.tensor(values, dtype=torch.float64)
    like = torch.ones_like(values)
    return Alike("cka", values, similarity, like * errors, like * chance, like * deviation, n)


LABELS = ("L0", "L1")
DIAGONAL = [[0.9, 0.2], [0.1, 0.8]]


def said(found):
    return comparison_sentence(found, LABELS, LABELS, ("run1", "run2"))


def test_layers_that_correspond():
    text = said(alike(DIAGONAL))
    assert "2 of 2 layers of run1 are most like the same layer of run2 (0.80 to 0.90, clearly)" in text
    assert "where samples paired at random give 0.00" in text
    apart = said(alike([[0.1, 0.8], [0.9, 0.2]], chance=1.4, similarity=False))
    assert "2 of 2" in apart and "(0.10 to 0.20, clearly)" in apart and "where samples" in apart
    one = said(alike([[0.9, 0.2], [0.8, 0.1]]))
    assert "1 of 2 layers of run1 is most like the same layer of run2 (0.90, clearly), where samples" in one


def test_unlike_models():
    """Every layer has a most similar one, so that alone is not said to be a finding."""
    values = [[0.4, 0.1], [0.28, 0.27], [0.3, 0.3]]
    labels = ("L0", "L1", "L2")
    some = comparison_sentence(alike(values), labels, LABELS, ("a", "b"))
    assert (
        "1 of 3 layers of a is clearly more like one layer of b than like any other (best partners 0.28 to 0.40; 1 is"
        in some
    )
    none = comparison_sentence(alike(values, errors=1.0), labels, LABELS, ("a", "b"))
    assert "By cka none of 3 layers of a is clearly more like one layer of b than like any other (best" in none
    both = comparison_sentence(alike([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]), labels, LABELS, ("a", "b"))
    assert (
        "3 of 3 layers of a are clearly more like one" in both and "(best partners 0.90; 1 is the same), where" in both
    )
    unknown = comparison_sentence(alike(values, errors=NAN), labels, LABELS, ("a", "b"))
    assert (
        "it is not known, without standard errors, how many of 3 layers of a are clearly most like one of b" in unknown
    )
    distance = comparison_sentence(alike(values, similarity=False), labels, LABELS, ("a", "b"))
    assert "; 0 is the same)" in distance
    lone = comparison_sentence(alike([[0.4], [0.3], [0.2]]), labels, ("L0",), ("a", "b"))
    assert "3 layers of a have one layer of b to be like (best partners 0.20 to 0.40; 1 is the same)" in lone


def test_layers_that_chance_explains():
    assert "give 0.85, and none is clearly more alike than that;" in said(alike(DIAGONAL, chance=0.85, deviation=0.1))
    assert "give 0.84, and 1 of 2 is clearly more alike than that;" in said(alike(DIAGONAL, chance=0.84))
    three = [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.8]]
    labels = ("L0", "L1", "L2")
    assert "2 of 3 are clearly more" in comparison_sentence(alike(three, chance=0.8), labels, labels, ("a", "b"))
    lone = comparison_sentence(alike([[0.5]], chance=0.5), ["L0"], ["L0"], ("a", "b"))
    assert "a's L0 is most like L0 of b (0.50); samples paired at random give 0.50, and it is not clearly" in lone
    assert "without random pairings" in said(alike(DIAGONAL, chance=NAN))


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "no random pairing was drawn that would tell the two apart;"),
        (1, "1 random pairing cannot tell the two apart;"),
        (3, "3 random pairings cannot tell the two apart;"),
    ],
)
def test_too_few_pairings_are_counted_in_words(n, words):
    assert f"samples paired at random give 0.00 on average, but {words}" in said(alike(DIAGONAL, n=n))


def untrained(best, similarity=True):
    """Draws whose layers are as much like their best partner, which is not at the model's own place."""
    other = 0.0 if similarity else 9.0
    draws = torch.tensor([[[other, first], [second, other]] for first, second in best], dtype=torch.float64)
    values = DIAGONAL if similarity else [[0.1, 0.8], [0.9, 0.2]]
    return said(replace(alike(values, chance=0.0 if similarity else 1.4, similarity=similarity), untrained=draws))


def test_untrained_networks_beside_a_comparison():
    low, high = [0.41, 0.42, 0.43, 0.44, 0.45], [0.81, 0.86, 0.92, 0.88, 0.9]
    assert "0.00; 5 pairs of untrained networks reach 0.41 to 0.45 there, and all are clearly more" in untrained(
        list(zip(low, low, strict=True))
    )
    assert "reach 0.41 to 0.92 there, and 1 of 2 is clearly more" in untrained(list(zip(low, high, strict=True)))
    assert "and none is clearly more alike than that." in untrained(list(zip(high, high, strict=True)))
    assert "and all are clearly more" in untrained(list(zip(low, low, strict=True)), similarity=False)
    few = untrained([(0.4, 0.4)] * 4)
    how = "run_options=RunOptions(control='random_init')"
    assert few.endswith(f"; its control has 4 draws, too few to compare with ({how} makes 5).")
    assert said(alike(DIAGONAL)).endswith(
        f"; no control was run, so untrained networks may do the same ({how} shows it)."
    )


def test_ties_and_unknown_layers():
    assert "cannot tell the two apart" in said(alike(DIAGONAL, deviation=NAN))
    constant = said(alike([[0.5, 0.5], [0.5, 0.5]]))
    assert "no layer of run1 is most like the same layer of run2 (best partners 0.50, not clearly)" in constant
    assert "(0.80 to 0.90; without standard errors it is not known how clearly)" in said(alike(DIAGONAL, errors=NAN))
    assert "(0.80 to 0.90, not clearly)" in said(alike(DIAGONAL, errors=2.0))
    some = alike([[0.9, 0.2], [0.75, 0.8]], errors=0.1)
    assert "2 of 2 layers of run1 are most like the same layer of run2 (0.80 to 0.90, 1 of them clearly)" in said(some)
    assert "nothing can be said" in said(alike([[NAN, NAN], [NAN, NAN]]))
    one = comparison_sentence(alike([[0.5]]), ["L0"], ["L0"], ("a", "b"))
    assert "a's L0 is most like L0 of b (0.50)" in one


def test_a_comparison_of_a_model_with_itself():
    model = build(worlds()[0])
    texts = ["w5 w6 w7 w8 w9", "w3 w3 w41", "w30 w31 w32"]
    found = tlb.dissimilarity.compare(model, model, texts, show_progress=False)
    assert found.summary(("a", "b")).startswith("By cka 2 of 2 layers of a are most like the same layer of b (1.00")
    none = replace(found, values=torch.full_like(found.values, NAN))
    assert "nothing can be said" in none.summary()


def test_distances_between_models():
    values = torch.tensor([[0.0, 0.5, 0.1], [0.5, 0.0, 0.4], [0.1, 0.4, 0.0]], dtype=torch.float64)
    names = ("a", "a", "b")
    text = distances_sentence("angle", names, ("L0", "L1", "L0"), values, 0.9)
    assert "nearest layers of different models are a L0 and b L0, 0.10 apart" in text and "no chance level" in text
    assert "equally far apart" in distances_sentence("angle", names, ("L0", "L1", "L0"), torch.ones(3, 3), 1.0)
    assert "no two models" in distances_sentence("angle", ("a", "a"), ("L0", "L1"), torch.ones(2, 2), 1.0)


def test_stitches():
    ahead = Cost(1, 1, 0.5, (0.4, 0.6), 0.1, (0.05, 0.15))
    assert "no clear difference" not in stitches_sentence({("A", "B"): [ahead, replace(ahead, nats=0.9)]})
    assert "costs 0.5 nats" in stitches_sentence({("A", "B"): [ahead]})
    near = replace(ahead, own=0.45, own_interval=(0.35, 0.55))
    assert "no clear difference" in stitches_sentence({("A", "B"): [near]})
    assert "with no stitch of B to itself" in stitches_sentence({("A", "B"): [Cost(0, 0, 0.5, (0.4, 0.6))]})
    assert stitches_sentence({("A", "B"): [Cost(0, 0, NAN, (NAN, NAN))]}) == "No stitch has a finite cost."


def test_matches_of_parameters():
    score = torch.tensor([[0.5, 0.1], [0.1, 0.2]], dtype=torch.float64)
    chance = 0.2 + 0.01 * torch.randn(20, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers, own = [(0, 0), (1, 1)], [(0, 0), (1, 1)]
    text = match_sentence("W_out", layers, score, chance, own)
    assert "better than turned ones in 1 of 2 layers" in text and "2 of 2 layers are assigned" in text
    assert "too few" in match_sentence("W_out", layers, score, chance[:4], own)
    assert "no more than" in match_sentence("W_out", layers, torch.full_like(score, 0.2), chance, own)
    assert "no more than" in match_sentence("W_out", layers, torch.full_like(score, NAN), chance, own)


# activations

SITE = resolve_places(build(worlds()[0]), ("resid_mid", 1))[0]


def feature(name, rate, low, prior=0.1, prior_high=0.15, n=200.0):
    beside = None if prior is None else Rate(prior, max(0.0, prior - 0.05), prior_high, 200.0)
    return FeatureConsistency(name, 1, Rate(rate, low, min(1.0, rate + 0.02), n), beside)


def known(*rows, inside=150, token=":"):
    return Known(SITE, token, inside, 200, FeatureTable(rows, "") if rows else None)


def test_what_an_activation_keeps():
    text = known_sentence([known(feature("letter", 1.0, 0.97), feature("count", 0.99, 0.96))])
    assert text == 'At ":", L1 resid_mid keeps letter and count (in at least 99 % of texts near it, 10 % of others).'
    one = known_sentence([known(feature("letter", 0.97, 0.96), feature("count", 0.97, 0.96, prior=0.08))])
    assert "(in 97 % of texts near it, at most 10 % of others)" in one
    assert "partly keeps letter" in known_sentence([known(feature("letter", 0.5, 0.4))])
    forgotten = known_sentence([known(feature("letter", 0.12, 0.05))])
    assert "does not keep any feature clearly more often" in forgotten
    overlapping = known_sentence([known(feature("letter", 0.96, 0.6, prior=0.5, prior_high=0.7))])
    assert "does not keep any feature" in overlapping
    assert "cannot be read" in known_sentence([known(inside=0)])
    unasked = known_sentence([known(feature("letter", NAN, 0.0))])
    assert unasked.endswith(" cannot be read: the query has none of the features that were asked about.")
    itself, others = (replace(known(feature(name, 1.0, 0.97)), n_distinct=n) for name, n in (("all", 1), ("count", 9)))
    assert known_sentence([itself]).endswith(": one text alone comes near enough, and shares everything with itself.")
    assert " keeps count " in known_sentence([itself, others])
    assert "beside no others" in known_sentence([known(feature("letter", 1.0, 0.97, prior=None))])
    assert "No activation" in known_sentence([])
    decoder = replace(known(feature("letter", 1.0, 0.97)), by_decoder=True)
    hedge = "; a decoder's texts share its habits too, so that a search (method='search') may find less kept."
    assert "of a decoder's texts near it" in known_sentence([decoder]) and known_sentence([decoder]).endswith(hedge)
    assert "habits" not in known_sentence([replace(decoder, by_decoder=False)])


def test_of_many_places_the_most_telling_are_named():
    """One sentence that fits a phone: what other places keep is in the table below it."""
    best, other = known(feature("letter", 1.0, 0.97), feature("count", 1.0, 0.97)), known(feature("letter", 1.0, 0.97))
    text = known_sentence([known(inside=0), other, *[best] * 4])
    assert text.startswith('At ":", L1 resid_mid, L1 resid_mid and 2 other places keep letter and count (in 100 %')
    assert len(text) < 130 and text.count(".") == 1


def test_a_grid_of_few_edits_tells_no_cell_from_another():
    few, enough = (grid_sentence((3, 4.0), 0.93, 2, 20, n) for n in (2, 5))
    assert few.endswith("does best (harmonic mean 0.93); 2 other cells of 20 come within 0.01 of it; so few edits tell no cell "
                        "from another.")  # fmt: skip
    assert enough.endswith("2 other cells of 20 come within 0.01 of it.")


# sweeps and similarities


def means(*values, width=0.5):
    return [Mean(value, value - width, value + width) for value in values]


def test_a_sweep_s_curve_beside_its_control():
    own, control = means(30.0, 5.0, 2.0), means(80.0, 90.0, 70.0)
    found = Stands("the old answer's mean rank", [0, 1, 2], own, control, smallest=True)
    assert "lowest in layer 2, 2 (1.5 to 2.5), where untrained networks have 70" in sweep_sentence(found, 9, 5)
    assert "overlaps" in sweep_sentence(replace(found, control=own), 9, 5)
    near = sweep_sentence(
        replace(found, own=[Mean(30.0, 20.0, 40.0), Mean(10.0, 2.0, 23.0), Mean(4.2, 0.0, 12.0)]), 6, 5
    )
    assert "lowest in layer 2, though not clearly lower than in layer 1: 4.2 (0 to 12), where untrained" in near
    wide = replace(found, own=means(1.0, 2.0, 3.0, width=5.0), smallest=False)
    assert "largest in layer 2, though not clearly larger than in any other layer: 3" in sweep_sentence(wide, 6, 5)
    assert "too few to compare" in sweep_sentence(found, 9, 1)
    assert "no control was run" in sweep_sentence(replace(found, control=None), 9, 0)
    assert "the same in every layer" in sweep_sentence(replace(found, own=means(3.0, 3.0, 3.0)), 9, 5)
    assert "nothing was collected" in sweep_sentence(None, 9, 5)
    assert "nothing was collected" in sweep_sentence(replace(found, own=means(NAN, NAN, NAN)), 9, 5)


def test_alike_gradients():
    matrix = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.2], [0.1, 0.2, 1.0]])
    names = ("one", "two", "three")
    text = similarity_sentence("cosine", names, names, matrix, within=True)
    assert 'gradients of "one" and "two" are most alike (cosine 0.8)' in text and "no untrained network" in text
    assert "equally alike" in similarity_sentence("cosine", names, names, torch.ones(3, 3), within=True)
    assert "no two examples" in similarity_sentence("cosine", names[:1], names[:1], torch.ones(1, 1), within=True)
    assert "no two examples" in similarity_sentence("cosine", names, names, torch.full((3, 3), NAN), within=True)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1.0, 1e8])
def test_small_gradients_are_no_ties(scale):
    """Of texts that are learnt they are; sizes are compared with each other."""
    norms = {"blocks.0.mlp.W_in": 2 * scale, "blocks.0.mlp.W_out": 3 * scale}
    assert f"blocks.0.mlp.W_out is largest (norm {3 * scale:.3g})" in cache_sentence(1.0, "", "3 tokens", norms)
    norms["blocks.0.mlp.W_in"] = 3 * scale
    assert f"all have norm {3 * scale:.3g}" in cache_sentence(1.0, "", "3 tokens", norms)
    inner = scale * torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.2], [0.1, 0.2, 1.0]], dtype=torch.float64)
    text = similarity_sentence("inner", ("one", "two", "three"), ("one", "two", "three"), inner, within=True)
    assert f'gradients of "one" and "two" are most alike (inner {0.8 * scale:.2g}), ' in text


@pytest.mark.parametrize("n_draws", [1, 5])
def test_results_have_their_sentences(n_draws):
    model = tlb.zoo.load("facts")
    cases = tlb.zoo.edit_cases("test")[:5]
    control = tlb.lens.RandomInit(n_draws=n_draws)
    found = tlb.sweep(model, cases, collect=["answer_rank"], control=control, show_progress=False)
    assert ("too few to compare" in found.summary()) == (n_draws < 5)
    assert found.summary().startswith("Over 5 prompts the old answer's mean rank in the raw readout of W_out is")
    assert tlb.gradient_similarity(model, cases[:3], show_progress=False).summary().startswith("Of 3 pairs")
    assert "W_O's vectors" in tlb.alignment.match_parameters(model, model, "W_O", show_progress=False).summary()
    interval = Interval(*(torch.ones(1) for _ in range(3)), torch.ones(1).long())
    assert "nothing was compared" in edits_sentence(("a",), torch.ones(1), torch.ones(2, 1), 9, {"efficacy": interval})
