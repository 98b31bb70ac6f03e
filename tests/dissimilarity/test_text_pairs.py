"""Which tokens of two tokenizers have read the same text, and what is said about texts, for tokenizers of every kind."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import D_VOCAB, bridge, build, worlds
from tokenizers_of_each_kind import KINDS, WORDS, Slow, letters, sentencepiece

import tl_backward as tlb
from tl_backward.dissimilarity.tokens import _unknown
from tl_backward.text.data import TextSource, batches_of
from tl_backward.text.extents import token_ends
from tl_backward.text.options import TextOptions

QUIET = dict(show_progress=False, permutations=0)
TEXTS = st.lists(st.sampled_from([*WORDS, "1984", "São", "Zoë", "nnn", "Xi", "-"]), min_size=1, max_size=5)
MADE = {kind: make() for kind, make in KINDS.items()}


def squeezed(text):
    return "".join(text.split()).lower()


@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(words=TEXTS, space=st.booleans(), begun=st.booleans())
def test_a_token_ends_where_the_text_before_it_does(kind, slow, words, space, begun):
    """Decoding the first k tokens is the oracle; spaces and cases aside, which some tokenizers drop."""
    tokenizer, text = MADE[kind], " " * space + " ".join(words)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.unk_token_id in ids or squeezed(tokenizer.decode(ids)) != squeezed(text):
        return  # a text that this tokenizer does not keep
    start = [tokenizer.bos_token_id] * (begun and tokenizer.bos_token_id is not None)
    ends = token_ends(Slow(tokenizer) if slow else tokenizer, start + ids, text)
    assert len(ends) == len(start + ids) and ends[: len(start)] == [0] * len(start)
    before, last = "", 0
    for k, end in enumerate(ends[len(start) :], 1):
        read = squeezed(tokenizer.decode(ids[:k]))
        whole = read.rstrip("\N{REPLACEMENT CHARACTER}")
        if end is None:
            assert read == before, "it stands for nothing in the text"
        elif whole == read:
            assert whole == squeezed(text[:end])
        else:  # within the bytes of a character; those of several in a row may all show as incomplete
            assert squeezed(text[: end - 1]).startswith(whole) and end >= last
        last = end or last
        before = read


def test_a_space_before_the_text_is_not_its_first_letter():
    ends = token_ends(sentencepiece(True), [1, *sentencepiece(True).encode("1984", add_special_tokens=False)], "1984")
    assert ends == [0, None, 1, 2, 3, 4]


def test_unknown_tokens_are_those_the_text_does_not_name():
    tokenizer = letters()
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in ("Anna", "A?na", "??")]
    assert _unknown(tokenizer, ["Anna", "A?na", "??"], rows) == 3
    byte = MADE["byte-level"]
    named = "Anna<|endoftext|>Berg"
    row = [byte.bos_token_id, *byte.encode(named, add_special_tokens=False)]
    assert row.count(byte.unk_token_id) == 2 and _unknown(byte, [named], [row]) == 0


def test_two_beginnings_are_said_once():
    a, b = build(worlds()[0]), bridge("llama")
    bos = a.tokenizer.bos_token
    texts = [f"{bos} w{3 + i} w{4 + i} w5" for i in range(8)]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        tlb.dissimilarity.compare(a, b, texts, text_options=TextOptions(batch_size=2, exclude_first=True), **QUIET)
    said = [each for each in heard if "second one" in str(each.message)]
    assert len(said) == 1 and said[0].filename == __file__


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, np.int32, np.uint16, np.int64])
@pytest.mark.parametrize("how", ["whole", "rows", "pairs", "columns"])
def test_token_ids_of_every_kind(dtype, how):
    ids = torch.randint(3, D_VOCAB, (6, 5), generator=torch.Generator().manual_seed(0))
    given_ids = ids.to(dtype) if isinstance(dtype, torch.dtype) else ids.numpy().astype(dtype)
    ones = torch.ones(6, 5) if isinstance(dtype, torch.dtype) else np.ones((6, 5))
    data = {
        "whole": lambda: given_ids,
        "rows": lambda: list(given_ids),
        "pairs": lambda: [(given_ids[i : i + 2], ones[i : i + 2]) for i in (0, 2, 4)],
        "columns": lambda: [{"input_ids": row} for row in given_ids],
    }[how]()
    read = torch.cat([batch.tokens for batch in batches_of(data, 8)])
    assert read.dtype == torch.int64 and torch.equal(read, ids)


@pytest.mark.parametrize("missing", [None, 3, ["a"]])
def test_a_row_without_a_text_is_refused(missing):
    rows = [{"text": "w5 w6"}, {"text": missing}]
    with pytest.raises(TypeError, match=r"Expected texts, or rows with a text under 'text', got \{'text': "):
        list(batches_of(rows, 1))
    with pytest.raises(TypeError, match="Expected texts, or rows with a text under 'text'"):
        list(TextSource(rows, n_held_out=1))


def test_a_mask_of_another_shape_is_refused():
    batch = {"input_ids": [[3, 4], [5, 6]], "attention_mask": [[1, 1, 1, 0]]}
    with pytest.raises(ValueError, match=r"attention_mask of the tokens' shape \[2, 2\], got \[1, 4\]"):
        list(batches_of([batch], 8))


@pytest.mark.parametrize(
    "wrong", [np.float32(1.0), np.array(3), torch.tensor(3), np.zeros((2, 3)), torch.zeros(2, 3) > 1]
)
def test_what_is_no_ids_is_refused(wrong):
    with pytest.raises(TypeError, match="Expected data as a list of texts|Expected integer tokens"):
        list(batches_of(wrong, 8))
