#!/usr/bin/env bash
# torch 2.13.0, opacus 1.6.0.
#
# opacus's per-sample gradients of an Embedding with padding_idx are not torch's: its padding row gets the gradient of all
# padding, which autograd leaves at zero. `.grad` is right, so nothing shows, but `grad_sample` and its norms are
# wrong, and the more so the more padding there is: the same text has another norm in a longer batch. DP-SGD clips
# by these norms, so that padding decides how much a text counts, and then moves the padding row, which should stay zero.
# grad_sample_mode="functorch" is right.
#
# Output seen (a classifier of the mean embedding; gradients of its embedding matrix for 8 texts of 3 to 10 words):
#   padded to 12: norms by autograd, one text at a time: 0.033 0.035 0.043 0.040 0.039 0.044 0.058 0.057
#       opacus, hooks: 0.177 0.146 0.142 0.106 0.077 0.076 0.082 0.067
#       opacus, functorch: 0.033 0.035 0.043 0.040 0.039 0.044 0.058 0.057
#   padded to 64: norms by autograd, one text at a time: 0.006 0.008 0.008 0.008 0.009 0.011 0.010 0.012
#       opacus, hooks: 0.210 0.225 0.201 0.190 0.167 0.212 0.187 0.199
#       opacus, functorch: 0.006 0.008 0.008 0.008 0.009 0.011 0.010 0.012
#   one step of DP-SGD without noise, hooks: the padding row moves 0.46 times as far as all other rows together
#   one step of DP-SGD without noise, functorch: the padding row moves 0.00 times as far as all other rows together
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 opt_einsum==3.4.0
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    --no-deps opacus==1.6.0
export PIP_NO_INDEX=1 OMP_NUM_THREADS=1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from opacus import PrivacyEngine
from opacus.grad_sample.utils import wrap_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

N_WORDS, PAD = 100, 0


class Classifier(nn.Module):
    """Embeddings, their mean over the text as it is padded, two layers: as in opacus's tutorial on texts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(N_WORDS, 16, padding_idx=PAD)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 2)

    def forward(self, ids):
        return self.second(torch.relu(self.first(self.embedding(ids).mean(1))))


def make():
    torch.manual_seed(0)
    return Classifier().double()


def texts(length):
    """Eight texts of 3 to 10 words, padded to a length."""
    torch.manual_seed(1)
    ids = torch.full((8, length), PAD)
    for i in range(8):
        ids[i, : 3 + i] = torch.randint(1, N_WORDS, (3 + i,))
    return ids, torch.arange(8) % 2


def one_by_one(ids, labels):
    model, found = make(), []
    for text, label in zip(ids, labels):
        model.zero_grad()
        cross_entropy(model(text[None]), label[None]).backward()
        found.append(model.embedding.weight.grad.clone())
    return torch.stack(found)


def per_sample(mode, ids, labels):
    model = wrap_model(make(), grad_sample_mode=mode, loss_reduction="mean")
    cross_entropy(model(ids), labels).backward()
    weight = model._module.embedding.weight
    return weight.grad_sample, weight.grad


for length in (12, 64):
    ids, labels = texts(length)
    truth = one_by_one(ids, labels)
    print(f"padded to {length}: norms by autograd, one text at a time:",
          *(f"{n:.3f}" for n in truth.flatten(1).norm(dim=1).tolist()))
    for mode in ("hooks", "functorch"):
        found, total = per_sample(mode, ids, labels)
        print(f"    opacus, {mode}:", *(f"{n:.3f}" for n in found.flatten(1).norm(dim=1).tolist()))
        assert torch.allclose(total, truth.mean(0))
        others = [row for row in range(N_WORDS) if row != PAD]
        assert torch.allclose(found[:, others], truth[:, others])
        assert not truth[:, PAD].any() and found[:, PAD].any() == (mode == "hooks")

for kind in ("hooks", "functorch"):
    ids, labels = texts(64)
    model = make()
    before = model.embedding.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = DataLoader(TensorDataset(ids, labels), batch_size=8)
    private, optimizer, data = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=data, noise_multiplier=0.0, max_grad_norm=0.05,
        poisson_sampling=False, grad_sample_mode=kind)
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(private(x), y).backward()
        optimizer.step()
    moved = (private._module.embedding.weight.detach() - before).norm(dim=1)
    share = (moved[PAD] / moved[PAD + 1 :].norm()).item()
    print(f"one step of DP-SGD without noise, {kind}: the padding row moves {share:.2f} times as far as all other rows "
          "together")
    assert (share > 0.1) == (kind == "hooks") and (share == 0) == (kind == "functorch")
PYTHON
