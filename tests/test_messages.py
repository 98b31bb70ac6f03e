"""What is easily mistaken gets one sentence that says what to write instead, or is understood."""

import copy
import functools
import importlib
import pkgutil

import numpy as np
import plain
import pytest
import torch

import tl_backward as tlb
from tl_backward._support.checks import nearest
from tl_backward.dissimilarity.plan import find_measures
from tl_backward.model.checks import model_kind

METRICS = ("shape_angular", "Shape_Angular")
PROMPT, TARGET = "Anna Berg lives in the city of", " Oslo"


@pytest.fixture(scope="module")
def model():
    return tlb.zoo.load("facts")


@pytest.fixture(scope="module")
def cache(model):
    return tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(TARGET))[1]


def test_a_weight_is_asked_for_by_layer_and_of_the_factors(cache):
    with pytest.raises(KeyError, match=r"several layers have one, add the layer: \['W_out', 3\]"):
        cache.factors["W_out"]
    with pytest.raises(
        KeyError, match=r"got the weight \('W_out', 3\), whose factors are cache.factors\[\('W_out', 3\)"
    ):
        cache["W_out", 3]
    with pytest.raises(KeyError, match="Expected a hook point whose gradient was kept, got .*; kept nearest to it: "):
        cache["resid_posts", 3]


def test_factors_are_no_array(cache):
    with pytest.raises(TypeError, match=r"got factors, which are two; take \.inputs, \.deltas or \.gradient\(\)"):
        np.asarray(cache.factors["W_out", 2])


@pytest.mark.parametrize("of", ["lens", "sweep", "difference"])
def test_a_control_that_was_not_asked_for(model, of, tmp_path):
    made = {
        "lens": lambda: tlb.backward_lens(model, PROMPT, TARGET),
        "sweep": lambda: tlb.sweep(model, [(PROMPT, TARGET)], control=None, show_progress=False),
        "difference": lambda: tlb.training.difference(model, model, "W_out", noise=False),
    }[of]()
    load = tlb.load_sweep if of == "sweep" else tlb.load_result
    for result in (made, load(made.save(tmp_path / f"{of}.safetensors"))):
        assert not result.control and "without a control" in repr(result.control)
        with pytest.raises(AttributeError, match=r"Expected a control, of which to take shift, got a result without; "):
            _ = result.control.shift
        assert copy.deepcopy(result.control) == result.control and not hasattr(result.control, "_ipython_display_")
    assert "control" not in repr(made) and "control" not in made.to_frame()


def test_measures_in_any_case(model):
    assert tlb.dissimilarity.get_measure("CKA_Debiased") is tlb.dissimilarity.get_measure("cka_debiased")
    for name in ("cka", "CKA"):
        assert tlb.dissimilarity.get_measure(name) is tlb.dissimilarity.get_measure("cka_debiased")
    for found in (tlb.dissimilarity.get_measure, lambda name: find_measures(name, tlb.dissimilarity.RunOptions())):
        with pytest.raises(ValueError, match="of a measure, got 'ckaa'; the nearest are 'cka', .*list_measures"):
            found("ckaa")
    texts = [f"w{i} {PROMPT}" for i in range(5)]
    found = tlb.dissimilarity.compare(model, model, texts, measures=["CKA", "Procrustes"], show_progress=False)
    assert found.measures == ("cka", "procrustes") and torch.equal(found["CKA"], found["cka"])
    asked = {"hook": "resid_post", "layers": [0, 3], "show_progress": False}
    one, other = (tlb.dissimilarity.model_distances({"a": model}, texts, measure=m, **asked) for m in METRICS)
    assert one.measure == other.measure and torch.equal(one.values, other.values)
    with pytest.raises(ValueError, match="Expected a metric, got 'CKA', which is none; choose among "):
        tlb.dissimilarity.model_distances({"a": model}, texts, measure="CKA", **asked)


@pytest.mark.parametrize("loss", [lambda logits: logits.sum(), lambda: 0, lambda logits, tokens, weight: logits.sum()])
def test_a_loss_takes_logits_and_tokens(model, loss):
    with pytest.raises(TypeError, match=r"Expected a loss\(logits, tokens\) -> scalar, got one of \("):
        tlb.run_with_gradient_cache(model, PROMPT, loss)


