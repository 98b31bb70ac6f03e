#!/usr/bin/env bash
# sae-lens 6.54.12, transformer-lens 3.9.0, torch 2.13.0.
#
# An SAE that normalises its activations (normalize_activations="layer_norm" or "constant_norm_rescale") keeps the mean
# and the norm of each token in the SAE object when it encodes, and decode() takes them from there and deletes them. So
# decode(features) is not a function of the features: it gives them the mean and norm of whatever was encoded last.
# Encode two texts and then decode the first, and its reconstruction has the other's, token by token; an average of
# both texts' features, or their difference, gets those of the second. No warning comes, and all shapes are right. (Only
# a second decode() without an encode() between them raises AttributeError.)
#
# Output seen (an SAE that reconstructs exactly; the error of the reconstruction of a text, relative to its size):
#   none: encode a, decode a: 0.000; encode a, encode b, decode a: 0.000
#   layer_norm: encode a, decode a: 0.000; encode a, encode b, decode a: 4.957
#   constant_norm_rescale: encode a, decode a: 0.000; encode a, encode b, decode a: 4.603
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.2.0 \
    pandas==3.1.1 jaxtyping==0.3.11 beartype==0.23.1 einops==0.8.2 sentencepiece==0.2.3 tqdm==4.70.1 \
    simple-parsing==0.1.9 docstring-parser==0.18.0
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    --no-deps sae-lens==6.54.12
export HF_HUB_OFFLINE=1 HF_HOME="$work/hub" PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { cat "$work/log"; exit 1; }
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

WIDTH, N_TOKENS = 16, 8
torch.manual_seed(0)
a = torch.randn(N_TOKENS, WIDTH) + 1
b = torch.randn(N_TOKENS, WIDTH) * 10


def exact(normalize):
    """Two features a dimension, its positive and its negative part: every reconstruction is exact."""
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH, normalize_activations=normalize)).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc.copy_(torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], 1))
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


def error(found):
    return ((found - a).norm() / a.norm()).item()


for normalize in ("none", "layer_norm", "constant_norm_rescale"):
    sae = exact(normalize)
    with torch.no_grad():
        alone = error(sae.decode(sae.encode(a)))
        features = sae.encode(a)
        sae.encode(b)
        later = error(sae.decode(features))
    print(f"{normalize}: encode a, decode a: {alone:.3f}; encode a, encode b, decode a: {later:.3f}")
    assert alone < 1e-3 and (later < 1e-3 if normalize == "none" else later > 1), (alone, later)
PYTHON
