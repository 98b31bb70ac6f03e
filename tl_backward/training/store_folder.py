"""The folder of a store: what it was built with, its examples, bases and shards, and the manifest that ends it.

plan.json                 settings, the model's fingerprint and the data set's
data.json                 the examples as texts
projection.safetensors    bases of every weight
shard-00000.safetensors   some examples' gradients (`Shard`), each file written at once
manifest.json             written last: each file's bytes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from tl_backward._support.checks import as_path
from tl_backward._support.storage import (
    check_run,
    damaged,
    joined,
    load_json,
    load_tensors,
    mapped_tensors,
    part_of,
    save_json,
    save_tensors,
)
from tl_backward.training.projections import Projection
from tl_backward.training.shards import Shard

FORMAT = "tl_backward gradient store 3"
Pair: TypeAlias = tuple[str, str | None]
"""A prompt and its target; None where the text itself is predicted."""

_PLAN, _DATA, _PROJECTION, _MANIFEST = "plan.json", "data.json", "projection.safetensors", "manifest.json"
_BASES = ("inputs", "deltas", "entries", "input_moments", "delta_moments")


class StoreFolder:
    """Reads and writes the files of a store."""

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)

    def check_for(self, plan: Mapping[str, object]) -> None:
        """Refuse a folder that holds something else than the beginnings of this store, or all of it.

        A plan from which nothing was built, as after an error, may be another.

        Raises:
            ValueError: it does, or is a file.
        """
        if (self.path / _PLAN).is_file():
            saved = load_json(self.path / _PLAN)
            self._check_format(saved)
            if self._is_begun:
                check_run(self.path, saved, plan)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            what = "a folder with other files" if self.path.is_dir() else "a file"
            raise ValueError(f"Expected out as a new or empty folder, got {str(self.path)!r}, {what}; name another.")

    def begin(self, plan: Mapping[str, object], pairs: Sequence[Pair]) -> None:
        """Write what the store is of, unless something was built of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, value in ((_DATA, {"examples": [list(pair) for pair in pairs]}), (_PLAN, plan)):
            if not (self._is_begun and (self.path / name).is_file()):
                save_json(self.path / name, value)

    @property
    def is_finished(self) -> bool:
        """Whether all of a store is there, so that a build of it writes nothing."""
        return (self.path / _MANIFEST).is_file()

    @property
    def _is_begun(self) -> bool:
        return self.is_finished or self.has_projections or any(self.path.glob("shard-*.safetensors"))

    def plan(self) -> dict:
        """What the store was built with.

        Raises:
            ValueError: no store, one of another version of the format, or one that is not finished.
        """
        if not (self.path / _PLAN).is_file():
            raise ValueError(
                f"Expected the folder of a gradient store, got {str(self.path)!r}, which has no {_PLAN}; build "
                "one with GradientStore.build."
            )
        plan = load_json(self.path / _PLAN)
        self._check_format(plan)
        if not self.is_finished:
            raise ValueError(
                f"Expected a finished store, got {str(self.path)!r}, whose build was interrupted; call "
                "GradientStore.build again with the same arguments, and it goes on."
            )
        return plan

    def _check_format(self, plan: Mapping[str, object]) -> None:
        if plan.get("format") != FORMAT:
            raise ValueError(
                f"Expected a store of the format that this version of tl_backward writes, got {str(self.path)!r}, of "
                "another format; build it anew with GradientStore.build, in another folder."
            )

    def pairs(self) -> list[Pair]:
        """The examples."""
        return [(prompt, target) for prompt, target in load_json(self.path / _DATA)["examples"]]

    @property
    def has_projections(self) -> bool:
        """Whether the bases are there."""
        return (self.path / _PROJECTION).is_file()

    def save_projections(self, projections: Mapping[str, Projection]) -> None:
        """Write the bases of every weight."""
        named = {name: {key: getattr(each, key) for key in _BASES} for name, each in projections.items()}
        save_tensors(self.path / _PROJECTION, joined(**named), {})

    def projections(self, names: Sequence[str]) -> list[Projection]:
        """The bases of some weights."""
        tensors, _ = load_tensors(self.path / _PROJECTION)
        return [Projection(**part_of(tensors, name)) for name in names]

    def has_shard(self, number: int) -> bool:
        """Whether a shard is there."""
        return self._shard(number).is_file()

    def save_shard(self, number: int, shard: Shard) -> None:
        """Write a shard, atomically."""
        save_tensors(self._shard(number), shard.tensors(), {})

    def finish(self, n_shards: int) -> None:
        """Write the manifest of everything, unless it is there."""
        if self.is_finished:
            return
        names = [_DATA, _PROJECTION, *(self._shard(number).name for number in range(n_shards))]
        sizes = {name: (self.path / name).stat().st_size for name in names}
        save_json(self.path / _MANIFEST, {"n_shards": n_shards, "bytes": sizes})

    def shards(self) -> list[Shard]:
        """All shards, mapped: nothing is read before it is used.

        Raises:
            ValueError: one is missing, or has another length than it was written with.
        """
        manifest = load_json(self.path / _MANIFEST)
        numbered = (self._shard(number) for number in range(manifest["n_shards"]))
        return [self._read(path, mapped_tensors(path, manifest["bytes"][path.name])) for path in numbered]

    def verify(self) -> None:
        """Read every byte of the shards, and compare it with their checksums.

        Raises:
            ValueError: one is damaged.
        """
        for number in range(load_json(self.path / _MANIFEST)["n_shards"]):
            load_tensors(self._shard(number))

    def n_bytes(self) -> int:
        """What all files take."""
        return sum(load_json(self.path / _MANIFEST)["bytes"].values())

    def _shard(self, number: int) -> Path:
        return self.path / f"shard-{number:05d}.safetensors"

    def _read(self, path: Path, tensors: Mapping[str, Tensor]) -> Shard:
        try:
            return Shard.of(tensors)
        except KeyError as error:
            raise ValueError(damaged(path, f"it has no {error}")) from error
