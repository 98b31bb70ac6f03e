"""Thirty inputs about text that could break the package, listed before the first was run, each with its right value.

 1 a line break as target: what follows a prompt, also where the tokenizer puts a space before every text
 2 a target that ends in a space: nothing is cut off
 3 a family of emoji with joiners as target: decodes to itself, spaces as they were
 4 a decomposed accent and a ligature as target: not normalised away by a tokenizer that keeps them
 5 targets of one, two and three tokens in a batch: the mean of each prompt's own loss
 6 a prompt of n_ctx tokens: taken with one target token, refused with two
 7 one text after a BOS alone: the loss of its first token
 8 several positions in a padded batch: counted over each prompt's own tokens
 9 an attention mask with a hole: only neighbours that are both real have a next token
10 an attention mask with a row of zeros: one sentence
11 subject "C++ (2011)": no regular expression
12 subject "Niger" before "'s": the word, not the one within "Nigerian"
13 a subject over a line break
14 a subject over a no-break space
15 a subject in Thai, which has no spaces, with marks
16 a Korean subject, decomposed in the text
17 a subject with spaces around it
18 a flag, two characters of four bytes each, beside others
19 CSV with a comma too many in a row: refused, not cut
20 CSV whose quote never ends: refused, not one case of all the rest
21 CSV with quoted commas, quotes and line breaks: kept
22 JSONL with half a surrogate pair: one sentence when it is encoded
23 JSONL with U+0085 and U+001C's escape in a text: one text
24 csv_text, and a table, of NumPy's numbers: numbers
25 csv_text of formulas behind a tab, a line break, a no-break space; of infinity and NaN
26 the replacement character itself as a token, and an emoji's halves: bytes named add up to the emoji
27 token_map of byte fallback with byte level: every pair decodes alike, every letter of ASCII is there
28 token_map where W_U has more rows than the tokenizer: these have no partner
29 prompts as np.str_ and tuples are text; bytes, an array or a Series of texts is refused in a sentence
30 token_mask of ids of every kind, repeated; True is refused
"""

import csv
import io
import warnings

import numpy as np
import pandas
import pytest
import torch
from models import D_VOCAB, N_CTX, TOKENS, bridge, build, worlds
from tokenizers_of_each_kind import KINDS, Encodes, Slow

import tl_backward as tlb
from tl_backward._support.csv import csv_text
from tl_backward._support.html import table
from tl_backward.alignment import token_map
from tl_backward.embedding_space.options import token_mask
from tl_backward.text.cases import load_cases
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.files import read_data
from tl_backward.text.prompts import encode_prompts
from tl_backward.text.subjects import find_span
from tl_backward.text.token_strings import token_string

ALL = {name: make() for name, make in KINDS.items()}
LOSSLESS = [name for name in ALL if name.startswith(("byte", "sentence"))]
every_world = pytest.mark.parametrize("world", worlds())


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def follows(tokenizer, text, prompt="Anna"):
    both, before = ids_of(tokenizer, prompt + text), ids_of(tokenizer, prompt)
    assert both[: len(before)] == before
    return both[len(before) :]


@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\n", id="1"),
        pytest.param(" Oslo ", id="2"),
        pytest.param(" \N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}", id="3"),
        pytest.param(" Zoe\N{COMBINING DIAERESIS} \N{LATIN SMALL LIGATURE FI}", id="4"),
    ],
)
def test_targets(text, name, slow):
    tokenizer = ALL[name]
    found = encode_continuation(Encodes(Slow(tokenizer) if slow else tokenizer), text)
    assert found == follows(tokenizer, text)
    assert tokenizer.decode(ids_of(tokenizer, "Anna") + found) == tokenizer.decode(ids_of(tokenizer, "Anna" + text))


def nats(model, prompt, target):
    """-log p of each of the target's tokens, by one pass of our own."""
    row = torch.tensor([[*prompt, *target[:-1]]])
    logits = model(row, return_type="logits")[0, len(prompt) - 1 :].log_softmax(-1)
    return -logits.gather(1, torch.tensor(target)[:, None])[:, 0]


@every_world
def test_5_targets_of_several_lengths(world):
    model = build(world)
    prompts, targets = ["w4 w5 w6", "w7", "w8 w9"], ["w20", "w21 w22", "w23 w24 w25"]
    value, cache = tlb.run_with_gradient_cache(model, prompts, tlb.target_loss(targets), weights="W_out")
    rows = [
        (model.to_tokens(p)[0].tolist(), [int(w[1:]) for w in t.split()]) for p, t in zip(prompts, targets, strict=True)
    ]
    alone = [nats(model, *row).mean() for row in rows]
    torch.testing.assert_close(value, torch.stack(alone).mean().detach(), rtol=1e-12, atol=0)
    site = tlb.weight_sites(model)["blocks.1.mlp.W_out"]
    for own, loss in zip(cache.factors["W_out", 1].per_example(), alone, strict=True):
        (gradient,) = torch.autograd.grad(loss / 3, site.parameter, retain_graph=True)
        torch.testing.assert_close(own.gradient("parameter"), gradient, rtol=1e-9, atol=1e-12)


