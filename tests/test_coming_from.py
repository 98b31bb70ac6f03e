"""The figures of docs/coming-from.md, measured."""

from pathlib import Path

import pytest
import torch

import tl_backward as tlb

PROMPT = "Anna Berg lives in the city of"
PAGE = (Path(__file__).parents[1] / "docs/coming-from.md").read_text()
COUNTING = Path(__file__).parents[2] / "shared/models/inversionview-counting"
PROCESSING = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}


@pytest.fixture(scope="module")
def model():
    return tlb.zoo.load("facts")


def says(*figures):
    return all(figure in PAGE for figure in figures)


def test_bos(model):
    losses = [float(tlb.backward_lens(model, PROMPT, " Oslo", prepend_bos=bos).loss) for bos in (None, False)]
    assert [f"{loss:.2f}" for loss in losses] == ["5.99", "5.46"] and says("5.99", "5.46")


def test_a_target_of_several_tokens(model):
    lens = tlb.backward_lens(model, PROMPT, " Oslo.")
    first, last = lens.cache.bound.ids[0]
    with torch.no_grad():
        nats = -model(model.to_tokens(PROMPT))[0, -1].log_softmax(-1)
    at = int(lens.answer_position)
    figures = [float(lens.loss), float(nats[first]), float(nats[last]), float(nats[first] + nats[last])]
    assert [f"{value:.2f}" for value in figures] == ["2.99", "5.99", "8.52", "14.51"]
    assert says("2.99", "5.99 + 8.52 = 14.51")
    assert repr(lens).count("target=' Oslo.'") == 1 and lens.target == " Oslo"
    # Ranks are the first token's, at the prompt's end.
    shift = lens.cache.factors["W_out", 3].deltas[0, at]
    for word, rank in ((first, 424), (last, 194)):
        assert int(tlb.readout(model, shift, target=word).target_rank) == rank, word
    assert int(lens.shift[3].target_rank[at]) == 424 and says("424", "194")


def test_zero_vjps(model):
    read = tlb.backward_lens(model, PROMPT, " Oslo").shift[3]
    assert read.is_zero.tolist() == [True] * 7 + [False] and read.target_rank.tolist() == [-1] * 7 + [424]
    assert says("7 of the 8")


def test_a_ball_depends_on_the_processing():
    if not COUNTING.is_dir():
        pytest.skip("needs ../shared/models/inversionview-counting")
    query = "vvzccvczvvvzvcvc|v:"
    texts = list(dict.fromkeys([query, *tlb.zoo.counting.prompts(500, seed=0)]))[:500]
    inside = [
        int(tlb.inversion.pool_preimage(model, query, ("result", 1, 0), -1, texts, show_progress=False).inside.sum())
        for model in (tlb.load(str(COUNTING), processing=processing) for processing in (PROCESSING, None))
    ]
    assert inside == [67, 3] and says("67", "3 of 500")
