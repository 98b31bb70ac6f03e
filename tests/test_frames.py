"""Frames take any token: pandas 3's own string dtype would refuse half of a surrogate pair."""

from dataclasses import replace

import pytest
import torch
from models import build, worlds

import tl_backward as tlb
from tl_backward.editing import edit_effect

LONE = "\ud83d"


class Halves:
    """A tokenizer, as far as reading goes, whose every token is half a character."""

    def convert_ids_to_tokens(self, token):
        return LONE

    def decode(self, tokens):
        return LONE * len(tokens)


@pytest.mark.parametrize("world", worlds())
def test_pairs_of_a_head(world):
    found = tlb.head_pairs(build(world), "VO", 0, 0, k=3, show_progress=False)
    frame = replace(found, tokenizer=Halves()).to_frame()
    assert frame["attended"].tolist() == frame["written"].tolist() == [LONE] * 3
    assert frame["score"].tolist() == found.pairs.values.tolist()


@pytest.mark.parametrize("world", worlds())
def test_lens_and_effect(world):
    model = build(world)
    lens = tlb.backward_lens(model, "w4 w5", "w6")
    lens = replace(lens, shift={layer: replace(read, tokenizer=Halves()) for layer, read in lens.shift.items()})
    assert (lens.to_frame().query("readout == 'shift'")["token"] == LONE).all()
    edit = tlb.shift_edit(model, "w4 w5", "w6", layer=0)
    effect = replace(edit_effect(model, edit, "w4 w5", k=2), tokenizer=Halves())
    assert set(effect.to_frame()["token"]) == {LONE}


@pytest.mark.parametrize("world", worlds())
def test_similarity(world):
    found = tlb.gradient_similarity(build(world), ["w3 w4 w5", "w6 w7 w8"], show_progress=False)
    found = replace(found, names_a=(LONE, "b"), names_b=(LONE, "b"))
    assert found.to_frame().index.tolist() == found.to_frame().columns.tolist() == [LONE, "b"]
    assert set(found.pairs(1)[["example_a", "example_b"]].iloc[0]) == {LONE, "b"}
    assert torch.equal(torch.tensor(found.to_frame().values), found.matrix)


def test_preimage():
    from tl_backward import inversion

    model = tlb.zoo.load("counting")
    found = inversion.pool_preimage(model, "aab|a:", ("resid_mid", 1), -1, ["aab|a:", "abb|a:"], show_progress=False)
    object.__setattr__(found.inputs, "texts", (LONE, "b"))
    assert found.to_frame()["text"].tolist() == [LONE, "b"]
