"""Where a subject stands, on tokenizers of every kind: the oracle goes through all spans of tokens."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import bridge
from shared import stories
from tokenizers_of_each_kind import KINDS, Slow

import tl_backward as tlb
from tl_backward.text.cases import EditCase
from tl_backward.text.extents import extents_in_text
from tl_backward.text.subjects import SubjectWarning, find_span, subject_spans

ALL = {name: make() for name, make in KINDS.items()}
LOSSLESS = [name for name in ALL if name.startswith(("byte", "sentence"))]


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def by_all_spans(tokenizer, ids, subject):
    """The shortest spans whose text holds the subject, as whole characters."""
    holds = [
        (start, end)
        for start in range(len(ids))
        for end in range(start + 1, len(ids) + 1)
        if subject in tokenizer.decode(ids[start:end])
    ]
    shorter = {(a, b) for a, b in holds for c, d in holds if (a, b) != (c, d) and a <= c and d <= b}
    return [span for span in holds if span not in shorter]


NAMES = st.sampled_from(
    ["São Paulo", "Zoë", "Zürich", "Niger", "Anna Berg", "Łódź", "東京", "Ærø", "O'Neill", "é", "🙂", "Oslo 1984"]
)
OTHERS = st.lists(
    st.sampled_from(["lives", "in", "the", "rent", "über", "1984", "naïve", "日本", "🙂🙂", "re", "."]), max_size=4
)


@pytest.mark.parametrize("how", ["text", "ids", "slow"])
@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=50, deadline=None)
@given(subject=NAMES, before=OTHERS, after=OTHERS)
def test_the_span_is_the_shortest_that_holds_the_subject(name, how, subject, before, after):
    tokenizer, text = ALL[name], " ".join([*before, subject, *after])
    assume(text.count(subject) == 1)
    ids = ids_of(tokenizer, text)
    found = find_span(Slow(tokenizer) if how == "slow" else tokenizer, ids, subject, None if how == "ids" else text)
    assert [found] == by_all_spans(tokenizer, ids, subject), tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["Niger", "Nigerian", "here", "there", "the", "rent", "Paul", "Paulo"]), min_size=1, max_size=6
    ),
    at=st.data(),
)
def test_whole_words_come_first_and_several_are_said(name, words, at):
    """Of words with a space between, each one's tokens are those that begin or end within it."""
    tokenizer, text = ALL[name], " ".join(words)
    subject = at.draw(st.sampled_from(words))
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    first = words.index(subject)
    start = sum(len(word) + 1 for word in words[:first])
    inside = set(range(start, start + len(subject)))
    own = [
        k
        for k, (a, b) in enumerate(encoded["offset_mapping"])
        if inside & set(range(a, b)) and tokenizer.convert_ids_to_tokens(encoded["input_ids"][k]) not in ("▁", "Ġ")
    ]
    for each in (tokenizer, Slow(tokenizer)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert find_span(each, encoded["input_ids"], subject, text) == (own[0], own[-1] + 1)
        assert [one.category for one in caught] == [SubjectWarning] * (words.count(subject) > 1)


@pytest.mark.parametrize("name", ALL)
def test_the_reported_cases(name):
    tokenizer = ALL[name]
    text = " Nigerian and Niger"
    ids = ids_of(tokenizer, text)
    start, end = find_span(tokenizer, ids, "Niger", text)
    assert end == len(ids) and tokenizer.decode(ids[start:]).replace(" ", "").lower() == "niger"
    for each in (tokenizer, Slow(tokenizer)):
        with pytest.raises(ValueError, match="Expected the subject to occur in the prompt"):
            find_span(each, ids_of(tokenizer, "the rent"), "here", "the rent")
    with pytest.warns(SubjectWarning, match="only within a longer word"):
        find_span(tokenizer, ids_of(tokenizer, "the Paulo"), "Paul", "the Paulo")


def test_a_tokenizer_that_lowers_finds_both_spellings():
    lower, cased = ALL["word pieces"], ALL["byte-level"]
    for subject in ("Zoë", "zoe", "ZOE"):
        for text in ("in Zoë lives", None):
            ids = ids_of(lower, "in Zoë lives")
            assert find_span(lower, ids, subject, text) == by_all_spans(lower, ids, "zoe")[0]
    with pytest.raises(ValueError, match="occur"):
        find_span(cased, ids_of(cased, "in Oslo"), "oslo", "in Oslo")


def test_composed_and_decomposed_are_one():
    tokenizer = ALL["byte-level"]
    text = "in Sa\u0303o Paulo the"
    assert find_span(tokenizer, ids_of(tokenizer, text), "S\u00e3o  Paulo", text)[0] == len(ids_of(tokenizer, "in "))
    assert EditCase(text, " x", subject="S\u00e3o Paulo").subject == "S\u00e3o Paulo"
    with pytest.raises(ValueError, match="Expected the subject within the prompt"):
        EditCase(text, " x", subject="Rio")


def test_special_tokens_and_other_ids_have_no_characters():
    tokenizer = ALL["sentencepiece, dummy prefix"]
    ids = [tokenizer.bos_token_id, *ids_of(tokenizer, "Zoë"), tokenizer.eos_token_id]
    assert extents_in_text(tokenizer, ids, "Zoë")[:2] == [(0, 0), (0, 0)] and extents_in_text(tokenizer, ids, "Zoë")[
        -1
    ] == (3, 3)
    assert find_span(tokenizer, ids, "Zoë", "Zoë") == find_span(tokenizer, ids, "Zoë") == (2, len(ids) - 1)
    assert extents_in_text(tokenizer, ids, "Anna") is None  # ids of another text


def test_spans_and_refusals():
    tokenizer = ALL["byte-level"]
    rows = [ids_of(tokenizer, "Anna lives"), ids_of(tokenizer, "Oslo")]
    assert subject_spans(tokenizer, rows, None, [(0, 1), None]) == [(0, 1), None]
    assert subject_spans(None, rows, None, (0, 1)) == [(0, 1)] * 2
    for span in ((0, 9), (1, 1), (-1, 1)):
        with pytest.raises(ValueError, match="Expected a subject span within"):
            find_span(tokenizer, rows[0], span)
    with pytest.raises(ValueError, match="Expected a model with a tokenizer"):
        find_span(None, rows[0], "Anna")
    with pytest.raises(ValueError, match="Expected one subject, or one for each of 2"):
        subject_spans(tokenizer, rows, None, ["Anna"] * 3)


@pytest.mark.parametrize("subject", ["São Paulo", "Zoë", "Lily"])
def test_stories(subject):
    """On the real one: a lens's segments, of text and of ids, alone and in a batch, and a sweep's."""
    model = stories()
    prompt = f"One day {subject} went to the park"
    ids = model.to_tokens(prompt)
    oracle = by_all_spans(model.tokenizer, ids[0].tolist(), subject)
    lenses = [
        tlb.backward_lens(model, given, " and", layers=0, subject=subject)
        for given in (prompt, ids[0], [prompt, prompt + " with"])
    ]
    for lens in lenses:
        places = (lens.segments.masks()["subject"][0]).nonzero().flatten().tolist()
        assert [(places[0], places[-1] + 1)] == oracle
    control = tlb.backward_lens(model, prompt, " and", layers=0, subject=subject, control="random_init").control
    assert torch.equal(control.segments.codes, lenses[0].segments.codes)
    swept = tlb.sweep(
        model, [prompt], [" and"], subjects=[subject], weights=["W_out"], control=None, show_progress=False
    )
    same = tlb.sweep(model, [prompt], [" and"], subjects=oracle, weights=["W_out"], control=None, show_progress=False)
    torch.testing.assert_close(swept.values["norm"], same.values["norm"], equal_nan=True)


def test_a_subject_of_the_target_is_not_the_prompts():
    tokenizer = ALL["byte-level"]
    model = bridge("gpt2", torch.float64, vocab_size=len(tokenizer))
    model.tokenizer = tokenizer
    ids = torch.tensor([ids_of(tokenizer, "the rent in")])
    with pytest.raises(ValueError, match="occur in the prompt"):
        tlb.backward_lens(model, ids, " Niger Oslo", layers=0, subject="Niger")


@pytest.mark.parametrize("of", [tuple, list, np.array, pd.Series])
def test_subjects_in_whatever_holds_several(of):
    """Texts and spans of lists, arrays and a table's columns are one; what has no order is none."""
    model = tlb.zoo.load("facts")
    prompt, name, places = "Anna Berg lives in the city of", "Anna Berg", [1, 3]
    codes = tlb.backward_lens(model, prompt, " Oslo", subject=name).segments.codes
    given = of(places)
    assert torch.equal(tlb.backward_lens(model, prompt, " Oslo", subject=given).segments.codes, codes)
    mixed = [[of(places), name], [range(1, 3), torch.tensor(places)]]
    for subjects in (of([name] * 2), of(places), range(1, 3), *mixed):
        two = tlb.backward_lens(model, [prompt] * 2, " Oslo", subject=subjects).segments.codes
        assert torch.equal(two, codes.reshape(1, -1).expand(2, -1))
    assert tlb.editing.neighbour_prompts(model, prompt, given, k=1) == tlb.editing.neighbour_prompts(
        model, prompt, name, k=1
    )
    swept = [
        tlb.sweep(model, [(prompt, " Oslo")], subjects=each, control=None, show_progress=False)
        for each in (of([name]), [given])
    ]
    torch.testing.assert_close(*(one.values["norm"] for one in swept), equal_nan=True)
    for none in ({1, 3}, {1: 3}, range(1, 5, 2), [1, 2, 3]):
        with pytest.raises(TypeError, match="Expected a subject as text that occurs"):
            subject_spans(None, [range(8)], None, none)
