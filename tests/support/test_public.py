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
TypeError Expected n_draws of RandomInit as an integer, got None; the default is 5.
TypeError Expected seed of RandomInit as an integer, got None; the default is 0.
TypeError Expected sample_size of RunOptions as an integer, got 'a'; the default is 2048.
TypeError Expected steps of FitOptions as an integer, got 'a'; the default is 2000.
TypeError Expected
TypeError Expected widths_a of CovarianceStatistics
TypeError Expected batch_size of TextOptions as an integer, got 'a'; the default is 8.
TypeError Expected a keyword of RunOptions, got 'samples'; the nearest are
KeyError Expected the full name of a weight that can be captured, got 'w_out'; the nearest are 'blocks.0.mlp.W_out',"""
    done = plain.run(code)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), said.strip().splitlines(), strict=True):
        assert line.startswith(expected), (line, expected)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            "tlb.lens.RandomInit(n_draws=2.5)",
            TypeError,
            "n_draws of RandomInit as an integer, got 2.5; the default is 5.",
        ),
        ("tlb.lens.RandomInit(n_draws=True)", TypeError, "n_draws of RandomInit as an integer, got True"),
        ("tlb.lens.RandomInit(seed=2**70)", ValueError, "seed of RandomInit as an integer of 64 bits, got 11805916207"),
        ("tlb.lens.RandomInit(seed=0.5)", TypeError, "seed of RandomInit as an integer, got 0.5; the default is 0."),
        ("RunOptions(seed='a')", TypeError, "seed of RunOptions as an integer, got 'a'; the default is 0."),
        ("RunOptions(jackknife=None)", TypeError, "jackknife of RunOptions as an integer, got None"),
        ("FitOptions(seed=2**64)", ValueError, "seed of FitOptions as an integer of 64 bits"),
        ("FitOptions(save_every=1.5)", TypeError, "save_every of FitOptions as an integer, got 1.5"),
        ("TextOptions(n_batches=True)", TypeError, "n_batches of TextOptions as an integer, got True; leave it out"),
        ("InversionOptions(seed='a')", TypeError, "seed of InversionOptions as an integer, got 'a'"),
        ("SearchOptions(burn_in=1.5)", TypeError, "burn_in of SearchOptions as an integer, got 1.5; leave it out"),
        ("Drawing(seed='a')", TypeError, "seed of Drawing as an integer, got 'a'"),
        ("VectorOptions(filters=5)", TypeError, "filters by name or as a predicate on text, got 5; such as 'ascii'."),
        ("VectorOptions(filters=['ascii', 5])", TypeError, "filters by name or as a predicate on text, got 5"),
        (
            "VectorOptions(filters='asci')",
            ValueError,
            "a filter's name or a predicate on text, got 'asci'; the nearest",
        ),
        ("VectorOptions(tokens=' Oslo')", TypeError, "tokens as a list of ids or texts, got ' Oslo'; one is a list of"),
        ("EditCase('a', 'b', paraphrases='x')", TypeError, "paraphrases of an edit case as a list of texts, got 'x'"),
        ("EditCase('a', 'b', generation=[3])", TypeError, "generation of an edit case as a list of texts, got [3]"),
        ("EditCase('a', 'b', neighbours=['x'])", TypeError, "neighbours of an edit case as a list of (prompt, answer)"),
        ("EditCase('a', 'b', subject=3)", TypeError, "subject of an edit case as text, got 3; write it out."),
    ],
)
def test_options_are_refused_when_they_are_made(make, error, said):
    done = plain.run(MADE.replace("CALL", make))
    assert done.stdout.strip().startswith(f"{error.__name__} Expected {said}"), (done.stdout, done.stderr)


MADE = """
import tl_backward as tlb
from tl_backward.dissimilarity import FitOptions, RunOptions
from tl_backward.embedding_space import VectorOptions
from tl_backward.inversion import InversionOptions, SearchOptions
from tl_backward.inversion.stream import Drawing
from tl_backward.text.cases import EditCase
from tl_backward.text.options import TextOptions
try:
    print("took", CALL)
except (TypeError, ValueError) as error:
    print(type(error).__name__, error)
"""


def test_what_options_take():
    """Integers of any type; an array of paraphrases; a predicate; ids in a tensor."""
    done = plain.run("""
import numpy as np
import torch
import tl_backward as tlb
from tl_backward.text.options import TextOptions
one = np.int64(3)
assert tlb.lens.RandomInit(n_draws=one, seed=-one).n_draws == TextOptions(batch_size=one).batch_size == 3
case = tlb.EditCase("a", "b", paraphrases=np.array(["x"]), neighbours=[["p", ""]])
assert case.paraphrases == ("x",) and case.neighbours == (("p", ""),) and hash(case)
assert tlb.embedding_space.VectorOptions(filters=str.isalpha, tokens=torch.tensor([1])).filters is str.isalpha
""")
    assert done.returncode == 0, done.stderr


def test_a_keyword_of_an_option_is_pointed_at():
    code = """
import tl_backward as tlb
from tl_backward.dissimilarity import RunOptions, CovarianceStatistics, compare
class Draws(tlb.lens.RandomInit):
    def __init__(self, of, **kwargs):
        super().__init__(**kwargs)
for call in (
    lambda: compare(None, None, [], control="random_init"),
    lambda: compare(None, None, [], samples=3),
    lambda: tlb.backward_lens(tlb.zoo.load("facts"), "Anna", " Oslo", n_draws=2),
    lambda: RunOptions(zzz=1),
    lambda: RunOptions(elf=1),
    lambda: Draws(3, n_draw=1),
    lambda: CovarianceStatistics(),
):
    try:
        print("took", call())
    except Exception as error:
        print(type(error).__name__, error.args[0])
"""
    said = """
TypeError Expected a keyword of compare, got 'control'; write run_options=RunOptions(control=...).
TypeError Expected a keyword of compare, got 'samples'; the nearest are 'sample_options', 'show_progress', 'measures'
TypeError Expected a keyword of backward_lens or an input of the model, got 'n_draws'; write control=RandomInit(n_draws=...).
TypeError Expected a keyword of RunOptions, got 'zzz'; known are estimator, jackknife, 
TypeError Expected a keyword of RunOptions, got 'elf'; known are estimator, 
TypeError Expected a keyword of Draws, got 'n_draw'; the nearest are 'n_draws'
TypeError Expected a complete call of CovarianceStatistics, got one that is missing a required argument: 'widths_a'"""
    done = plain.run(code)
    for line, expected in zip(done.stdout.splitlines(), said.strip("\n").splitlines(), strict=True):
        assert line.startswith(expected), (line, expected)
