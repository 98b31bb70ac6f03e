"""The kernel against dense pseudo-inverses in float64; vocabularies that differ."""

import pytest
import torch
from embedding_space.oracle import unembedding
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked, tokenizer, worlds
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.alignment.twins import twins
from tl_backward.alignment import TokenMap, random_kernel, token_map, translation
from tl_backward.alignment import kernels as module
from tl_backward.alignment.kernels import gram

every_world = pytest.mark.parametrize("world", worlds())


def other_words(model, d_vocab=37):
    """The model with a tokenizer of other ids: w3 ... in reverse, and words of its own."""
    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2} | {f"w{40 - i}": i for i in range(3, 20)}
    words |= {f"other{i}": i for i in range(20, d_vocab)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        name_or_path="tests/other",
        add_bos_token=True,
    )
    return model


def small(world, d_vocab=37, **options):
    if world == "hooked":
        return other_words(hooked(d_vocab=d_vocab, **options), d_vocab)
    return other_words(bridge(vocab_size=d_vocab, **options), d_vocab)


@every_world
@pytest.mark.parametrize("wider", [0, 8])
def test_a_model_in_another_basis_is_translated_by_that_basis(world, wider):
    model, twin, basis, _ = twins(world, wider)
    kernel = translation(model, twin)
    assert kernel.dtype == torch.float64 and tuple(kernel.shape) == tuple(basis.shape)
    torch.testing.assert_close(kernel, basis, atol=1e-10, rtol=0)
    torch.testing.assert_close(translation(twin, model), basis.T, atol=1e-10, rtol=0)


@every_world
@pytest.mark.parametrize("fold_ln", [False, True])
@pytest.mark.parametrize("tile", [4096, 7])
def test_kernel_is_the_product_with_the_pseudo_inverse(world, fold_ln, tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    a, b = build(world), bridge("llama", hidden_size=28)
    sides = [unembedding(a), unembedding(b)]
    if fold_ln:
        weights = [
            a.ln_final.w if world == "hooked" else a.original_model.transformer.ln_f.weight,
            b.original_model.model.norm.weight,
        ]
        sides = [weight.detach()[:, None] * side for weight, side in zip(weights, sides, strict=True)]
        sides[0] = sides[0] - sides[0].mean(0)  # a LayerNorm centres
    torch.testing.assert_close(
        translation(a, b, fold_ln=fold_ln), sides[0] @ torch.linalg.pinv(sides[1]), atol=1e-9, rtol=0
    )


@every_world
def test_float32_weights_give_a_float32_kernel(world):
    a = build(world, dtype=torch.float32)
    kernel = translation(a, a)
    assert kernel.dtype == torch.float32
    torch.testing.assert_close(kernel, torch.eye(len(kernel)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("center", [False, True])
def test_gram_in_tiles(center, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 5)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 23, generator=generator), torch.randn(4, 31, generator=generator)
    ids_left, ids_right = torch.tensor([1, 4, 22, 7, 9, 0, 13]), torch.tensor([30, 2, 5, 6, 11, 29, 1])
    one, other = left[:, ids_left].double(), right[:, ids_right].double()
    if center:
        one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    torch.testing.assert_close(gram(left, right, ids_left, ids_right, center=center), one @ other.T)


def test_random_kernel_keeps_singular_values_alone():
    kernel = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, again, other = random_kernel(kernel), random_kernel(kernel), random_kernel(kernel, seed=1)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(one, again) and not torch.allclose(one, other)
    torch.testing.assert_close(torch.linalg.svdvals(one), torch.linalg.svdvals(kernel))
    many = torch.stack([random_kernel(kernel, seed=seed) for seed in range(400)])
    assert many.mean(0).abs().max() < 0.25  # no direction is preferred: the standard error is 0.05


@every_world
def test_tokens_are_paired_by_their_text(world):
    a, b = build(world), small(world)
    found = token_map(a, b)
    texts = [{a.tokenizer.decode([i]): i for i in range(50)}, {b.tokenizer.decode([i]): i for i in range(37)}]
    common = set(texts[0]) & set(texts[1])
    assert dict(zip(found.ids_a.tolist(), found.ids_b.tolist(), strict=True)) == {
        texts[0][t]: texts[1][t] for t in common
    }
    assert found.coverage == (len(common) / 50, len(common) / 37) and not found.is_identity
    assert (
        repr(found)
        == f"TokenMap({len(common)} tokens: {len(common) / 50:.1%} of A's vocabulary, {len(common) / 37:.1%} of B's)"
    )
    back = token_map(b, a)
    assert set(zip(back.ids_b.tolist(), back.ids_a.tolist(), strict=True)) == set(
        zip(found.ids_a.tolist(), found.ids_b.tolist(), strict=True)
    )
    kernel = translation(a, b, token_map=found)
    dense = unembedding(a)[:, found.ids_a] @ torch.linalg.pinv(unembedding(b)[:, found.ids_b])
    torch.testing.assert_close(kernel, dense, atol=1e-8, rtol=0)
    torch.testing.assert_close(translation(b, a, token_map=found.reversed), translation(b, a, token_map=back))


@every_world
def test_vocabularies_that_differ_are_refused(world):
    a, b = build(world), small(world)
    with pytest.raises(ValueError, match="share a vocabulary, got 50 and 37 tokens.*token_map"):
        translation(a, b)
    with pytest.raises(ValueError, match="between vocabularies of 37 and 50 tokens, got one between 50 and 37"):
        translation(b, a, token_map=token_map(a, b))
    with pytest.raises(ValueError, match="pairs of ids"):
        translation(a, b, token_map=TokenMap(torch.tensor([0, 60]), torch.tensor([0, 1]), 50, 37))
    same_size = small(world, d_vocab=50)
    with pytest.raises(ValueError, match="share a vocabulary, got 50 and 50"):
        translation(a, same_size)
    same_size.tokenizer = tokenizer()
    translation(a, same_size)  # another tokenizer, the same words
    same_size.tokenizer = None
    translation(a, same_size)
    with pytest.raises(ValueError, match="models with tokenizers"):
        token_map(a, same_size)


@every_world
def test_weights_that_are_not_finite_are_refused(world):
    a, b = build(world), build(world)
    with torch.no_grad():
        b.unembed.W_U[0, 3] = torch.nan
    with pytest.raises(ValueError, match="finite weights, got NaN or inf in unembed.W_U"):
        translation(a, b)


def test_padding_ids_have_no_partner():
    a, b = build("bridge"), bridge(vocab_size=57)  # seven rows that no word stands for
    found = token_map(a, b)
    assert found.ids_a.tolist() == found.ids_b.tolist() == list(range(50)) and found.coverage == (1.0, 50 / 57)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="HookedTransformer needs TransformerLens 3")
def test_worlds_mix():
    a, b = build("hooked"), build("bridge")
    torch.testing.assert_close(translation(a, b), unembedding(a) @ torch.linalg.pinv(unembedding(b)), atol=1e-9, rtol=0)
