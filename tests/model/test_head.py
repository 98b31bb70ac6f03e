"""Readouts of the last stream are the model's logits, whatever an architecture has between the two; else a refusal."""

import gc
import weakref
from importlib import import_module

import pytest
import torch
import transformers
from models import D_VOCAB, HAS_HOOKED_TRANSFORMER, N_CTX, TOKENS, bridge, hooked, randomise, tokenizer
from torch import nn
from torch.nn.utils import parametrize
from transformer_lens.model_bridge import TransformerBridge

import tl_backward as tlb
from tl_backward.model.head import Head

TL4 = not HAS_HOOKED_TRANSFORMER
SMALL = dict(
    vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=N_CTX, pad_token_id=1, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
GROUPED = dict(**SMALL, num_key_value_heads=2)
OPT = dict(vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
           max_position_embeddings=N_CTX, pad_token_id=1, bos_token_id=0, eos_token_id=0)  # fmt: skip
T5 = dict(vocab_size=D_VOCAB, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, pad_token_id=1,
          decoder_start_token_id=0)  # fmt: skip
BART = dict(vocab_size=D_VOCAB, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=N_CTX,
            pad_token_id=1, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0)  # fmt: skip

HEADS: dict[str, tuple[str, dict, dict]] = {
    "bert": ("BertForMaskedLM", SMALL, {"steps": ["transform"]}),
    "bert decoder": ("BertLMHeadModel", {**SMALL, "is_decoder": True}, {"steps": ["transform"]}),
    "roberta": ("RobertaForMaskedLM", {**SMALL, "max_position_embeddings": N_CTX + 2}, {"steps": ["lm_head"]}),
    "modernbert decoder": (
        "ModernBertDecoderForCausalLM",
        {**SMALL, "local_attention": 8, "global_attn_every_n_layers": 2},
        {"steps": ["final_norm", "lm_head"]},
    ),
    "opt, projected": ("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False},
                       {"steps": ["project_out"], "width": 12}),
    "opt, normed and projected": ("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 12},
                                  {"steps": ["final_layer_norm", "project_out"], "width": 12}),
    "cohere": ("CohereForCausalLM", {**GROUPED, "logit_scale": 0.25}, {"scale": 0.25}),
    "granite": ("GraniteForCausalLM", {**GROUPED, "logits_scaling": 8.0}, {"scale": 0.125}),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 6, "sliding_window": 8, "final_logit_softcapping": 3.0},
               {"cap": 3.0}),
    "llama": ("LlamaForCausalLM", GROUPED, {"steps": ["norm"]}),
    "t5, tied": ("T5ForConditionalGeneration", {**T5, "tie_word_embeddings": True}, {"steps": ["final_layer_norm"]}),
    "t5, gated": ("T5ForConditionalGeneration",
                  {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {}),
    "bart": ("BartForConditionalGeneration", BART, {"steps": []}),
}  # fmt: skip
NOT_ON_3 = {
    "roberta": "TransformerLens 3.9 has no adapter of RoBERTa",
    "t5, tied": "TransformerLens 3.9's T5 does not run with transformers 5",
    "t5, gated": "TransformerLens 3.9's T5 does not run with transformers 5",
}


def boot(family, dtype=torch.float64, change=None):
    name, options, _ = HEADS[family]
    if not TL4 and family in NOT_ON_3:
        pytest.skip(NOT_ON_3[family])
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    config = cls.config_class(**options, attn_implementation="eager", architectures=[name])
    inner = cls(config).to(dtype).eval()
    randomise(inner)
    if change is not None:
        change(inner)
    model = TransformerBridge.boot_transformers(
        f"tests/{name}", hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=dtype
    )
    return model.eval()


def last_stream_and_logits(model):
    """Of a plain pass of the model: what the last block returns, and what the model says."""
    blocks = getattr(model, "decoder_blocks", None) or model.blocks
    seen = []
    handle = blocks[-1].register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    options = {}
    if getattr(getattr(model, "original_model", None), "config", None) is not None:
        options["use_cache"] = False
        if model.original_model.config.is_encoder_decoder:
            options["decoder_input"] = TOKENS
    with torch.no_grad():
        logits = model(TOKENS, return_type="logits", **options)
    handle.remove()
    return seen[-1], logits


