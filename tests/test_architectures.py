"""Every weight of every architecture has an account, and what is captured is autograd's gradient, in float64.

`make architectures` prints the whole table; the rows here are one of each kind, and all of them are in the long run.
"""

import random
from functools import partial

import pytest
import torch
from architectures import ROWS, registered
from architectures.build import bridge, hugging_face
from architectures.double import InDouble, grouped
from architectures.measure import Result, measure, measure_pass, said
from architectures.table import Row, row, tokens
from architectures.uses import USES

KINDS = {
    "GPT2LMHeadModel": "dense",
    "LlamaForCausalLM (tied, biases)": "grouped keys, tied embeddings",
    "GemmaForCausalLM": "norms of 1 + w, rounded to float32",
    "OPTForCausalLM (350m: narrow embedding, norms after)": "projections around the stream",
    "FalconForCausalLM (rw: alibi)": "one joint matrix of queries, keys and values",
    "MixtralForCausalLM": "experts in one parameter, grouped_mm",
    "GptOssForCausalLM": "transposed and interleaved experts with biases, sinks",
    "GptOssForCausalLM (eager experts)": "the same in transformers' loop",
    "DeepseekV3ForCausalLM": "latent attention, shared experts",
    "Llama4ForCausalLM": "batched experts",
    "JetMoeForCausalLM": "experts of attention",
    "NemotronHForCausalLM": "Mamba-2, attention, experts and MLPs",
    "MambaForCausalLM": "a state space",
    "Mamba2ForCausalLM": "its second form",
    "JambaForCausalLM": "a hybrid with experts",
    "GraniteMoeHybridForCausalLM": "another",
    "Qwen3NextForCausalLM": "gated delta rule, gated queries",
    "RwkvForCausalLM": "a recurrence",
    "RecurrentGemmaForCausalLM": "gates by blocks",
    "Gemma3nForConditionalGeneration": "AltUp, low ranks, per-layer embeddings",
    "BertForMaskedLM": "an encoder",
    "T5ForConditionalGeneration": "an encoder and a decoder, relative positions",
    "BartForConditionalGeneration": "the same with positions",
    "SwitchTransformersForConditionalGeneration": "experts as modules",
    "ViTModel": "images",
    "Wav2Vec2ForCTC": "sounds, normed kernels",
    "HubertForCTC": "sounds, normed kernels",
    "LlavaForConditionalGeneration": "images beside text",
    "BitNetForCausalLM (as released: quantised on the fly)": "quantised when used",
}


@pytest.fixture(autouse=True)
def uncompiled():
    """What transformers compiles (BitNet's quantisers) takes many seconds."""
    with torch.compiler.set_stance("force_eager"):
        yield


def check(row: Row, everything: bool = False) -> Result:
    """Nothing silent, nothing wrong, nothing raised."""
    if row.architecture not in registered():
        pytest.skip("not registered by this version of TransformerLens")
    result = measure(row, everything)
    if not result.runs:
        pytest.skip(f"does not run in TransformerLens: {result.boots}, {result.failed}")
    assert not result.errors, result.errors
    assert result.passes
    for name, found in result.passes.items():
        assert not found.unseen, (name, found.unseen)
        assert not found.wrong, (name, found.wrong)
    return result


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name):
    result = check(ROWS[name])
    assert all(found.listed <= 0.001 for found in result.passes.values()), result.passes
    if "BitNet" in name:  # its quantiser is an autograd function, whose result is the matrix that is used
        assert not any(found.whole_matrices for found in result.passes.values())


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_every_row(name):
    result = check(ROWS[name], everything=True)
    for column in ("lens", "readout", "control", "points"):
        assert not getattr(result, column).startswith(("ERROR", "WRONG")), (column, getattr(result, column))
    assert not {name: said for name, said in result.uses.items() if said.startswith(("ERROR", "WRONG"))}


REFUSED = {
    "LlamaForCausalLM": {},
    "FalconForCausalLM (rw: alibi)": {},
    "BertForMaskedLM": {"alignment": "linear after its final norm", "edits": "gradient edits; shifts refused"},
    "BartForConditionalGeneration": {},
    "MixtralForCausalLM": {"alignment": "one for each expert", "edits": "one matrix for each expert"},
    "OpenAIGPTLMHeadModel": {"sweep": "gives a padded text the logits", "similarity": "gives a padded text the logits",
                             "inversion": "to hold one vector a token"},
    "BitNetForCausalLM (as released: quantised on the fly)": {
        "edits": "used as a function of its parameter", "alignment": "used as it is stored",
    },
}  # fmt: skip
"""What other parts of the package do not do with a row, and why; all else works."""


@pytest.mark.parametrize("name", REFUSED)
def test_uses(name):
    row = ROWS[name]
    if row.architecture not in registered():
        pytest.skip("not registered by this version of TransformerLens")
    with InDouble(), row.making():
        model = bridge(row)
        for use, run in USES.items():
            found = said(partial(run, model, row))
            assert REFUSED[name].get(use, "works") in found and not found.startswith(("ERROR", "WRONG")), (use, found)


