#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 4.3.0 (3.9.0 alike), transformers 5.23.0.
#
# A Hugging Face model saves with `save_pretrained`. Once a TransformerBridge has been booted around it, the same object
# trains as before but cannot be saved: the Bridge registers components under further names, so that parameters are held
# twice, and splits GPT-2's joint query, key and value into transposed views. save_pretrained then raises RuntimeError,
# about tied weights or about a view's strides, and never names the Bridge. Trainer does the same at its first checkpoint:
# with the default save_strategy a run of some hours ends there.
#
# Output seen:
#   GPT2LMHeadModel: saved before; with a Bridge around it RuntimeError: view size is not compatible with input tensor's
#   LlamaForCausalLM: saved before; with a Bridge around it RuntimeError: The weights trying to be saved contained shared
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
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {f"w{i}": i for i in range(50)}
SMALL = dict(vocab_size=50, bos_token_id=0, eos_token_id=0)
for name, kind, config in [
    ("gpt2", GPT2LMHeadModel, GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4)),
    ("meta-llama/Llama-3.2-1B", LlamaForCausalLM,
     LlamaConfig(**SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8, pad_token_id=1)),
]:
    torch.manual_seed(0)
    inner = kind(config)
    inner.save_pretrained(f"before-{kind.__name__}")
    again = kind.from_pretrained(f"before-{kind.__name__}")
    ids = torch.arange(3, 11)[None]
    assert torch.equal(again.eval()(ids).logits, inner.eval()(ids).logits)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(WORDS, unk_token="w2")),
                                    bos_token="w0", eos_token="w0", pad_token="w1", unk_token="w2",
                                    name_or_path="words", add_bos_token=True, padding_side="right")
    bridge = TransformerBridge.boot_transformers(name, hf_model=inner, tokenizer=words, device="cpu")
    assert bridge.original_model is inner
    loss = inner(input_ids=ids, labels=ids).loss
    loss.backward()  # it trains
    try:
        inner.save_pretrained(f"after-{kind.__name__}")
        outcome = "saved"
    except RuntimeError as error:
        outcome = "RuntimeError: " + str(error).strip().split("\n")[0][:52]
    print(f"{kind.__name__}: saved before; with a Bridge around it {outcome}")
    assert outcome.startswith("RuntimeError"), outcome
PYTHON
