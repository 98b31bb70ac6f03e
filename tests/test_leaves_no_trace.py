"""The model is exactly as it was after a capture, whatever was raised; bad input gets one sentence."""

import plain
import pytest
import torch
from leaves_no_trace import Boom, assert_same, assert_same_but_versions, boom, interrupt, state
from models import HAS_HOOKED_TRANSFORMER, TOKENS, bridge, build, worlds
from torch import nn

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())


CASES = {
    "fine": (dict(), None),
    "hook raises": (dict(fwd_hooks=[("blocks.1.hook_resid_pre", boom)]), Boom),
    "backward hook raises": (dict(bwd_hooks=[("blocks.1.hook_resid_pre", boom)]), Boom),
    "interrupted": (dict(fwd_hooks=[("blocks.1.hook_resid_pre", interrupt)]), KeyboardInterrupt),
    "loss raises": (dict(loss=boom), Boom),
    "loss is interrupted": (dict(loss=interrupt), KeyboardInterrupt),
    "loss is a vector": (dict(loss=lambda logits, tokens: logits[0, 0]), ValueError),
    "loss is nan": (dict(loss=lambda logits, tokens: logits.sum() * float("nan")), ValueError),
    "unknown weight": (dict(weights="W_ou"), ValueError),
    "unknown hook": (dict(fwd_hooks=[("blocks.7.hook_q", boom)]), ValueError),
}


@every_world
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("setting", ["plain", "training", "frozen", "hooked"])
def test_no_trace(world, case, setting):
    model = build(world)
    options, error = CASES[case]
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(setting != "frozen")
        if index % 3 == 0 and setting == "training":
            parameter.grad = torch.ones_like(parameter)
    model.train(setting == "training")
    if setting == "hooked":
        model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x * 1.1)
        model.add_perma_hook("blocks.1.hook_mlp_out", lambda x, hook: None)
        model.register_forward_pre_hook(lambda *a: None)
    before = state(model)
    assert before["torch hooks"] == state(model)["torch hooks"]
    arguments = {"loss": tlb.next_token_loss, **options}
    if error is None:
        tlb.run_with_gradient_cache(model, TOKENS, **arguments)
    else:
        with pytest.raises(error):
            tlb.run_with_gradient_cache(model, TOKENS, **arguments)
    assert_same(before, state(model))


@every_world
def test_lens_control_and_extension_leave_no_trace(world):
    model = build(world)
    before = state(model)
    tlb.backward_lens(model, "w5 w6 w7", "w9", control="random_init", attention=True)
    assert_same(before, state(model))
    tlb.unextend(tlb.extend(model))
    assert_same(before, state(model))


@every_world
def test_dropout_draws_are_given_back(world):
    model = build(world).train() if world == "hooked" else bridge("gpt2", resid_pdrop=0.5).train()
    rng = torch.get_rng_state()
    one = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[0]
    two = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)[0]
    assert torch.equal(one, two) and torch.equal(rng, torch.get_rng_state())


def test_no_tensors_are_left_behind():
    """No graph outlives a capture: the second of two runs holds no more tensors than the first.

    By type: a proxy of what is gone, which a Bridge of another test may leave, raises when it is asked what it is.
    """
    import gc

    model, counts = build(worlds()[-1]), []
    for _ in range(3):
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss)
        gc.collect()
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[2] <= counts[1]


def run(model, prompt="w5 w6", loss=None, **options):
    return tlb.run_with_gradient_cache(model, prompt, loss or tlb.next_token_loss, **options)


def detached(logits, tokens):
    return logits.detach().sum().requires_grad_()


