"""However often it is done, nothing stays: no tensor, no graph, no hook, no resident memory."""

import gc
import os
import weakref

import pytest
import torch
from faults import ENTRIES
from leaves_no_trace import hooks_of
from models import bridge, build, hooked, worlds

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())


def resident():
    """Bytes of memory of this process that are resident."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counts(model):
    """Live Python objects, tensors, tensors with a graph behind them, and hooks on the model."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), torch.Tensor)]
    with_graph = sum(tensor.grad_fn is not None for tensor in tensors)
    return {"objects": len(objects), "tensors": len(tensors), "graphs": with_graph, "hooks": hooks_of(model)}


def watched_captures(model, n, checkpoints=()):
    """`n` captures of prompts of several lengths; the resident memory after some, and what of them is still alive."""
    alive, memory = [], {}
    point = model.hook_dict["blocks.1.hook_resid_pre"]
    # A tensor within the graph: alive for as long as anything of it is.
    handle = point.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(args[0])))
    for index in range(n):
        tokens = torch.arange(3 + index % 8).expand(1 + index % 3, -1)
        loss, cache = tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss)
        assert loss.grad_fn is None and cache.factors["W_out", 1].norm().isfinite()
        del loss, cache
        if index + 1 in checkpoints:
            gc.collect()
            memory[index + 1] = resident()
        if index % 50 == 49:
            alive[:] = [reference for reference in alive if reference() is not None]
    handle.remove()
    gc.collect()
    return memory, [reference for reference in alive if reference() is not None]


@every_world
def test_sixty_captures_leave_nothing_behind(world):
    model = build(world)
    watched_captures(model, 24)  # every shape once
    grown = []
    for _ in range(2):  # what a capture leaves behind comes each time, what else a long run of tests keeps comes once
        before = counts(model)
        _, alive = watched_captures(model, 60)
        after = counts(model)
        assert not alive
        for name in ("tensors", "graphs", "hooks"):
            assert after[name] <= before[name], (name, before, after)
        grown.append(after["objects"] - before["objects"])
    assert min(grown) <= 30, grown  # less than one for two captures


@pytest.mark.long
@every_world
def test_two_thousand_captures_in_one_process(world):
    """Resident memory after the last is within 5 % of that after the 50th."""
    wide = {"d_model": 64, "d_mlp": 256, "d_head": 16} if world == "hooked" else {"n_embd": 66}
    model = hooked(**wide) if world == "hooked" else bridge(**wide)
    watched_captures(model, 24)  # every shape once
    before = counts(model)
    memory, alive = watched_captures(model, 2000, checkpoints=(50, 500, 1000, 2000))
    after = counts(model)
    growth = memory[2000] / memory[50] - 1
    print(
        f"{world}: {memory[50] / 1e6:.1f} MB after 50 captures, {memory[2000] / 1e6:.1f} MB after 2,000 ({growth:+.2%})"
    )
    assert growth < 0.05 and not alive
    for name in ("tensors", "graphs", "hooks"):
        assert after[name] <= before[name], (name, before, after)
    assert after["objects"] <= before["objects"] + 200


@pytest.mark.long
@every_world
@pytest.mark.parametrize(
    ("name", "n"),
    [("sweep", 60), ("lens", 150), ("in an edit", 200), ("similarity", 60), ("compare", 60), ("search_preimage", 40),
     ("stitch by descent", 40), ("collect", 100), ("report", 20), ("decoder.preimage", 30), ("train", 8)],
)  # fmt: skip
def test_entries_leave_nothing_behind(world, name, n):
    model = build(world)
    for _ in range(6):
        ENTRIES[name](model)
    before, memory = counts(model), resident()
    for _ in range(n):
        ENTRIES[name](model)
    after = counts(model)
    for kind in ("tensors", "graphs", "hooks"):
        assert after[kind] <= before[kind], (kind, before, after)
    assert after["objects"] <= before["objects"] + 100 + n // 2
    assert resident() < memory * 1.05


def test_strings_of_tokens_do_not_keep_their_tokenizer():
    import copy

    from tl_backward.text.token_strings import token_string

    class Slotted:
        __slots__ = ()

        def convert_ids_to_tokens(self, token):
            return f"t{token}"

        def decode(self, tokens):
            return f"t{tokens[0]}"

    tokenizer = copy.deepcopy(build(worlds()[0]).tokenizer)
    assert [token_string(tokenizer, 5) for _ in range(2)] == ["w5", "w5"] and token_string(Slotted(), 3) == "t3"
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None
