"""What a model and a process were before, compared bit by bit with what they are after: one checker, used by all.

`state(model)` takes it down, `assert_same(before, after)` names the first thing that differs. What belongs to the process
(RNGs, flags of torch, open files, warnings filters, environment) is in it too.
"""

import os
import random
import signal
import warnings

import numpy
import torch
from models import TOKENS
from transformers.utils import logging as transformers_logging

_VALUES = ("values", "buffers")
_EDITS = ("versions",)
"""What an edit that was taken back may change: a weight is written in place and back, the same memory and bits."""


def state(model, *, python_random=False):
    """Everything that a run could change, by value.

    Python's own `random` only where asked: the run-time type checks of these tests draw from it.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(TOKENS)  # a Bridge installs hooks of its own on its first pass
    return {**of_model(model), **of_process(python_random=python_random)}


def of_model(model):
    """Parameters, buffers, hooks of every kind, flags, and whatever else hangs on a module."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    return {
        "parameters": {n: (id(p), p.data_ptr(), p.requires_grad, p.dtype, p.stride()) for n, p in parameters.items()},
        "versions": {name: p._version for name, p in parameters.items()},
        "values": {name: p.detach().clone() for name, p in parameters.items()},
        "grads": {n: None if p.grad is None else (id(p.grad), p.grad._version) for n, p in parameters.items()},
        "tensor hooks": {name: _tensor_hooks(tensor) for name, tensor in [*parameters.items(), *model.named_buffers()]},
        "buffers": {name: b.detach().clone() for name, b in model.named_buffers()},
        "torch hooks": {name: _torch_hooks(module) for name, module in modules.items()},
        "tl hooks": {
            name: [(id(each.hook), each.is_permanent, each.context_level) for each in (*m.fwd_hooks, *m.bwd_hooks)]
            for name, m in modules.items()
            if hasattr(m, "fwd_hooks")
        },
        "contexts": {name: dict(m.ctx) for name, m in modules.items() if hasattr(m, "fwd_hooks")},
        "overrides": {
            name: {key: id(value) for key, value in vars(module).items() if callable(value) and not _is_hook_table(key)}
            for name, module in modules.items()
        },
        "attribute names": {name: sorted(filter(_is_told, vars(module))) for name, module in modules.items()},
        "hook points": {name: id(point) for name, point in model.hook_dict.items()},
        "training": {name: module.training for name, module in modules.items()},
        "cfg": repr(sorted(vars(model.cfg).items(), key=lambda item: item[0])),
        "context": (getattr(model, "context_level", None), getattr(model, "is_caching", None)),
    }


def of_process(*, python_random=False):
    """Random states, modes, open files, filters, environment."""
    numpy_state = numpy.random.get_state()
    return {
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "python rng": random.getstate() if python_random else None,
        "modes": {
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "anomaly": torch.is_anomaly_enabled(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            "default dtype": torch.get_default_dtype(),
            "default device": torch.get_default_device(),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul precision": torch.get_float32_matmul_precision(),
        },
        "files": open_files(),
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "verbosity": transformers_logging.get_verbosity(),
    }


def open_files():
    """What every open descriptor of this process is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass  # that of the listing itself
    return {number: target for number, target in found.items() if target.startswith("/") and "/proc/" not in target}


def assert_same(before, after, but=()):
    """Every entry of `before` is what it was, those named in `but` apart."""
    for key, value in before.items():
        if key in but:
            continue
        if key in _VALUES:
            assert value.keys() == after[key].keys(), key
            changed = [name for name in value if not _same_bits(value[name], after[key][name])]
            assert not changed, f"{key}: {changed}"
        elif isinstance(value, dict):
            changed = {each: (value.get(each), after[key].get(each)) for each in {*value, *after[key]}}
            assert value == after[key], (key, {name: pair for name, pair in changed.items() if pair[0] != pair[1]})
        else:
            assert value == after[key], key


def assert_same_but_versions(before, after):
    """For edits that were applied and taken back."""
    assert_same(before, after, but=_EDITS)


def hooks_of(model):
    """How many hooks hang on a model, of torch and of TransformerLens."""
    return sum(
        len(table) for module in model.modules() for key, table in vars(module).items() if _is_hook_table(key)
    ) + sum(len(m.fwd_hooks) + len(m.bwd_hooks) for m in model.modules() if hasattr(m, "fwd_hooks"))


def _same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (side.contiguous().reshape(-1).view(torch.uint8) for side in (a, b))  # a NaN is itself
    return torch.equal(a, b)


def _is_told(key):
    """Whether an attribute is somebody's business: TransformerLens caches what it has found out in private ones."""
    return not key.startswith("_") or "tl_backward" in key


def _is_hook_table(key):
    return key.startswith("_") and key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def _torch_hooks(module):
    tables = {key: table for key, table in vars(module).items() if _is_hook_table(key)}
    return {key: [(number, id(hook)) for number, hook in table.items()] for key, table in tables.items()}


def _tensor_hooks(tensor):
    tables = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
    return [None if table is None else [id(hook) for hook in table.values()] for table in tables]


class Boom(Exception):
    """A fault of nobody's."""


def boom(*args, **options):
    raise Boom


def interrupt(*args, **options):
    raise KeyboardInterrupt
