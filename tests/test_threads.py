"""Two models in two threads at once give the numbers of one; one model in two threads gets a sentence."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from faults import TEXTS
from leaves_no_trace import Boom, assert_same, boom, state
from models import TOKENS, bridge, build, worlds

import tl_backward as tlb
from tl_backward.model.controls import random_init
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
SENTENCE = "Expected one thread at a time to use a model, got a second one while the first is at work on it"


def captured(model, tokens=TOKENS):
    _, cache = tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss)
    return {name: factors.gradient() for name, factors in cache.factors.items()} | dict(cache)


def compared(model):
    return tlb.dissimilarity.compare(
        model, model, TEXTS, text_options=TextOptions(batch_size=2), show_progress=False
    ).values


@every_world
def test_two_models_in_two_threads_give_the_single_threaded_numbers(world):
    models = [build(world), bridge("llama")]
    alone = [captured(model) for model in models], [compared(model) for model in models]
    before = [state(model) for model in models]
    ready = threading.Barrier(2)

    def many(model):
        ready.wait()
        return [captured(model) for _ in range(4)], [compared(model)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(many, models))
    for index, (captures, comparisons) in enumerate(together):
        for found in captures:
            assert found.keys() == alone[0][index].keys()
            assert all(torch.equal(value, alone[0][index][name]) for name, value in found.items())
        for found in comparisons:
            assert torch.equal(found, alone[1][index])
    for model, was in zip(models, before, strict=True):
        assert_same(was, state(model))


OTHERS = {
    "capture": captured,
    "compare": compared,
    "sweep": lambda model: tlb.sweep(model, ["w5 w6"], ["w7"], control=None, show_progress=False),
    "shift_edit": lambda model: tlb.shift_edit(model, "w5 w6", "w9", 1),
    "apply": lambda model: tlb.rank_one_edit(model, "blocks.1.mlp.W_out", *_ones(model)).apply(),
    "collect": lambda model: tlb.inversion.collect(model, TOKENS, ("resid_post", 1), show_progress=False),
    "stitched": lambda model: tlb.alignment.zero_shot_stitch(model, 1, model, 1)(TOKENS),
    "a pass of the user's": lambda model: model(TOKENS),
    "extend": lambda model: tlb.extend(model),
    "a copy": random_init,
}


def _ones(model):
    return (torch.ones(n, dtype=model.W_U.dtype) for n in tlb.weight_sites(model)["blocks.1.mlp.W_out"].layout.shape)


class Meeting:
    """Holds the thread that comes here until the other has done its work."""

    def __init__(self):
        self.here, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *args):
        self.here.set()
        assert self.go_on.wait(60)


@every_world
def test_one_model_in_two_threads_gets_a_sentence(world):
    """The second is refused; the first goes on, and its numbers are right."""
    model, meeting = build(world), Meeting()
    alone, before = captured(model), state(model)

    def held(logits, tokens):
        meeting()
        return tlb.next_token_loss(logits, tokens)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: tlb.run_with_gradient_cache(model, TOKENS, held))
        assert meeting.here.wait(60)
        for other in OTHERS.values():
            with pytest.raises(RuntimeError, match=SENTENCE):
                other(model)
        meeting.go_on.set()
        _, cache = first.result()
    assert all(torch.equal(factors.gradient(), alone[name]) for name, factors in cache.factors.items())
    assert_same(before, state(model))
    for _ in range(2):  # and now it may
        assert torch.equal(captured(model)["hook_embed"], alone["hook_embed"])


@every_world
def test_nobody_reads_a_model_that_another_thread_has_edited(world):
    model, meeting = build(world), Meeting()
    before = state(model)

    def edited():
        with tlb.rank_one_edit(model, "blocks.1.mlp.W_out", *_ones(model)):
            meeting()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(edited)
        assert meeting.here.wait(60)
        with pytest.raises(RuntimeError, match=SENTENCE):
            captured(model)
        meeting.go_on.set()
        first.result()
    assert_same(before, state(model), but=("versions",))
    captured(model)


@every_world
def test_a_visit_ends_whatever_was_raised_and_may_lie_within_another(world):
    model = build(world)
    for raised in (boom, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)):
        with pytest.raises((Boom, KeyboardInterrupt)):
            tlb.run_with_gradient_cache(model, TOKENS, raised)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(captured, model).result()

    def nested(logits, tokens):
        captured(build(world), tokens)
        return tlb.next_token_loss(logits, tokens)

    tlb.run_with_gradient_cache(model, TOKENS, nested)
    with tlb.rank_one_edit(model, "blocks.1.mlp.W_out", *_ones(model)):
        captured(model)
