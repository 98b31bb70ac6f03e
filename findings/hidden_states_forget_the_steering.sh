#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0.
#
# Whether `hidden_states` show what a forward hook did to a layer depends on what the model was asked before.
# transformers records hidden states with forward hooks of its own, which it leaves on the layers for good the first
# time that hidden states are asked for. torch runs hooks in the order of their registration. So:
#   * steering hook first, then the first output_hidden_states=True: hidden_states hold the steered layer;
#   * one call with output_hidden_states=True, then the same steering hook: hidden_states hold the layer as it would
#     have been without the hook, although the next layer reads the steered one and the logits are the steered ones.
# Nothing warns. Two models with the same weights, the same hook and the same logits return other hidden states; the
# ones that follow the edited entry agree again, so the tuple contradicts itself. `register_forward_hook(...,
# prepend=True)` is seen in both orders.
#
# Output seen:
#   LlamaForCausalLM fresh: the next layer reads hidden_states[2] + 0.0, the logits differ by 0.0
#   LlamaForCausalLM asked before: the next layer reads hidden_states[2] + 1.0, the logits differ by 0.0
#   LlamaForCausalLM asked before, prepend=True: the next layer reads hidden_states[2] + 0.0, the logits differ by 0.0
#   GPT2LMHeadModel, Qwen3ForCausalLM: the same
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
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

IDS = torch.arange(3, 11)[None]
SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
GROUPED = dict(num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=0)
FAMILIES = [
    (LlamaForCausalLM, LlamaConfig(**SIZES, **GROUPED)),
    (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)),
    (Qwen3ForCausalLM, Qwen3Config(**SIZES, **GROUPED)),
]


def steer(module, args, output):
    if isinstance(output, tuple):
        return (output[0] + 1, *output[1:])
    return output + 1


@torch.no_grad()
def steered(kind, config, asked_before, prepend=False):
    torch.manual_seed(0)
    model = kind(config).eval()
    layers = model.transformer.h if kind is GPT2LMHeadModel else model.model.layers
    if asked_before:
        model(IDS, output_hidden_states=True)
    read = []
    layers[1].register_forward_hook(steer, prepend=prepend)
    layers[2].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    answer = model(IDS, output_hidden_states=True)
    return answer.logits, (read[0] - answer.hidden_states[2]).mean().item(), answer.hidden_states[3]


for kind, config in FAMILIES:
    logits, gap, after = steered(kind, config, asked_before=False)
    seen = []
    for name, options in {
        "fresh": dict(asked_before=False),
        "asked before": dict(asked_before=True),
        "asked before, prepend=True": dict(asked_before=True, prepend=True),
    }.items():
        others, gap, later = steered(kind, config, **options)
        moved = (others - logits).abs().max().item()
        print(f"{kind.__name__} {name}: the next layer reads hidden_states[2] + {gap:.1f}, "
              f"the logits differ by {moved}")
        assert moved == 0 and torch.equal(later, after)
        seen.append(round(gap, 4))
    assert seen == [0, 1, 0], seen
PYTHON
