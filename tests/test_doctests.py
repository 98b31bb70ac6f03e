"""The examples in the docstrings of the public functions run, and say what they say."""

import doctest
import inspect

import pytest
import torch
from models import worlds

import tl_backward as tlb

FUNCTIONS = [name for name in tlb.__all__ if inspect.isfunction(getattr(tlb, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("world", worlds())
def test_example(name, world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = tlb.zoo.load("facts", kind=world)
    text = inspect.getdoc(getattr(tlb, name))
    found = doctest.DocTestParser().get_doctest(text, {"tlb": tlb, "torch": torch, "model": model}, name, None, None)
    assert found.examples, f"{name} has no example"
    report = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=report.append)
    assert not report, "".join(report)
