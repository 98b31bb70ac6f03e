"""A model's fingerprint tells it from every other, however little they differ."""

import pytest
import torch
from models import build, worlds

from tl_backward.model.digest import _bits, model_digest


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
def test_a_copy_is_the_same_model_and_another_data_type_is_not(world):
    """The numbers are the same; but what a pass in another precision gives is not."""
    model = build(world, dtype=torch.float32)
    before = model_digest(model)
    assert model_digest(build(world, dtype=torch.float32)) == before
    assert model_digest(model.to(torch.float64)) != before
    assert model_digest(model.to(torch.float32)) == before


@pytest.mark.parametrize("world", worlds())
def test_another_activation_function_is_another_model(world, monkeypatch):
    model = build(world)
    before = model_digest(model)
    monkeypatch.setattr(model.cfg, "act_fn", "silu" if model.cfg.act_fn != "silu" else "relu")
    assert model_digest(model) != before


def test_odd_lengths_and_offsets_are_read_to_their_end():
    flat = torch.randn(12)
    for start in range(3):
        for end in range(8, 13):
            part = flat[start:end]
            before = _bits(part)
            assert before == _bits(part.clone()) == _bits(part.double())
            for place in range(len(part)):
                changed = part.clone()
                changed[place] = -changed[place]
                assert _bits(changed) != before
