"""The norm of a whole tensor, against float64."""

import numpy as np
import pytest
import torch

from tl_backward._support.lengths import frobenius_norm


def _layouts(values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "as it is": values,
        "transposed": values.T,
        "part": values[1:-1, 3:],
        "expanded": values[:, :1].expand(-1, 7),
        "three": values[:4096].view(64, 64, -1).transpose(0, 1),
        "few": values[:1, :3],
        "none": values[:0],
        "one": values[0, 0],
    }


@pytest.mark.parametrize("layout", _layouts(torch.zeros(4096, 1)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_norm(layout, dtype, scale):
    """Also of numbers whose squares are none of their type; 3 million in float32 are where torch's own is .005 % off."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(4099, 769, generator=generator) * torch.rand(4099, 1, generator=generator) ** 3
    values = (drawn * (scale if dtype not in (torch.float16,) else max(min(scale, 10), 1e-5))).to(dtype)
    given = _layouts(values)[layout]
    expected = np.linalg.norm(given.double().flatten().numpy())
    assert frobenius_norm(given) == pytest.approx(expected, rel=1e-7 if dtype != torch.float64 else 1e-12)


def test_what_torch_makes_of_it():
    """Else the function has no reason to be."""
    values = torch.ones(1 << 28)
    assert float(torch.linalg.vector_norm(values)) < 0.99 * 2**14
    assert frobenius_norm(values) == 2**14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.02, 0.1, 1 / 3, 0.7])
def test_equal_numbers(value, dtype):
    """Whose squares are rounded the same way, so that their errors add up: 2e-6 over pieces of 4,096."""
    values = torch.full((768, 1024), value, dtype=dtype)
    assert frobenius_norm(values) == pytest.approx(float(values[0, 0]) * (768 * 1024) ** 0.5, rel=2e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad):
    """Is said."""
    values = torch.ones(5000)
    values[17] = bad
    assert not np.isfinite(frobenius_norm(values))


def test_complex_and_gradients():
    """A norm of complex numbers is real; what requires a gradient is read without one."""
    assert frobenius_norm(torch.tensor([3 + 4j])) == 5
    assert frobenius_norm(torch.full((2, 2), 2.0, requires_grad=True)) == 4
