#!/usr/bin/env bash
# torch 2.13.0, torchao 0.18.0, transformers 5.23.0.
#
# torchao's int8 weights with int8 activations (Int8DynamicActivationInt8WeightConfig, through quantize_ or transformers'
# TorchAoConfig) have no derivative: what such a layer returns does not require a gradient, whatever it read. In a
# transformer that raises nothing. transformers leaves the unembedding as it is, and the residual stream goes around the
# layers: backward() runs, and the gradient at the embeddings is that of a model without attention and without MLPs. It
# is exactly zero at every token but the last, although these tokens decide the answer: saliency maps, integrated
# gradients and adversarial searches see one token. Logits are as in full numbers. Weights alone in int8
# (Int8WeightOnlyConfig) leave the gradient right.
#
# Output seen (the gradient of a logit difference at the embeddings; the whole one is the same model's in float32):
#   int8 weights: logits differ by 2.1%, cosine of the gradient with the whole one 1.00
#       its norm a token: 9.9 15.1 4.0 22.2 7.3 9.8 7.8 29.7
#   int8 weights and activations: logits differ by 3.5%, cosine of the gradient with the whole one 0.06
#       its norm a token: 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.7
#       the same as of the unembedding alone: True
#       without the fourth token's embedding the logit difference falls by 0.5 (in float32 0.6); the gradient says 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    --no-deps torchao==0.18.0
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { cat "$work/log"; exit 1; }
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

IDS = torch.arange(3, 11)[None]
torch.manual_seed(0)
full = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                    num_attention_heads=4, num_key_value_heads=4, head_dim=16,
                                    attn_implementation="eager")).eval()
with torch.no_grad():
    for parameter in full.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn_like(parameter) * 0.15)
full.save_pretrained("model")
EMBEDDED = full.get_input_embeddings()(IDS).detach()


def difference(model, embedded):
    logits = model(inputs_embeds=embedded).logits[0, -1]
    return logits[7] - logits[8]


def gradient(model):
    embedded = EMBEDDED.clone().requires_grad_()
    return torch.autograd.grad(difference(model, embedded), embedded)[0]


@torch.no_grad()
def fall(model):
    """What the answer loses without the fourth token's embedding."""
    without = EMBEDDED.clone()
    without[0, 3] = 0
    return (difference(model, EMBEDDED) - difference(model, without)).item()


whole = gradient(full)
for name, config in [("int8 weights", Int8WeightOnlyConfig()),
                     ("int8 weights and activations", Int8DynamicActivationInt8WeightConfig())]:
    model = LlamaForCausalLM.from_pretrained("model", quantization_config=TorchAoConfig(config), dtype=torch.float32,
                                             attn_implementation="eager").eval()
    assert "torchao" in type(model.model.layers[0].mlp.up_proj.weight).__module__
    with torch.no_grad():
        expected = full(IDS).logits
        apart = ((model(IDS).logits - expected).norm() / expected.norm()).item()
    found = gradient(model)
    cosine = torch.cosine_similarity(found.flatten(), whole.flatten(), 0).item()
    print(f"{name}: logits differ by {apart:.1%}, cosine of the gradient with the whole one {cosine:.2f}")
    norms = found.norm(dim=-1)[0]
    print("    its norm a token:", *(f"{norm:.1f}" for norm in norms.tolist()))
    assert apart < 0.1
    if name == "int8 weights":
        assert cosine > 0.99
        continue
    # What is left: the stream of the quantised model as it arrives, through the final norm and the unembedding.
    arrived = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: arrived.append(args[0].detach()))
    model(IDS)
    hook.remove()
    last = arrived[0].requires_grad_()
    logits = model.lm_head(model.model.norm(last))[0, -1]
    alone = torch.autograd.grad(logits[7] - logits[8], last)[0]
    same = torch.allclose(alone, found, atol=1e-5)
    print("    the same as of the unembedding alone:", same)
    lost, truly = fall(model), fall(full)
    print(f"    without the fourth token's embedding the logit difference falls by {lost:.1f} (in float32 {truly:.1f}); "
          f"the gradient says {(found[0, 3] * EMBEDDED[0, 3]).sum().item():.1f}")
    assert cosine < 0.2 and same and not norms[:-1].any() and abs(truly) > 0.3 and abs(lost - truly) < 0.5 * abs(truly)
PYTHON
