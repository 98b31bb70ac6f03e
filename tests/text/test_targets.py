"""Targets and unknown words: right on tokenizers of every kind, the tokenizer itself being the oracle."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import bridge
from shared import stories
from tokenizers_of_each_kind import KINDS, WORDS, Encodes, Slow, sentencepiece

import tl_backward as tlb
from tl_backward._support.checks import UnknownWordsWarning
from tl_backward.gradients.losses import target_loss
from tl_backward.text.encoded import encode
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.prompts import encode_prompts
from tl_backward.text.token_strings import reads_unknown, unknown_words

ALL = {name: make() for name, make in KINDS.items()}
WITH_SPACES = [name for name in ALL if name.startswith(("byte", "sentence", "unigram"))]
SPACED = [
    name
    for name in WITH_SPACES
    if name not in ("byte-level, space before", "sentencepiece, dummy prefix", "unigram, always", "unigram, first")
]


def test_a_year_keeps_its_space_where_the_tokenizer_adds_none():
    gemma, llama = ALL["sentencepiece, none"], ALL["sentencepiece, dummy prefix"]
    pieces = [
        tokenizer.convert_ids_to_tokens(encode_continuation(Encodes(tokenizer), " 1984"))
        for tokenizer in (gemma, llama)
    ]
    assert pieces == [["▁", "1", "9", "8", "4"]] * 2
    assert gemma.convert_ids_to_tokens(encode_continuation(Encodes(gemma), "1984")) == ["1", "9", "8", "4"]


@pytest.mark.parametrize("name", WITH_SPACES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_target_is_what_follows_a_prompt(name, data):
    """Where one token ends with the prompt, the target's ids are the rest of the ids of both together."""
    tokenizer, characters = ALL[name], st.sampled_from("0123456789")
    word = data.draw(st.one_of(st.sampled_from(WORDS), st.text(characters, min_size=1, max_size=5)))
    target, prompt = (
        " " * data.draw(st.integers(1, 3)) + word,
        data.draw(st.sampled_from(["Anna lives in", "the rent", "there"])),
    )
    both, before = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt + target, prompt))
    if both[: len(before)] == before:
        assert encode_continuation(Encodes(tokenizer), target) == both[len(before) :], tokenizer.convert_ids_to_tokens(
            both
        )
    slow = Slow(tokenizer)
    assert encode_continuation(Encodes(slow), target) == encode_continuation(Encodes(tokenizer), target)


@pytest.mark.parametrize("name", SPACED)
def test_with_and_without_a_space_differ_where_the_tokenizer_says_so(name):
    model = Encodes(ALL[name])
    for word in (*WORDS, "1984", "17"):
        assert encode_continuation(model, word) != encode_continuation(model, " " + word)
        assert model.tokenizer.decode(encode_continuation(model, " " + word)).lstrip() == word


def test_a_lone_space_is_one_token():
    for name in ("sentencepiece, none", "sentencepiece, dummy prefix", "byte-level"):
        assert len(encode_continuation(Encodes(ALL[name]), " ")) == 1


def test_the_loss_is_that_of_the_space_and_the_digits():
    tokenizer = sentencepiece(dummy_prefix=False)
    model = bridge("gpt2", torch.float64, vocab_size=len(tokenizer))
    model.tokenizer = tokenizer
    ids = tokenizer.convert_tokens_to_ids(["▁", "1", "9", "8", "4"])
    prompt = tokenizer.convert_tokens_to_ids(["<s>", "in"])
    value, _ = tlb.run_with_gradient_cache(model, torch.tensor([prompt]), target_loss(" 1984"), weights="W_out")
    logits = model(torch.tensor([prompt + ids[:-1]]))[0, len(prompt) - 1 :].log_softmax(-1)
    assert float(value) == pytest.approx(
        -float(logits.gather(1, torch.tensor(ids)[:, None]).mean().detach()), abs=1e-12
    )


@pytest.mark.parametrize("target", [" 1984", " Lily", "  3", " "])
def test_a_real_llama_tokenizer(target):
    model = stories()
    ids = encode_continuation(model, target)
    both = model.tokenizer.encode("It was" + target, add_special_tokens=False)
    assert both[-len(ids) :] == ids and model.tokenizer.decode(both[: -len(ids)]) == "It was"


def test_what_is_unknown_and_what_is_named():
    gpt2, words = Encodes(ALL["byte-level"]), Encodes(ALL["words"])
    assert encode_continuation(gpt2, "<|endoftext|>") == [gpt2.tokenizer.unk_token_id] == [gpt2.tokenizer.bos_token_id]
    assert encode_continuation(words, "[UNK]") == [0]
    for text in (" Atlantis", "[UNK] Atlantis"):
        with pytest.raises(ValueError, match="contains an unknown word"):
            encode_continuation(words, text)
    assert unknown_words(words.tokenizer, "Anna [UNK] Atlantis") == ["Atlantis"]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(st.sampled_from(["known", "unknown", "named"]), min_size=1, max_size=4))
def test_unknown_is_what_the_text_does_not_name(name, drawn):
    tokenizer = ALL[name]
    parts = {"known": "Anna", "unknown": "ω", "named": tokenizer.unk_token}
    alone = tokenizer.encode("ω", add_special_tokens=False)
    expected = "unknown" in drawn and tokenizer.unk_token_id in alone
    assert reads_unknown(tokenizer, " ".join(parts[part] for part in drawn)) == expected


def two_bos(model):
    return [
        lambda text: encode_prompts(model, text),
        lambda text: encode_prompts(model, [text] * 3),
        lambda text: encode(model, [text] * 3),
        lambda text: tlb.backward_lens(model, text, "w9", layers=0),
        lambda text: tlb.sweep(model, [text], ["w9"], control=None, show_progress=False),
    ]


@pytest.mark.parametrize("entrance", range(5))
def test_a_second_bos_is_said_once(entrance):
    from models import build, worlds

    model = build(worlds()[-1])
    bos = model.tokenizer.bos_token
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        two_bos(model)[entrance](f"{bos} w4 w5")
    said = [each for each in caught if "second one" in str(each.message)]
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        two_bos(model)[entrance]("w4 w5")
        encode_prompts(model, f"{bos} w4", prepend_bos=False)
    assert not [each for each in caught if "second one" in str(each.message) or each.category is UnknownWordsWarning]
