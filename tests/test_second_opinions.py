"""TransformerLens's own tools on the same models: gradients in its cache, its BackwardLens, readout and factored matrices."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import bridge, worlds
from random_models import bridges
from weights.test_random_architectures import DRAWN, examples

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())
analysis = pytest.importorskip("transformer_lens.tools.analysis")
WORDS = st.lists(st.integers(3, 49), min_size=3, max_size=7).map(lambda ids: " ".join(f"w{i}" for i in ids))


def plain(drawn):
    """A drawn model in float64 without what only some tools know."""
    return drawn.dtype == torch.float64 and not drawn.compatibility


def predicts(drawn):
    """One that may be asked for a next word: models that see both ways are asked at a mask."""
    return plain(drawn) and drawn.options.get("attention_dir") != "bidirectional"


@every_world
def test_gradients_of_run_with_cache(world):
    """`run_with_cache(incl_bwd=True)` keeps the gradient at every hook point.

    A Bridge's input points are left to the next test. Hugging Face's RMSNorm rounds to float32, hence the tolerance.
    """
    compared = set()

    @examples(12)
    @given(DRAWN[world].filter(predicts), st.lists(st.integers(3, 49), min_size=3, max_size=7))
    def agree(drawn, ids):
        model, tokens = drawn.build(), torch.tensor([ids])
        loss, theirs = model.run_with_cache(tokens, incl_bwd=True, return_type="loss")
        model.zero_grad()
        value, ours = tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, weights=[])
        torch.testing.assert_close(value, loss.detach(), rtol=1e-6, atol=1e-7)
        inputs = {id(point) for name, point in model.hook_dict.items() if name.endswith(("_in", "_input"))}
        scale = max(float(gradient.abs().max()) for gradient in ours.values() if gradient.numel())
        tolerance = 1e-5 if drawn.family in ("llama", "gemma2", "qwen2", "mixtral") else 1e-11
        for name, gradient in ours.items():
            if f"{name}_grad" not in theirs or (world == "bridge" and id(model.hook_dict[name]) in inputs):
                continue
            if (
                gradient.numel() and theirs[f"{name}_grad"].shape == gradient.shape and "ln1" not in name
            ):  # it runs for q, k and v apart
                assert (theirs[f"{name}_grad"] - gradient).abs().max() <= tolerance * scale, name
                compared.add(re.sub(r"blocks.[0-9]+.", "", name))

    agree()
    assert {"hook_resid_post", "attn.hook_pattern"} <= compared and len(compared) >= 8, compared


def test_at_an_input_point_of_a_bridge_the_gradient_is_the_whole_tensors():
    """q, k and v read one tensor: TransformerLens's hooks give each reader's share of its gradient, ours all of it."""
    model, tokens = bridge("gpt2"), torch.tensor([[0, 7, 9, 11, 30]])
    _, theirs = model.run_with_cache(tokens, incl_bwd=True, return_type="loss")
    _, ours = tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, weights=[])
    shares = [theirs[f"blocks.1.attn.{part}.hook_in_grad"] for part in "qkv"]
    for part in "qkv":
        torch.testing.assert_close(ours[f"blocks.1.attn.{part}.hook_in"], sum(shares), rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not hasattr(analysis, "BackwardLens"), reason="TransformerLens has its BackwardLens in 3.9")
def test_backward_lens():
    @examples(12)
    @given(bridges().filter(lambda drawn: drawn.family == "gpt2" and not drawn.flags and plain(drawn)), WORDS)
    def agree(drawn, prompt):
        model = bridge("gpt2", torch.float32, **drawn.options)
        theirs = analysis.BackwardLens(model).analyze(
            prompt, "w9", list(range(model.cfg.n_layers)), return_full_logits=True
        )
        ours = tlb.backward_lens(model, prompt, "w9", k=5)
        assert ours.loss.item() == pytest.approx(theirs.loss, rel=1e-5)
        for layer in ours.layers:
            result = theirs.layer(layer)
            for weight, part, read in (
                ("W_in", result.input_projection, ours.imprint[layer]),
                ("W_out", result.output_projection, ours.shift[layer]),
            ):
                factors = ours.cache.factors[weight, layer]
                scale = part.factors.weight_gradient.abs().max()
                assert (factors.gradient() - part.factors.weight_gradient).abs().max() <= 1e-5 * scale
                torch.testing.assert_close(factors.inputs[0], part.factors.forward_inputs, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(factors.deltas[0], part.factors.output_gradients, rtol=1e-4, atol=1e-7)
                torch.testing.assert_close(read.norm, part.factor_norms, rtol=1e-5, atol=1e-8)
                assert torch.equal(read.is_zero, part.zero_norm_mask)
                spoken = ~read.is_zero  # a vector of zeros is marked here, and read as the norm's bias there
                values = part.vocabulary_logits[spoken]
                bias = model.b_U.detach() if hasattr(model, "b_U") else 0
                torch.testing.assert_close(
                    read.top_values[spoken], (values - bias).topk(5).values, rtol=1e-3, atol=1e-4
                )

    agree()


@pytest.mark.skipif(not hasattr(analysis, "logit_readout"), reason="TransformerLens has its logit readout since 4.2")
def test_logit_readout():
    @examples(20)
    @given(bridges().filter(plain), st.integers(0, 10**6))
    def agree(drawn, seed):
        model = drawn.build()
        v = torch.randn(5, model.cfg.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theirs = analysis.logit_readout(model, v).values.detach()
        ours = tlb.readout(model, v, k=50, bias=True, target=9)
        torch.testing.assert_close(ours.top_values, theirs.topk(50).values, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours.top_values, theirs.gather(-1, ours.top_ids), rtol=1e-6, atol=1e-7)

    agree()


@every_world
def test_head_pairs_are_the_largest_entries_of_a_factored_matrix(world):
    from transformer_lens import FactoredMatrix

    @examples(12)
    @given(DRAWN[world].filter(plain), st.integers(0, 10**6), st.sampled_from(["VO", "QK"]))
    def agree(drawn, number, circuit):
        model = drawn.build()
        layer, head = number % model.cfg.n_layers, number % model.cfg.n_heads
        attn = model.blocks[layer].attn

        def of(letter):
            weight = getattr(attn, f"W_{letter}").detach()
            return weight[head * len(weight) // model.cfg.n_heads]

        inner = FactoredMatrix(of("V"), of("O")) if circuit == "VO" else FactoredMatrix(of("Q"), of("K").T)
        whole = (model.W_U.detach().T @ inner @ model.W_U.detach()).AB
        pairs = tlb.head_pairs(model, circuit, layer, head, k=30, show_progress=False).pairs
        torch.testing.assert_close(pairs.values, whole.flatten().topk(30).values, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(pairs.values, whole[pairs.rows, pairs.cols], rtol=1e-9, atol=1e-11)

    agree()


@every_world
def test_gradients_as_factored_matrices(world):
    @examples(6)
    @given(DRAWN[world].filter(predicts), WORDS)
    def agree(drawn, prompt):
        model = drawn.build()
        _, cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss("w9"), names_filter=[])
        for factors in cache.factors.values():
            matrix = factors.to_factored_matrix()
            torch.testing.assert_close(matrix.AB.norm(), factors.norm(), rtol=1e-9, atol=1e-12)
            ours, theirs = factors.svd().S, matrix.S
            n = min(len(ours), len(theirs))  # 0 for an expert that no token reached
            torch.testing.assert_close(ours[:n], theirs[:n], rtol=1e-7, atol=1e-9 * max([1.0, *ours.tolist()]))

    agree()


@every_world
def test_singular_vectors_in_words(world):
    """SVDInterpreter's scores of W_out's right singular vectors are those that project_parameter gives them."""
    from models import build
    from transformer_lens import SVDInterpreter

    model = build(world, dtype=torch.float32)
    layer, k = 1, 4
    scores = SVDInterpreter(model).get_singular_vectors("w_out", layer, num_vectors=k)[:, 0].T
    directions = torch.linalg.svd(model.blocks[layer].mlp.W_out.detach()).Vh[:k]
    ours = tlb.project_parameter(model, directions, k=6, show_progress=False)
    torch.testing.assert_close(ours.top_scores, scores.topk(6).values.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.top_ids, scores.topk(6).indices)
