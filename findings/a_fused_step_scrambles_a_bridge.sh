#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 4.3.0 (3.9.0 alike), transformers 5.23.0.
#
# On a CPU, torch's fused optimizers (SGD, Adam, AdamW, Adagrad with fused=True) read a parameter and its gradient as if
# both lay in memory alike. Where their strides differ each entry gets another entry's step, without an error. Autograd
# makes such gradients for parameters that are views, and a TransformerBridge around GPT-2 trains q, k and v as transposed
# views of the joint matrix: with fused=True their steps go to the wrong places, while every other parameter is stepped
# right. Hugging Face's Trainer takes AdamW with fused=True unless told otherwise.
#
# Output seen:
#   a parameter and its gradient of other strides, one step of SGD: fused and plain differ by 0.445
#   Trainer's own default: adamw_torch_fused
#   a Bridge around GPT-2, one step of AdamW: of 14 matrices in blocks 8 differ: h.0 q, h.0 k, h.0 v, h.0 qkv (the joint
#       one that they are views of), h.1 q, h.1 k, h.1 v, h.1 qkv
#       of these steps 83 % go the other way
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
import re

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments


def alone(fused):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8, 24))
    parameter.grad = torch.randn(24, 8).T  # as autograd gives it for a transposed view
    torch.optim.SGD([parameter], lr=0.1, fused=fused).step()
    return parameter.detach()


differ = round((alone(True) - alone(False)).abs().max().item(), 3)
print(f"a parameter and its gradient of other strides, one step of SGD: fused and plain differ by {differ}")
assert differ > 0.1

default = TrainingArguments(output_dir="run", use_cpu=True, report_to=[]).optim
print(f"Trainer's own default: {getattr(default, 'value', default)}")


def stepped(fused):
    """How far each matrix in the blocks moved in one step."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, attn_pdrop=0.0,
                        embd_pdrop=0.0, resid_pdrop=0.0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w2")), bos_token="w0",
        eos_token="w0", pad_token="w1", unk_token="w2", name_or_path="words", add_bos_token=True, padding_side="right")
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=GPT2LMHeadModel(config), tokenizer=words, device="cpu")
    matrices = {name: p for name, p in bridge.original_model.named_parameters() if p.ndim == 2 and "h." in name}
    before = {name: p.detach().clone() for name, p in matrices.items()}
    optimizer = torch.optim.AdamW(bridge.original_model.parameters(), lr=0.01, weight_decay=0.0, fused=fused)
    ids = torch.arange(3, 11)[None]
    bridge.original_model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in matrices.items()}


plain, fused = stepped(False), stepped(True)
wrong = [name for name in plain if (plain[name] - fused[name]).abs().max() > 1e-3]


def short(name):
    block = re.search(r"h\.(\d)", name).group(1)
    return f"h.{block} " + name.replace("_original_component.", "").split(".")[-2]


said = ", ".join(dict.fromkeys(map(short, wrong)))
print(f"a Bridge around GPT-2, one step of AdamW: of {len(plain)} matrices in blocks {len(wrong)} differ: {said}")
other = torch.cat([(plain[name].sign() != fused[name].sign()).flatten() for name in wrong]).float().mean()
print(f"    of these steps {100 * other:.0f} % go the other way")
assert wrong and all(short(name).split()[1] in "qkv" for name in wrong) and other > 0.3
PYTHON
