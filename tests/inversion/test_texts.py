"""Texts and tokens in, positions found: as the model's own to_tokens has them, whichever side is padded."""

import re

import pytest
import torch
from models import N_CTX, build, tokenizer, worlds

from inversion.tiny import cached
from tl_backward.inversion.positions import find_position, find_positions
from tl_backward.text.encoded import decode, encode, encode_rows
from tl_backward.text.prompts import Batch

every_world = pytest.mark.parametrize("world", worlds())
TEXTS = ["w5 w6 w7", "w3", "w9 w9 w8 w7", "w41 w40", "w3 w4 w5 w6 w7 w8", "w11", "w12 w13", "w14 w15 w16", "w6 w5"]


@every_world
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("n", [3, 9])  # one by one, and in one go
def test_as_to_tokens(world, side, prepend_bos, n):
    model = build(world)
    model.tokenizer.padding_side = side
    texts = encode(model, TEXTS[:n], prepend_bos=prepend_bos)
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    for index, text in enumerate(TEXTS[:n]):
        assert texts.row(index) == model.to_tokens(text, **options)[0].tolist()
        assert texts.text(index) == text
        assert texts.tokens[index, len(texts.row(index)) :].sum() == 0
    assert texts.lengths.tolist() == texts.mask.sum(1).tolist()
    assert len(texts) == n and "Encoded(" in repr(texts)
    assert texts.select(torch.tensor([2, 1])).texts == (TEXTS[2], TEXTS[1])


@every_world
def test_batches_of_tokens_padded_on_either_side(world):
    model = cached(world)
    rows = [[0, 5, 6, 7], [0, 3], [0, 9, 9, 8, 7]]
    left, right = torch.full((3, 6), 1), torch.full((3, 6), 1)
    for index, row in enumerate(rows):
        left[index, 6 - len(row) :] = right[index, : len(row)] = torch.tensor(row)
    for tokens in (left, right):
        texts = encode(model, Batch(tokens, tokens != 1))
        assert [texts.row(index) for index in range(3)] == rows
        assert texts.tokens.shape == (3, 5) and not texts.tokens[1, 2:].any()
    assert encode(model, torch.tensor(rows[0])[None]).texts == ("w5 w6 w7",)
    assert encode_rows(model, rows).texts == ("w5 w6 w7", "w3", "w9 w9 w8 w7")
    assert encode(model, texts) is texts
    decoded = encode_rows(model, rows)
    assert decoded.texts == tuple(decode(model.tokenizer, row) for row in rows) == tuple(map(decoded.text, range(3)))


def test_texts_from_an_iterator_and_without_a_tokenizer():
    model = build("bridge")
    assert encode(model, iter(TEXTS)).texts == tuple(TEXTS)
    model.tokenizer = None
    assert encode(model, torch.tensor([[0, 7]])).texts == ("[0][7]",)
    assert decode(None, []) == ""


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], ValueError, "Expected at least one text, got none; the list, or the generator behind it, is empty."),
        (iter(()), ValueError, "Expected at least one text, got none"),
        ("w3 w4", TypeError, "Expected inputs as a list of texts or a tensor of tokens [text, pos], got one text"),
        (["w3", ""], ValueError, "Expected texts of at least one character, got an empty one as text 1"),
        (["w3", "w4 " * N_CTX], ValueError, f"Expected at most n_ctx={N_CTX} tokens in every text, got {N_CTX + 1} in text 1 ('w4 w4"),
        (torch.tensor([[0, 50]]), ValueError, "Expected token ids in [0, 50), got 0 to 50"),
        (torch.tensor([[0, -1]]), ValueError, "Expected token ids in [0, 50), got -1 to 0"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, "Expected at least one token in every text, got 0 in text 0"),
    ],
)  # fmt: skip
def test_refused(inputs, error, message):
    with pytest.raises(error, match=re.escape(message)):
        encode(cached("bridge"), inputs)


def test_text_needs_a_tokenizer_and_unknown_words_are_told():
    model = build("bridge")
    with pytest.warns(
        UserWarning,
        match="2 texts have words that are not in the model's vocabulary and are read as unknown: 'nothing', 'nil'",
    ):
        encode(model, ["w3", "nothing", "w4 nil"])
    model.tokenizer = None
    with pytest.raises(ValueError, match="Expected a model with a tokenizer, got text for one without"):
        encode(model, ["w3"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions(side):
    model = build("bridge")
    model.tokenizer = tokenizer(side)
    texts = encode(model, TEXTS)
    lengths = texts.lengths.tolist()
    assert find_positions(texts, -1).tolist() == [n - 1 for n in lengths]
    assert find_positions(texts, 0).tolist() == [0] * len(TEXTS)  # BOS is counted
    assert find_positions(texts, 3).tolist() == [3 if n > 3 else -1 for n in lengths]
    assert find_positions(texts, -3).tolist() == [n - 3 if n >= 3 else -1 for n in lengths]
    assert find_positions(texts, "w9").tolist() == [-1, -1, 2] + [-1] * 6  # the last of two
    assert find_positions(texts, "w49").tolist() == [-1] * 9
    before_last = find_positions(texts, lambda text, tokens: len(tokens) - 2 if text.startswith("w5") else None)
    assert before_last.tolist() == [2] + [-1] * 8
    assert find_position(texts.select(torch.tensor([2])), "w9") == 2


@pytest.mark.parametrize(
    ("position", "error", "message"),
    [
        (4, ValueError, "Expected a position in the query's 4 tokens ['<bos>', 'w5', 'w6', 'w7'], got 4; give an index in [-4, 4)"),
        (-5, ValueError, "got -5"),
        ("w8", ValueError, "got 'w8'"),
        (lambda text, tokens: None, ValueError, "got nowhere, or outside"),
        (lambda text, tokens: 1 / 0, ValueError, "got ZeroDivisionError: division by zero for text 0 ('w5 w6 w7')"),
        (lambda text, tokens: "w5", ValueError, "to give an index or None, got 'w5' for text 0"),
        (True, TypeError, "Expected a position as an index"),
    ],
)  # fmt: skip
def test_positions_refused(position, error, message):
    with pytest.raises(error, match=re.escape(message)):
        find_position(encode(cached("bridge"), TEXTS[:1]), position)