def check(model, tolerance=1e-9):
    """Top and bottom tokens, their values, and every rank of the last stream, against the model's own logits."""
    stream, logits = last_stream_and_logits(model)
    read = tlb.readout(model, stream, k=5, bias=True, target=7)
    top, bottom = logits.topk(5), logits.topk(5, largest=False)
    scale = float(logits.abs().max())
    assert float((read.top_values - top.values).abs().max()) <= tolerance * scale
    assert float((read.bottom_values - bottom.values).abs().max()) <= tolerance * scale
    assert torch.equal(read.top_ids, top.indices) and torch.equal(read.bottom_ids, bottom.indices)
    assert torch.equal(read.target_rank, (logits > logits[..., 7:8]).sum(-1))
    return read


@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_the_last_stream_gives_the_logits(family, compatibility):
    model = boot(family)
    if compatibility:
        model.enable_compatibility_mode()
        for parameter in model.original_model.parameters():  # it adds biases in float32 whatever the dtype
            parameter.data = parameter.data.to(torch.float64)
    # Gemma's norm is computed in float32 by Hugging Face, T5's and Cohere's too; the same module is run here.
    check(model)
    if not compatibility:
        told, learnt = HEADS[family][2], Head.of(model).learnt
        names = [step.path.rsplit(".", 1)[-1] for step in learnt.steps]
        assert names == told.get("steps", names)
        assert learnt.width == told.get("width", 24) and learnt.d_model == 24 and learnt.is_plain
        assert abs(learnt.scale - told.get("scale", 1)) < 1e-12 and abs(learnt.cap - told.get("cap", 0)) < 1e-12


@pytest.mark.skipif(TL4, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", ["ln", "ln_folded", "no_norm", "rms_gated", "softcap", "moe"])
def test_hooked_transformer(family):
    check(hooked(family))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "bert"])
def test_other_precisions(family, dtype):
    model = boot(family, dtype)
    stream, logits = last_stream_and_logits(model)
    read = tlb.readout(model, stream, k=5, bias=True)
    torch.testing.assert_close(read.top_values, logits.topk(5).values, rtol=0.02, atol=0.02)
    learnt, told = Head.of(model).learnt, HEADS[family][2]
    assert learnt.is_plain and abs(learnt.scale - told.get("scale", 1)) < 1e-2 * learnt.scale
    assert learnt.cap == told.get("cap", 0)


