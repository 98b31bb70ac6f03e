#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0.
#
# `hidden_states[i]` is what layer i reads: the embeddings come first ("one for the output of the embeddings + one for the
# output of each layer", says transformers of it), and after the last layer the final norm's output. Of Mamba, Mamba 2,
# Falcon Mamba and RWKV it is what layer i wrote. The embeddings are not there, and the last layer is there twice,
# before its norm and after it, so the tuple has the length that one expects, L + 1. Probes, lenses, steering vectors
# and comparisons of these models with a transformer are one layer late, and a "layer 0" that should know only the
# token has seen the context.
#
# Output seen (which entry equals what each of the 4 layers reads, and whether the last token's entry 0 knows the first):
#   LlamaForCausalLM: 5 entries; layers 0 1 2 3 read entries 0 1 2 3; entry 0 sees the context: False
#   MambaForCausalLM: 5 entries; layers 0 1 2 3 read entries - 0 1 2; entry 0 sees the context: True
#   Mamba2ForCausalLM: 5 entries; layers 0 1 2 3 read entries - 0 1 2; entry 0 sees the context: True
#   FalconMambaForCausalLM: 5 entries; layers 0 1 2 3 read entries - 0 1 2; entry 0 sees the context: True
#   RwkvForCausalLM: 5 entries; layers 0 1 2 3 read entries - 0 1 2; entry 0 sees the context: True
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
from transformers import (FalconMambaConfig, FalconMambaForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM)

N_LAYERS = 4
SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=N_LAYERS, bos_token_id=0, eos_token_id=0, pad_token_id=1)
MODELS = [
    (LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=64, num_attention_heads=4)),
    (MambaForCausalLM, MambaConfig(**SIZES, state_size=8)),
    (Mamba2ForCausalLM, Mamba2Config(**SIZES, num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8)),
    (FalconMambaForCausalLM, FalconMambaConfig(**SIZES, state_size=8)),
    (RwkvForCausalLM, RwkvConfig(**SIZES, attention_hidden_size=32)),
]
IDS = torch.arange(3, 11)[None]
OTHER = IDS.clone()
OTHER[0, 0] = 20  # another first token

for kind, config in MODELS:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    read, hooks = {}, []
    for number, layer in enumerate(layers):
        def note(module, args, kwargs, number=number):
            read[number] = args[0] if args else kwargs["hidden_states"]

        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        others = model(OTHER, output_hidden_states=True).hidden_states
        embedded = model.get_input_embeddings()(IDS)
    entries = []
    for number in range(N_LAYERS):
        equal = [i for i, state in enumerate(states) if torch.allclose(state, read[number], atol=1e-5)]
        entries.append(str(equal[0]) if equal else "-")
    sees = bool((states[0][0, -1] - others[0][0, -1]).abs().max() > 1e-5)
    print(f"{kind.__name__}: {len(states)} entries; layers {' '.join(map(str, range(N_LAYERS)))} read entries "
          f"{' '.join(entries)}; entry 0 sees the context: {sees}")
    assert len(states) == N_LAYERS + 1
    late = kind is not LlamaForCausalLM
    assert any(torch.equal(state, embedded) for state in states) != late and sees == late
    assert entries == (["-", "0", "1", "2"] if late else ["0", "1", "2", "3"]), entries
PYTHON