def test_losses_that_take_more(model):
    class Summed:
        def __call__(self, logits, tokens, *, scale=1.0):
            return scale * logits.sum()

    @functools.wraps(lambda logits: None)
    def wrapped(*args):
        return args[0].sum()

    def masked(logits, tokens, attention_mask):
        return logits.sum()

    for loss in (Summed(), wrapped, masked, lambda *args: args[0].sum(), lambda logits, tokens=None, k=3: logits.sum()):
        tlb.run_with_gradient_cache(model, PROMPT, loss, weights="W_out", names_filter=[])


def test_a_report_of_another_result(model):
    lens = tlb.backward_lens(model, PROMPT, TARGET)
    for report, name in (
        (tlb.render.sweep_report, "Sweep"),
        (tlb.render.compare_report, "Comparison"),
        (tlb.render.map_report, "ModelDistances"),
        (tlb.render.stitching_report, "StitchingGrid"),
    ):
        with pytest.raises(
            TypeError, match=f"of {report.__name__} to be {name}, got BackwardLens, whose own page is .show.*; see help"
        ):
            report(lens)


def test_a_head_by_its_usual_name(model):
    said, usual = (tlb.head_pairs(model, name, 1, 0, k=5, show_progress=False) for name in ("VO", "OV"))
    assert said.circuit == usual.circuit and torch.equal(said.pairs.values, usual.pairs.values)


def test_dir_is_what_there_is_to_use():
    names = dir(tlb)
    assert {*tlb.__all__} <= {*names} and "importlib" not in names and "ModuleType" not in names
    assert all(hasattr(tlb, name) for name in names)
    assert {"EditCase", "Basis", "BackwardLens"} <= {*names}  # what a user makes or loads


PACKAGES = [
    each.name
    for each in pkgutil.walk_packages(tlb.__path__, "tl_backward.")
    if each.ispkg and "._" not in each.name and ".cli" not in each.name
]


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_of_a_room_is_what_there_is_to_use(name):
    """What it offers, or where its modules are what it offers those; nothing that its own code imports."""
    room = importlib.import_module(name)
    offered = {*getattr(room, "__all__", ())}
    modules = {each.name for each in pkgutil.iter_modules(room.__path__) if each.name[0] != "_"}
    names = dir(room)
    assert names and names == sorted(names) and offered <= {*names} <= offered | modules
    assert not {"offer", "torch", "public", "TYPE_CHECKING", "__builtins__"} & {*names}
    assert all(hasattr(room, each) for each in names)
    assert {*names} == (offered or modules) or name == "tl_backward.lens"  # which has both


def test_rooms_are_the_packages():
    assert {f"tl_backward.{room}" for room in tlb._ROOMS} <= {*PACKAGES} and len(PACKAGES) > 20


def test_an_edit_by_known_factors(model):
    with pytest.raises(ValueError, match="Expected scaling among 'unit', 'raw', got 'norm'; choose one of them"):
        tlb.shift_edit(model, PROMPT, TARGET, layer=2, scaling="norm")


# What the tests' own type checks would speak of first.
SCRIPT = """
import tl_backward as tlb

model = tlb.zoo.load("facts")
prompt, target = "Anna Berg lives in the city of", " Oslo"
cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target))[1]
sweep = tlb.sweep(model, [prompt], target, control=None, show_progress=False)


def said(call):
    try:
        call()
    except (KeyError, TypeError, ValueError) as error:
        print(type(error).__name__, error.args[0])


for key in (3, None, (3, "W_out"), ("W_out",)):
    for asked in (cache, cache.factors, cache.parameter_gradients):
        said(lambda: asked[key])
        assert key not in asked
said(lambda: tlb.dissimilarity.compare(model, model, [prompt], measures=["cka", 3]))
said(lambda: tlb.shift_edit(model, [prompt, prompt], target, layer=2))
said(lambda: tlb.merge(sweep, "part-1.safetensors"))
"""


def test_what_types_alone_would_refuse():
    done = plain.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    *keys, measure, prompts, parts = done.stdout.splitlines()
    assert len(keys) == 12 and all(line.startswith("KeyError Expected a name or (name, layer), got ") for line in keys)
    assert measure.startswith("ValueError Expected the name of a measure, got '3'; the nearest are ")
    assert prompts == "TypeError Expected one prompt, got 2; give one at a time."
    assert parts.startswith("TypeError Expected the sweeps of the parts, got Sweep, str; load saved ones")


def test_a_model_by_its_name():
    with pytest.raises(TypeError, match=r"got its name 'facts'; load it with tlb.load"):
        model_kind("facts")


