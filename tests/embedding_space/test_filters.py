"""Token filters against the tokenizer's own word for every token."""

import pytest
import tokenizers_of_each_kind
import torch
from models import build, worlds
from shared import stories
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import tl_backward as tlb
from tl_backward.embedding_space import VectorOptions, token_mask, without_bytes
from tl_backward.embedding_space.options import is_no_byte
from tl_backward.text.token_strings import token_string

every_world = pytest.mark.parametrize("world", worlds())


WORDS = ["<bos>", " cat", "caf\u00e9", "3", "\u0414\u0430", "...", " ", "<0x41>", "<0xE2>", "a b", "\u00b2", "Dog"]


@pytest.fixture(params=worlds())
def strange(request):
    """A model whose tokenizer has a token of every kind a filter should tell apart."""
    model = build(request.param)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", name_or_path="tests/strange", add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    assert [tokenizer.decode([i]) for i in range(12)] == WORDS
    model.tokenizer = tokenizer
    return model


def kept(model, **options):
    return token_mask(model, **options).nonzero().flatten().tolist()


def test_each_filter(strange):
    padding = list(range(12, 50))  # shown as [12], [13] ...
    assert kept(strange, filters="ascii") == [0, 1, 3, 5, 6, 7, 9, 11, *padding]
    assert kept(strange, filters="alphanumeric") == [1, 2, 3, 4, 10, 11]
    assert kept(strange, filters="not_special") == list(range(1, 12))
    assert kept(strange, filters=lambda text: text.startswith(" ")) == [1, 6]
    assert kept(strange, tokens=[3, 1, 11]) == [1, 3, 11]
    assert kept(strange, tokens=torch.tensor([2, 2])) == [2]


def test_they_compose(strange):
    assert kept(strange, filters=["ascii", "alphanumeric", "not_special"]) == [1, 3, 11]
    assert kept(strange, filters=["alphanumeric"], tokens=[0, 1, 2, 5]) == [1, 2]
    assert token_mask(strange) is None


@every_world
def test_words_and_strings(world):
    model = build(world)
    assert kept(model, tokens=["w7", "w30", 4]) == [4, 7, 30]
    special = model.tokenizer.all_special_ids
    assert kept(model, filters="not_special") == [i for i in range(50) if i not in special]


@pytest.mark.parametrize("kind", worlds())
def test_stories(kind):
    """Byte fallback: the bytes of ASCII pass, those of longer characters do not."""
    model = stories(kind)
    mask = token_mask(model, filters=["ascii", "not_special"])
    for i in range(model.cfg.d_vocab):
        piece = model.tokenizer.convert_ids_to_tokens(i)
        if piece.startswith("<0x"):
            assert mask[i] == (int(piece[3:5], 16) < 128)
        elif i in model.tokenizer.all_special_ids:
            assert not mask[i]
        else:
            assert mask[i] == piece.replace("\u2581", " ").isascii()
    found = tlb.project_parameter(
        model, "W_in", 2, k=4, vector_options=VectorOptions(filters=["ascii", "alphanumeric"]), show_progress=False
    )
    assert all(token.strip().isalnum() and token.isascii() for row in found.top_tokens for token in row)


def test_control_characters_are_bytes_too():
    """Where no other token has them they show as what they are; lines and tabs are in texts."""
    tokenizer = tokenizers_of_each_kind.sentencepiece(True)
    model = build(worlds()[0])
    model.tokenizer = tokenizer
    left_out = {"\x1f", "\x00", "\x12", "\r", "\x7f"}
    assert {is_no_byte(text) for text in left_out} == {False} and is_no_byte("\n") and is_no_byte("\t")
    assert is_no_byte("a\x00") and is_no_byte(" ") and is_no_byte("\r\n")
    assert token_string(tokenizer, tokenizer.convert_tokens_to_ids("<0x1F>")) == "\x1f"
    mask = token_mask(model, filters=without_bytes(model)[0])
    shown = {token_string(tokenizer, i) for i in mask.nonzero().flatten().tolist()}
    assert "\n" in shown and not shown & left_out


@every_world
def test_bad_input(world):
    model = build(world)
    with pytest.raises(
        ValueError,
        match="Expected filters that leave at least one token, got tokens=all and filters=.*, which leave none of 50",
    ):
        token_mask(model, filters=lambda text: False)
    with pytest.raises(ValueError, match="tokens=a list and filters=.*, which leave none of 50; loosen them"):
        token_mask(model, tokens=[0], filters="not_special")
    with pytest.raises(ValueError, match="tokens=a list and filters=.*, which leave none"):
        token_mask(model, tokens=[])
    with pytest.raises(
        ValueError, match="Expected a filter's name or a predicate on text, got 'asci'; the nearest are 'ascii'"
    ):
        token_mask(model, filters="asci")
    with pytest.raises(ValueError, match=r"Expected a token id in \[0, 50\), got 50"):
        token_mask(model, tokens=[50])
    with pytest.raises(ValueError, match="Expected one token, got 'w3 w4', which is 2"):
        token_mask(model, tokens=["w3 w4"])
    model.tokenizer = None
    with pytest.raises(ValueError, match="Expected a model with a tokenizer for the filter 'ascii', got one without"):
        token_mask(model, filters="ascii")
