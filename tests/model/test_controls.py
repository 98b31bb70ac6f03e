"""Controls that are alive in every architecture, and copies that compute with their own weights."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
import transformers as T
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, build, hooked, randomise, tokenizer, worlds
from torch.nn.utils import parametrizations, parametrize
from transformer_lens.model_bridge import TransformerBridge

from tl_backward.model.controls import SameWeightsWarning, check_alive, copied, random_init, random_inits

_SMALL = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
_GROUPED = dict(**_SMALL, num_key_value_heads=2, max_position_embeddings=16, head_dim=6)
_MOE = dict(**_GROUPED, moe_intermediate_size=10, num_experts=4, num_experts_per_tok=2)
_MLA = dict(
    kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=8, n_routed_experts=4,
    n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1, moe_intermediate_size=10, num_experts_per_tok=2,
)  # fmt: skip
ARCHITECTURES = {
    "BloomForCausalLM": dict(vocab_size=50, hidden_size=24, n_layer=2, n_head=4),
    "BertForMaskedLM": dict(**_SMALL, max_position_embeddings=16),
    "RwkvForCausalLM": dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, attention_hidden_size=24,
                            intermediate_size=40, context_length=16),
    "ModernBertDecoderForCausalLM": dict(**_SMALL, max_position_embeddings=16, global_attn_every_n_layers=2,
                                         local_attention=8, pad_token_id=1),
    "Mamba2ForCausalLM": dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_heads=8, head_dim=6, n_groups=1,
                              chunk_size=4, expand=2, state_size=4),
    "JambaForCausalLM": dict(**{k: v for k, v in _GROUPED.items() if k != "head_dim"}, attn_layer_period=2,
                             attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=4,
                             mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=3, use_mamba_kernels=False),
    "DeepseekV3ForCausalLM": dict(**{**_GROUPED, "num_key_value_heads": 4, "head_dim": 4}, **_MLA),
    "GptOssForCausalLM": dict(**_GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "Qwen3MoeForCausalLM": _MOE,
    "OPTForCausalLM": dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
                           word_embed_proj_dim=24, max_position_embeddings=16),
    "Gemma3ForCausalLM": dict(**_GROUPED, sliding_window=8, query_pre_attn_scalar=6),
    "T5ForConditionalGeneration": dict(vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4),
}  # fmt: skip


def booted(architecture):
    """A Bridge in float64 of an architecture in ARCHITECTURES whose weights no initialiser makes."""
    cls = getattr(T, architecture)
    config = cls.config_class(
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, **ARCHITECTURES[architecture]}
    )
    config.architectures = [architecture]
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    inner = cls(config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in inner.parameters():  # near what the class made: a decay must stay one
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    return TransformerBridge.boot_transformers(
        "tests/tiny", hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=torch.float64
    )


def logits(model):
    encoder_decoder = getattr(getattr(getattr(model, "original_model", None), "config", None), "is_encoder_decoder", 0)
    return model(TOKENS, **({"decoder_input_ids": TOKENS.flip(1)} if encoder_decoder else {}))


def live(model):
    """Names of the parameters that get a gradient."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = logits(model)
    loss = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name for (name, _), grad in zip(named, grads, strict=True) if grad is not None and grad.abs().max() > 0}


