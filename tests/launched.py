"""A script run by two processes that meet on the CPU, under either launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHERS = {
    # accelerate starts several processes by --multi_gpu alone; Accelerator(cpu=True) keeps them on the CPU.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
                   "no", "--dynamo_backend", "no", "--main_process_port", "0"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}  # fmt: skip


def launchers(default=None):
    """The default one always, the other in the long run."""
    return pytest.mark.parametrize(
        "launcher", [each if each == default else pytest.param(each, marks=pytest.mark.long) for each in LAUNCHERS]
    )


def launched(launcher, script, folder, *arguments, timeout=240):
    """Run the script's text in two processes; returns what subprocess.run does."""
    (folder / "run.py").write_text(script)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(folder / "run.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
