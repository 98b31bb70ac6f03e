#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0.
#
# In float64 with attn_implementation="eager", padding turns the logits of a text's own tokens into NaN, with a right
# attention mask and without a warning: Llama padded on the left, as for generation, and models with a sliding window
# padded by a window's width on the right. bfloat16, float32 and scaled_dot_product_attention are right, and so is GPT-2.
# The mask adds float64's least number, which is -inf in the float32 that eager attention takes its softmax in: a padding
# token that sees nothing but padding becomes NaN, and 0 times it reaches the real tokens a layer later. Who turns to
# float64 for a reference value gets none.
#
# Output seen (share of the real tokens' logits that are NaN):
#   Llama, padded left: bfloat16 eager 0%, float32 eager 0%, float64 eager 100%, float64 sdpa 0%
#   Mistral, window 8, padded right by 7: bfloat16 eager 0%, float32 eager 0%, float64 eager 0%, float64 sdpa 0%
#   Mistral, window 8, padded right by 8: bfloat16 eager 0%, float32 eager 0%, float64 eager 100%, float64 sdpa 0%
#   GPT-2, padded left: bfloat16 eager 0%, float32 eager 0%, float64 eager 0%, float64 sdpa 0%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

TEXT = [7, 11, 23, 5]
SIZES = dict(
    vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=64, pad_token_id=0,
)
WINDOW = MistralConfig(**SIZES, sliding_window=8)
GPT2 = GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
CASES = {
    "Llama, padded left": (LlamaConfig(**SIZES), "left", 8),
    "Mistral, window 8, padded right by 7": (WINDOW, "right", 7),
    "Mistral, window 8, padded right by 8": (WINDOW, "right", 8),
    "GPT-2, padded left": (GPT2, "left", 8),
}
WAYS = [("bfloat16", "eager"), ("float32", "eager"), ("float64", "eager"), ("float64", "sdpa")]


@torch.no_grad()
def lost(config, side, n, dtype, attention):
    """Share of the real tokens' logits that are NaN."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(getattr(torch, dtype)).eval()
    rows = (TEXT, [1] * len(TEXT)), ([0] * n, [0] * n)
    tokens, mask = (torch.tensor([a + b if side == "right" else b + a]) for a, b in zip(*rows))
    logits = model(tokens, attention_mask=mask).logits[0]
    return float(logits[mask[0].bool()].isnan().double().mean())


found = {}
for label, case in CASES.items():
    found[label] = [lost(*case, *way) for way in WAYS]
    print(f"{label}: " + ", ".join(f"{' '.join(way)} {share:.0%}" for way, share in zip(WAYS, found[label])))
expected = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
sys.exit(list(found.values()) != expected)
PYTHON