@every_world
def test_6_a_full_context(world):
    model = build(world)
    prompt = " ".join(["w5"] * (N_CTX - 1))
    value, _ = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss("w9"), weights="W_out")
    assert float(value) == pytest.approx(float(nats(model, [0] + [5] * (N_CTX - 1), [9]).detach()), abs=1e-12)
    with pytest.raises(ValueError, match=f"Expected at most n_ctx={N_CTX} tokens"):
        tlb.run_with_gradient_cache(model, prompt, tlb.target_loss("w9 w10"), weights="W_out")


@every_world
def test_7_after_a_bos_alone(world):
    model = build(world)
    value, cache = tlb.run_with_gradient_cache(
        model, "<bos>", tlb.target_loss("w9"), weights="W_out", prepend_bos=False
    )
    assert cache.tokens.tolist() == [[0]]
    assert float(value) == pytest.approx(float(nats(model, [0], [9]).detach()), abs=1e-12)


@every_world
def test_8_positions_of_padded_prompts(world):
    model = build(world)
    prompts = ["w4 w5 w6 w7", "w8 w9"]
    value, _ = tlb.run_with_gradient_cache(model, prompts, tlb.target_loss("w20", positions=(-1, -3)), weights="W_out")
    expected = []
    for text in prompts:
        logits = model(model.to_tokens(text), return_type="logits")[0].log_softmax(-1)
        expected.append(-(logits[-1, 20] + logits[-3, 20]) / 2)
    torch.testing.assert_close(value, torch.stack(expected).mean().detach(), rtol=1e-12, atol=0)


def test_9_a_hole_in_a_mask():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)
    tokens = torch.randint(11, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]]).bool()
    pairs = [(0, 0), (0, 3), (1, 1)]
    expected = sum(-float(logits[b, i].log_softmax(-1)[tokens[b, i + 1]]) for b, i in pairs) / 3
    assert float(tlb.next_token_loss(logits, tokens, mask)) == pytest.approx(expected, abs=1e-14)


@every_world
@pytest.mark.parametrize("loss", [tlb.target_loss(9), tlb.target_loss([9, 10]), tlb.logit_difference(9, 10)])
def test_10_a_row_without_tokens(world, loss):
    mask = torch.ones_like(TOKENS)
    mask[1] = 0
    with pytest.raises(ValueError, match="Expected"):
        tlb.run_with_gradient_cache(build(world), TOKENS, loss, weights="W_out", attention_mask=mask)


