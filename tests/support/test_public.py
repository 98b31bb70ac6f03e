"""A public function that is called wrongly names the argument, whatever Python itself would have said."""

import plain
import pytest
from models import HAS_HOOKED_TRANSFORMER

from tl_backward._support.public import public


@public
def first(words: list[str], k: int, *, loud: bool = False, **inputs: object) -> list[str]:
    """The first k words."""
    if inputs:
        raise RuntimeError("no inputs are known here")
    return [word.upper() if loud else word for word in words[:k]]


def test_what_works_is_not_checked():
    assert first(("a", "b"), 1) == ["a"]


def test_an_error_that_no_argument_is_to_blame_for_stays():
    with pytest.raises(RuntimeError, match="no inputs are known here"):
        first(["a"], 1, other=3)


def test_an_error_in_our_words_stays():
    @public
    def refusing(k: int) -> None:
        raise ValueError("Expected three, got one; add two.")

    with pytest.raises(ValueError, match="^Expected three, got one; add two.$"):
        refusing("1")


def test_the_outermost_speaks():
    @public
    def outer(count: int) -> list[str]:
        return first(["a"], count)

    with pytest.raises(TypeError, match="Expected count of outer to be int, got 'x'; see help") as caught:
        outer("x")
    assert isinstance(caught.value.__cause__, TypeError)


SCRIPT = """
import torch
import tl_backward as tlb

model = tlb.zoo.load("facts")
prompt, target = "Anna Berg lives in the city of", " Oslo"
cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target))[1]
factors = cache.factors["W_out", 2]
for call in (
    lambda: tlb.sweep(model, [prompt], target, contrl=None),
    lambda: tlb.backward_lens(model, prompt, target, layer=2),
    lambda: tlb.backward_lens(model, prompt, target, prompts=[prompt]),
    lambda: tlb.backward_lens(model, prompt, target, k="10"),
    lambda: tlb.backward_lens(model, prompt, target, layers=model),
    lambda: tlb.run_with_gradient_cache(model, model.to_tokens(prompt), tlb.target_loss(target), attention_mask="s"),
    lambda: factors.cosine(cache),
    lambda: factors.svd("5"),
    lambda: factors.svd(0),
    lambda: factors.gradient(model),
    lambda: tlb.target_loss(3.5),
    lambda: tlb.target_loss([" Oslo", 3]),
    lambda: cache.factors["W_outt", 2],
    lambda: cache["resid_post", 9],
    lambda: cache["W_out", 9],
    lambda: tlb.sweep(model),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error.args[0])
"""
SAID = """
TypeError Expected a keyword of sweep or an input of the model, got 'contrl'; the nearest are 'control', 'c
TypeError Expected a keyword of backward_lens or an input of the model, got 'layer'; the nearest are 'layers',
TypeError Expected a keyword of backward_lens, got 'prompts'; the nearest are 'prompt',
TypeError Expected k, how many tokens, as an integer, got '10'; for example k=10.
TypeError Expected layers as an integer or a list of integers, got {model}; for example [0, -1].
TypeError Expected attention_mask of run_with_gradient_cache to be tensor of booleans [batch, pos] | tensor of integers [batch, pos]
TypeError Expected other of cosine to be GradientFactors, got GradientCache; see help(tl_backward.weights.factors.
TypeError Expected k of svd to be int | None, got '5'; see help(
ValueError Expected at least one component, got k=0; leave k out for all.
TypeError Expected layout of gradient to be 'tl' | 'parameter', got {model}; see help(
TypeError Expected a target as text, a token id, or a list of either, got 3.5; give what the prompt is to be answered with.
TypeError Expected targets that are all text, ids, or lists of ids, got [' Oslo', 3].
KeyError Expected a captured weight, got ('W_outt', 2); captured nearest to it: ('W_out', 2), (
KeyError Expected a hook point whose gradient was kept, got ('resid_post', 9); kept in layers 0, 1, 2, 3 (choose with
KeyError Expected a hook point, got the weight ('W_out', 9), whose factors are cache.factors[('W_out', 9)].
TypeError Expected a complete call of sweep, got one that is missing a required argument: 'prompts'; see its help."""


def test_what_is_said_of_wrong_calls():
    done = plain.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    said = SAID.replace("{model}", "HookedTransformer" if HAS_HOOKED_TRANSFORMER else "TransformerBridge")
    lines, expected = done.stdout.splitlines(), said.strip().splitlines()
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_a_class_is_called_by_its_name():
    code = """
import tl_backward as tlb
from tl_backward import dissimilarity, inversion
from tl_backward.text.options import TextOptions
for call in (
    lambda: tlb.lens.RandomInit(n_draws=None),
    lambda: tlb.lens.RandomInit(seed=None),
    lambda: dissimilarity.RunOptions(sample_size="a"),
    lambda: dissimilarity.FitOptions(steps="a"),
    lambda: inversion.SearchOptions(steps="a"),
    lambda: dissimilarity.CovarianceStatistics(None, None),
    lambda: TextOptions(batch_size="a"),
    lambda: dissimilarity.RunOptions(samples=3),
    lambda: tlb.weight_sites(tlb.zoo.load("facts"))["w_out"],
):
    try:
        call()
        print("taken")
    except Exception as error:
        print(type(error).__name__, error.args[0])
"""
    said = """
TypeError Expected n_draws of RandomInit to be int, got None; see help(tl_backward.lens.control.RandomInit).
TypeError Expected seed of RandomInit as an integer, got None; the default is 0.
TypeError Expected sample_size of RunOptions to be int, got 'a'; see help(tl_backward.dissimilarity.options.RunOptions).
TypeError Expected steps of FitOptions to be int, got 'a'; see help(tl_backward.dissimilarity.options.FitOptions).
TypeError Expected
TypeError Expected widths_a of CovarianceStatistics
TypeError Expected batch_size as a whole number, got 'a'; such as 8.
TypeError Expected a keyword of RunOptions, got 'samples'; the nearest are
KeyError Expected the full name of a weight that can be captured, got 'w_out'; the nearest are 'blocks.0.mlp.W_out',"""
    done = plain.run(code)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), said.strip().splitlines(), strict=True):
        assert line.startswith(expected), (line, expected)
