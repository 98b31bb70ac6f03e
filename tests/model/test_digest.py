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
        flat = weight.detach().view(-1)
        for place in {0, 1, len(flat) // 3, len(flat) - 1} & {*range(len(flat))}:
            kept = flat[place].clone()
            flat[place] += 0.5
            assert model_digest(model) != before
            flat[place] = kept
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