def check_control(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = copy.deepcopy(vars(model.cfg)) if not hasattr(model, "original_model") else model.cfg.to_dict()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # beartype, in tests alone, draws from `random`
    control, again, other = (random_init(model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    after = vars(model.cfg) if not hasattr(model, "original_model") else model.cfg.to_dict()
    assert str(config) == str(after)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert all(torch.equal(p, q) for p, q in zip(control.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(control.parameters(), other.parameters(), strict=True))
    assert not {p.data_ptr() for p in control.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert [(p.dtype, p.requires_grad) for p in control.parameters()] == [
        (p.dtype, p.requires_grad) for p in model.parameters()
    ]
    assert control.training == model.training
    found = logits(control).detach()
    assert found[:, 1:].std(-1).min() > 1e-6  # the first id is some classes' padding, whose row is zero
    assert (found[:, 1:] - found[:, :1]).abs().max() > 1e-6
    assert torch.equal(found, logits(again)) and not torch.equal(found, logits(other))
    assert live(model) <= live(control)
    return control


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_alive_and_of_its_own_class(architecture):
    if architecture.startswith("T5") and HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 3.9's T5 blocks do not run on transformers 5.23: too many values to unpack")
    model = booted(architecture)
    control = check_control(model)
    torch.manual_seed(1)
    own = type(model.original_model)(copy.deepcopy(model.original_model.config)).to(torch.float64).eval()
    own.set_attn_implementation("eager")
    extra = {"decoder_input_ids": TOKENS.flip(1)} if own.config.is_encoder_decoder else {}
    torch.testing.assert_close(logits(control), own(TOKENS, **extra).logits, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("compatibility", [False, True], ids=["", "compatibility"])
@pytest.mark.parametrize("family", BRIDGED)
def test_alive_in_each_family(family, compatibility):
    check_control(bridge(family, compatibility=compatibility))


@pytest.mark.parametrize("family", HOOKED)
@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="needs TransformerLens 3")
def test_alive_in_each_hooked_family(family):
    check_control(hooked(family))


@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"])
@pytest.mark.parametrize("world", worlds())
def test_flags_stay(world, flag):
    model = build(world)
    getattr(model, f"set_{flag}")(True)
    logits(model)  # a Bridge puts its own hooks in place here
    control = check_control(model)
    assert getattr(control.cfg, flag) and set(control.hook_dict) == set(model.hook_dict)
    fired = []
    name = {"use_attn_result": "attn.hook_result", "use_split_qkv_input": "attn.hook_q_input"}.get(flag)
    name = name or {"use_attn_in": "attn.hook_attn_in", "use_hook_mlp_in": "hook_mlp_in"}[flag]
    name = next(each for each in model.hook_dict if each.startswith("blocks.0.") and each.endswith(name.split(".")[-1]))
    model.add_hook(name, lambda value, hook: fired.append(value))
    logits(control)
    assert not fired  # of the original, while its copy runs
    control.add_hook(name, lambda value, hook: value * 2)
    assert not torch.equal(logits(control), logits(random_init(control, seed=1)))


def test_a_native_bridge():
    from transformer_lens.config import TransformerBridgeConfig

    config = TransformerBridgeConfig(
        d_model=20, d_head=5, n_layers=2, n_ctx=16, n_heads=4, d_vocab=50, d_mlp=28, act_fn="gelu",
        normalization_type="LN", seed=3,
    )  # fmt: skip
    model = TransformerBridge.boot_native(config, tokenizer=tokenizer())
    randomise(model)
    check_control(model)


def test_tied_weights_stay_tied():
    control = random_init(bridge("gpt2"))
    assert control.original_model.lm_head.weight.data_ptr() == control.original_model.transformer.wte.weight.data_ptr()


def test_logits_that_do_not_vary_are_refused():
    model = bridge("llama")
    with torch.no_grad():
        model.original_model.lm_head.weight.zero_()
    with pytest.raises(
        ValueError, match="Expected LlamaForCausalLM's own initialisation to give logits that vary, got"
    ):
        check_alive(model)


def test_what_the_class_does_not_make_is_refused():
    model = bridge("llama")
    model.original_model.register_parameter("adapter", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(
        ValueError, match=r"Expected every parameter to be one that LlamaForCausalLM makes .* got adapter"
    ):
        random_init(model)


REPLACED = {
    "a bound method": lambda mlp, forward: forward,
    "a closure over it": lambda mlp, forward: lambda x: forward(x) * 1.0,
    "a closure over the module": lambda mlp, forward: lambda x: type(mlp).forward(mlp, x),
    "a partial": lambda mlp, forward: functools.partial(type(mlp).forward, mlp),
    "a default": lambda mlp, forward: eval("lambda x, kept=kept: kept(x)", {"kept": forward}),
    "a closure over a closure": lambda mlp, forward: (lambda inner: lambda x: inner(x))(lambda x: forward(x)),
}


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.parametrize("world", worlds())
def test_a_copy_computes_with_its_own_weights(world, how):
    """SAELens's HookedSAETransformer replaces `mlp.forward` so."""
    model = build(world)
    mlp = getattr(model.blocks[0].mlp, "original_component", model.blocks[0].mlp)
    mlp.forward = REPLACED[how](mlp, mlp.forward)
    expected = logits(model).detach()
    clone = copied(model)
    assert torch.equal(logits(clone), expected)
    logits(clone).square().mean().backward()
    assert all(p.grad is None for p in model.parameters()) and any(p.grad is not None for p in clone.parameters())
    for parameter in clone.blocks[0].mlp.parameters():
        parameter.data.zero_()
    assert not torch.equal(logits(clone), expected) and torch.equal(logits(model), expected)


class _Wrapper:
    def __init__(self, module):
        self.module = module

    def __deepcopy__(self, memo):
        return self

    def __call__(self, x):
        return type(self.module).forward(self.module, x)


@pytest.mark.parametrize("world", worlds())
def test_a_copy_that_leads_to_the_original_is_refused(world):
    model = build(world)
    mlp = getattr(model.blocks[0].mlp, "original_component", model.blocks[0].mlp)
    mlp.forward = _Wrapper(mlp)
    with pytest.raises(
        ValueError, match="Expected a model whose copy computes with its own weights, got one whose .*mlp"
    ):
        copied(model)


@pytest.mark.parametrize("how", ["parametrization", "weight norm", "legacy weight norm"])
@pytest.mark.parametrize("world", worlds())
def test_a_copy_of_a_model_with_a_computed_weight(world, how):
    """A Bridge's component answers for its layer, whose `__deepcopy__` torch gives to parametrized modules."""
    model = build(world)
    mlp = model.blocks[1].mlp
    layer, name = (mlp, "W_out") if world == "hooked" else (mlp.out.original_component, "weight")
    if how == "parametrization":
        parametrize.register_parametrization(layer, name, torch.nn.Identity())
    else:
        (parametrizations if how == "weight norm" else torch.nn.utils).weight_norm(layer, name)
    expected = logits(model).detach()
    clone = copied(model)
    assert [type(module) for module in clone.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(logits(clone), expected)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in clone.named_parameters()] == names
    for parameter in clone.blocks[1].mlp.parameters():
        parameter.data.zero_()
    assert not torch.equal(logits(clone), expected) and torch.equal(logits(model), expected)
    said = r"^Expected every parameter to be one that .* makes from its configuration, got [^ ]*(mlp|c_proj)[^ ]*W?_?(out|weight)"
    with pytest.raises(ValueError, match=said):
        random_init(model)


def test_fresh_weights_that_are_the_models_own_are_warned_of():
    torch.manual_seed(0)
    inner = T.LlamaForCausalLM(T.LlamaConfig(**{**_GROUPED, "head_dim": 6})).eval()
    model = TransformerBridge.boot_transformers(
        "meta-llama/Llama-3.2-1B", hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=torch.float32
    )
    with pytest.warns(
        SameWeightsWarning, match="^Expected fresh weights other than the model's, got 16 of 16 .*another seed"
    ):
        random_init(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SameWeightsWarning)
        random_init(model, seed=1)
        next(random_inits(model, [2, 0]))
    with pytest.warns(SameWeightsWarning):  # the second draw is the model's own, whatever the first was
        list(random_inits(model, [2, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SameWeightsWarning)
        with torch.no_grad():
            for parameter in inner.parameters():
                parameter.mul_(1.01)
        random_init(model)
