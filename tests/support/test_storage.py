"""Files are whole or refused, and replaced only by whole ones."""

import os
import random
import stat
from pathlib import Path

import pytest
import torch

from tl_backward._support.storage import load_tensors, replacing, save_tensors

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


def test_a_device_is_written_to_and_not_replaced():
    """As root, os.replace would put a plain file where /dev/null was."""
    before = os.stat(os.devnull)
    with replacing(Path(os.devnull)) as partial:
        partial.write_text("a page")
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)
