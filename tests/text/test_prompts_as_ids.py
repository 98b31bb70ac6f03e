"""Prompts as token ids, in lists and arrays of every kind: the same as a tensor of them, wherever a prompt is taken."""

import numpy as np
import plain
import pytest
import torch

import tl_backward as tlb
from tl_backward._support.closeness import difference
from tl_backward.text.ids import as_prompt
from tl_backward.text.prompts import encode_prompts

PROMPT, TARGET, QUIET = "Anna Berg lives in the city of", " Oslo", {"show_progress": False}


@pytest.fixture(scope="module")
def model():
    return tlb.load("facts")


@pytest.fixture(scope="module")
def ids(model):
    return model.to_tokens(PROMPT)[0].tolist()


ONE = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "tensor": torch.tensor,
    "NumPy's own": lambda ids: [np.int64(i) for i in ids],
}
"""One prompt."""


def found(model, prompt):
    """What each entry point makes of one prompt, as numbers."""
    edit = tlb.shift_edit(model, prompt, TARGET, layer=2)
    options = tlb.inversion.InversionOptions(n=5, n_pool=10)
    task = tlb.inversion.task_of("facts")
    asked = {"validation": tlb.zoo.edit_cases("validation")[:1], "layers": [2], "scales": (0.5,)}
    text = None if isinstance(prompt, str) else (0, 2)
    return {
        "capture": tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(TARGET))[0],
        "lens": tlb.backward_lens(model, prompt, TARGET, subject=text or "Anna").stacked("norm"),
        "sites": torch.tensor(len(tlb.weight_sites(model, prompt))),
        "sweep": tlb.sweep(model, [(prompt, TARGET)], control=None, **QUIET).loss,
        "similarity": tlb.gradient_similarity(model, [(prompt, TARGET)], **QUIET).inner,
        "shift": edit.updates["blocks.2.mlp.W_out"].x,
        "gradient": tlb.gradient_edit(model, prompt, TARGET, lr=0.1).updates["blocks.2.mlp.W_out"].v,
        "effect": tlb.editing.edit_effect(model, edit, prompt).after,
        "layer": tlb.find_layer(model, prompt, TARGET, **asked, **QUIET).probability,
        "grid": tlb.editing.shift_probabilities(model, prompt, TARGET, layers=[2], scales=(0.5,)),
        "query": tlb.inversion.read_query(model, prompt, ("resid_post", 2), -1).activation,
        "invert": tlb.inversion.invert(
            model, prompt, ("resid_post", 2), [-1], task, options=options, epsilon=0.4, **QUIET
        ).readings[0].preimage.distances,
        "overlap": tlb.embedding_space.parameter_activation_overlap(model, prompt, "W_out", 2, **QUIET).aligned,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ONE)
def test_one_prompt_by_its_ids(model, ids, kind):
    by_text, by_ids = found(model, PROMPT), found(model, ONE[kind](ids))
    for name, value in by_text.items():
        assert torch.equal(value, by_ids[name]), name
    assert tlb.backward_lens(model, ONE[kind](ids), TARGET).token_ids.ndim == 1


def test_edits_of_ids_are_said_and_saved(model, ids, tmp_path):
    for make in (tlb.gradient_edit, lambda *asked: tlb.shift_edit(*asked, layer=2)):
        edit = make(model, np.array(ids), TARGET)
        assert edit.how["prompt"] == ids and repr(edit).startswith(f"Edit({PROMPT!r} -> ' Oslo': ")
        assert repr(tlb.load_edit(model, edit.save(tmp_path / "edit.safetensors"))) == repr(edit)
        effect = tlb.editing.edit_effect(model, edit, ids)
        assert effect.prompt == PROMPT and effect.summary().startswith(f'After "{PROMPT}" ')
    assert tlb.editing.neighbour_prompts(model, ids, "Anna") == tlb.editing.neighbour_prompts(model, PROMPT, "Anna")
    with pytest.raises(ValueError, match="apart from this one, got its prompt in case 0"):
        case = tlb.EditCase(PROMPT, TARGET)
        tlb.find_layer(model, ids, TARGET, validation=[case], **QUIET)


