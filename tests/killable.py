"""Long runs that go on from their checkpoints, to be killed: a server that forks one child a request.

Reads a line of JSON, {"job": ..., "folder": ...}, from stdin; says the child's process id, then how it ended.
`Server` is the other end.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _words(n, seed):
    import random

    drawn = random.Random(seed)
    return [" ".join(f"w{drawn.randint(3, 40)}" for _ in range(drawn.randint(2, 9))) for _ in range(n)]


def decoder(folder):
    """Weights and description of a decoder trained in 120 steps."""
    from inversion.small import options, trained
    from models import build, worlds

    from tl_backward.inversion.decoder import load_from
    from tl_backward.inversion.storage import network_tensors

    out, made = folder / "decoder", options(save_every=8, n_evaluations=2)
    if (out / "decoder.json").exists():  # killed after its end
        found = load_from(out, build(worlds()[0]))
    else:
        found = trained(worlds()[0], budget=16 * 120, out=out, options=made)
    return network_tensors(found.network), {key: found.description[key] for key in ("final_loss", "history", "steps")}


def stitch(folder):
    """Map and losses of 150 steps of descent."""
    from models import bridge, build, worlds

    from tl_backward.dissimilarity import FitOptions, stitch

    options = FitOptions(steps=150, warmup_steps=10, save_every=10, checkpoint=folder / "descent")
    made = stitch(
        build(worlds()[0]), 0, bridge("gpt2"), 0, _words(40, 1), fit="sgd", fit_options=options, show_progress=False,
    )  # fmt: skip
    return dict(made.model.map.state_dict()), [made.losses, made.penalty.nats]


def compare(folder):
    """All layers of two models over 120 batches."""
    from models import bridge, build, worlds

    from tl_backward.dissimilarity import RunOptions, compare, gather
    from tl_backward.text.options import TextOptions

    gather.SAVE_EVERY = 5
    made = compare(
        build(worlds()[0]),
        bridge("gpt2"),
        _words(240, 2),
        text_options=TextOptions(batch_size=2),
        run_options=RunOptions(checkpoint=folder / "run"),
        show_progress=False,
    )
    return {"values": made.values, "errors": made.standard_errors}, made.n_samples


def sweep(folder):
    """60 prompts and their control."""
    from models import build, worlds

    from tl_backward import sweep
    from tl_backward.lens import sweeps

    sweeps.SAVE_EVERY = 5
    options = {"batch_size": 1, "n_draws": 2, "checkpoint": folder / "sweep", "show_progress": False}
    made = sweep(build(worlds()[0]), _words(60, 3), ["w41"] * 60, **options)
    sides = {"model": made, "control": made.control}
    tensors = {f"{name}/{key}": value for name, side in sides.items() for key, value in side.values.items()}
    return tensors, [made.items.tolist(), made.control.items.tolist()]


def store(folder):
    """A store of 60 texts in 15 shards."""
    from models import build, worlds

    from tl_backward._support.storage import load_tensors
    from tl_backward.text.options import TextOptions
    from tl_backward.training import GradientStore, store_building

    store_building.SHARD_EXAMPLES = 4
    out, options = folder / "store", TextOptions(batch_size=2)
    GradientStore.build(build(worlds()[0]), _words(60, 4), out=out, text_options=options, show_progress=False)
    found = {
        f"{path.name}/{name}": each
        for path in out.glob("*.safetensors")
        for name, each in load_tensors(path)[0].items()
    }
    return found, [path.read_text() for path in sorted(out.glob("*.json"))]


JOBS = {job.__name__: job for job in (decoder, stitch, compare, sweep, store)}


def serve():
    """Fork a child a line."""
    import torch

    torch.set_num_threads(1)
    import inversion.small  # noqa: F401 - imported once for all children, which are to run, not to import
    import models  # noqa: F401

    import tl_backward.inversion._trainer  # noqa: F401

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _run(asked["job"], Path(asked["folder"]))
        print(json.dumps(child), flush=True)
        print(json.dumps(os.waitpid(child, 0)[1]), flush=True)


def _run(job, folder):
    from tl_backward._support.storage import save_tensors

    try:
        tensors, rest = JOBS[job](folder)
        save_tensors(folder / "result", tensors, {"rest": json.dumps(rest)})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Server:
    """Runs jobs to their end, or kills them before."""

    def __enter__(self):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-W", "ignore", "-c", "import killable; killable.serve()"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        assert self._read() == "ready"
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _read(self):
        return json.loads(self.process.stdout.readline())

    def run(self, job, folder, kill_after=None):
        """The seconds that it took; None where it was killed before its end."""
        folder.mkdir(exist_ok=True)
        self.process.stdin.write(json.dumps({"job": job, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        child, start = self._read(), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the server knows
                os.kill(child, signal.SIGKILL)
        ended = self._read()
        if ended == signal.SIGKILL:
            return None
        assert ended == 0, f"{job} ended with {ended}"
        return time.monotonic() - start
