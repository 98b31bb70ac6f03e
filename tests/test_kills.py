"""Killed at random moments with SIGKILL and started again, a run ends with the bits of one that nobody killed."""

import json
import random
import shutil

import pytest
import torch
from killable import JOBS, Server

from tl_backward._support.storage import load_tensors


def killed_and_resumed(server, job, folder, n_kills, seed):
    """Kill a job `n_kills` times, then let it end; how many of the kills met a checkpoint."""
    folder.mkdir()
    seconds = server.run(job, folder / "whole")
    drawn, kills, met = random.Random(f"{job} {seed}"), 0, 0
    broken = folder / "broken"
    while kills < n_kills:
        if server.run(job, broken, kill_after=drawn.uniform(0.1, 0.8) * seconds) is None:
            kills += 1
            met += any(path.name != "result" for path in broken.glob("**/*") if path.is_file())
        else:  # it was faster than the kill
            shutil.rmtree(broken)
    server.run(job, broken)
    (whole, said), (resumed, also) = (load_tensors(folder / name / "result") for name in ("whole", "broken"))
    assert whole and whole.keys() == resumed.keys() and said == also and json.loads(said["rest"])
    for name, tensor in whole.items():
        same = tensor.contiguous().view(torch.uint8).equal(resumed[name].contiguous().view(torch.uint8))
        assert same, f"{job} ended with other bits in {name}"
    return met


def test_three_kills(tmp_path):
    """Of a training, of a sweep and of a store."""
    with Server() as server:
        for job in ("stitch", "sweep", "store"):
            killed_and_resumed(server, job, tmp_path / job, 1, seed=0)


@pytest.mark.long
def test_many_kills(tmp_path):
    with Server() as server:
        met = {job: killed_and_resumed(server, job, tmp_path / job, 5, seed=1) for job in JOBS}
    print(f"{5 * len(JOBS)} kills, of which these met a checkpoint: {met}")
    assert sum(met.values()) >= 8
