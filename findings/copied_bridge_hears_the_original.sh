#!/usr/bin/env bash
# torch 2.13.0, transformer-lens 4.3.0 (3.9.0 alike), transformers 5.23.0.
#
# A `copy.deepcopy` of a TransformerBridge that has run once keeps calling one of the original's hook points. A block
# wires `hook_mlp_in` at its first run, by a closure on ln2 that holds the original's hook point and, weakly, the
# original block; deepcopy takes functions over as they are. In the copy, therefore,
#   * a hook at `blocks.N.hook_mlp_in` never runs, without an error;
#   * a hook at the same place of the *original* edits the copy's pass;
#   * once the original is gone, every pass raises ReferenceError, also where nobody ever used hook_mlp_in.
# The copy's hook_mlp_out is its own. A copy made before the first run is right, so the same lines give other results
# in another order.
#
# Output seen:
#   GPT2LMHeadModel copied before a run: hook_mlp_in of the copy moves its logits by 3.877, of the original by 0.0;
#       hook_mlp_out of the copy by 3.619
#       once the original is gone, a pass of the copy: runs
#   GPT2LMHeadModel copied after a run: hook_mlp_in of the copy moves its logits by 0.0, of the original by 3.877;
#       hook_mlp_out of the copy by 3.619
#       once the original is gone, a pass of the copy: ReferenceError: weakly-referenced object no longer exists
#   LlamaForCausalLM: the same with 7.16 everywhere for 3.877 and 3.619
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
import gc

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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

POINT = "blocks.0.hook_mlp_in"


def zero(value, hook):
    return torch.zeros_like(value)


@torch.no_grad()
def moved(name, kind, config, ran):
    """How far the copy's logits move by a hook on the copy, on the original, and on the copy at another place."""
    bridge = boot(name, kind, config)
    bridge.set_use_hook_mlp_in(True)
    if ran:
        bridge(IDS)
    copied = copy.deepcopy(bridge)
    plain = copied(IDS)
    own = copied.run_with_hooks(IDS, fwd_hooks=[(POINT, zero)])
    other = copied.run_with_hooks(IDS, fwd_hooks=[("blocks.0.hook_mlp_out", zero)])
    with bridge.hooks(fwd_hooks=[(POINT, zero)]):
        foreign = copied(IDS)
    return [round((answer - plain).abs().max().item(), 3) for answer in (own, foreign, other)]


@torch.no_grad()
def alone(name, kind, config, ran):
    """What a pass of the copy does once the original is gone; use_hook_mlp_in was never switched on."""
    bridge = boot(name, kind, config)
    if ran:
        bridge(IDS)
    copied = copy.deepcopy(bridge)
    del bridge
    gc.collect()
    try:
        copied(IDS)
    except ReferenceError as error:
        return f"ReferenceError: {error}"
    return "runs"


for name, kind, config in [
    ("gpt2", GPT2LMHeadModel,
     GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)),
    ("meta-llama/Llama-3.2-1B", LlamaForCausalLM, LlamaConfig(**SIZES)),
]:
    for ran in (False, True):
        own, foreign, other = moved(name, kind, config, ran)
        when = "copied after a run" if ran else "copied before a run"
        print(f"{kind.__name__} {when}: hook_mlp_in of the copy moves its logits by {own}, "
              f"of the original by {foreign}; hook_mlp_out of the copy by {other}")
        outcome = alone(name, kind, config, ran)
        print(f"    once the original is gone, a pass of the copy: {outcome}")
        assert other > 0.1
        assert outcome.startswith("ReferenceError") if ran else outcome == "runs"
        assert own == 0 and foreign > 0.1 if ran else own > 0.1 and foreign == 0
PYTHON
