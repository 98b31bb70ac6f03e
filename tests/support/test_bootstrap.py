import pytest
import torch

from tl_backward._support.bootstrap import bootstrap


@pytest.mark.parametrize("cell", [(), (2,), (2, 3), (0,)])
def test_no_items_are_a_mean_of_nothing(cell):
    found = bootstrap(torch.zeros(0, *cell))
    assert found.n.shape == found.mean.shape == cell and not found.n.any()
    assert found.mean.isnan().all() and found.low.isnan().all() and found.high.isnan().all()
