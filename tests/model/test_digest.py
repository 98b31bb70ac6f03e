"""A model's fingerprint tells it from every other, however little they differ."""

import pytest
import torch
from models import build, worlds

from tl_backward.model.digest import model_digest


@pytest.mark.parametrize("world", worlds())
def test_one_changed_number_is_another_model(world):
    model = build(world)
    before = model_digest(model)
    for weight in model.parameters():
        n = weight.numel()
        for place in {0, 1, n // 3, n - 1} & {*range(n)}:
            at, held = torch.unravel_index(torch.tensor(place), weight.shape), weight.detach()
            kept = held[at].clone()
            held[at] += 0.5
            assert model_digest(model) != before
            held[at] = kept
    assert model_digest(model) == before


@pytest.mark.parametrize("world", worlds())
def test_precision_and_copies_are_no_other_model(world):
    model = build(world, dtype=torch.float32)
    before = model_digest(model)
    assert model_digest(build(world, dtype=torch.float32)) == before
    assert model_digest(model.to(torch.float64)) == before


@pytest.mark.parametrize("world", worlds())
def test_another_activation_function_is_another_model(world, monkeypatch):
    model = build(world)
    before = model_digest(model)
    monkeypatch.setattr(model.cfg, "act_fn", "silu" if model.cfg.act_fn != "silu" else "relu")
    assert model_digest(model) != before