def test_a_short_name_that_is_misspelt_among_full_ones():
    names = [f"blocks.{layer}.{end}" for layer in range(4) for end in ("attn.W_Q", "mlp.W_out")]
    assert nearest("W_ou", names) == "'blocks.0.mlp.W_out', 'blocks.1.mlp.W_out', 'blocks.2.mlp.W_out'"
    assert nearest("zzz", names).startswith("far from it, such as ")


def test_a_result_is_no_picture(model, tmp_path):
    for name in ("words.png", "words.CSV"):
        with pytest.raises(ValueError, match=r"ends in \.safetensors, got .*; (tables|its numbers)"):
            tlb.readout(model, model.W_U.T[:2], k=2).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_has_no_page_is_not_saved_as_one(model, cache, tmp_path):
    for result in (cache, tlb.readout(model, model.W_U.T[:2], k=2)):
        with pytest.raises(ValueError, match=r"ends in \.safetensors, got ") as refused:
            result.save(tmp_path / "name.html")
        for name in ("plot", "page", "to_frame"):
            assert (f".{name}()" in str(refused.value)) == (hasattr(result, name) and name != "page")
    assert not list(tmp_path.iterdir())


def test_a_page_is_not_loaded(model, tmp_path):
    page = tlb.backward_lens(model, PROMPT, " Oslo").save(tmp_path / "l.html")
    for load in (tlb.load_lens, tlb.load_result, tlb.load_sweep):
        with pytest.raises(ValueError, match=r"got the page .*l\.html.*cannot be loaded: save .* \.safetensors too"):
            load(page)


def test_one_prompt_for_a_classifier(model):
    with pytest.raises(TypeError, match="Expected a list of prompts, got one text; a single one is a list of one"):
        tlb.alignment.fine_tune(model, PROMPT, [0])


