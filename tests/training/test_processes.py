"""A data-parallel training: each process watches its own, and their results merged are those of one process."""

import pytest
import torch
from launched import launched, launchers
from models import build, worlds

from tl_backward.training import load_watch, merge, watch

STEPS, RATE = 3, 0.05
PROCESS = """
import sys, torch
import torch.distributed as dist
from models import build
from training.test_processes import RATE, Loss, batch, steps
from tl_backward.training import watch
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = build(sys.argv[2])
wrapped = torch.nn.parallel.DistributedDataParallel(Loss(model), find_unused_parameters=True)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
with watch(model, "W_out", optimizer=optimizer) as watching:
    steps(wrapped, optimizer, batch(model)[rank::2])
watching.result().save(f"{sys.argv[1]}/{rank}.safetensors")
dist.destroy_process_group()
"""


class Loss(torch.nn.Module):
    """What DistributedDataParallel wraps: its forward is the loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch, return_type="loss")


def batch(model):
    return torch.randint(3, model.cfg.d_vocab, (4, 6), generator=torch.Generator().manual_seed(0))


def steps(loss, optimizer, rows):
    for _ in range(STEPS):
        loss(rows).backward()
        optimizer.step()
        optimizer.zero_grad()


@launchers("torchrun")
@pytest.mark.parametrize("world", worlds())
def test_merged_is_the_watch_of_one_process(launcher, world, tmp_path):
    done = launched(launcher, PROCESS, tmp_path, tmp_path, world)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [load_watch(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    merged = merge(*parts)
    model = build(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with watch(model, "W_out", optimizer=optimizer) as watching:
        steps(Loss(model), optimizer, batch(model))
    alone = watching.result()
    assert merged.weights == alone.weights and merged.steps == alone.steps == STEPS and not merged.missing
    for name in alone.weights:
        for one, two in ((merged.written, alone.written), (merged.gradient, alone.gradient)):
            assert abs(one[name].norm - two[name].norm) < 1e-6 * two[name].norm
            first, second = ((each.U * each.S) @ each.V.T for each in (one[name], two[name]))
            assert (first - second).norm() < 1e-4 * second.norm()
        # What contributed most is of both processes' rows.
        rows = {tuple(each.ids) for each in merged.examples[name]}
        assert rows == {tuple(each.ids) for part in parts for each in part.examples[name]} and len(rows) == 4
