#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 4.3.0 (3.9.0 alike), transformers 5.23.0.
#
# `cache.get_full_resid_decomposition()` of a Gemma 2 Bridge is not a decomposition: it does not add up to the
# residual stream. Gemma 2 norms what attention and the MLP return once more before adding it. `decompose_resid()`
# takes them after that norm and adds up; the heads are taken before it (and so are the neurons, where asked for), so
# theirs are the sizes of other vectors, and no argument or warning says so. With attn_out in place of its heads the
# sum is right. Compatibility mode changes nothing. Llama's decomposition adds up.
#
# Output seen (distance of the sum from the residual stream, relative to the latter):
#   LlamaForCausalLM as booted: decompose_resid 0.0%, get_full_resid_decomposition 0.0%
#   LlamaForCausalLM compatibility mode: decompose_resid 0.0%, get_full_resid_decomposition 0.0%
#   Gemma2ForCausalLM as booted: decompose_resid 0.0%, get_full_resid_decomposition 74.5%
#   Gemma2ForCausalLM compatibility mode: decompose_resid 0.0%, get_full_resid_decomposition 74.5%
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
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.arange(3, 11)[None]
WORDS = {f"w{i}": i for i in range(50)}


def boot(name, kind, config):
    """A Bridge around a random model; norm weights and biases are random too, as in a trained one."""
    torch.manual_seed(0)
    inner = kind(config).eval()
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter == 1).all())
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(WORDS, unk_token="w2")),
                                    bos_token="w0", eos_token="w0", pad_token="w1", unk_token="w2",
                                    name_or_path="words", add_bos_token=True, padding_side="right")
    return TransformerBridge.boot_transformers(name, hf_model=inner, tokenizer=words, device="cpu")

SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=0, pad_token_id=1,
             attn_implementation="eager")


def gap(parts, whole):
    return ((parts.sum(0) - whole).norm() / whole.norm()).item()


@torch.no_grad()
def gaps(bridge):
    _, cache = bridge.run_with_cache(IDS)
    whole = cache["blocks.1.hook_resid_post"]
    full = cache.get_full_resid_decomposition(expand_neurons=False)
    return gap(cache.decompose_resid(), whole), gap(full, whole)


for name, kind, config in [
    ("meta-llama/Llama-3.2-1B", LlamaForCausalLM, LlamaConfig(**SIZES)),
    ("google/gemma-2-2b", Gemma2ForCausalLM, Gemma2Config(**SIZES, query_pre_attn_scalar=8)),
]:
    bridge = boot(name, kind, config)
    for mode in ("as booted", "compatibility mode"):
        if mode != "as booted":
            bridge.enable_compatibility_mode()
        layers, heads = gaps(bridge)
        print(f"{kind.__name__} {mode}: decompose_resid {layers:.1%}, get_full_resid_decomposition {heads:.1%}")
        assert layers < 1e-4
        assert heads > 0.1 if kind is Gemma2ForCausalLM else heads < 1e-4
PYTHON