SENTENCES = {
    "filter matches nothing": (lambda m: run(m, weights=lambda n: False), ValueError, "weights, got one that matches none"),
    "names_filter matches nothing": (lambda m: run(m, names_filter=lambda n: False), ValueError, "got one that matches none"),
    "unknown hook point": (lambda m: run(m, names_filter="hook_embd"), ValueError, "the nearest are 'hook_embed'"),
    "unknown weight": (lambda m: run(m, weights="W_ot"), ValueError, "got 'W_ot'; the nearest are .*'W_out'"),
    "nothing to keep": (lambda m: run(m, weights=[], names_filter=[]), ValueError, "hook points whose gradients to keep, got neither"),
    "weights of the wrong kind": (lambda m: run(m, weights=3), TypeError, "got int; for example|parameter 'weights'"),
    "vector loss": (lambda m: run(m, loss=lambda x, t: x[0, 0]), ValueError, r"scalar, got shape \(50,\); reduce it"),
    "number loss": (lambda m: run(m, loss=lambda x, t: 3.0), TypeError, "got float; return a torch tensor"),
    "infinite loss": (lambda m: run(m, loss=lambda x, t: x.sum() / 0), ValueError, "Expected a finite loss, got -?inf"),
    "constant loss": (lambda m: run(m, loss=lambda x, t: torch.ones(())), ValueError, "depends on the logits"),
    "detached loss": (lambda m: run(m, loss=detached), ValueError, "depends on the logits, got one that does not"),
    "weight-only loss": (lambda m: run(m, loss=lambda x, t: m.W_U.sum()), ValueError, "of the logits alone"),
    "unknown target": (lambda m: run(m, loss=tlb.target_loss("zzz")), ValueError, "got 'zzz', which contains an unknown"),
    "empty target": (lambda m: run(m, loss=tlb.target_loss("")), ValueError, "encodes to at least one token, got ''"),
    "target id out of range": (lambda m: run(m, loss=tlb.target_loss(99)), ValueError, r"ids in \[0, 50\), got \[99\]"),
    "two targets, one prompt": (lambda m: run(m, loss=tlb.target_loss(["w3", "w4"])), ValueError, "got 2; pair every prompt"),
    "long logit difference": (lambda m: run(m, loss=tlb.logit_difference("w3 w4", "w5")), ValueError, "single-token answers"),
    "position": (lambda m: run(m, loss=tlb.target_loss("w3", positions=9)), IndexError, r"in \[-3, 3\), got 9"),
    "empty prompt": (lambda m: run(m, ""), ValueError, "at least one character, got an empty one"),
    "no prompts": (lambda m: run(m, []), TypeError, "non-empty list of texts"),
    "too long": (lambda m: run(m, " ".join(["w5"] * 20)), ValueError, "at most n_ctx=16 tokens .*, got 21"),
    "foreign tokens": (lambda m: run(m, torch.tensor([[0, 77]])), ValueError, r"ids in \[0, 50\), got 0 to 77"),
    "mask with text": (
        lambda m: run(m, attention_mask=torch.ones(1, 3, dtype=torch.long)), ValueError, "only together with tokens"),
    "a readout's layer": (lambda m: tlb.backward_lens(m, "w5", "w6").shift[7], KeyError, r"\[0, 1\], got 7"),
    "a captured layer": (lambda m: run(m)[1].factors["W_out", 7], KeyError, "layers 0 to 1 have one"),
    "no layer": (lambda m: run(m)[1].factors["W_out"], KeyError, r"several layers have one, add the layer: \['W_out', 1\]"),
    "not asked for": (lambda m: run(m)[1].factors["W_E"], KeyError, r"not asked for \(weights=\['embed.W_E'\]\)"),
    "a captured name": (lambda m: run(m)[1].factors["W_ot", 1], KeyError, "nearest to it: .*'W_out'"),
    "layer out of range": (lambda m: tlb.backward_lens(m, "w5", "w6", layers=[5]), IndexError, r"in \[-2, 2\), got 5"),
    "no layers": (lambda m: tlb.backward_lens(m, "w5", "w6", layers=[]), ValueError, "at least one layer"),
    "k": (lambda m: tlb.backward_lens(m, "w5", "w6", k=0), ValueError, "Expected 1 <= k <= 50"),
    "subject": (lambda m: tlb.backward_lens(m, "w5", "w6", subject="w9"), ValueError, "to occur in the prompt, got 'w9'"),
    "subject span": (lambda m: tlb.backward_lens(m, "w5", "w6", subject=(1, 9)), ValueError, "span within the prompt's 2"),
    "cache key": (lambda m: run(m)[1].factors["W_x", 0], KeyError, "Expected a captured weight"),
    "cache hook": (lambda m: run(m, names_filter=[])[1]["resid_post", 0], KeyError, "whose gradient was kept"),
}  # fmt: skip