# Each call, and how what is said of it begins.
SAID = """
import numpy as np
import torch
import tl_backward as tlb

model = tlb.load("facts")
prompt, target, quiet = "Anna Berg lives in the city of", " Oslo", {"show_progress": False, "control": None}
lens, edit = tlb.backward_lens(model, prompt, target), tlb.shift_edit(model, prompt, target, layer=2)
cache, factors = lens.cache, lens.cache.factors["W_out", 2]
cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target))[1]
sweep = tlb.sweep(model, [(prompt, target)], **quiet)
cases = tlb.zoo.edit_cases("validation")[:1]


def said(*calls):
    for call in calls:
        try:
            print("took", call())
        except (KeyError, TypeError, ValueError) as error:
            print(type(error).__name__, error.args[0])


paths = [lens.save, edit.save, cache.save, sweep.save, lens.page().save, tlb.load_lens, tlb.load_sweep, tlb.load_cache]
paths += [tlb.load_result, tlb.load_cases, lambda path: tlb.load_edit(model, path)]
said(*(lambda call=call, path=path: call(path) for call in paths for path in (None, 3, b"name")))
print("--")
for none in ("facts", None, torch.nn.Linear(2, 2)):
    said(
        lambda: tlb.readout(none, torch.zeros(128)),
        lambda: tlb.project_parameter(none, "W_out", 2),
        lambda: tlb.head_pairs(none, "VO", 2, 1),
        lambda: tlb.embedding_space.parameter_activation_overlap(none, [prompt], "W_out", 2),
        lambda: tlb.embedding_space.parameter_atlas(none),
        lambda: tlb.training.difference(none, none, "W_out"),
        lambda: tlb.backward_lens(none, prompt, target),
        lambda: tlb.rank_one_edit(none, "blocks.2.mlp.W_out", torch.zeros(512), torch.zeros(128)),
    )
print("--")
said(*(lambda given=given: tlb.load("facts", processing=given) for given in ("default", True, ["fold_ln"])))
said(*(lambda given=given: tlb.backward_lens(model, prompt, target, control=given) for given in ("random", 3, model)))
said(lambda: cache["resid_post"], lambda: cache["z"], lambda: cache["resid_post", -9])
said(lambda: torch.as_tensor(factors), lambda: torch.tensor(factors))
said(lambda: lens.latents["imprint"], lambda: lens.experts[3], lambda: lens.patterns[3], lambda: lens.attn_shift[3])
said(lambda: lens.kinds[9], lambda: lens.sources["x"], lambda: lens.sources["shift"][9], lambda: lens.readouts()["x"])
said(*(lambda pair=pair: tlb.sweep(model, [pair], **quiet) for pair in ((prompt, None), (prompt, 3.5), (None, target))))
one = ("Anna", tlb.next_token_loss)
options = tlb.text.options.TextOptions(prepend_bos=False)
said(lambda: tlb.sweep(model, [one], text_options=options, **quiet))
said(lambda: tlb.run_with_gradient_cache(model, *one, prepend_bos=False))
print("--")
for number in (float("nan"), float("inf"), True, "1", None):
    said(
        lambda: tlb.shift_edit(model, prompt, target, layer=2, scale=number),
        lambda: tlb.rank_one_edit(model, "blocks.2.mlp.W_out", torch.zeros(512), torch.zeros(128), scale=number),
        lambda: tlb.gradient_edit(model, prompt, target, lr=number),
        lambda: tlb.find_layer(model, prompt, target, validation=cases, scales=[number], show_progress=False),
        lambda: tlb.editing.shift_probabilities(model, prompt, target, scales=[number]),
    )
said(lambda: tlb.gradient_edit(model, prompt, target, steps=True))
said(lambda: tlb.editing.shift_probabilities(model, prompt, target, scales=[]))
for number in (1, 0.5, np.float32(0.5), torch.tensor(0.5)):
    tlb.shift_edit(model, prompt, target, layer=2, scale=number)
"""
OTHERS = [
    *["Expected processing to be None (the weights as they were trained) or a dictionary that says True of "] * 3,
    *["Expected control to be None, 'random_init' (the same architecture with fresh weights) or a tlb.lens.Ra"] * 3,
    "Expected a hook point whose gradient was kept, got 'resid_post'; several layers have one, add the layer: cache[",
    "Expected a hook point whose gradient was kept, got 'z'; several layers have one, add the layer: cache['z', 3].",
    "Expected a hook point whose gradient was kept, got ('resid_post', -9); kept in layers 0, 1, 2, 3",
    *["Expected an array to be made of one tensor, got factors, which are two; take .inputs, .deltas or "] * 2,
    "Expected a readout in latents, got 'imprint' of a lens without any; pass basis=... to backward_lens.",
    "Expected a layer with experts that was read, got 3 of a lens without any; its layers have none.",
    "Expected a layer whose attention pattern was kept, got 3 of a lens without any; pass names_filter=",
    "Expected a layer whose attention was read, got 3 of a lens without any; pass attention=True to backward_lens.",
    "Expected a layer that was read among 0, 1, 2, 3, got 9.",
    "Expected a readout among 'imprint', 'shift', got 'x'.",
    "Expected a layer that was read among 0, 1, 2, 3, got 9.",
    "Expected a readout among 'imprint', 'shift', got 'x'.",
    "Prompt 0: Expected a target as text, a token id, or a list of either, got None; give what the prompt is to be",
    "Prompt 0: Expected a target as text, a token id, or a list of either, got 3.5; give what the prompt is to be",
    "Prompt 0: Expected a prompt as text, a non-empty list of texts, or token ids (a list of them, or an integer ",
    "Prompt 0: Expected at least two real tokens for a next-token loss, got one, of 'Anna'; use a longer prompt or",
    "Expected at least two real tokens for a next-token loss, got one, of 'Anna'; use a longer prompt or target_loss",
]