def shortest(tokenizer, ids, subject):
    holds = [
        (a, b) for a in range(len(ids)) for b in range(a + 1, len(ids) + 1) if subject in tokenizer.decode(ids[a:b])
    ]
    return min(holds, key=lambda span: (span[1] - span[0], span))


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("how", ["text", "ids", "slow"])
@pytest.mark.parametrize(
    "text, subject, written",
    [
        pytest.param("in C++ (2011) the rent", "C++ (2011)", None, id="11"),
        pytest.param("Nigerian and Niger's rent", "Niger", "Niger's", id="12"),
        pytest.param("in São\nPaulo lives", "São Paulo", "São\nPaulo", id="13"),
        pytest.param("in São\u00a0Paulo lives", "São Paulo", "São\u00a0Paulo", id="14"),
        pytest.param("ประเทศไทยมีเมือง", "ไทย", None, id="15"),
        pytest.param(
            "in \u1112\u1161\u11ab\u1100\u116e\u11a8 lives",
            "\ud55c\uad6d",
            "\u1112\u1161\u11ab\u1100\u116e\u11a8",
            id="16",
        ),
        pytest.param("Anna in Oslo lives", " Oslo ", "Oslo", id="17"),
        pytest.param(
            "the \U0001f1f8\U0001f1ea \U0001f1f3\U0001f1f4 \U0001f1e9\U0001f1f0", "\U0001f1f3\U0001f1f4", None, id="18"
        ),
    ],
)
def test_subjects(text, subject, written, how, name):
    tokenizer = ALL[name]
    ids = ids_of(tokenizer, text)
    expected = shortest(tokenizer, ids, written or subject)
    if written == "Niger's":  # the name alone, in the place of its possessive
        start = expected[0]
        expected = (start, next(b for b in range(start + 1, len(ids) + 1) if "Niger" in tokenizer.decode(ids[start:b])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_span(Slow(tokenizer) if how == "slow" else tokenizer, ids, subject, None if how == "ids" else text)
    assert found == expected, tokenizer.convert_ids_to_tokens(ids)


def test_19_a_comma_too_many(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,target\nAnna lives in, Oslo\nAnna, who is old, lives in, Oslo\n")
    with pytest.raises(ValueError, match="Expected.*line 3"):
        load_cases(tmp_path / "a.csv")


def test_20_a_quote_without_end(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,target\nAnna lives in," Oslo\nPaul lives in, Oslo\n')
    with pytest.raises(ValueError, match="Expected"):
        load_cases(tmp_path / "a.csv")


def test_21_quoted_cells(tmp_path):
    prompts = ['She said "Anna, lives in', "One\nAnna lives in", "'", "One\r\nTwo"]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["prompt", "target", "subject"], *([prompt, " Oslo, Norway", ""] for prompt in prompts)])
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    cases = load_cases(tmp_path / "a.csv")
    assert [(case.prompt, case.target, case.subject) for case in cases] == [(p, " Oslo, Norway", None) for p in prompts]


@every_world
def test_22_half_a_character(tmp_path, world):
    (tmp_path / "a.jsonl").write_text('{"text": "w4 \\ud83d"}')
    (text,) = read_data(tmp_path / "a.jsonl", "text")
    with pytest.raises(ValueError, match="Expected text that UTF-8 can write"):
        encode_prompts(build(world), text)


def test_23_other_separators_within_json(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "a\u0085b\\u001cc\\nd"}\n'.encode())
    assert read_data(tmp_path / "a.jsonl", "text") == ["a\u0085b\u001cc\nd"]


def test_24_numbers_of_numpy():
    row = [np.float64(1.5), np.float32(0.25), np.int64(-2), np.uint8(7)]
    assert csv_text(["a", "b", "c", "d"], [row]) == "a,b,c,d\r\n1.5,0.25,-2,7\r\n"
    shown = table(["a", "b", "c", "d"], [[*row[:2], np.int64(123456), row[3]]])
    assert "np." not in shown and "123456" in shown


def test_25_formulas_behind_spaces():
    rows = csv.reader(
        io.StringIO(csv_text(["a"], [["\t=1"], ["\n+1"], ["\u00a0@x"], [float("inf")], [float("nan")], [-1e-300]]))
    )
    cells = [row[0] for row in rows][1:]
    assert not any(cell.strip()[0] in "=+-@" for cell in cells[:3]) and cells[3:] == ["inf", "nan", "-1e-300"]


@pytest.mark.parametrize("name", LOSSLESS)
def test_26_replacement_characters(name):
    tokenizer = ALL[name]
    shown = "".join(token_string(tokenizer, i) for i in follows(tokenizer, "\ufffd")).strip()
    assert shown in ("\ufffd", "<0xEF><0xBF><0xBD>")
    halves = "".join(token_string(tokenizer, i) for i in follows(tokenizer, "\U0001f642")).strip()
    assert halves == "<0xF0><0x9F><0x99><0x82>"


def with_tokenizer(tokenizer, more=0):
    model = bridge("gpt2", torch.float32, vocab_size=len(tokenizer) + more)
    model.tokenizer = tokenizer
    return model


def test_27_bytes_of_two_kinds():
    gpt2, llama = ALL["byte-level"], ALL["sentencepiece, none"]
    found = token_map(with_tokenizer(gpt2), with_tokenizer(llama))
    texts = [
        (gpt2.decode([a]), llama.decode([b])) for a, b in zip(found.ids_a.tolist(), found.ids_b.tolist(), strict=True)
    ]
    assert all(a == b for a, b in texts if "\ufffd" not in a + b)
    assert {" "} | {chr(code) for code in range(ord("a"), ord("z") + 1)} <= {a for a, _ in texts}
    assert len(set(found.ids_a.tolist())) == len(found.ids_a) and len(set(found.ids_b.tolist())) == len(found.ids_b)


def test_28_rows_beyond_the_tokenizer():
    tokenizer = ALL["sentencepiece, none"]
    found = token_map(with_tokenizer(tokenizer, 5), with_tokenizer(tokenizer, 3))
    everything = list(range(len(tokenizer)))
    assert found.ids_a.tolist() == found.ids_b.tolist() == everything
    assert found.coverage == (len(tokenizer) / (len(tokenizer) + 5), len(tokenizer) / (len(tokenizer) + 3))


@every_world
def test_29_texts_of_other_kinds(world):
    model = build(world)
    for given in (np.str_("w4 w5"), ("w4 w5",)):
        assert encode_prompts(model, given).tokens.tolist() == [[0, 4, 5]]
    for given in (b"w4", np.array(["w4"]), pandas.Series(["w4"]), [["w4"]], {"text": "w4"}):
        with pytest.raises(TypeError):
            encode_prompts(model, given)


@every_world
def test_30_ids_of_every_kind_in_a_list(world):
    model = build(world)
    mask = token_mask(model, tokens=[3, np.uint8(3), torch.tensor(4), "w9"])
    assert mask.nonzero().flatten().tolist() == [3, 4, 9] and len(mask) == D_VOCAB
    with pytest.raises(TypeError, match="Expected a token id as an integer"):
        token_mask(model, tokens=[True])
