"""The sentence of a lens says what its numbers allow: of what training made, of ties, zeros and chance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import HAS_HOOKED_TRANSFORMER, build, worlds

import tl_backward as tlb
from tl_backward.lens import RandomInit
from tl_backward.lens.summary import Places, alone_at_top, batch_sentence, lens_sentence
from tl_backward.model.controls import SameWeightsWarning, random_init

CLAIM = "(none of 5 untrained networks does)"
D_VOCAB, LAYERS = 425, [0, 1, 2, 3]
OUTSIDE = [[30.0, 200.0, 210.0, 220.0], [50.0, 190.0, 230.0, 240.0], [60.0, 210.0, 150.0, 170.0],
           [90.0, 220.0, 160.0, 180.0], [40.0, 230.0, 250.0, 260.0]]  # fmt: skip
"""The old answer's ranks in five untrained networks, far from the top where the model has it."""


def places(answer, target=None, alone=True):
    target = [D_VOCAB - 1.0] * len(answer) if target is None else target
    there = torch.full((1, len(answer)), alone)
    return Places(torch.tensor([target]), torch.tensor([answer]), there, D_VOCAB)


def said(own, draws, target=" Oslo", answer=" Graz"):
    return lens_sentence(target, answer, LAYERS, own, draws)


OWN = [26.0, 11.0, 0.0, 0.0]


def test_what_training_made_and_what_it_did_not():
    assert said(places(OWN), [places(ranks) for ranks in OUTSIDE]) == (
        "One step toward \u2423Oslo would write \u2423Oslo in every layer (all 5 untrained networks do that too) and push "
        "\u2423Graz down in layers 2 and 3 (none of 5 untrained networks does)."
    )


def test_the_demo():
    model = tlb.zoo.load("facts")
    lens = tlb.backward_lens(model, *tlb.zoo.facts.example_edit(), control="random_init")
    assert len(lens.controls) == 5 and lens.controls[0] is lens.control
    expected = said(places(OWN), [places(ranks) for ranks in OUTSIDE])
    if not HAS_HOOKED_TRANSFORMER:  # a Bridge's untrained networks vary more
        expected = expected.replace(
            "does).", "does, but they differ so much among themselves that this may be chance)."
        )
    assert lens.summary() == expected
    alone = tlb.backward_lens(random_init(model, seed=0), *tlb.zoo.facts.example_edit(), answer=lens.answer)
    assert torch.equal(alone.stacked("answer_rank")[:, -1], lens.control.stacked("answer_rank")[:, -1])


@pytest.mark.parametrize("draws", [0, 1, 4])
def test_fewer_than_five_draws_are_compared_with_nothing(draws):
    text = said(places(OWN), [places(ranks) for ranks in OUTSIDE[:draws]])
    assert "networks" not in text and "control='random_init'" in text
    assert ("no control was run" in text) == (draws == 0)


def test_a_control_that_does_it_too_is_named():
    near = [[0.0 if layer == 2 else rank for layer, rank in enumerate(ranks)] for ranks in OUTSIDE[:2]]
    text = said(places(OWN), [places(ranks) for ranks in near + OUTSIDE[2:]])
    assert "(2 of 5 untrained networks do that too in at least one of them)" in text and CLAIM not in text


def test_a_control_that_does_it_elsewhere_is_named():
    draws = [places([0.0, *OUTSIDE[0][1:]]), *(places(ranks) for ranks in OUTSIDE[1:])]
    assert "(1 of 5 untrained networks does that in other layers)" in said(places(OWN), draws)


def test_draws_that_differ_much_allow_no_claim():
    wide = [[1.0, 1.0, 1.0, 1.0], [420.0] * 4, [2.0] * 4, [400.0] * 4, [10.0] * 4]
    text = said(places(OWN), [places(ranks) for ranks in wide])
    assert "differ so much among themselves that this may be chance" in text and CLAIM not in text


def test_ties_zeros_and_words_the_model_says_already():
    draws = [places(ranks) for ranks in OUTSIDE]
    assert "would write \u2423Oslo in" in said(places(OWN, alone=False), draws)
    assert "), but in none push \u2423Graz down most" in said(places(OWN, alone=False), draws)
    nowhere = said(places([math.nan] * 4, [math.nan] * 4), draws)
    assert nowhere == (
        "One step toward \u2423Oslo would write nothing at the token asked at: its gradient is zero in every layer."
    )
    same = said(places(OWN), draws, answer=" Oslo")
    assert same.startswith("The model already says \u2423Oslo") and "push" not in same
    one_zero = said(places([math.nan, 11.0, 0.0, 0.0], [math.nan, 424.0, 424.0, 424.0]), draws)
    assert "write \u2423Oslo in layers 1-3" in one_zero


def test_a_constant_vector_has_no_word_at_its_top():
    assert not alone_at_top(torch.zeros(3, 2), torch.zeros(3, 2)).any()
    assert not alone_at_top(torch.zeros(3, 1), torch.zeros(3, 1)).any()
    assert not alone_at_top(torch.full((1, 2), math.nan), torch.zeros(1, 2)).any()
    assert alone_at_top(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 0.5]])).all()


RANK = st.integers(0, D_VOCAB - 1).map(float) | st.just(math.nan)
ROW = st.lists(RANK, min_size=4, max_size=4)