def test_each_call_is_answered_in_a_sentence():
    done = plain.run(SAID)
    assert done.returncode == 0, done.stderr
    paths, models, others, numbers = (part.splitlines() for part in done.stdout.split("--\n"))
    assert len(paths) == 33 and all("Expected a path as text or a Path, got " in line for line in paths), paths
    assert len(models) == 24 and all("Expected a TransformerLens model" in line for line in models), models
    assert all("got its name 'facts'; load it with tlb.load('facts')." in line for line in models[:8])
    for line, words in zip(others, OTHERS, strict=True):
        assert line.partition(" ")[2].startswith(words), line
    *scales, steps, none = numbers
    assert len(scales) == 25 and "Expected steps, how many, as an integer, got True" in steps
    assert "Expected at least one scale, got an empty list" in none
    kinds = [
        "as a finite number, got nan",
        "as a finite number, got inf",
        "as a number, got True",
        "as a number, got '1'",
    ]
    for place, line in enumerate(scales):
        words = [*kinds, "as a number, got None"][place // 5]
        if place % 5 == 1 and place // 5 > 1:  # of which the run-time check of its tensors speaks first
            assert "Expected scale of rank_one_edit to be float, got " in line, line
        else:
            assert f"Expected {'lr' if place % 5 == 2 else 'scale'} {words}; " in line, line


WORDS = """
import tl_backward as tlb
from tl_backward import dissimilarity, training

model = tlb.load("facts")
prompt, target = "Anna Berg lives in the city of", " Oslo"
cases = tlb.zoo.edit_cases("test")[:2]


def said(call):
    try:
        print("took", call())
    except Exception as error:
        print(type(error).__name__, error.args[0])


for each in CALLS:
    said(lambda: eval(each))
"""
TYPES = {
    "training.who_wrote(model, prompt, target, dataset=None)": "Expected dataset of who_wrote to be list of prompts or of "
    "(prompt, target) pairs | list, table or file of edit cases, got None; see help(",
    "tlb.readout(model, None)": "Expected vectors of readout to be tensor of floats [*lead, d_model], got None; see help(",
    "tlb.head_pairs(model, None, 1, 0)": "Expected circuit of head_pairs to be 'VO' | 'QK' | 'OV', got None; see help(",
    "tlb.sweep(model, [(prompt, target)], collect=None)": "Expected collect of sweep to be list of ('norm' | ",
    "dissimilarity.model_distances(model, [prompt])": "Expected models of model_distances to be dictionary {str: "
    "TransformerLensModel} | list of TransformerLensModel, got ",
    "dissimilarity.model_distances({'a': model, 'b': None}, [prompt])": "Expected a TransformerLens model (Hooked",
    "tlb.load_edit('edit.safetensors', model)": "Expected a TransformerLens model, got the file 'edit.safetensors'; give",
    "tlb.readout(model, model.W_U.T, basis=model.W_U.T)": "Expected basis of readout to be tlb.Basis(directions, names=...) "
    "| None, got ",
    "tlb.backward_lens(model, prompt, target, basis=model.W_U.T)": "Expected basis of backward_lens to be tlb.Basis(",
    "dissimilarity.compare(model, [prompt], model)": "Expected a TransformerLens model, got ['Anna Berg lives in the city "
    "of']; models come first, then texts or data.",
    "tlb.backward_lens(prompt, model, target)": "Expected a TransformerLens model, got 'Anna Berg lives in the city of'; "
    "models come first, then",
    "training.who_wrote(model, [(prompt, target)], prompt, target)": "Expected prompt of who_wrote to be text | token ids, "
    "got [('Anna Berg lives in the city of', ' Oslo')]; the order is who_wrote(model, prompt, target, dataset); see help(",
    "training.WatchCallback()": "Expected a complete call of WatchCallback, got one that is missing a required argument: ",
    "training.WatchCallback(None)": "Expected a TransformerLens model (HookedTransformer or TransformerBridge), got NoneT",
    "training.WatchCallback('my-gpt2')": "Expected a TransformerLens model, got its name 'my-gpt2'; load it with tlb.load(",
    "training.WatchCallback(model, evry=2)": "Expected options of watch (every, k, rank, n_examples, seed), got 'evry'",
    "tlb.EditCase(3, 4)": "Expected prompt of an edit case as text, got 3; write it out.",
    "tlb.EditCase(prompt, target, answer=None)": "Expected answer of an edit case as text, got None; write it out.",
    "tlb.sweep(model, [prompt], target, subjects=[3], control=None)": "Prompt 0: Expected a subject as text that occurs in",
    **{
        f"tlb.backward_lens(model, prompt, target, subject={given})": "Expected a subject as text that occurs in the prompt, "
        f"or as (start, end) among its tokens, got {given}; for example subject='Anna Berg'."
        for given in ("3", "(1,)", "(1, 2, 3)")
    },
    **{
        f"tlb.compare_edits(model, cases, {given})": "Expected methods as a dictionary of names to functions (model, case) -> "
        f"edit, got {given}; such as tlb.editing.edit_methods("
        for given in ("'shift'", "['shift']", "None", "{'shift': None}")
    },
}


def test_types_are_said_in_words():
    done = plain.run(WORDS.replace("CALLS", repr(list(TYPES))))
    assert done.returncode == 0, done.stderr
    for (call, words), line in zip(TYPES.items(), done.stdout.splitlines(), strict=True):
        assert line.partition(" ")[2].startswith(words), (call, line)


def test_models_of_a_list_are_called_by_their_numbers(model):
    texts, asked = [f"w{i} {PROMPT}" for i in range(5)], {"layers": [0, 3], "show_progress": False}
    listed = tlb.dissimilarity.model_distances([model, model], texts, **asked)
    named = tlb.dissimilarity.model_distances({"model 0": model, "model 1": model}, texts, **asked)
    assert listed.models == named.models == ("model 0", "model 0", "model 1", "model 1")
    assert torch.equal(listed.values, named.values)


def test_a_file_of_another_kind_names_its_loader(model, cache, tmp_path):
    lens = tlb.backward_lens(model, PROMPT, TARGET)
    statistics = tlb.dissimilarity.CovarianceStatistics([2], [2])
    statistics.update([torch.randn(9, 2)], [torch.randn(9, 2)])
    with tlb.training.watch(model) as watching:
        pass
    saved = {
        "tl_backward.load_lens(path)": lens.save,
        "tl_backward.load_cache(path)": cache.save,
        "tl_backward.load_result(path)": lens.shift[3].save,
        "tl_backward.load_sweep(path)": tlb.sweep(model, [(PROMPT, TARGET)], control=None, show_progress=False).save,
        "tl_backward.load_edit(model, path)": tlb.shift_edit(model, PROMPT, TARGET, layer=2).save,
        "tl_backward.training.watch(model, resume=path)": watching.save,
        "tl_backward.dissimilarity.CovarianceStatistics.load(path)": statistics.save,
    }
    loaders = {
        "tl_backward.load_lens(path)": tlb.load_lens,
        "tl_backward.load_cache(path)": tlb.load_cache,
        "tl_backward.load_result(path)": tlb.load_result,
        "tl_backward.load_sweep(path)": tlb.load_sweep,
        "tl_backward.load_edit(model, path)": lambda path: tlb.load_edit(model, path),
        "tl_backward.dissimilarity.CovarianceStatistics.load(path)": tlb.dissimilarity.CovarianceStatistics.load,
    }
    for number, (own, save) in enumerate(saved.items()):
        save(path := tmp_path / f"{number}.safetensors")
        for reader, load in loaders.items():
            results = {"tl_backward.load_lens(path)", "tl_backward.load_cache(path)", "tl_backward.load_result(path)"}
            if reader == own or (reader == "tl_backward.load_result(path)" and own in results):
                assert load(path) is not None
                continue
            with pytest.raises(ValueError) as caught:
                load(path)
            assert str(caught.value).endswith(f", of another format; what reads it is {own}."), (own, reader)


def test_a_weight_in_another_case_is_named_as_it_is_asked_for(model):
    with pytest.raises(ValueError, match="Expected the name of a weight, got 'w_out'; the nearest is 'W_out'"):
        tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(TARGET), weights="w_out")


