#!/usr/bin/env bash
# torch 2.13.0, transformers 5.23.0.
#
# `model(inputs_embeds=model.get_input_embeddings()(ids))` of an ESM model (ESM-1b, ESM-2) is not `model(ids)`, though
# both take the same rows of the same matrix. BERT, RoBERTa and the others add positions, norms and masks to embeddings
# that they are given; ESM takes them as what its first layer reads. So an ESM-1b loses its position embeddings and
# its first norm: the protein becomes a bag of residues, and a shuffled one gets the shuffled logits. An ESM-2 (rotary)
# loses the scale of 0.88 of its "token dropout", and a mask token keeps an embedding that is zeroed otherwise.
# Integrated gradients, saliency and embedding optimisation begin so, and explain another model; a gradient taken at
# the output of the embedding matrix, with a hook, is right.
#
# Output seen (relative to the logits of the ids; the cosine is of the gradients of one logit at the embeddings):
#   BERT: logits of embeddings differ by 0%, shuffled embeddings give other logits by 59%, cosine 1.00
#   ESM-1b: logits of embeddings differ by 152%, shuffled embeddings give other logits by 0%, cosine 0.07
#   ESM-2: logits of embeddings differ by 39%, shuffled embeddings give other logits by 64%, cosine 0.04
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
from transformers import BertConfig, BertForMaskedLM, EsmConfig, EsmForMaskedLM

MASK = 32
IDS = torch.tensor([[0, 5, 9, MASK, 20, 11, 7, 14, 2]])
ORDER = torch.tensor([0, 7, 4, 3, 1, 6, 2, 5, 8])  # start, mask and end stay in their places
SIZES = dict(vocab_size=33, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, pad_token_id=1)
ESM = dict(SIZES, mask_token_id=MASK, token_dropout=True)
MODELS = {
    "BERT": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "ESM-1b": lambda: EsmForMaskedLM(EsmConfig(**ESM, position_embedding_type="absolute", emb_layer_norm_before=True)),
    "ESM-2": lambda: EsmForMaskedLM(EsmConfig(**ESM, position_embedding_type="rotary", emb_layer_norm_before=False)),
}


def apart(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


for name, make in MODELS.items():
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are random too, as in a trained model
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1).all())
    options = dict(attention_mask=torch.ones_like(IDS))
    matrix = model.get_input_embeddings()

    # By ids; the gradient is taken at what the matrix returns.
    rows = []
    hook = matrix.register_forward_hook(lambda module, args, output: rows.append(output.requires_grad_()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    logits = model(input_ids=IDS, **options).logits
    hook.remove()
    truth = torch.autograd.grad(logits[0, 3, 9], rows[0])[0]
    # The oracle: central differences of the matrix's row of one residue.
    direction = torch.zeros_like(truth)
    direction[0, 4] = torch.randn_like(truth[0, 4])
    values = []
    for sign in (1, -1):
        hook = matrix.register_forward_hook(lambda module, args, output: output + sign * 1e-3 * direction)
        values.append(model(input_ids=IDS, **options).logits[0, 3, 9].item())
        hook.remove()
    slope = (truth * direction).sum().item()
    assert abs((values[0] - values[1]) / 2e-3 - slope) < 1e-3 * abs(slope)

    embedded = matrix(IDS).detach().requires_grad_()
    given = model(inputs_embeds=embedded, **options).logits
    gradient = torch.autograd.grad(given[0, 3, 9], embedded)[0]
    shuffled = model(inputs_embeds=embedded[:, ORDER], **options).logits
    differ, moved = apart(given, logits), apart(shuffled, given[:, ORDER])
    cosine = torch.cosine_similarity(gradient.flatten(), truth.flatten(), 0).item()
    print(f"{name}: logits of embeddings differ by {differ:.0%}, shuffled embeddings give other logits by {moved:.0%}, "
          f"cosine {cosine:.2f}")
    if name == "BERT":
        assert differ < 1e-9 and moved > 0.1 and cosine > 0.999
    else:
        assert differ > 0.1 and cosine < 0.95
        assert (moved < 1e-9) == (name == "ESM-1b")
PYTHON
