"""Tensors and JSON in one safetensors file, replaced only once the new one is whole."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from torch import Tensor


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `path` atomically: an interruption leaves the file that was there."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        partial = Path(file.name)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        ValueError: no such file, or not one of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"Expected a saved file, got {str(path)!r}; there is no such file.")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"Expected a safetensors file, got {str(path)!r}, which cannot be read: {error}") from error