class Adapted(nn.Module):
    """A layer with a low-rank adapter on it, as PEFT makes one: `weight` is the base's, which the model does not use."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        generator = torch.Generator().manual_seed(1)
        size = base.weight.shape
        self.down = nn.Parameter(torch.randn(3, size[1], generator=generator, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(size[0], 3, generator=generator, dtype=torch.float64))

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + 2.0 * (x @ self.down.T) @ self.up.T


class Quantised(nn.Module):
    """A layer that stores integers and a scale a row."""

    def __init__(self, base):
        super().__init__()
        scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (base.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = None

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale).T


class Rounded(nn.Module):
    def forward(self, weight):
        return (weight * 4).round() / 4


def adapt(inner):
    inner.lm_head = Adapted(inner.lm_head)


def quantise(inner):
    inner.lm_head = Quantised(inner.lm_head)


def parametrise(inner):
    parametrize.register_parametrization(inner.lm_head, "weight", Rounded())


def effective(model):
    """W_U [d, d_vocab] by hand."""
    leaf = model.unembed.original_component
    if isinstance(leaf, Adapted):
        return (leaf.base_layer.weight + 2.0 * leaf.up @ leaf.down).T.detach()
    if isinstance(leaf, Quantised):
        return (leaf.weight.double() * leaf.scale).T
    return leaf.weight.T.detach()


CHANGED = pytest.mark.parametrize("change", [adapt, quantise, parametrise])


@CHANGED
def test_an_unembedding_that_is_no_plain_matrix(change):
    model = boot("llama", change=change)
    check(model)
    assert not Head.of(model).learnt.is_plain
    torch.testing.assert_close(Head.of(model).matrix(), effective(model), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Head.of(model).matrix([3, 9]), effective(model)[:, [3, 9]], rtol=1e-9, atol=1e-9)


@CHANGED
def test_few_logits_at_once_through_such_an_unembedding(change, monkeypatch):
    model = boot("llama", change=change)
    stream, _ = last_stream_and_logits(model)
    whole = tlb.readout(model, stream, target=7)
    monkeypatch.setattr(
        import_module("tl_backward.vocabulary.extremes"), "MAX_LOGIT_BYTES", 12 * D_VOCAB * 3
    )  # three vectors
    parts = tlb.readout(model, stream, target=7)
    assert torch.equal(whole.top_ids, parts.top_ids) and torch.equal(whole.target_rank, parts.target_rank)
    assert tlb.readout(model, stream[:0], k=3).top_ids.shape == (0, 7, 3)


@pytest.mark.parametrize("change", [adapt, quantise])
def test_lens_edit_and_projections_use_what_the_model_multiplies_with(change):
    model = boot("llama", change=change)
    lens = tlb.backward_lens(model, TOKENS[:1], 9, k=3)
    normed = model.original_model.model.norm(lens.cache.factors["W_out", 1].deltas)[0, -1]
    assert torch.equal(lens.shift[1].top_ids[0, -1], (normed @ effective(model)).topk(3).indices)
    edit = tlb.shift_edit(model, "w4 w5 w6", 9, 1, scale=1.0, scaling="raw")
    torch.testing.assert_close(edit.updates["blocks.1.mlp.W_out"].v[0], effective(model)[:, 9], rtol=1e-9, atol=1e-9)
    said = tlb.project_parameter(model, "W_out", layer=1, k=3, show_progress=False)
    vectors = model.original_model.model.layers[1].mlp.down_proj.weight.T.detach()
    assert torch.equal(said.top_ids, (vectors @ effective(model)).topk(3).indices)


def test_peft():
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    kept = {}

    def change(inner):
        config = peft.LoraConfig(r=3, target_modules=["lm_head"], init_lora_weights=False)
        kept["model"] = peft.get_peft_model(inner, config).double()

    check(boot("llama", change=change))


def test_an_adapter_that_comes_later_is_noticed():
    model = boot("llama")
    check(model)
    model.unembed.set_original_component(Adapted(model.unembed.original_component))
    check(model)


def test_a_scale_that_changes_is_noticed():
    model = boot("cohere")
    check(model)
    model.original_model.logit_scale = 0.5
    check(model)
    assert Head.of(model).learnt.scale == 0.5


def test_projected_directions():
    """OPT-350m: what raises a token's logit is the projection's direction, not W_U's shorter column."""
    model = boot("opt, projected")
    project = model.original_model.model.decoder.project_out.original_component.weight.detach()
    matrix = project.T @ model.W_U.detach()
    torch.testing.assert_close(Head.of(model).matrix(), matrix, rtol=1e-9, atol=1e-12)
    read = tlb.project_parameter(model, "W_out", layer=1, k=3, show_progress=False)
    vectors = model.blocks[1].mlp.out.original_component.weight.T.detach()
    assert torch.equal(read.top_ids, (vectors @ matrix).topk(3).indices)
    with pytest.raises(ValueError, match=r"Expected vectors \[..., d_model=24\], got shape \[12\]"):
        tlb.readout(model, torch.zeros(12, dtype=torch.float64))


def test_a_transform_has_no_directions():
    model = boot("bert decoder")
    for use in (
        lambda: tlb.shift_edit(model, "w4 w5 w6", 9, 1),
        lambda: tlb.project_parameter(model, "W_out", layer=1),
        lambda: tlb.head_pairs(model, "VO", 1, 0),
    ):
        with pytest.raises(
            ValueError, match="Expected a head that is linear after its final norm, got cls.predictions"
        ):
            use()