SEVERAL = {
    "lists": lambda rows: rows,
    "tuples": lambda rows: [tuple(row) for row in rows],
    "arrays": lambda rows: [np.array(row) for row in rows],
    "tensors": lambda rows: [torch.tensor(row) for row in rows],
}


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("equal", [True, False])
def test_rows_of_ids_are_a_batch(model, kind, equal):
    """Padded and masked as texts are."""
    texts = [PROMPT, "Anna Berg lives in the town of" if equal else "Anna Berg lives in"]
    rows = [model.to_tokens(text)[0].tolist() for text in texts]
    assert (len(rows[0]) == len(rows[1])) == equal
    given, by_text = SEVERAL[kind](rows), encode_prompts(model, texts)
    batch = encode_prompts(model, given)
    assert torch.equal(batch.tokens, by_text.tokens) and torch.equal(batch.real, by_text.real)
    lens, same = (tlb.backward_lens(model, prompts, TARGET) for prompts in (given, texts))
    assert lens.is_batch and torch.equal(lens.stacked("norm"), same.stacked("norm"))
    pair = [tlb.sweep(model, prompts, TARGET, control=None, **QUIET) for prompts in (given, texts)]
    assert torch.equal(pair[0].loss, pair[1].loss)
    pair = [tlb.gradient_similarity(model, prompts, **QUIET) for prompts in (given, texts)]
    assert torch.equal(pair[0].inner, pair[1].inner) and pair[0].names_a == pair[1].names_a == tuple(texts)
    pair = [tlb.dissimilarity.compare(model, model, prompts, **QUIET) for prompts in (given, texts)]
    assert pair[0].n_samples == pair[1].n_samples and difference(pair[0].values, pair[1].values) < 1e-6
    of = {"site": ("resid_post", 2), "position": -1, "epsilon": 0.4}
    pair = [
        tlb.inversion.enumerate_preimage(model, PROMPT, inputs=prompts, **of, **QUIET) for prompts in (given, texts)
    ]
    assert torch.equal(pair[0].distances, pair[1].distances)


def test_texts_stay_a_batch_of_texts(model):
    assert as_prompt([PROMPT]) == [PROMPT] and as_prompt(PROMPT) == PROMPT
    assert tlb.backward_lens(model, [PROMPT], TARGET).is_batch


REFUSED = """
import numpy as np
import tl_backward as tlb

model = tlb.load("facts")
ids, loss = model.to_tokens("Anna Berg lives in the city of")[0].tolist(), tlb.target_loss(" Oslo")


def said(call):
    try:
        print("took", call())
    except (TypeError, ValueError) as error:
        print(type(error).__name__, error)


for prompt in ([], [True], [1.0, 2.0], [1, "a"], ["a", [1]], [[]], [ids, []], [ids, None], [["a"]], [10**6], [-1]):
    said(lambda: tlb.run_with_gradient_cache(model, prompt, loss))
said(lambda: tlb.run_with_gradient_cache(model, [ids, ids[1:]], loss, attention_mask=np.ones((2, 8), dtype=bool)))
for large in ([2**70], [ids, [2**63]], np.array([2**63 + 1], dtype=np.uint64)):
    said(lambda: tlb.run_with_gradient_cache(model, large, loss))
for mask in (np.array([ids]), np.full((1, 8), np.nan), np.full((1, 8), -1e9)):
    said(lambda: tlb.run_with_gradient_cache(model, [ids], loss, attention_mask=mask))
for one in (ids, np.array(ids)):
    said(lambda: tlb.sweep(model, one, " Oslo", show_progress=False))
    said(lambda: tlb.gradient_similarity(model, one, show_progress=False))
for several in ([ids, ids], np.array([ids, ids])):
    said(lambda: tlb.shift_edit(model, several, " Oslo", layer=2))
    said(lambda: tlb.gradient_edit(model, several, " Oslo"))
    said(lambda: tlb.editing.edit_effect(model, tlb.shift_edit(model, ids, " Oslo", layer=2), several))
    said(lambda: tlb.find_layer(model, several, " Oslo", validation=tlb.zoo.edit_cases("validation")[:1]))
    said(lambda: tlb.inversion.read_query(model, several, ("resid_post", 2), -1))
"""
NO_PROMPT = (
    "TypeError Expected a prompt as text, a non-empty list of texts, or token ids (a list of them, or an integer "
)
SAID = [
    *([NO_PROMPT] * 5),
    "ValueError Expected at least one token, got shape [1, 0]; the prompt is empty.",
    "ValueError Expected at least one token in every prompt, got none in prompt 1; leave it out.",
    NO_PROMPT,
    NO_PROMPT,
    "ValueError Expected token ids in [0, ",
    "ValueError Expected token ids in [0, ",
    "ValueError Expected attention_mask only together with tokens, got one with several lists; leave it out",
    *["ValueError Expected token ids of at most 63 bits, got a larger one; token ids come from"] * 3,
    *["ValueError Expected attention_mask of 1 where a token is real and 0 where it is padding, got other numbers"] * 3,
    *["ValueError Expected a list of prompts or edit cases, got the 8 token ids of one; a single one is a list"] * 4,
    *[
        *["TypeError Expected one prompt, got 2; give one at a time."] * 4,
        "TypeError Expected a query as a text, its tokens [pos] or a Query, got ",
    ]
    * 2,
]


def test_what_is_no_prompt_is_said():
    done = plain.run(REFUSED)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(SAID)
    for line, start in zip(lines, SAID, strict=True):
        assert line.startswith(start), line
