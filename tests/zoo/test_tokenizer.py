import pytest

from tl_backward import zoo
from tl_backward.model.shipped import WEIGHTS
from tl_backward.zoo.tokenizer import facts_tokenizer

PROMPT = "Anna Berg lives in the city of"


@pytest.fixture(scope="module")
def tokenizer():
    return facts_tokenizer()


def test_in_world_text_survives_the_round_trip(tokenizer, world):
    for text in [example.text for example in world.examples()]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    passage = " ".join(example.text for example in world.examples(subject="Noor Quispe"))
    ids = tokenizer(passage, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == passage
    assert tokenizer.unk_token_id not in ids


def test_a_word_carries_its_leading_space(tokenizer):
    assert tokenizer.tokenize("Anna Berg plays the piano.") == [
        "Anna",
        " Berg",
        " plays",
        " the",
        " piano",
        ".",
    ]
    assert tokenizer.tokenize(". Anna") == [".", " Anna"]


@pytest.mark.parametrize("text", ["Lima", " Atlantis", "  ", "\n", "anna"])
def test_what_is_not_in_the_world_is_unknown(tokenizer, text):
    assert set(tokenizer(text, add_special_tokens=False)["input_ids"]) == {tokenizer.unk_token_id}


def test_the_special_tokens_are_distinct(tokenizer):
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token) == ("<bos>", "<pad>", "<pad>")
    assert len({tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3


def test_transformer_lens_prepends_exactly_one_bos(kind):
    model = zoo.load("facts", kind=kind)
    words = ["<bos>", "Anna", " Berg", " lives", " in", " the", " city", " of"]
    expected = model.tokenizer.convert_tokens_to_ids(words)
    assert model.to_tokens(PROMPT).tolist() == [expected]
    assert model.to_tokens(PROMPT, prepend_bos=False).tolist() == [expected[1:]]
    assert model.to_str_tokens(PROMPT) == words
    assert model.to_string(model.to_tokens(PROMPT)[0, 1:]) == PROMPT
    assert model.tokenizer.convert_ids_to_tokens(model.to_single_token(" Oslo")) == " Oslo"


def test_transformers_alone_reads_the_shipped_files():
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(WEIGHTS / "facts", local_files_only=True)
    assert read(PROMPT)["input_ids"] == facts_tokenizer()(PROMPT)["input_ids"]
