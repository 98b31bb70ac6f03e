"""Saved files, tensors with metadata and JSON: replaced atomically, and refused where a checksum does not match.

A file is refused as damaged or another's (`damaged`), as one of another kind (`check_kind`), or as the checkpoint of
another run (`check_run`). Checksums (CRC-32) are against accidents, a `fingerprint` (SHA-256) tells two things apart.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import torch
from torch import Tensor

from tl_backward._support.checks import as_path

_CHECKSUM, _OTHER_SUM = "crc32", "its checksum is missing or another"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place once the block ends; after an error nothing has changed.

    A device or a pipe keeps its place, and what was written is sent to it.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the disk is full, or nothing may be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {str(path)!r}: it is a folder; add a file's name.")
    special = path.exists() and not path.is_file()
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
    except OSError as error:
        if error.strerror is None:  # said in words already
            raise
        raise type(error)(
            f"Expected to write {str(path)!r}, got: {error.strerror}; make room there, or name another file."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object], *, of: object = None
) -> Path:
    """Write `path` atomically: an interruption leaves the file that was there. Metadata but text becomes JSON.

    `of` is the result that is saved: a refusal names what it has in place of the file that was asked for.

    Raises:
        ValueError: a name that promises a picture, a table or a page.
    """
    from safetensors.torch import save_file

    path = as_path(path)
    if path.suffix.lower() in OTHER_KINDS:
        page = " (or .html for its page)" if hasattr(of, "page") else ""
        raise ValueError(f"Expected a name that ends in .safetensors{page}, got {str(path)!r}; {_instead(of)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    with replacing(path) as partial:
        save_file(whole, partial, metadata={**texts, _CHECKSUM: checksum(whole, texts)})
    return path


OTHER_KINDS = {
    ".html", ".htm", ".png", ".svg", ".pdf", ".jpg", ".jpeg", ".csv", ".json", ".jsonl", ".xlsx", ".parquet"
}  # fmt: skip
"""Ends of names that promise something else than safetensors."""


def _instead(of: object) -> str:
    """What a result has that is no file of its numbers."""
    has = [
        f"{what} those of .{name}()"
        for name, what in (("plot", "pictures"), ("to_frame", "tables"))
        if hasattr(of, name)
    ]
    if not has:
        return "its numbers are kept so"
    return f"{has[0].replace(' those', ' are those', 1)}{''.join(f', {each}' for each in has[1:])}"


def load_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata as text.

    Raises:
        ValueError: no such file, not one that `save_tensors` wrote, or one whose bytes are no longer those.
    """
    from safetensors import SafetensorError, safe_open

    _check_exists(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(_unreadable(path, str(error))) from error
    if metadata.pop(_CHECKSUM, None) != checksum(tensors, metadata):
        raise ValueError(damaged(path, _OTHER_SUM))
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def mapped_tensors(path: str | Path, n_bytes: int) -> dict[str, Tensor]:
    """Tensors of a file of `n_bytes` that `save_tensors` wrote, read by memory map where they are used, unverified.

    Raises:
        ValueError: no such file, one of another length, or not one that `save_tensors` wrote.
    """
    from safetensors import SafetensorError, safe_open

    _check_exists(path)
    size = Path(path).stat().st_size
    if size != n_bytes:
        raise ValueError(damaged(path, f"it has {size} bytes, not {n_bytes}"))
    try:
        with safe_open(str(path), framework="pt") as file:
            if _CHECKSUM not in (file.metadata() or {}):
                raise ValueError(damaged(path, _OTHER_SUM))
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(damaged(path, str(error))) from error


def joined(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of several parts as one dictionary, with names "part/name"."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """One part's tensors by their own names, from a dictionary that `joined` made."""
    start = f"{part}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def save_json(path: str | Path, value: Mapping[str, object], beside: Iterable[str] = ()) -> Path:
    """Write `path` atomically, with checksums of what `value` holds and of the files `beside` it, by name."""
    path = as_path(path)
    value = {**value, **{f"{_CHECKSUM} of {name}": _file_checksum(path.with_name(name)) for name in beside}}
    with replacing(path) as partial:
        partial.write_text(json.dumps({**value, _CHECKSUM: _json_checksum(value)}, indent=2) + "\n", encoding="utf-8")
    return path


def load_json(path: str | Path, beside: Iterable[str] = ()) -> dict:
    """Read a file of `save_json` and verify its checksums; values have JSON's types.

    Raises:
        ValueError: no such file, not one that `save_json` wrote, or one that no longer says the same; a file `beside`
            it that is missing or not the one it was saved with.
    """
    path = as_path(path)
    _check_exists(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON
        raise ValueError(damaged(path, str(error))) from error
    if not isinstance(value, dict) or value.pop(_CHECKSUM, None) != _json_checksum(value):
        raise ValueError(damaged(path, _OTHER_SUM))
    together = value.pop(f"{_CHECKSUM} of files", {})  # where 0.1.0 wrote those of a trained model
    for name in beside:
        file, expected = path.with_name(name), value.pop(f"{_CHECKSUM} of {name}", together.get(name))
        if not file.is_file() or _file_checksum(file) != expected:
            raise ValueError(damaged(file, f"it is missing, or was not saved together with {path.name}"))
    return value


def fingerprint(*parts: object) -> str:
    """SHA-256 of texts, bytes, the bits of tensors and, of anything else, its JSON, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(_bits(part.detach().cpu().contiguous()))
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update((part if isinstance(part, str) else json.dumps(part)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of every name, type, shape and byte: against accidents, not against malice."""
    sum = 0
    for name in sorted(tensors):
        sum = zlib.crc32(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode(), sum)
        sum = zlib.crc32(_bits(tensors[name]), sum)
    for item in sorted(metadata.items()):
        sum = zlib.crc32(repr(item).encode(), sum)
    return f"{sum:08x}"


def damaged(path: str | Path, why: str) -> str:
    """The error raised for a file that differs from what was saved."""
    return f"Expected a file that tl_backward saved, got {str(path)!r}, damaged or another's ({why}); make it anew."


def _unreadable(path: str | Path, why: str) -> str:
    """The error raised for a file that is no safetensors at all: a page that `save` wrote, or `damaged`."""
    with open(path, "rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            f"Expected a file of numbers, got the page {str(path)!r}; a page is for reading and cannot be loaded: save "
            "the result under a name that ends in .safetensors too, and load that."
        )
    return damaged(path, why)


def check_kind(path: str | Path, is_so: bool, writer: str, about: Mapping[str, str]) -> None:
    """Refuse an intact file of another kind, or of another version of the format, than `writer` writes.

    Raises:
        ValueError: it is not so; what reads such a file is named, as its metadata `about` tell.
    """
    if not is_so:
        reader = _reader_of(about)
        hint = "save it anew" if reader is None else f"what reads it is {reader}"
        raise ValueError(f"Expected a file written by {writer}, got {str(path)!r}, of another format; {hint}.")


def _reader_of(about: Mapping[str, str]) -> str | None:
    """What reads a file that this package wrote, by its metadata; None where that is not known."""
    if about.get("format") == "tl_backward result 1":
        return _RESULTS.get(about.get("kind", "").rpartition(":")[2], "tl_backward.load_result(path)")
    if about.get("format") in _READERS:
        return _READERS[about["format"]]
    return next((reader for key, reader in _BY_KEY.items() if key in about), None)


_RESULTS = {
    "BackwardLens": "tl_backward.load_lens(path)",
    "GradientCache": "tl_backward.load_cache(path)",
    "WatchResult": "tl_backward.training.load_watch(path)",
}
_READERS = {
    "tl_backward edit 1": "tl_backward.load_edit(model, path)",
    "tl_backward sweep 1": "tl_backward.load_sweep(path)",
    "tl_backward training watch 1": "tl_backward.training.watch(model, resume=path)",
    "pt": "tl_backward.load(folder) of the model's whole folder",
}
_BY_KEY = {
    "covariance_statistics": "tl_backward.dissimilarity.CovarianceStatistics.load(path)",
    "states": "compare(..., run_options=RunOptions(checkpoint=path)) of tl_backward.dissimilarity",
    "descent": "stitch(..., fit_options=FitOptions(checkpoint=path)) of tl_backward.dissimilarity",
}
"""What reads each kind of file: results by class, others by their format or by what their metadata have."""


def check_run(path: str | Path, saved: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Refuse the checkpoint of a run with other settings; settings are compared as JSON values.

    Raises:
        ValueError: the first thing that differs is named.
    """
    for key, value in json.loads(json.dumps(asked)).items():
        if key not in saved or saved[key] != value:
            what = "model, its weights or their data type" if key == "model" else key
            raise ValueError(
                f"Expected the checkpoint of this run in {str(path)!r}, got one that differs in {what} "
                f"({_short(saved.get(key))}, not {_short(value)}); resume with what the interrupted run was given, or "
                "choose another file."
            )


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _check_exists(path: str | Path) -> None:
    if not as_path(path).is_file():
        raise ValueError(f"Expected a saved file, got {str(path)!r}; there is no such file.")


def _bits(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _file_checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _json_checksum(value: object) -> str:
    """CRC-32 of a JSON value, independent of whitespace and the order of keys."""
    said = json.loads(json.dumps(value))
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"
