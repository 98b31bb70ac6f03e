#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 3.9.0, transformers 5.23.0.
#
# A HookedTransformer whose attention is bidirectional (attention_dir="bidirectional", as for models of proteins and
# other masked ones) takes an attention_mask and does not mask: what stands in the padding changes the logits of the real
# tokens, on either side, and a padded text has other logits than the text alone, without a warning. The mask moves
# position ids alone. With attention_dir="causal" the same calls are right: the mask is applied together with the causal
# one, and only there.
#
# Output seen (largest change of the real tokens' logits, relative to the largest logit):
#   causal, padded right: by padding 0.0%; by what stands in the padding 0.0%
#   causal, padded left: by padding 0.0%; by what stands in the padding 0.0%
#   bidirectional, padded right: by padding 77.4%; by what stands in the padding 100.2%
#   bidirectional, padded left: by padding 77.4%; by what stands in the padding 100.2%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.2.0 \
    pandas==3.1.1 jaxtyping==0.3.11 beartype==0.23.1 einops==0.8.2 sentencepiece==0.2.3 tqdm==4.70.1
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

TEXT, PADDING, OTHER = [7, 11, 23, 5], [1, 1, 1], [30, 41, 12]


def padded(padding, side):
    """Tokens and mask; the text's own places."""
    right = side == "right"
    tokens = TEXT + padding if right else padding + TEXT
    mask = [1] * 4 + [0] * 3 if right else [0] * 3 + [1] * 4
    return torch.tensor([tokens]), torch.tensor([mask]), slice(0, 4) if right else slice(3, 7)


@torch.no_grad()
def logits(model, padding, side):
    tokens, mask, real = padded(padding, side)
    return model(tokens, attention_mask=mask, padding_side=side)[:, real]


def change(after, before):
    return float((after - before).abs().max() / before.abs().max())


for direction in ("causal", "bidirectional"):
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=16, d_head=6, n_heads=4, d_mlp=48, d_vocab=50, act_fn="gelu",
        attention_dir=direction, seed=0,
    )
    model = HookedTransformer(config).eval()
    with torch.no_grad():
        alone = model(torch.tensor([TEXT]))
    for side in ("right", "left"):
        one, other = logits(model, PADDING, side), logits(model, OTHER, side)
        by_padding, by_content = change(one, alone), change(other, one)
        print(f"{direction}, padded {side}: by padding {by_padding:.1%}; by what stands in the padding {by_content:.1%}")
        wrong = direction == "bidirectional"
        assert (by_padding > 0.05 and by_content > 0.05) if wrong else (by_padding < 1e-4 and by_content < 1e-4)
PYTHON
