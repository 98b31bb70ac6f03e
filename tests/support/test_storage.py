"""Files are whole or refused, and replaced only by whole ones."""

import hashlib
import json
import os
import random
import stat
import zlib
from pathlib import Path

import pytest
import torch

from tl_backward._support.storage import (
    check_kind,
    check_run,
    fingerprint,
    joined,
    load_json,
    load_tensors,
    part_of,
    replacing,
    save_json,
    save_tensors,
)

TENSORS = {
    "a/x": torch.arange(7.0),
    "b": torch.tensor(True),
    "half": torch.randn(3, 5).bfloat16().T,
    "none": torch.zeros(0, 4),
    "whole": torch.arange(12).reshape(3, 4),
}
METADATA = {"format": "test", "about": '{"words": "é\u2028"}'}


def test_what_is_saved_is_loaded(tmp_path):
    path = save_tensors(tmp_path / "deep" / "file.safetensors", TENSORS, METADATA)
    tensors, metadata = load_tensors(path)
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    path = save_tensors(tmp_path / "file.safetensors", TENSORS, METADATA)
    whole = path.read_bytes()
    drawn = random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_tensors(path)
        except ValueError as error:
            assert "Expected a file that tl_backward saved, got" in str(error) and "file.safetensors" in str(error)
        else:  # a flip in the header's padding changes nothing that was saved
            assert metadata == METADATA and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    for length in {0, 7, 8, len(whole) - 1, *drawn.sample(range(len(whole)), 40)}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="Expected a file that tl_backward saved"):
            load_tensors(path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    import safetensors.torch

    path = save_tensors(tmp_path / "file.safetensors", TENSORS, METADATA)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"other": torch.zeros(2)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_metadata_but_text_becomes_json_and_parts_are_told_apart(tmp_path):
    parts = {"a": {"x": torch.ones(2), "b/y": torch.zeros(1)}, "ab": {"x": torch.arange(3)}}
    path = save_tensors(tmp_path / "file", joined(**parts), {"text": "[1", "list": (1, "é"), "none": {}})
    tensors, metadata = load_tensors(path)
    assert metadata["text"] == "[1" and json.loads(metadata["list"]) == [1, "é"] and metadata["none"] == "{}"
    assert sorted(tensors) == ["a/b/y", "a/x", "ab/x"]
    for name, part in parts.items():
        found = part_of(tensors, name)
        assert found.keys() == part.keys() and all(torch.equal(found[key], part[key]) for key in part)


@pytest.mark.parametrize("form", ["now", "0.1.0"])
def test_json_knows_the_files_beside_it(form, tmp_path):
    """Also where 0.1.0 listed those of a trained model."""
    beside, path = tmp_path / "weights", tmp_path / "about.json"
    beside.write_bytes(b"whole")
    if form == "now":
        save_json(path, {"n": 1}, beside=["weights"])
    else:
        save_json(path, {"n": 1, "crc32 of files": {"weights": f"{zlib.crc32(b'whole'):08x}"}})
    assert load_json(path, beside=["weights"]) == {"n": 1}
    with pytest.raises(ValueError, match="other', damaged or another's .it is missing"):
        load_json(path, beside=["weights", "other"])
    for damage in (lambda: beside.write_bytes(b"whale"), beside.unlink):
        damage()
        with pytest.raises(ValueError, match="weights', damaged or another's .*was not saved together with about.json"):
            load_json(path, beside=["weights"])


def test_a_fingerprint_is_the_sha256_of_all_its_parts():
    half = torch.randn(3, 5).bfloat16().T
    parts = ["é\ud800", b"\0", half, torch.tensor(True), torch.zeros(0), [1, "é"]]
    bits = half.contiguous().view(torch.int16).numpy().tobytes() + b"\1"
    whole = "é\ud800".encode("utf-8", "surrogatepass") + b"\0" + bits + json.dumps([1, "é"]).encode()
    assert fingerprint(*parts) == hashlib.sha256(whole).hexdigest()
    assert fingerprint(half) != fingerprint(half.float()) != fingerprint(half.float() + 1e-3)


def test_files_of_another_kind_or_run_are_refused_by_name():
    check_kind("file", True, "Edit.save", {})
    with pytest.raises(
        ValueError, match="Expected a file written by Edit.save, got 'file', of another format; save it"
    ):
        check_kind("file", False, "Edit.save", {})
    check_run("file", {"seed": 1, "sites": [[1, 2]], "more": 0}, {"seed": 1, "sites": ((1, 2),)})
    for saved, named in (({}, "None"), ({"seed": 0}, "0")):
        message = (
            f"Expected the checkpoint of this run in 'file', got one that differs in seed .{named}, not 1.; resume"
        )
        with pytest.raises(ValueError, match=message):
            check_run("file", saved, {"seed": 1})


def test_a_device_is_written_to_and_not_replaced():
    """As root, os.replace would put a plain file where /dev/null was."""
    before = os.stat(os.devnull)
    with replacing(Path(os.devnull)) as partial:
        partial.write_text("a page")
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_where_nothing_more_can_be_written_is_said_in_words():
    with (
        pytest.raises(OSError, match=r"^Expected to write '/dev/full', got: No space left on device; make room there"),
        replacing(Path("/dev/full")) as partial,
    ):
        partial.write_text("a page")


def test_a_folder_is_not_written_over(tmp_path):
    """It is said in words; nothing is left beside it."""
    for folder in (tmp_path / "results", Path()):
        (tmp_path / "results").mkdir(exist_ok=True)
        with pytest.raises(IsADirectoryError, match=r"^Cannot write '.*': it is a folder; add a file's name\.$"):
            save_tensors(folder, {"a": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
