"""Token ids of every integer dtype, PyTorch's and NumPy's, at every entrance: as int64 gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import D_VOCAB, bridge, build, worlds

import tl_backward as tlb
from tl_backward.editing.scores import encode as encode_answers
from tl_backward.embedding_space.options import token_mask
from tl_backward.gradients.losses import logit_difference, next_token_loss, target_loss
from tl_backward.inversion import collect
from tl_backward.lens.segments import answer_tokens
from tl_backward.text.encoded import encode
from tl_backward.text.ids import as_ids, is_id, one_id
from tl_backward.text.prompts import encode_prompts
from tl_backward.vocabulary.readout import readout
from tl_backward.weights.factors import GradientFactors, Layout

TORCH = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
NUMPY = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
MAKERS = [
    *(lambda ids, dtype=dtype: torch.tensor(ids, dtype=dtype) for dtype in TORCH),
    *(lambda ids, dtype=dtype: np.array(ids, dtype) for dtype in NUMPY),
]
NAMES = [*map(str, TORCH), *(dtype.__name__ for dtype in NUMPY)]
integers = pytest.mark.parametrize("make", MAKERS, ids=NAMES)
ROWS = [[0, 4, 5, 6, 9], [0, 8, 9, 3, 3]]


@pytest.fixture(scope="module")
def model():
    return build(worlds()[-1])


@integers
@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, 127), min_size=1, max_size=9))
def test_ids_are_the_same_numbers(make, ids):
    found = as_ids(make(ids))
    assert found.dtype == torch.int64 and found.tolist() == ids
    assert [one_id(each) for each in make(ids)] == ids and all(is_id(each) for each in make(ids))


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0]), torch.tensor([True]), np.array([1.5]), np.array(["a"]), np.array([True])]
)
def test_what_is_no_id_is_refused(wrong, model):
    with pytest.raises(TypeError, match="Expected integer token ids, got"):
        as_ids(wrong)


@pytest.mark.parametrize("wrong", [True, 1.0, np.float32(2), np.bool_(True), "w3", None])
def test_what_is_no_one_id_is_refused(wrong):
    assert not is_id(wrong)
    with pytest.raises(TypeError, match="Expected a token id as an integer"):
        one_id(wrong)


@integers
def test_a_capture_and_its_embedding(make, model):
    expected_loss, expected = tlb.run_with_gradient_cache(
        model, torch.tensor(ROWS), target_loss(9), weights=["W_E", "W_pos", "W_out"]
    )
    loss, cache = tlb.run_with_gradient_cache(
        model, make(ROWS), target_loss(make([9])), weights=["W_E", "W_pos", "W_out"]
    )
    assert torch.equal(loss, expected_loss) and cache.tokens.dtype == torch.int64
    for name in ("W_E", "W_pos"):
        f, g = cache.factors[name], expected.factors[name]
        dense = g.gradient()
        torch.testing.assert_close(f.gradient(), dense)
        u, s, v = f.svd()
        torch.testing.assert_close(u @ torch.diag(s) @ v.T, dense, atol=1e-12, rtol=1e-9)
        assert f.rank() == int(torch.linalg.matrix_rank(dense)) == g.rank()
        torch.testing.assert_close(f.to_factored_matrix().AB, dense, atol=1e-12, rtol=1e-9)


@integers
def test_factors_made_by_hand(make):
    deltas = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = make(ROWS)
    f = GradientFactors(
        torch.as_tensor(as_ids(inputs) if isinstance(inputs, np.ndarray) else inputs), deltas, Layout((12, 3))
    )
    dense = torch.zeros(12, 3, dtype=torch.float64).index_add_(0, torch.tensor(ROWS).flatten(), deltas.flatten(0, 1))
    u, s, v = f.svd()
    torch.testing.assert_close(u @ torch.diag(s) @ v.T, dense)
    assert f.rank() == 3
    torch.testing.assert_close(f.to_factored_matrix().AB, dense)
    if isinstance(inputs, torch.Tensor):
        torch.testing.assert_close(f[:, make([1, 2])].deltas, deltas[:, 1:3])
    torch.testing.assert_close(f[make([1])[0]].deltas, deltas[1:2])


@integers
def test_every_entrance(make, model):
    one, two = make([9])[0], make([4])[0]
    tokens, text = torch.tensor(ROWS), "w4 w5 w6"
    mask = make([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert torch.equal(encode_prompts(model, make(ROWS)).tokens, tokens)
    if isinstance(mask, torch.Tensor):
        assert encode_prompts(model, make(ROWS), attention_mask=mask).mask.dtype == torch.bool
    lenses = [tlb.backward_lens(model, given, target, layers=0, answer=answer) for given, target, answer in (
        (make(ROWS), one, two), (make(ROWS), make([[9], [9]]), make([4, 4])), (tokens, [9, ][0], 4), (make(ROWS), make([9]), [two, two]))]  # fmt: skip
    for lens in lenses:
        assert lens.target == ["w9"] * 2 and lens.answer == ["w4"] * 2
        assert torch.equal(lens.shift[0].target_rank, lenses[2].shift[0].target_rank)
    assert tlb.backward_lens(model, make(ROWS[0]), one, layers=0).tokens[1:] == ["w4", "w5", "w6", "w9"]
    losses = [tlb.run_with_gradient_cache(model, text, loss, weights="W_out")[0] for loss in (
        logit_difference(one, two), logit_difference(make([9]), make([4])), logit_difference(9, 4, make([-1])[0] if make is not None and _signed(make) else -1))]  # fmt: skip
    assert len({float(loss) for loss in losses}) == 1
    swept = tlb.sweep(model, [text, text], [one, 9], answers=[two, 4], control=None, show_progress=False)
    assert swept.targets.tolist() == [9, 9] and swept.answers.tolist() == [4, 4]
    vectors = torch.randn(2, model.cfg.d_model, dtype=torch.float64)
    reads = [readout(model, vectors, target=target) for target in (9, one, make([9, 9]))]
    assert all(torch.equal(read.target_rank, reads[0].target_rank) for read in reads)
    assert token_mask(model, tokens=make([9, 4])).nonzero().flatten().tolist() == [4, 9]
    assert token_mask(model, tokens=[one, two]).sum() == 2
    assert encode_answers(model, [(text, one)])[0].answer == (9,)
    assert answer_tokens(model, make([9]), torch.zeros(2, 1, D_VOCAB), torch.tensor([0, 0])).tolist() == [9, 9]
    assert torch.equal(encode(model, make(ROWS)).tokens, tokens)
    if isinstance(make(ROWS), torch.Tensor):
        (found,) = collect(model, make(ROWS), ("resid_post", 0), show_progress=False).values()
        assert torch.equal(found, next(iter(collect(model, tokens, ("resid_post", 0), show_progress=False).values())))
    with tlb.shift_edit(model, text, one, layer=0):
        pass


def _signed(make):
    try:
        return int(make([-1])[0]) == -1
    except (OverflowError, RuntimeError, ValueError):
        return False


@pytest.mark.parametrize("dtype", TORCH)
def test_a_loss_called_directly(dtype):
    logits = torch.randn(2, 5, 12, dtype=torch.float64)
    tokens = torch.tensor(ROWS)
    assert torch.equal(next_token_loss(logits, tokens.to(dtype)), next_token_loss(logits, tokens))


@pytest.mark.parametrize("dtype", TORCH)
def test_inputs_with_an_entry_a_token(dtype):
    model = bridge()
    tokens, places = torch.tensor(ROWS), torch.arange(5)[None].expand(2, 5)
    own = [tlb.run_with_gradient_cache(model, tokens.to(dtype), target_loss([9, 4]), weights="W_out", position_ids=p)[0]
           for p in (places, places.to(dtype))]  # fmt: skip
    assert torch.equal(*own)


@pytest.mark.parametrize("target", [1.5, [1.5], torch.tensor([2.0]), np.array([2.0]), [True]])
def test_targets_that_are_no_ids(target, model):
    with pytest.raises(TypeError):
        target_loss(target).bind(model, 1)