@given(own=ROW, draws=st.lists(ROW, min_size=5, max_size=5), alone=st.booleans())
def test_never_a_claim_that_the_control_has_too(own, draws, alone):
    text = said(places(own, alone=alone), [places(ranks) for ranks in draws])
    top = [layer for layer, rank in enumerate(own) if rank == 0]
    if CLAIM in text.partition("push ")[2]:
        assert alone and top
        assert not any(0 in ranks for ranks in draws)
    if not top or not alone:
        assert "in none push \u2423Graz down most" in text or "nor push \u2423Graz down most" in text
    # The model among its own draws is never set apart from them.
    assert CLAIM not in said(places(own, alone=alone), [places(own, alone=alone), *map(places, draws[1:])])


def test_random_networks_are_told_from_others_seldom():
    """As often as one in twenty, were it for chance; the ranks are those of words drawn at random."""
    random = torch.Generator().manual_seed(0)
    claims = 0
    for _ in range(400):
        rows = torch.randint(0, 8, (6, 4), generator=random).double()
        own, *draws = (Places(torch.full((1, 4), 7.0), row[None], torch.ones(1, 4) > 0, 8) for row in rows)
        claims += CLAIM in lens_sentence("a", "b", LAYERS, own, draws)
    assert claims <= 20


@pytest.mark.parametrize("world", worlds())
def test_a_random_model_and_its_own_control(world):
    model = build(world)
    lens = tlb.backward_lens(model, "w5 w6 w7 w8", "w9", k=3, control=RandomInit(n_draws=5, seed=3))
    assert CLAIM not in lens.summary().partition(" and push ")[2]
    own = next(RandomInit(seed=3).models(model))
    with pytest.warns(SameWeightsWarning, match="its own"):
        lens = tlb.backward_lens(own, "w5 w6 w7 w8", "w9", k=3, control=RandomInit(n_draws=5, seed=3))
    assert "none of 5" not in lens.summary()


def test_several_prompts():
    own = Places(torch.full((3, 2), 9.0), torch.tensor([[5.0, 0.0], [3.0, 0.0], [2.0, 1.0]]), torch.ones(3, 2) > 0, 10)
    other = Places(torch.full((3, 2), 9.0), torch.full((3, 2), 4.0), torch.ones(3, 2) > 0, 10)
    differs = torch.tensor([True, True, True])
    assert batch_sentence([0, 1], own, [other] * 5, differs) == (
        "Over 3 prompts, one step toward the prompt's own target would write it in layer 1 for 3 of 3 (untrained "
        "networks, each in its best layer: 3, so no clear difference) and push the old answer down most in layer 1 for "
        "2 of 3 (untrained networks, each in its best layer: 0)."
    )
    assert "too few to compare" in batch_sentence([0, 1], own, [other], differs)
    assert "old answer" not in batch_sentence([0, 1], own, [], ~differs)
    model = build(worlds()[0])
    lens = tlb.backward_lens(model, ["w5 w6 w7 w8 w9", "w10 w11"], ["w9", "w4"], k=3)
    alone = tlb.backward_lens(model, "w10 w11", "w4", k=3)
    assert lens.summary().startswith("Over 2 prompts") and lens.summary(1) == alone.summary()
    with pytest.raises(IndexError, match=r"Expected an example in \[0, 2\), got 2; the lens has 2 prompts"):
        lens.summary(2)


def test_a_target_of_several_tokens_is_named_whole():
    """Its ranks are those of the first token, which the sentence says."""
    model = tlb.load("facts")
    prompt, target = "Anna Berg lives in the city of", " Oslo in"
    lens = tlb.backward_lens(model, prompt, target)
    assert lens.target == " Oslo" and lens.whole_target == target and repr(target) in repr(lens)
    start = 'One step toward "␣Oslo in" would write its first token, ␣Oslo, in every layer and push ␣Graz down in '
    assert lens.summary().startswith(start)
    page = str(lens.page())
    assert start.replace('"', "&quot;") in page or start in page
    assert "␣Oslo in</span></b>, whose first token is <b>" in page
    several = tlb.backward_lens(model, [prompt, prompt], [target, " Oslo"])
    assert several.whole_target == [target, " Oslo"] and several.summary(0) == lens.summary()
    assert several.summary(1).startswith("One step toward ␣Oslo would write ␣Oslo in ")
    known = tlb.backward_lens(model, prompt, " Graz in").summary()
    assert known.startswith('The model already says ␣Graz, the first token of "␣Graz in", and one step toward it ')


def test_in_no_layer():
    """Each of the two words may stand at its end in no layer."""
    nothing, somewhere = [26.0, 11.0, 3.0, 2.0], [400.0] * 4
    draws = [places(ranks) for ranks in OUTSIDE]
    assert said(places(nothing), draws) == (
        "One step toward \u2423Oslo would write \u2423Oslo in every layer (all 5 untrained networks do that too), but in none "
        "push \u2423Graz down most."
    )
    assert said(places(OWN, somewhere), draws) == (
        "One step toward \u2423Oslo would push \u2423Graz down in layers 2 and 3 (none of 5 untrained networks does), but in "
        "none write \u2423Oslo before all other words (5 of 5 untrained networks do somewhere)."
    )
    assert said(places(nothing, somewhere), [places(ranks, somewhere) for ranks in OUTSIDE]) == (
        "One step toward \u2423Oslo would neither write \u2423Oslo before all other words nor push \u2423Graz down most in any "
        "layer."
    )
    assert "toward it would not write \u2423Oslo before all other words in any layer; no control" in said(
        places(nothing, somewhere), [], answer=" Oslo"
    )
    assert 'but in none push "." down most' in said(places(nothing), draws, answer=".")
    assert "for none of 2 in any layer" in batch_sentence(
        LAYERS, Places(torch.zeros(2, 4), torch.ones(2, 4), torch.ones(2, 4).bool(), D_VOCAB), [], torch.ones(2).bool()
    )
