"""Raise, interrupt and run out of memory everywhere: what comes out is the fault, and the model is what it was."""

import random
from contextlib import ExitStack

import plain
import pytest
import torch
from faults import EDITING, ENTRIES, ERRORS, WITH_LOSS, Fault, hooked_by, in_backward, model_of, next_token
from leaves_no_trace import assert_same, state
from models import HAS_HOOKED_TRANSFORMER, worlds

import tl_backward as tlb
from tl_backward.gradients import hook_points

every_world = pytest.mark.parametrize("world", worlds())
FAMILIES = {
    "hooked": ["ln", "rms_gated", "gqa_ungrouped_split", "attn_result"],
    "bridge": ["gpt2", "llama", "gemma2"],
}


def strike(run, fault, *, swallows=()):
    """Run with the fault armed: whether it was met; then it must have come out as itself."""
    kind = type(fault.make())
    fault.armed = True
    try:
        run()
    except kind as error:
        assert fault.struck and "struck" in str(error)
        return True
    finally:
        fault.armed = False
    assert not fault.struck or kind in swallows, f"{kind.__name__} was swallowed"
    return fault.struck


def visits(model, run, direction):
    """Hook point -> how often a run passes it."""
    with ExitStack() as stack:
        counters = {}
        for name, point in model.hook_dict.items():
            if id(point) not in {id(model.hook_dict[other]) for other in counters}:  # some have several names
                counters[name] = Fault(RuntimeError, at=0)
                counters[name].armed = True
                stack.enter_context(hooked_by(model, name, counters[name], direction))
        run()
    return {name: counter.calls for name, counter in counters.items() if counter.calls}


def survived(model, name, points, direction, errors=ERRORS):
    """Faults at hook points that an entry survived without a trace; `points` is {name: which call of it}."""
    run, count = (lambda: ENTRIES[name](model)), 0
    for point, at in points.items():
        for error, make in errors.items():
            fault = Fault(make, at)
            with hooked_by(model, point, fault, direction):
                before = state(model)
                # Interrupted by hand, a sweep gives what it has.
                met = strike(run, fault, swallows=(KeyboardInterrupt,) if name.startswith("sweep") else ())
                assert_same(before, state(model), but=("versions",) if name in EDITING else ())
            assert met, (name, point, direction, error)
            count += 1
    return count


SLOW = ("train", "report", "stitching_grid", "compare_edits", "find_layer", "stitch by descent", "compare")
POINTS = {"fwd": ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"], "bwd": ["blocks.1.hook_resid_pre"]}


@every_world
@pytest.mark.parametrize("name", ENTRIES)
def test_faults_at_hooks_leave_no_trace(world, name):
    """A few of the faults that the long test draws."""
    model = model_of(world, None)
    ENTRIES[name](model)  # imports what it imports
    drawn = random.Random(name)
    errors = dict([drawn.choice(list(ERRORS.items()))]) if name in SLOW else ERRORS
    assert survived(model, name, {drawn.choice(POINTS["fwd"]): 1}, "fwd", errors) == len(errors)
    if name in WITH_LOSS or name in ("lens", "gradient_edit", "in an edit"):
        assert survived(model, name, dict.fromkeys(POINTS["bwd"], 1), "bwd") == 3


@every_world
@pytest.mark.parametrize("name", WITH_LOSS)
@pytest.mark.parametrize("where", [next_token, in_backward])
def test_faults_in_losses_leave_no_trace(world, name, where):
    model = model_of(world, None)
    before = state(model)
    for make in ERRORS.values():
        for at in (1, 2) if name in ("sweep", "similarity") else (1,):
            fault = Fault(make, at)
            loss = where(fault)
            swallows = (KeyboardInterrupt,) if name == "sweep" else ()
            assert strike(lambda loss=loss: WITH_LOSS[name](model, loss), fault, swallows=swallows)
            assert_same(before, state(model))


@pytest.mark.long
@pytest.mark.parametrize(("world", "family"), [(w, f) for w in worlds() for f in FAMILIES[w]])
def test_faults_at_every_hook_leave_no_trace(world, family):
    """Every hook point that a run passes, forward and backward: a drawn kind of fault at a drawn one of its visits."""
    drawn, count, model = random.Random(family), 0, model_of(world, family)
    for name, run in ENTRIES.items():
        run(model)
        for direction in ("fwd", "bwd"):
            points = visits(model, lambda run=run: run(model), direction)
            assert points or direction == "bwd", name
            names = drawn.sample(sorted(points), len(points) // 5) if name in SLOW else sorted(points)
            for point in names:
                error = drawn.choice(sorted(ERRORS))
                chosen = {point: drawn.randint(1, points[point])}
                count += survived(model, name, chosen, direction, {error: ERRORS[error]})
    print(f"{world} {family}: {count} faults survived")
    assert count >= 700


@every_world
def test_dropout_of_every_entry_is_given_back(world):
    """It draws from the global RNG."""
    model = model_of(world, None).train()
    for name, run in ENTRIES.items():
        before = state(model)
        run(model)
        assert_same(before, state(model), but=("versions", "filters") if name in EDITING | {"report"} else ())


@pytest.mark.parametrize(
    ("world", "part"),
    [("bridge", "_new_point"), ("bridge", "_Route")]
    + [("hooked", part) for part in ("_new_point", "_route_read", "_route_write") if HAS_HOOKED_TRANSFORMER],
)
def test_an_extension_that_fails_is_taken_back(world, part, monkeypatch):
    model = model_of(world, None)
    before = state(model)
    whole = getattr(hook_points, part)
    for make in ERRORS.values():
        fault = Fault(make, at=5)

        def failing(*args, fault=fault):
            fault()
            return whole(*args)

        with monkeypatch.context() as patch:
            patch.setattr(hook_points, part, failing)
            assert strike(lambda: tlb.extend(model), fault)
        assert_same(before, state(model))
    tlb.unextend(tlb.extend(model))
    assert_same(before, state(model))


def test_type_checks_leave_pythons_random_state_alone():
    """beartype draws which item of a list it looks at, of arguments and of what comes back."""
    from tl_backward._support.types import typed

    def one(numbers: list[int]) -> list[int]:
        drawn.append(random.random())  # the function's own draws are its own
        return [round(number / 2) for number in numbers]

    drawn, before = [], random.getstate()
    assert typed(one)(list(range(100)))[:3] == [0, 0, 1]
    after = random.getstate()
    random.setstate(before)
    assert [random.random()] == drawn and random.getstate() == after
    with pytest.raises(Exception, match="numbers"):
        typed(one)(["1"] * 5)
    assert random.getstate() == after


@pytest.mark.long
def test_pythons_random_state_is_left_alone():
    """In a process of its own, without the run-time type checks of these tests, which draw from it."""
    script = """
import sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from faults import EDITING, ENTRIES, model_of
from leaves_no_trace import assert_same, state
from models import worlds
for name, run in ENTRIES.items():
    model = model_of(worlds()[-1], None)
    run(model)
    before = state(model, python_random=True)
    run(model)
    assert_same(before, state(model, python_random=True), but=("versions",) if name in EDITING else ())
    print(name)
"""
    done = plain.run(script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == list(ENTRIES)


def test_out_of_memory_is_torchs_own():
    assert issubclass(torch.OutOfMemoryError, RuntimeError) and torch.OutOfMemoryError is torch.cuda.OutOfMemoryError


def test_both_worlds_were_tested():
    assert HAS_HOOKED_TRANSFORMER == ("hooked" in worlds())
