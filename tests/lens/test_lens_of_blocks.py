"""The Backward Lens of blocks that are no dense MLP: experts, mixers, latent attention, against autograd."""

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, hooked, tokenizer
from torch.nn import functional as F
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import tl_backward as tlb
from tl_backward.weights.blocks import blocks_of

TOKENS = torch.tensor([[0, 4, 5, 6, 9, 7, 4], [0, 8, 9, 3, 3, 20, 41]])
TARGET = [[7], [11]]
SMALL = dict(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=16, pad_token_id=1, bos_token_id=0, eos_token_id=0)  # fmt: skip


def booted(made_of, config):
    """A random Hugging Face model in a Bridge, float64; the same one each time."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = made_of(config)
    model.config.architectures = [type(model).__name__]
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return TransformerBridge.boot_transformers(
        type(model).__name__, hf_model=model, tokenizer=tokenizer(), device="cpu", dtype=torch.float64
    )


def mixtral(experts="eager"):
    config = MixtralConfig(**SMALL, num_local_experts=5, num_experts_per_tok=2, experts_implementation=experts)
    return booted(MixtralForCausalLM, config)


def jamba():
    config = JambaConfig(**SMALL, num_experts=3, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
                         expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_d_conv=3, mamba_expand=2,
                         mamba_dt_rank=3, use_mamba_kernels=False, experts_implementation="eager")  # fmt: skip
    return booted(JambaForCausalLM, config)


def at_hook(model, name):
    """The activation at a hook point, the loss's gradient there, and the loss, by autograd alone."""
    seen = {}

    def keep(x, hook):
        seen["x"] = x
        return x

    with model.hooks(fwd_hooks=[(name, keep)]):
        logits = model(TOKENS, return_type="logits", use_cache=False)
    loss = F.cross_entropy(logits[:, -1], torch.tensor([row[0] for row in TARGET]), reduction="sum")
    return seen["x"].detach(), torch.autograd.grad(loss, seen["x"])[0], loss.detach()


def check_readouts(model, lens, layer, component):
    """Imprint and shift are the readouts of the block's own input and of the VJP at its output."""
    x, _, _ = at_hook(model, f"{component}.hook_in")
    _, vjp, loss = at_hook(model, f"{component}.hook_out")
    assert torch.allclose(lens.loss, loss)
    for found, vectors in ((lens.imprint[layer], x), (lens.shift[layer], vjp)):
        expected = tlb.readout(model, vectors, k=5)
        zero = expected.norm < 1e-12 * expected.norm.max()
        assert torch.allclose(found.norm, expected.norm)
        assert torch.equal(found.top_ids[~zero], expected.top_ids[~zero])
        assert torch.equal(found.bottom_ids[~zero], expected.bottom_ids[~zero])


def test_experts_in_words_and_which_would_learn():
    """Input and VJP of the block; tokens, routing weights, shares and the router's gradient against autograd."""
    model = mixtral()
    lens = tlb.backward_lens(model, TOKENS, TARGET, k=5)
    assert lens.kinds == {0: "attention, experts", 1: "attention, experts"}
    for layer in (0, 1):
        check_readouts(model, lens, layer, f"blocks.{layer}.mlp")
        block = model.blocks[layer].mlp.original_component
        experts, router = block.experts, next(p for n, p in block.gate.named_parameters() if n.endswith("weight"))
        x, vjp, _ = at_hook(model, f"blocks.{layer}.mlp.hook_in")
        weights, chosen = (x.flatten(0, 1) @ router.T).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        logits = model(TOKENS, return_type="logits", use_cache=False)
        loss = F.cross_entropy(logits[:, -1], torch.tensor([row[0] for row in TARGET]), reduction="sum")
        up, down, gate = torch.autograd.grad(loss, [experts.gate_up_proj, experts.down_proj, router])
        squared = up.flatten(1).norm(dim=1) ** 2 + down.flatten(1).norm(dim=1) ** 2
        found = lens.experts[layer]
        assert torch.equal(found.n_tokens, torch.bincount(chosen.flatten(), minlength=5))
        assert torch.allclose(found.norm, squared.sqrt())
        assert torch.allclose(found.share, squared / squared.sum()) and found.share.sum() == pytest.approx(1)
        assert torch.allclose(found.router_norm, gate.norm(dim=1))
        out = at_hook(model, f"blocks.{layer}.mlp.hook_out")[1].flatten(0, 1).norm(dim=-1) > 0
        for expert in range(5):
            mine = (chosen == expert) & out[:, None]
            if mine.any():
                assert float(found.routing_weight[expert]) == pytest.approx(float(weights[mine].mean()))
            else:
                assert found.routing_weight[expert].isnan()
    frame = lens.to_frame()
    assert len(frame[frame.readout == "experts"]) == 10 and set(frame.columns) >= {"expert", "share", "routing_weight"}
    assert "Which experts of blocks.1.mlp would learn" in lens._repr_html_()