@pytest.mark.parametrize("name", ["fact", "Facts", "fatcs", "adition", "count", "ADDITION"])
def test_a_name_near_a_shipped_one_asks_nobody(name, monkeypatch, tmp_path):
    from tl_backward.model import loading

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_load_named", lambda *asked: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=f"got {name!r}; did you mean '(facts|addition|counting)'") as caught:
        tlb.load(name)
    assert len(str(caught.value)) < 250
    with pytest.raises(ValueError, match=f"got {name!r}; did you mean '(facts|addition|counting)'"):
        tlb.zoo.load(name)


def test_no_name_that_transformer_lens_knows_is_near_a_shipped_one():
    from tl_backward.model.shipped import nearest_shipped

    try:
        from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
    except ImportError:
        from transformer_lens.loading_from_pretrained import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
    known = [*OFFICIAL_MODEL_NAMES, *(alias for aliases in MODEL_ALIASES.values() for alias in aliases)]
    assert len(known) > 100 and not [name for name in known if "/" not in name and nearest_shipped(name)]


def test_a_head_is_shown_by_its_usual_name(model):
    pairs = tlb.head_pairs(model, "VO", 1, 0, k=3, show_progress=False)
    assert repr(pairs) == "HeadPairs(OV, layer 1, head 0, 3 largest pairs)" and "OV pairs" in pairs.summary()


def test_an_edit_that_changes_nothing_says_so(model):
    edit = tlb.shift_edit(model, PROMPT, TARGET, layer=2, scale=0.0)
    assert edit.summary().endswith("changes nothing: what it adds to blocks.2.mlp.W_out is zero; it is not applied.")