FAMILIES = {
    "LlamaForCausalLM": ["grouped", "biases", "tied"],
    "Qwen3ForCausalLM": ["grouped", "tied", "wide heads"],
    "MixtralForCausalLM": ["grouped", "tied", "experts"],
    "Qwen2MoeForCausalLM": ["grouped", "experts", "shared", "tied", "dense layer"],
    "Qwen3MoeForCausalLM": ["grouped", "experts", "tied", "wide heads", "dense layer"],
    "OlmoeForCausalLM": ["grouped", "experts", "tied"],
    "GptOssForCausalLM": ["grouped", "experts", "wide heads"],
    "DeepseekV3ForCausalLM": ["experts", "latent", "several shared", "tied"],
    "GraniteMoeForCausalLM": ["grouped", "experts", "tied"],
    "GPTNeoXForCausalLM": ["parallel", "tied"],
    "T5ForConditionalGeneration": ["gated"],
}
"""Architectures whose configurations are drawn, and what is drawn of each."""


def drawn(seed: int) -> Row:
    """A row of a random family with random options: an architecture that nobody released."""
    draw = random.Random(seed)
    family = draw.choice(sorted(FAMILIES))
    experts = draw.randint(2, 6)
    choices = {
        "grouped": dict(num_key_value_heads=draw.choice([1, 2, 4])),
        "biases": dict(attention_bias=draw.random() < 0.5, mlp_bias=draw.random() < 0.5),
        "tied": dict(tie_word_embeddings=draw.random() < 0.5),
        "wide heads": dict(head_dim=draw.choice([4, 8, 12])),
        "experts": dict(num_experts_per_tok=draw.randint(1, min(3, experts))),
        "shared": dict(shared_expert_intermediate_size=draw.choice([4, 16, 20])),
        "several shared": dict(n_shared_experts=draw.randint(1, 3)),
        "dense layer": dict(mlp_only_layers=draw.choice([[], [0], [1]])),
        "latent": dict(
            num_key_value_heads=4, head_dim=4, q_lora_rank=draw.choice([None, 8]), v_head_dim=draw.choice([4, 10])
        ),
        "parallel": dict(use_parallel_residual=draw.random() < 0.5),
        "gated": dict(feed_forward_proj=draw.choice(["relu", "gated-gelu"]), tie_word_embeddings=draw.random() < 0.5),
    }
    options: dict[str, object] = {}
    for kind in FAMILIES[family]:
        options |= choices[kind]
    if "experts" in FAMILIES[family]:
        names = dict(MixtralForCausalLM="num_local_experts", GptOssForCausalLM="num_local_experts",
                     GraniteMoeForCausalLM="num_local_experts", DeepseekV3ForCausalLM="n_routed_experts")  # fmt: skip
        options[names.get(family, "num_experts")] = experts
        options["eager_experts"] = draw.random() < 0.3
    options["num_hidden_layers" if family != "T5ForConditionalGeneration" else "num_layers"] = draw.randint(1, 3)
    if family == "GptOssForCausalLM":
        options["layer_types"] = [
            draw.choice(["sliding_attention", "full_attention"]) for _ in range(options["num_hidden_layers"])
        ]
    return row(family, f"drawn {seed}: {options}", **options)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_architectures(seed):
    check(drawn(seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6, 60))
def test_more_drawn_architectures(seed):
    check(drawn(seed))


def test_grouped_products_in_double_are_those_of_torch():
    a, b = torch.randn(7, 16, requires_grad=True), torch.randn(3, 16, 8, requires_grad=True)
    offsets, weights = torch.tensor([2, 2, 7], dtype=torch.int32), torch.randn(7, 8)
    theirs = torch.nn.functional.grouped_mm(a, b, offs=offsets)
    ours = grouped(a.double(), b.double(), offs=offsets)
    assert torch.allclose(ours.float(), theirs, atol=1e-5)
    pairs = zip(*(torch.autograd.grad((out * weights).sum(), (a, b)) for out in (ours, theirs)), strict=True)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


def test_what_is_wrong_is_seen(monkeypatch):
    """A table that cannot fail says nothing: a gradient that is off, and a weight without an account."""
    from tl_backward.gradients.cache import GradientCache
    from tl_backward.weights import WeightSites
    from tl_backward.weights.account import DID_NOT_RUN
    from tl_backward.weights.factors import GradientFactors

    model = bridge(ROWS["GPT2LMHeadModel"], hugging_face(ROWS["GPT2LMHeadModel"]))
    assert not measure_pass(model, tokens(), {}).wrong
    real = GradientFactors.gradient
    monkeypatch.setattr(GradientFactors, "gradient", lambda self, *layout: real(self, *layout) * (1 + 1e-6))
    assert measure_pass(model, tokens(), {}).wrong
    monkeypatch.undo()
    for owner in (WeightSites, GradientCache):
        frame = owner.account
        forgetful = lambda self, frame=frame: frame(self).assign(sites=[()] * len(frame(self)), reason=DID_NOT_RUN)  # noqa: E731
        monkeypatch.setattr(owner, "account", forgetful)
    assert measure_pass(model, tokens(), {}).unseen


def test_rounding_is_switched_off():
    with InDouble(unrounded=True) as mode:
        x = torch.tensor([1 / 3], dtype=torch.float64)
        assert torch.equal(x.float(), x) and torch.equal(x.to(torch.float32), x)
        assert torch.softmax(x, 0, dtype=torch.float32).dtype == torch.float64
    assert mode.casts == 3
    assert x.float().dtype == torch.float32
