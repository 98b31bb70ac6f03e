"""The script of GPU figures runs through where there is none."""

import re

import pytest
from models import HAS_HOOKED_TRANSFORMER

from tests.benchmarks import gpu


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="its models are HookedTransformers: TransformerLens 3 only")
def test_the_script_runs_on_a_cpu(capsys):
    gpu.main(["--device", "cpu", "--shape", "tiny", "--dtype", "float32"])
    lines = capsys.readouterr().out.splitlines()
    named = ("capture / loss.backward()", "capture / forward + activation-only", "top_pairs / bare", "all-pairs CKA")
    assert lines[0].startswith("CPU, torch") and all(any(line.startswith(name) for line in lines) for name in named)
    assert all(0.01 < float(re.search(r" (\d+\.\d{3}) (?:\S+\.\.\S+)? *<= ", line)[1]) < 1000 for line in lines[2:])


def test_without_a_device_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "no CUDA device is here" in capsys.readouterr().err
