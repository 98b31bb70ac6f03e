"""Results as files: dataclasses of tensors, numbers and texts in safetensors, without their tokenizer.

Only classes of this package are made again, by name, and nothing is run that a file brings.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.checks import short
from tl_backward._support.storage import check_kind, load_tensors, save_tensors

FORMAT = "tl_backward result 1"
S = TypeVar("S", bound="Saved")


class Saved:
    """What `save` writes and `load_saved` reads: by default the fields of a dataclass, but for a tokenizer."""

    _known: ClassVar[dict[str, type["Saved"]]] = {}

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        Saved._known[_name(cls)] = cls

    def packed(self) -> dict[str, Any]:
        """What to save, by name."""
        named = {each.name: getattr(self, each.name) for each in fields(cast(Any, self)) if each.name != "tokenizer"}
        return {name: value for name, value in named.items() if not isinstance(value, Absent)}

    @classmethod
    def unpacked(cls: type[S], saved: dict[str, Any]) -> S:
        """The same again."""
        return cls(**saved)

    def save(self, path: str | Path) -> Path:
        """Write all numbers and texts as safetensors, atomically; `tlb.load_result` reads them.

        Raises:
            TypeError: something in it is neither (a model, a function).
            ValueError: a name that promises a picture, a table or a page.
        """
        tensors = _Tensors()
        tree = _tree(self, tensors, type(self).__name__)
        about = {"format": FORMAT, "kind": _name(type(self)), "tree": json.dumps(tree)}
        return save_tensors(path, tensors.named, about, of=self)


def load_result(path: str | Path, *, tokenizer: object = None) -> "Saved":
    """Read a result of any kind from its file, as `save` wrote it; a `tokenizer` puts its tokens in words.

    Raises:
        ValueError: no such file, a damaged one, or one that no result wrote.

    Examples:
        >>> _ = tlb.readout(model, model.W_U[:, 5], k=3).save("readout.safetensors")
        >>> tlb.load_result("readout.safetensors", tokenizer=model.tokenizer).top_ids.shape
        torch.Size([3])
    """
    return load_saved(path, Saved, tokenizer=tokenizer)


def load_saved(path: str | Path, kind: type[S], *, tokenizer: object = None) -> S:
    """Read what `save` wrote of a result of some kind; `tokenizer` puts its tokens in words.

    Raises:
        ValueError: no such file, a damaged one, or one of another kind.
    """
    tensors, about = load_tensors(path)
    writer = "a result's save" if kind is Saved else f"{kind.__name__}.save"
    check_kind(path, about.get("format") == FORMAT, writer, about)
    found = _class(about["kind"])
    check_kind(path, found is not None and issubclass(found, kind), writer, about if found is not None else {})
    return _grown(json.loads(about["tree"]), tensors, tokenizer)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type[Saved] | None:
    """A class that is saved, by its name, also where it has moved within its room; None where there is none."""
    module, _, own = name.partition(":")
    if name not in Saved._known and module.startswith("tl_backward."):
        room = ".".join(module.split(".")[:2])
        for each in (room, module):
            with suppress(ImportError):
                import_module(each)
        moved = [known for known in Saved._known if known.startswith(f"{room}.") and known.endswith(f":{own}")]
        if name not in Saved._known and len(moved) == 1:
            return Saved._known[moved[0]]
    return Saved._known.get(name)


class _Tensors:
    """Tensors by the places where they stand; one that stands in several is kept once."""

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}
        self._seen: dict[tuple, str] = {}
        self._storages: set[int] = set()

    def add(self, tensor: Tensor, where: str) -> str:
        tensor = tensor.detach()
        storage = tensor.untyped_storage().data_ptr()
        key = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._seen:
            return self._seen[key]
        # Safetensors refuses others that share memory.
        self.named[where] = tensor.clone() if storage in self._storages else tensor
        self._storages.add(storage)
        return self._seen.setdefault(key, where)


def _tree(value: object, tensors: _Tensors, where: str) -> Any:
    """A value as JSON, tensors taken out of it and named by their places."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        return {"tensor": tensors.add(value, where)}
    if isinstance(value, Saved):
        parts = {name: _tree(part, tensors, f"{where}.{name}") for name, part in value.packed().items()}
        return {"of": _name(type(value)), "parts": parts}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_tree(part, tensors, f"{where}.{number}") for number, part in enumerate(value)]}
    if isinstance(value, Mapping):
        pairs = ((_tree(key, tensors, f"{where}.key"), part, f"{where}.{key}") for key, part in value.items())
        return {"dict": [[key, _tree(part, tensors, name)] for key, part, name in pairs]}
    raise TypeError(
        f"Expected a result of numbers and texts to save, got {short(value)} as {where}; save its to_frame() instead."
    )


def _grown(tree: Any, tensors: Mapping[str, Tensor], tokenizer: object) -> Any:
    """What `_tree` was made of."""
    if not isinstance(tree, dict):
        return tree

    def all_of(parts: Iterable) -> list:
        return [_grown(part, tensors, tokenizer) for part in parts]

    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "list" in tree:
        return all_of(tree["list"])
    if "tuple" in tree:
        return tuple(all_of(tree["tuple"]))
    if "dict" in tree:
        return dict(all_of(pair) for pair in tree["dict"])
    kind = _class(tree["of"])
    if kind is None:
        raise ValueError(f"Expected a result that this version knows, got one of {tree['of']!r}; save it anew.")
    parts = {name: _grown(part, tensors, tokenizer) for name, part in tree["parts"].items()}
    known = {each.name for each in fields(cast(Any, kind))} if is_dataclass(kind) else set()
    if "tokenizer" in known and tokenizer is not None:
        parts["tokenizer"] = tokenizer
    return kind.unpacked(parts)
