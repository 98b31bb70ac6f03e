#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0.
#
# `model.double()` of Llama, Qwen3, Mistral, Gemma 2 or OLMo 2 looks like a float64 model (parameters, logits and
# gradients say float64), but its logits carry no more than float32's digits: the RMS norms turn their input into
# float32 and the result back, and the rotary angles are float32's. The upcast that protects bfloat16 is a downcast
# here. GPT-2, whose layer norms are torch's, is float64 throughout. It spoils the usual check of a gradient by
# central differences: with a smaller step the quotient gets worse, wrong in its first or second digit at 1e-8, where
# GPT-2's agrees to nine digits. A correct gradient looks wrong.
#
# Output seen (relative error of the central difference of one logit against autograd):
#   GPT2LMHeadModel     step 1e-04: 1e-05   step 1e-06: 1e-09   step 1e-08: 2e-10
#   LlamaForCausalLM    step 1e-04: 1e-04   step 1e-06: 3e-03   step 1e-08: 3e-01
#   Qwen3ForCausalLM    step 1e-04: 1e-04   step 1e-06: 1e-04   step 1e-08: 6e-02
#   MistralForCausalLM  step 1e-04: 1e-04   step 1e-06: 3e-03   step 1e-08: 3e-01
#   Gemma2ForCausalLM   step 1e-04: 7e-06   step 1e-06: 5e-03   step 1e-08: 9e-02
#   Olmo2ForCausalLM    step 1e-04: 6e-05   step 1e-06: 7e-05   step 1e-08: 4e-02
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
    MistralForCausalLM, Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

IDS = torch.arange(3, 11)[None]
SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=0, pad_token_id=1,
             attn_implementation="eager")
STEPS = (1e-4, 1e-6, 1e-8)


def errors(kind, config):
    torch.manual_seed(0)
    model = kind(config).double().eval()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    point = model.get_input_embeddings()(IDS).detach().requires_grad_()
    direction = torch.randn(point.shape, dtype=torch.float64)

    def logit(x):
        return model(inputs_embeds=x).logits[0, -1, 3]

    value = logit(point)
    assert value.dtype == torch.float64
    slope = (torch.autograd.grad(value, point)[0] * direction).sum()
    with torch.no_grad():
        quotients = [(logit(point + h * direction) - logit(point - h * direction)) / (2 * h) for h in STEPS]
    return [((quotient - slope) / slope).abs().item() for quotient in quotients]


for kind, config in [
    (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)),
    (LlamaForCausalLM, LlamaConfig(**SIZES)),
    (Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    (MistralForCausalLM, MistralConfig(**SIZES)),
    (Gemma2ForCausalLM, Gemma2Config(**SIZES, query_pre_attn_scalar=8)),
    (Olmo2ForCausalLM, Olmo2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
]:
    found = errors(kind, config)
    print(f"{kind.__name__:19}", *(f"step {h:.0e}: {e:.0e}  " for h, e in zip(STEPS, found)))
    if kind is GPT2LMHeadModel:
        assert found[1] < 1e-8 and found[2] < 1e-8, found
    else:
        assert found[1] > 1e-5 and found[2] > 1e-3, found
PYTHON
