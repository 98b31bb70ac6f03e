"""Text becomes ids in one place, many texts as one by one, on tokenizers of every kind."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, worlds
from tokenizers_of_each_kind import KINDS, WORDS

import tl_backward as tlb
from tl_backward.text.encoding import encode_texts
from tl_backward.text.ids import side_by_side

PACKAGE = Path(tlb.__file__).parent
ENCODING = {"encode", "encode_plus", "batch_encode_plus", "tokenize", "convert_tokens_to_ids"}
WITHOUT_A_MODEL = ("zoo",)
"""Trains plain networks of transformers with tokenizers of its own, before there is a TransformerLens model."""
MADE = {kind: make() for kind, make in KINDS.items()}


def encodings(path):
    """Calls that ask a model or a tokenizer for a text's ids; a model of ours may pass on its own `to_tokens`."""
    tree = ast.parse(path.read_text())
    own = {id(call) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "to_tokens"
           for call in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in own:
            continue
        owner, _, called = ast.unparse(node.func).rpartition(".")
        asked = owner.removesuffix(")").endswith("tokenizer") and called in ENCODING or called == "tokenizer"
        if asked or called == "to_tokens" and owner != "self":
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node):.60}"


def test_text_becomes_ids_in_one_place():
    outside = [
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("text", *WITHOUT_A_MODEL)
    ]
    assert not [call for path in outside for call in encodings(path)]
    inside = {path.name for path in (PACKAGE / "text").glob("*.py") if "to_tokens" in "".join(encodings(path))}
    assert inside == {"encoding.py"}


class Model(torch.nn.Module):
    """TransformerLens's own way with text: the BOS before it, as text or by the tokenizer."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def to_tokens(self, input, prepend_bos=True, *, truncate=True):
        before = (self.tokenizer.bos_token or "") if prepend_bos else ""
        return torch.tensor([self.tokenizer.encode(before + input, add_special_tokens=False)])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_many_texts_are_encoded_as_one_by_one(kind, data):
    model, each = Model(MADE[kind]), st.sampled_from([*WORDS, "1984", "São", "Zoë", "-"])
    text = st.builds(lambda space, words: " " * space + " ".join(words), st.integers(0, 2), st.lists(each, min_size=1))
    texts = data.draw(st.lists(text, min_size=8, max_size=12))
    bos = data.draw(st.sampled_from([None, True, False]))
    alone = [encode_texts(model, [one], prepend_bos=bos)[0] for one in texts]
    assert encode_texts(model, texts, prepend_bos=bos) == alone


@pytest.mark.parametrize("world", worlds())
def test_what_is_no_text_is_refused(world):
    model = build(world)
    with pytest.raises(ValueError, match="Expected texts of at least one character, got an empty one as text 1; write"):
        encode_texts(model, ["w3", ""])
    with pytest.raises(ValueError, match="Expected text that UTF-8 can write"):
        encode_texts(model, ["w3"] * 9 + ["\udcff"])  # in one go, too
    model.tokenizer = None
    with pytest.raises(ValueError, match="Expected a model with a tokenizer, got text for one without; pass token ids"):
        encode_texts(model, ["w3"])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=5), fill=st.integers(0, 99), left=st.booleans())
def test_rows_side_by_side_keep_their_ids(rows, fill, left):
    tokens, real = side_by_side(rows, fill, left=left)
    width = max(map(len, rows), default=0)
    assert tokens.dtype == torch.int64 and tokens.shape == real.shape == (len(rows), width)
    for row, padded, own in zip(rows, tokens.tolist(), real, strict=True):
        pads = [fill] * (width - len(row))
        assert padded == (pads + row if left else row + pads)
        assert torch.tensor(padded)[own].tolist() == row
