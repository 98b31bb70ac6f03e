#!/usr/bin/env bash
# torch 2.13.0.
#
# On a CPU torch takes the 2-norm of a float32 tensor by adding the squares into the few lanes of one register, one
# after the other, however many there are. (`sum()` adds in a cascade, so `x.square().sum().sqrt()` is right to seven
# digits.) The larger the tensor, the more of it is lost, always to the short side: Tensor.norm, torch.linalg.vector_norm
# and matrix_norm, torch._foreach_norm and torch.nn.utils.get_total_norm all read the gradient of a 1B model's
# embedding (131,072 x 2,048) 4 % too short, and of a constant tensor of that size three tenths are lost.
# clip_grad_norm_(..., 1.0) therefore leaves a gradient that is longer than 1, and whoever compares |dW| / |W| of an
# embedding with that of a small matrix compares two different errors. Norms of rows, added in float64, are right.
#
# Output seen (relative error of the norm):
#     2,359,296 numbers, as one of GPT-2's W_in:        vector_norm -4.0e-05   square().sum().sqrt() +1.2e-08
#    38,597,376 numbers, as GPT-2's W_E:                vector_norm -2.7e-03   square().sum().sqrt() +1.7e-08
#   268,435,456 numbers, as a 1B model's W_E:           vector_norm -3.8e-02   square().sum().sqrt() +1.9e-08
#   clip_grad_norm_ to 1.0 says that the norm was 15759.2, where it was 16383.6, and leaves one of 1.0396
#   268,435,456 ones: vector_norm 11585.2, where it is 16384
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
export PIP_NO_INDEX=1 OMP_NUM_THREADS=1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch


def true_norm(x):
    """In float64, piece by piece."""
    return sum(float(piece.double().square().sum()) for piece in x.flatten().split(1 << 22)) ** 0.5


torch.manual_seed(0)
errors = []
for label, shape in (
    ("as one of GPT-2's W_in", (768, 3072)),
    ("as GPT-2's W_E", (50257, 768)),
    ("as a 1B model's W_E", (131_072, 2048)),
):
    x = torch.randn(shape)
    true = true_norm(x)
    read, summed = (float(each) / true - 1 for each in (torch.linalg.vector_norm(x), x.square().sum().sqrt()))
    errors.append((read, summed))
    print(f"{x.numel():>13,} numbers, {label + ':':<30} vector_norm {read:+.1e}   square().sum().sqrt() {summed:+.1e}")

weight = torch.nn.Parameter(torch.zeros(1).expand(shape))  # the values do not matter here
weight.grad = x
said = float(torch.nn.utils.clip_grad_norm_([weight], 1.0))
left = true_norm(weight.grad)
print(f"  clip_grad_norm_ to 1.0 says that the norm was {said:.1f}, where it was {true:.1f}, and leaves one of {left:.4f}")

ones = x.fill_(1.0)
constant = float(torch.linalg.vector_norm(ones))
print(f"  {ones.numel():,} ones: vector_norm {constant:.1f}, where it is {ones.numel() ** 0.5:.0f}")

assert all(abs(summed) < 1e-6 for _, summed in errors)
assert errors[0][0] < -1e-5 and errors[1][0] < -1e-3 and errors[2][0] < -1e-2
assert left > 1.01 and said < 0.99 * true
assert constant < 0.9 * ones.numel() ** 0.5
PYTHON
