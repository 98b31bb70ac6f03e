"""Two CPU processes under `accelerate launch` and `torchrun`: the result of one, and an end when one is killed.

Comparisons of two processes are in dissimilarity/test_comparison.py.
"""

import json
import signal
import time
from copy import copy

import pytest
import torch
from dissimilarity.test_statistics import assert_equal
from inversion.small import options, trained
from launched import launched, launchers
from models import bridge, build, worlds
from torch.utils.data import DataLoader, IterableDataset

import tl_backward as tlb
from tl_backward.dissimilarity import CovarianceStatistics
from tl_backward.inversion import _trainer, load
from tl_backward.inversion._trainer import DecoderTrainer

QUIET = {"show_progress": False}
PROMPTS = ["w5 w6 w7", "w8 w9", "w10", "w11 w12 w13 w14", "w3 w4", "w20 w21 w22", "w9 w9"]
TARGETS = ["w8", "w9", "w10", "w11", "w12", "w13", "w14"]

SWEEP = """
import os, sys, torch
import tl_backward as tlb
from models import bridge
from test_processes import PROMPTS, TARGETS
torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
first, last = rank * len(PROMPTS) // world, (rank + 1) * len(PROMPTS) // world
part = tlb.sweep(bridge("gpt2"), PROMPTS[first:last], TARGETS[first:last], start=first, n_draws=2, show_progress=False)
part.save(f"{sys.argv[1]}/part-{rank}.safetensors")
"""


@launchers("torchrun")
def test_a_sweep_in_parts_by_rank_is_the_sweep_of_one_process(launcher, tmp_path):
    done = launched(launcher, SWEEP, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    merged = tlb.merge(*(tlb.load_sweep(tmp_path / f"part-{rank}.safetensors") for rank in (0, 1)))
    alone = tlb.sweep(bridge("gpt2"), PROMPTS, TARGETS, n_draws=2, **QUIET)
    assert torch.equal(merged.items, alone.items) and torch.equal(merged.targets, alone.targets)
    for one, other in ((merged, alone), (merged.control, alone.control)):
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-9, atol=1e-12)
        for name, values in other.values.items():
            torch.testing.assert_close(one.values[name], values, rtol=1e-8, atol=1e-12, equal_nan=True)
    frame, expected = merged.to_frame(), alone.to_frame()
    assert (frame["mean"] - expected["mean"]).abs().max() < 1e-9 and frame["n"].equals(expected["n"])


STATISTICS = """
import sys, torch
from torch import distributed
from test_processes import statistics
distributed.init_process_group("gloo")
rank = distributed.get_rank()
found = statistics(rank, distributed.get_world_size())
found.reduce()
found.save(f"{sys.argv[1]}/{rank}.safetensors")
distributed.destroy_process_group()
"""


def statistics(rank, world):
    """Sums over every world-th batch of activations."""
    found = CovarianceStatistics([5], [4, 3])
    for batch in range(rank, 6, world):
        generator = torch.Generator().manual_seed(batch)
        a, b, c = (torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (5, 4, 3))
        found.update([a], [b, c])
    return found


@launchers()
def test_reduced_statistics_are_those_of_one_process(launcher, tmp_path):
    done = launched(launcher, STATISTICS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = statistics(0, 1)
    for rank in (0, 1):
        found = CovarianceStatistics.load(tmp_path / f"{rank}.safetensors")
        assert found.n == alone.n == 54
        found.move(alone.shift_a, alone.shift_b)
        assert_equal(alone, found)


TRAINING = """
import json, os, sys, torch
from test_processes import decoder
torch.set_num_threads(1)
made = decoder(out=sys.argv[1])
total = sum(p.double().sum().item() for p in made.network.parameters())
open(f"{sys.argv[1]}/process-{os.environ['RANK']}.json", "w").write(json.dumps([total, made.description]))
"""


def decoder(**changes):
    return trained(worlds()[0], budget=16 * 8, options=options(drawing={"pairs": 2}), **changes)


POISONED = """
import os
import tl_backward.inversion.network as network
if os.environ["RANK"] == "1":
    whole, calls = network.DecoderNetwork.forward, []
    def poisoned(*args, **kwargs):
        calls.append(1)
        found = whole(*args, **kwargs)
        return {**found, "loss": found["loss"] * float("nan")} if len(calls) == 3 else found
    network.DecoderNetwork.forward = poisoned
"""


class BothInOne(DecoderTrainer):
    """One process that takes the batches of two in turns and steps on the mean of their gradients."""

    def __init__(self, network, arguments, *rest):
        arguments.gradient_accumulation_steps = 2
        super().__init__(network, arguments, *rest)

    def get_train_dataloader(self):
        parts = [copy(self.stream), copy(self.stream)]
        for process, part in enumerate(parts):
            part.process, part.n_processes = process, 2
        return DataLoader(InTurns(parts), batch_size=None)

    def training_step(self, *args):
        loss = super().training_step(*args)
        self.turns = getattr(self, "turns", 0) + 1
        if self.turns % 2 == 0:
            self.losses.append(self.losses.pop() + self.losses.pop())  # each was divided by two
        return loss


class InTurns(IterableDataset):
    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return (batch for batches in zip(*self.parts, strict=True) for batch in batches)


@launchers("accelerate")
def test_two_processes_train_the_decoder_of_one(launcher, tmp_path, monkeypatch):
    done = launched(launcher, TRAINING, tmp_path, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / "out" / f"process-{i}.json").read_text()) for i in (0, 1))
    assert first == second, "both end with the same weights and description"
    found = load(tmp_path / "out", model=build(worlds()[0]))
    monkeypatch.setattr(_trainer, "DecoderTrainer", BothInOne)
    alone = decoder()
    for name, expected in alone.network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    for one, other in zip(found.description["history"], alone.description["history"], strict=True):
        assert one["inside"] == other["inside"] and one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert found.description["final_loss"] == pytest.approx(alone.description["final_loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_all_processes_at_once(tmp_path):
    done = launched("torchrun", POISONED + TRAINING, tmp_path, tmp_path / "out", timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("ValueError: Expected a finite loss, got nan at step 2") == 2


COMPARE = """
import json, os, signal, sys, torch
from accelerate import Accelerator
from models import bridge
from dissimilarity.given import given
from dissimilarity.test_comparison import TEXTS
from tl_backward.dissimilarity import compare
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
found = compare(bridge("gpt2"), bridge("llama"), TEXTS, measures=["cka"], show_progress=False, **given(batch_size=1, jackknife=4))
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(json.dumps(found.values.tolist()))
"""


KILLED = """
import os, signal
import {module} as module
if os.environ["RANK"] == "1":
    holder, calls = {holder}, []
    whole = holder.{name}
    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)
    holder.{name} = dying
"""
DIES = {
    "a comparison": KILLED.format(module="tl_backward.dissimilarity.gather", holder="module", name="read_samples")
    + COMPARE,
    "training": KILLED.format(module="transformers", holder="module.Trainer", name="training_step") + TRAINING,
}


@pytest.mark.parametrize("task", DIES)
@launchers()
def test_a_killed_worker_ends_the_job_with_a_message(launcher, task, tmp_path):
    started = time.monotonic()
    done = launched(launcher, DIES[task], tmp_path, tmp_path, timeout=120)
    assert done.returncode != 0 and time.monotonic() - started < 110
    assert "SIGKILL" in done.stderr or f"exitcode  : -{int(signal.SIGKILL)}" in done.stderr
    assert not (tmp_path / "0.json").exists() and not (tmp_path / "process-0.json").exists()