@every_world
@pytest.mark.parametrize("name", SENTENCES)
def test_bad_input_gets_a_sentence(world, name):
    model = build(world)
    before = state(model)
    call, error, sentence = SENTENCES[name]
    with pytest.raises(error, match=sentence) as caught:
        call(model)
    message = str(caught.value.args[0])
    if not message.startswith("Type-check error"):  # the tests' own type checks come before the function's
        assert message.startswith("Expected") and message.endswith((".", ")")) and "\n" not in message
    assert_same(before, state(model))


@every_world
def test_missing_tokenizer(world):
    model = build(world)
    model.tokenizer = None
    with pytest.raises(ValueError, match="Expected a model with a tokenizer"):
        run(model)
    _, cache = run(model, TOKENS, tlb.target_loss(7))
    lens = tlb.backward_lens(model, TOKENS, 7)
    assert lens.tokens[0][0] == "[0]" and lens.target == ["[7]", "[7]"] and len(cache.factors) == 12


def test_not_a_transformerlens_model():
    with pytest.raises(
        TypeError, match="got Linear; wrap a Hugging Face model with TransformerBridge.boot_transformers"
    ):
        run(nn.Linear(2, 2), TOKENS)
    with pytest.raises(TypeError, match="Expected a TransformerLens model"):
        tlb.weight_sites(bridge().original_model)


@every_world
def test_grad_must_be_enabled(world):
    model = build(world)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"got torch.no_grad\(\); call inside torch.enable_grad"):
        run(model)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="leave inference_mode"):
        run(model)
    with torch.no_grad(), torch.enable_grad():
        run(model)


@every_world
def test_compiled_model(world):
    model = build(world)
    with pytest.raises(TypeError, match="uncompiled"):
        run(torch.compile(model, backend="eager"), TOKENS)
    model.blocks[0].mlp.compile(backend="eager")
    with pytest.raises(TypeError, match="compiled with torch.compile"):
        run(model, TOKENS)


@every_world
def test_a_stale_input_is_refused(world):
    """x of W_out is overwritten in place after the matrix read it: the kept reference would be wrong."""
    model = build(world)
    kept = []
    name = "blocks.0.mlp.hook_post" if world == "hooked" else "blocks.0.mlp.out.hook_in"
    model.add_hook(name, lambda x, hook: kept.append(x))
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: kept.append(kept[-1].detach().mul_(2)))
    with pytest.raises(RuntimeError, match=r"input of blocks.0.mlp.W_out to stay .* overwritten in place"):
        run(model, weights="W_out", names_filter=[])


def test_weights_that_cannot_be_captured_say_why():
    model = bridge("neox")
    with pytest.raises(ValueError, match="got 'W_qkv': did not run in this pass"):
        run(model, weights="W_qkv")