def test_every_implementation_of_experts_says_the_same():
    eager, batched = mixtral(), mixtral("batched_mm")
    one, two = (tlb.backward_lens(model, TOKENS, TARGET) for model in (eager, batched))
    for layer in (0, 1):
        assert torch.equal(one.experts[layer].n_tokens, two.experts[layer].n_tokens)
        assert torch.allclose(one.experts[layer].share, two.experts[layer].share)
        assert torch.allclose(one.experts[layer].routing_weight, two.experts[layer].routing_weight, equal_nan=True)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_experts_of_a_hooked_transformer():
    model = hooked("moe")
    lens = tlb.backward_lens(model, TOKENS, TARGET)
    assert lens.kinds == {0: "attention, experts", 1: "attention, experts"}
    for layer in (0, 1):
        mlp = model.blocks[layer].mlp
        logits = model(TOKENS)
        loss = F.cross_entropy(logits[:, -1], torch.tensor([row[0] for row in TARGET]), reduction="sum")
        parameters = [list(expert.parameters()) for expert in mlp.experts]
        flat = [p for each in parameters for p in each]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        norms = [
            sum(float(g.norm()) ** 2 for g in [next(gradients) for _ in each] if g is not None) for each in parameters
        ]
        assert torch.allclose(lens.experts[layer].norm, torch.tensor(norms, dtype=torch.float64).sqrt())
        assert int(lens.experts[layer].n_tokens.sum()) == 2 * TOKENS.numel()


def test_a_model_whose_layers_differ():
    """Jamba: a mixer with an MLP, then an attention with experts; the mixer is read with `attention=True`."""
    model = jamba()
    lens = tlb.backward_lens(model, TOKENS, TARGET, k=5, attention=True)
    assert lens.kinds == {0: "mixer, MLP", 1: "attention, experts"} and list(lens.experts) == [1]
    check_readouts(model, lens, 1, "blocks.1.mlp")
    cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.target_loss(TARGET, reduction="sum"))[1]
    component = next(name for name in cache.factors if name.startswith("blocks.0.") and name.endswith("W_in_proj"))
    assert torch.allclose(lens.attn_imprint[0].norm, cache.factors[component].inputs.norm(dim=-1))
    writer = cache.factors[component.replace("in_proj", "out_proj")]
    assert torch.allclose(lens.attn_shift[0].norm, writer.deltas.norm(dim=-1))


def test_a_model_of_mixers_alone():
    config = Mamba2Config(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_heads=8, head_dim=6, n_groups=1,
                          chunk_size=4, expand=2, state_size=4, conv_kernel=3)  # fmt: skip
    model = booted(Mamba2ForCausalLM, config)
    lens = tlb.backward_lens(model, TOKENS, TARGET, k=5)
    assert lens.kinds == {0: "mixer", 1: "mixer"} and lens.layers == [0, 1]
    _, vjp, _ = at_hook(model, "blocks.1.mixer.hook_out")
    assert torch.allclose(lens.shift[1].norm, vjp.norm(dim=-1))


def test_latent_attention_is_read_through_its_keys_and_values():
    config = DeepseekV3Config(**{**SMALL, "num_key_value_heads": 4}, q_lora_rank=12, kv_lora_rank=8, qk_rope_head_dim=4,
                              v_head_dim=5, qk_nope_head_dim=6, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
                              topk_group=1, moe_intermediate_size=10, first_k_dense_replace=1,
                              experts_implementation="eager")  # fmt: skip
    model = booted(DeepseekV3ForCausalLM, config)
    lens = tlb.backward_lens(model, TOKENS, TARGET, k=5, attention=True)
    assert lens.kinds == {0: "attention, MLP", 1: "attention, experts"}
    part = blocks_of(model, tlb.weight_sites(model), 24)[1].mixing
    assert part.reader == "blocks.1.attn.W_kv_a_proj_with_mqa" and part.writer == "blocks.1.attn.W_O"
    x, _, _ = at_hook(model, "blocks.1.attn.kv_a_proj_with_mqa.hook_in")
    assert torch.allclose(lens.attn_imprint[1].norm, x.norm(dim=-1))
    assert tlb.weight_sites(model)["blocks.1.attn.W_O"].layout.shape == (4, 5, 24)  # rows of v_head_dim


def test_hook_points_that_a_lens_needs_are_kept_beside_the_users():
    model = bridge("mixtral")
    asked = ["blocks.0.hook_resid_pre"]
    lens = tlb.backward_lens(model, TOKENS, TARGET, names_filter=asked)
    assert set(lens.cache) >= set(asked) and asked == ["blocks.0.hook_resid_pre"]
    lens = tlb.backward_lens(model, TOKENS, TARGET, names_filter=lambda name: name.endswith("resid_pre"))
    assert "blocks.1.hook_resid_pre" in lens.cache
