"""The examples in the docstrings of the public functions run, and say what they say."""

import doctest
import inspect

import pytest
import torch
from models import worlds

import tl_backward as tlb
from tl_backward import alignment, dissimilarity, editing, embedding_space, inversion, render, zoo

# By the last name where it has several.
FUNCTIONS = {
    name: function
    for function, name in {
        getattr(module, name): f"{module.__name__}.{name}"
        for module in (tlb, alignment, dissimilarity, editing, embedding_space, inversion, render, zoo)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }.items()
}
# Shown by the notebooks, whose runs are longer than an example should be.
WITHOUT = {
    f"tl_backward.inversion.{name}"
    for name in ("train", "collect", "compare_with_exact", "read_preimage", "task_of", "task_of_texts")
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - WITHOUT))
@pytest.mark.parametrize("world", worlds())
def test_example(name, world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = tlb.zoo.load("facts", kind=world)
    text = inspect.getdoc(FUNCTIONS[name])
    found = doctest.DocTestParser().get_doctest(text, {"tlb": tlb, "torch": torch, "model": model}, name, None, None)
    assert found.examples, f"{name} has no example"
    report = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=report.append)
    assert not report, "".join(report)
