#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 4.3.0 (3.9.0 alike), transformers 5.23.0.
#
# A TransformerBridge of OpenAI's first GPT that is given an attention mask, be it all ones, lets every token attend to
# those after it: the logits at the first position change when the last token does, and a batch of padded texts has
# other logits than the texts alone, without a warning. This architecture adds causality inside its attention, to the
# mask that comes from outside; TransformerLens's attention takes a mask that comes from outside to be causal already.
# Without a mask the Bridge is right. The Hugging Face model is right either way, and so is a Bridge of GPT-2.
#
# Output seen (largest change of the logits, relative to the largest logit):
#   OpenAIGPTLMHeadModel, Hugging Face: a mask of ones 0.0%; the first position, when the last token changes, 0.0%
#   OpenAIGPTLMHeadModel, Bridge: a mask of ones 84.7%; the first position, when the last token changes, 38.6%
#   GPT2LMHeadModel, Hugging Face: a mask of ones 0.0%; the first position, when the last token changes, 0.0%
#   GPT2LMHeadModel, Bridge: a mask of ones 0.0%; the first position, when the last token changes, 0.0%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    transformer-lens==4.3.0 torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.2.0 \
    pandas==3.1.1 jaxtyping==0.3.11 beartype==0.23.1 einops==0.8.2 sentencepiece==0.2.3 tqdm==4.70.1
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel, PreTrainedTokenizerFast

TOKENS = torch.tensor([[5, 17, 8, 30, 12]])
OTHER = torch.tensor([[5, 17, 8, 30, 44]])
ONES = torch.ones_like(TOKENS)
SIZES = dict(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)


def tokenizer():
    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(50)}, unk_token="t1"))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="t0", eos_token="t0", pad_token="t0", unk_token="t1",
                                   name_or_path="t", add_bos_token=True)


def change(after, before):
    return float((after - before).abs().max() / before.abs().max())


@torch.no_grad()
def changes(logits):
    """Of all logits by a mask of ones; of the first position's, under that mask, by another last token."""
    masked = logits(TOKENS, attention_mask=ONES)
    return change(masked, logits(TOKENS)), change(logits(OTHER, attention_mask=ONES)[:, 0], masked[:, 0])


for name, kind, config in [
    ("openai-community/openai-gpt", OpenAIGPTLMHeadModel, OpenAIGPTConfig(**SIZES)),
    ("gpt2", GPT2LMHeadModel, GPT2Config(**SIZES)),
]:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    bridge = TransformerBridge.boot_transformers(name, hf_model=copy.deepcopy(model), tokenizer=tokenizer(), device="cpu")
    sides = {
        "Hugging Face": lambda tokens, **given: model(tokens, **given).logits,
        "Bridge": lambda tokens, **given: bridge(tokens, return_type="logits", **given),
    }
    for side, logits in sides.items():
        mask, first = changes(logits)
        print(f"{kind.__name__}, {side}: a mask of ones {mask:.1%}; the first position, when the last token changes, {first:.1%}")
        wrong = side == "Bridge" and kind is OpenAIGPTLMHeadModel
        assert (mask > 0.05 and first > 0.02) if wrong else (mask < 1e-4 and first < 1e-4)
PYTHON
