"""Two devices simulated on one: what the package makes on the host may not meet what lies on the model's device.

Inside `two_devices()`, a tensor that the package makes without a device, or moves to "cpu" by name, is a `Host` tensor:
the same numbers, but an operation that joins it with a tensor of the model raises, as it would between CPU and GPU.
Copies (`.to`, `copy_`, assignment to a slice) and host indices are allowed, as there.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

import tl_backward

PACKAGE = str(Path(tl_backward.__file__).parent)
ALLOWED = {
    "copy_",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "tolist",
    "item",
    "numpy",
    "__repr__",
    "as_subclass",
    "__len__",
}
READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}


class Host(torch.Tensor):
    """A tensor in the host's memory."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            return cls._run(func, getattr(func, "__name__", ""), args, kwargs)

    @classmethod
    def _run(cls, func, name, args, kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_host = [t for t in tensors if isinstance(t, Host) and t.dim()]
        elsewhere = [t for t in tensors if not isinstance(t, Host) and t.dim()]
        if on_host and elsewhere and name not in ALLOWED and name != "to":
            raise RuntimeError(f"Expected all tensors on one device, got {name} of the host's and the model's")
        plain, named = tree_map(
            lambda leaf: leaf.as_subclass(torch.Tensor) if isinstance(leaf, Host) else leaf, (args, kwargs)
        )
        out = func(*plain, **named)
        if name in ("copy_", "__setitem__", "index_put_"):
            return args[0] if out is not None else None
        moved = name == "to" and any(
            isinstance(leaf, torch.device | torch.Tensor) for leaf in tree_leaves((args[1:], kwargs))
        )
        if moved or (name == "__getitem__" and not isinstance(args[0], Host)):
            return out
        return tree_map(lambda leaf: leaf.as_subclass(Host) if type(leaf) is torch.Tensor else leaf, out)


class Devices(TorchFunctionMode):
    """Marks the host's tensors, and counts what the package reads back from a device."""

    def __init__(self):
        super().__init__()
        self.reads = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name not in READS and name != "to" and func not in _device_constructors():
            return out
        if not called_by_the_package():
            return out
        by_name = "cpu" in [leaf for leaf in tree_leaves((args[1:], kwargs)) if isinstance(leaf, str)]
        if (name in READS or (name == "to" and by_name)) and args and not isinstance(args[0], Host):
            self.reads[name] += 1
        made = func in _device_constructors() and (kwargs.get("device") is None or by_name)
        if type(out) is torch.Tensor and (made or name == "cpu" or (name == "to" and by_name)):
            return out.as_subclass(Host)
        return out


def called_by_the_package():
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            return True
        if "/torch/" not in path and path != __file__ and not path.startswith("<@beartype"):
            return False
        frame = frame.f_back
    return False


@contextmanager
def two_devices():
    with Devices() as devices:
        yield devices