def test_ln_leaves_out_the_final_norm_alone():
    model, v = boot("modernbert decoder"), torch.randn(3, 24, dtype=torch.float64)
    transform = model.original_model.lm_head
    with torch.no_grad():
        logits = transform(v[None])[0] @ model.W_U
    torch.testing.assert_close(tlb.readout(model, v, k=5, ln=False).top_values, logits.topk(5).values)


def test_it_leaves_no_trace_and_runs_nobodys_hooks():
    model = bridge("gpt2").train()
    fired, count = [], lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    for name in ("blocks.0.hook_resid_post", "unembed.hook_out", "ln_final.hook_normalized"):
        model.hook_dict[name].add_hook(lambda x, hook: fired.append(hook.name))
    handle = model.blocks[1].register_forward_hook(lambda *a: fired.append("raw"))
    hooks, flags, state = count(), [m.training for m in model.modules()], torch.get_rng_state()
    tlb.readout(model, torch.randn(2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert not fired and count() == hooks and [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    handle.remove()
    model.reset_hooks()
    check(model.eval())


def test_a_pass_that_fails_leaves_no_trace_either(monkeypatch):
    model = bridge("gpt2")
    hooks = {id(m): len(m._forward_hooks) for m in model.modules()}
    monkeypatch.setattr(type(model.blocks[0]), "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(
        ValueError, match="Expected a pass over a few tokens, from which the head of .* is learnt, got Z"
    ):
        tlb.readout(model, torch.ones(24, dtype=torch.float64))
    monkeypatch.undo()
    assert {id(m): len(m._forward_hooks) for m in model.modules()} == hooks
    check(model)


def test_what_is_learnt_does_not_keep_a_model_alive():
    model = bridge("gpt2")
    tlb.readout(model, torch.ones(24, dtype=torch.float64))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Doubled(nn.Module):
    """A layer that is another one each time."""

    def __init__(self, base):
        super().__init__()
        self.base, self.calls = base, 0

    def forward(self, x):
        self.calls += 1
        return self.base(x) * self.calls


def test_what_cannot_be_reproduced_is_refused():
    def restless(inner):
        inner.model.norm = Doubled(inner.model.norm)

    model = boot("llama", change=restless)
    with pytest.raises(ValueError, match="to give the same numbers when run alone, got others in LlamaForCausalLM"):
        tlb.readout(model, torch.ones(24, dtype=torch.float64))


def test_logits_that_are_more_than_scaled_are_refused():
    model = boot("llama")
    inner = model.original_model
    forward = type(inner).forward

    def masked(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[..., 5] = 0
        return out

    inner.forward = masked.__get__(inner)
    with pytest.raises(ValueError, match="Expected logits that are the unembedding's output but for a scale"):
        tlb.readout(model, torch.ones(24, dtype=torch.float64))


def test_a_model_without_a_head_is_refused():
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
                                    image_size=8, patch_size=4, architectures=["ViTModel"])  # fmt: skip
    inner = transformers.ViTModel(config).double().eval()
    if not TL4:
        pytest.skip("TransformerLens 3.9 has no adapter of ViT")
    model = TransformerBridge.boot_transformers("tests/vit", hf_model=inner, tokenizer=tokenizer(), device="cpu")
    with pytest.raises(TypeError, match="Expected a model that reads text, got one that reads pixel_values"):
        tlb.readout(model, torch.ones(24))


def test_what_learns_the_head_leaves_no_hook_anywhere():
    """Nor on modules of the Hugging Face model that no part of a Bridge holds."""
    from tl_backward.model.modules import every_module

    model = bridge("gpt2")
    model(TOKENS)  # TransformerLens adds hooks of its own in the first pass

    def hooks():
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in every_module(model)]

    before = hooks()
    tlb.readout(model, torch.randn(2, model.cfg.d_model, dtype=torch.float64))
    assert hooks() == before
