"""Files that are replaced only by whole ones: safetensors with JSON in it, and JSON alone; refused when damaged."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import torch
from torch import Tensor

_CHECKSUM = "crc32"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place once the block ends; after an error nothing has changed.

    A device or a pipe keeps its place, and what was written is sent to it.
    """
    special = path.exists() and not path.is_file() and not path.is_dir()
    folder = Path(gettempdir()) if special else path.parent
    partial = folder / f".{path.name[:64]}.{uuid4().hex}.part"
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        if special:
            path.write_bytes(partial.read_bytes())
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write `path` atomically: an interruption leaves the file that was there."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, _CHECKSUM: checksum(whole, metadata)}
    with replacing(path) as partial:
        save_file(whole, partial, metadata=described)
    return path


def load_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        ValueError: no such file, not one that `save_tensors` wrote, or one whose bytes are no longer those.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"Expected a saved file, got {str(path)!r}; there is no such file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(damaged(path, str(error))) from error
    if metadata.pop(_CHECKSUM, None) != checksum(tensors, metadata):
        raise ValueError(damaged(path, "its checksum is missing or another"))
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def save_json(path: str | Path, value: Mapping[str, object]) -> Path:
    """Write `path` atomically, with a checksum beside what `value` holds."""
    path = Path(path)
    with replacing(path) as partial:
        partial.write_text(json.dumps({**value, _CHECKSUM: _json_checksum(value)}, indent=2) + "\n", encoding="utf-8")
    return path


def load_json(path: str | Path) -> dict:
    """What `save_json` was given, as JSON has it.

    Raises:
        ValueError: no such file, not one that `save_json` wrote, or one that no longer says the same.
    """
    if not Path(path).is_file():
        raise ValueError(f"Expected a saved file, got {str(path)!r}; there is no such file.")
    try:
        value = json.loads(Path(path).read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON
        raise ValueError(damaged(path, str(error))) from error
    if not isinstance(value, dict) or value.pop(_CHECKSUM, None) != _json_checksum(value):
        raise ValueError(damaged(path, "its checksum is missing or another"))
    return value


def file_checksum(path: str | Path) -> str:
    """CRC-32 of a whole file that another library wrote."""
    return f"{zlib.crc32(Path(path).read_bytes()):08x}"


def _json_checksum(value: object) -> str:
    """Of what is said, whatever the layout."""
    said = json.loads(json.dumps(value))
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of every name, type, shape and byte: against accidents, not against malice."""
    sum = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        sum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), sum)
        sum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, sum)
    for item in sorted(metadata.items()):
        sum = zlib.crc32(repr(item).encode(), sum)
    return f"{sum:08x}"


def damaged(path: str | Path, why: str) -> str:
    """How a file is refused."""
    return f"Expected a file that tl_backward saved, got {str(path)!r}, damaged or another's ({why}); make it anew."