def test_arguments_of_the_wrong_type_get_a_sentence_without_type_checks():
    """In the tests jaxtyping refuses these first; users run without it."""
    script = """
import sys, torch
sys.path.insert(0, "tests")
from models import TOKENS, bridge
import tl_backward as tlb
model = bridge()
lens = tlb.backward_lens(model, "w5 w6", "w7")
factors = lens.cache.factors["W_out", 1]
for call in [
    lambda: tlb.run_with_gradient_cache(model, TOKENS, "w7"),
    lambda: factors.gradient("torch"),
    lambda: lens.segment_means("rank"),
    lambda: tlb.backward_lens(model, "w5", None),
    lambda: tlb.backward_lens(model, "w5", "w6", layers="3"),
    lambda: tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=("hook_embed", print)),
]:
    try:
        call()
    except (TypeError, ValueError) as error:
        print(error)
for tokens, options in [
    (torch.tensor([[0.0, 5.0]]), {}),
    (TOKENS, {"attention_mask": torch.ones(2, 3, dtype=torch.long)}),
    (torch.zeros(1, 2, 3, dtype=torch.long), {}),
    (7, {}),
]:
    try:
        tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, **options)
    except (TypeError, ValueError) as error:
        print(error)
"""
    done = plain.run(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10 and all(line.startswith("Expected") for line in lines), done.stdout
    for sentence in (
        "use target_loss('w7')",
        "got 'torch'",
        "got 'rank' of 'shift'",
        "got None;",
        "got '3'",
        "pairs",
    ):
        assert any(sentence in line for line in lines[:6]), (sentence, lines)
    lines = lines[6:]
    assert "got torch.float32 of shape [1, 2]" in lines[0] and "[2, 7], got [2, 3]" in lines[1]
    assert "of shape [1, 2, 3]" in lines[2] and "got 7;" in lines[3]


@every_world
def test_unknown_words_of_a_prompt_are_announced(world):
    model = build(world)
    with pytest.warns(
        UserWarning, match="A text has words that are not in the model's vocabulary and are read as unknown: 'zzz'"
    ):
        run(model, "w5 zzz")


@every_world
def test_negative_layers_count_from_the_end(world):
    lens = tlb.backward_lens(build(world), "w5 w6", "w7")
    assert lens.shift[-1] is lens.shift[1] and lens.imprint[-2] is lens.imprint[0] and list(lens.shift) == [0, 1]


def test_both_worlds_were_tested():
    assert HAS_HOOKED_TRANSFORMER == ("hooked" in worlds())


DATA_SET_TOOLS = {
    "sweep": lambda model: tlb.sweep(
        model, ["w5 w6", "w7"], ["w8", "w9"], n_draws=1, batch_size=1, show_progress=False
    ),
    "similarity": lambda model: tlb.gradient_similarity(model, ["w5 w6", "w7 w8"], batch_size=1, show_progress=False),
    "evaluate": lambda model: tlb.evaluate_edit(
        model,
        tlb.shift_edit(model, "w5 w6", "w9", 1, 3.0),
        tlb.EditCase("w5 w6", "w9", paraphrases=("w6",)),
        n_tokens=3,
    ),
    "compare": lambda model: tlb.compare_edits(
        model, [tlb.EditCase("w5 w6", "w9")], tlb.editing.edit_methods(1, 3.0, 0.1), n_tokens=3, show_progress=False
    ),
    "find layer": lambda model: tlb.find_layer(
        model, "w5 w6", "w9", validation=[tlb.EditCase("w7", "w8")], scales=(1.0,), show_progress=False
    ),
}


@every_world
@pytest.mark.parametrize("tool", DATA_SET_TOOLS)
@pytest.mark.parametrize("fault", [None, boom, interrupt])
def test_tools_over_data_leave_no_trace(world, tool, fault):
    """Done, or broken off in the middle of its second pass: the weights that an edit changes come back to the bit."""
    model, passes = build(world), []

    def strike(activation, hook):
        passes.append(1)
        if fault is not None and len(passes) == 2:
            fault()

    model.add_hook("blocks.1.hook_resid_pre", strike)
    before = state(model)
    passes.clear()
    try:
        DATA_SET_TOOLS[tool](model)
    except (Boom, KeyboardInterrupt):
        assert fault is not None
    assert len(passes) >= 2
    assert_same_but_versions(before, state(model))
