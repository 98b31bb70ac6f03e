"""A Bridge whose attention computes something else than the module inside it is noticed, and nothing else is."""

import warnings

import pytest
import torch
import transformers
from leaves_no_trace import assert_same, state
from models import D_VOCAB, HAS_HOOKED_TRANSFORMER, bridge, randomise, tokenizer
from transformer_lens.model_bridge import TransformerBridge

import tl_backward as tlb
from tl_backward.weights.other_model import OtherModelWarning

GROUPED = dict(
    vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    num_key_value_heads=2, max_position_embeddings=16,
)  # fmt: skip
TOKENS = torch.tensor([[3, 9, 4, 7]])


def boot(name, dtype=torch.float64, **options):
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    inner = (
        cls(cls.config_class(**GROUPED, **options, attn_implementation="eager", architectures=[name])).to(dtype).eval()
    )
    randomise(inner)
    return TransformerBridge.boot_transformers(
        f"tests/{name}", hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=dtype
    )


def said(model):
    """What is said of a model's attention in two captures."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
    return [each for each in heard if issubclass(each.category, OtherModelWarning)]


def scaled(model, layer=0):
    """A model whose module inside an attention gives 1.01 of what TransformerLens's does."""
    attention = model.blocks[layer].attn.original_component
    own = type(attention).forward

    def forward(*args, **kwargs):
        out = own(attention, *args, **kwargs)
        return (1.01 * out[0], *out[1:])

    attention.forward = forward
    return model


@pytest.mark.parametrize("name", ["CohereForCausalLM", "Cohere2ForCausalLM"])
def test_coheres_positions(name):
    heard = said(boot(name, logit_scale=0.25))
    if not HAS_HOOKED_TRANSFORMER:
        assert not heard
        return
    assert len(heard) == 1 and heard[0].filename == __file__
    assert f"of this {name} gives other numbers" in str(heard[0].message)


@pytest.mark.parametrize("family", ["gpt2", "neox", "gptj", "llama", "qwen2", "gemma2", "mixtral"])
def test_nothing_is_said_of_what_is_right(family):
    assert not said(bridge(family, torch.float32))


def test_what_is_noticed_and_what_leaves_no_trace():
    model = scaled(bridge("llama"))
    before = state(model)
    (heard,) = said(model)
    assert "(0.0099 of the largest)" in str(heard.message)
    assert_same(before, state(model))


def test_what_is_not_compared():
    assert not said(scaled(bridge("llama", torch.bfloat16)))
    model = scaled(bridge("llama"))
    model.enable_compatibility_mode(disable_warnings=True)
    assert not said(model)
    model = bridge("llama")
    model.blocks[0].attn.original_component.forward = lambda *args: 1 / 0
    assert not said(model)
