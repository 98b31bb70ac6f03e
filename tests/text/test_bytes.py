"""What a token is shown as, and which tokens of two vocabularies are one: byte for byte."""

import string
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import stories
from tokenizers_of_each_kind import byte_level, sentencepiece

from tl_backward.alignment import vocabularies
from tl_backward.embedding_space.options import is_ascii
from tl_backward.text.token_strings import _named_bytes, token_string

GPT2, LLAMA = byte_level(), sentencepiece(True)


def test_a_lone_byte_is_named():
    from tokenizers.pre_tokenizers import ByteLevel

    (letter,) = {piece for piece in ByteLevel.alphabet() if piece == "é"}
    assert token_string(GPT2, GPT2.convert_tokens_to_ids(letter)) == "<0xE9>"
    assert token_string(LLAMA, LLAMA.convert_tokens_to_ids("<0xE9>")) == "<0xE9>"
    for byte in range(128):
        text = bytes([byte]).decode()
        (token,) = GPT2.encode(text, add_special_tokens=False)
        assert token_string(GPT2, token) == text


def test_a_byte_whose_letter_is_a_token_is_named():
    letter, byte = (LLAMA.convert_tokens_to_ids(piece) for piece in ("A", "<0x41>"))
    assert token_string(LLAMA, letter) == "A" and token_string(LLAMA, byte) == "<0x41>"
    assert token_string(LLAMA, LLAMA.convert_tokens_to_ids("<0x0A>")) == "\n"


def alphabet():
    """The letter of each byte, learnt from the tokenizer: UTF-8 of characters that hold it."""
    found = {}
    for code in [*range(0x20, 0x800), *range(0x800, 0x10000, 0x40), *range(0x10000, 0x110000, 0x1000)]:
        if not 0xD800 <= code < 0xE000:
            pieces = "".join(GPT2.convert_ids_to_tokens(GPT2.encode(chr(code), add_special_tokens=False)))
            found |= dict(zip(chr(code).encode(), pieces, strict=True))
    return found


LETTER_OF = alphabet()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=8), st.text(max_size=4).map(lambda text: text.encode()[1:])))
def test_any_bytes(data):
    """Bytes that never stand in UTF-8 (C0, C1, F5 on) have no letter that an encoding shows."""
    data = bytes(byte for byte in data if byte in LETTER_OF)
    piece, text = "".join(LETTER_OF[byte] for byte in data), data.decode(errors="replace")
    if "\ufffd" not in text or "\ufffd".encode() in data:
        return
    expected = "".join(
        f"<0x{ord(char) - 0xDC00:02X}>" if 0xDC80 <= ord(char) < 0xDD00 else char
        for char in data.decode(errors="surrogateescape")
    )
    assert _named_bytes(piece, text) == expected


class WithTokenizer(torch.nn.Module):
    """What a map asks of a model."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.W_U = tokenizer, torch.zeros(8, len(tokenizer))
        self.cfg = SimpleNamespace()


@pytest.fixture
def any_model(monkeypatch):
    monkeypatch.setattr(vocabularies, "model_kind", lambda model: "stand-in")


def pairs(tokenizer_a, tokenizer_b):
    """The map as pairs of pieces."""
    found = vocabularies.token_map(WithTokenizer(tokenizer_a), WithTokenizer(tokenizer_b))
    return {
        (tokenizer_a.convert_ids_to_tokens(a), tokenizer_b.convert_ids_to_tokens(b))
        for a, b in zip(found.ids_a.tolist(), found.ids_b.tolist(), strict=True)
    }


def test_a_byte_is_no_letter_of_the_other_vocabulary(any_model):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"é": 0, "A": 1, "[UNK]": 2, "<0xE9>": 3}, unk_token="[UNK]"))
    core.decoder = decoders.Fuse()
    other = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert pairs(GPT2, other) == {("A", "A"), ("é", "<0xE9>")}
    found = pairs(LLAMA, GPT2)
    assert ("<0xE9>", "é") in found and ("A", "A") in found
    assert not [
        pair
        for pair in found
        if (len(pair[0]) == 6 and pair[0].startswith("<0x"))
        and int(pair[0][3:5], 16) in range(33, 127)
        and chr(int(pair[0][3:5], 16)) in LLAMA.get_vocab()
    ]


def test_a_lone_byte_is_no_ascii():
    for text, expected in ((" <0xE2>", False), ("<0xE2><0x82>", False), ("<0x41>", True), ("é", False), (" A", True)):
        assert is_ascii(text) == expected
    for token in range(len(GPT2)):
        piece = GPT2.convert_ids_to_tokens(token)
        assert is_ascii(token_string(GPT2, token)) == all(
            char.isascii() or char in "ĠĊ" or ord(char) >= 256 and ord(char) < 256 + 34 for char in piece
        ), piece


def test_stories_and_bytes(any_model):
    tokenizer = stories().tokenizer
    found = pairs(tokenizer, GPT2)
    letters = {char for char in string.ascii_letters if char in tokenizer.get_vocab()}
    assert letters and {(char, char) for char in letters} <= found
