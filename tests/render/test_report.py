"""The Backward Lens report: every part is there for every kind of model, true to the lens, and safe."""

import base64
import csv
import functools
import io
import json
import math
import re
import time

import pytest
import torch
from hostile import TOKENS as HOSTILE
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, TOKENS, bridge, build, hooked, worlds
from shared import stories
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import tl_backward as tlb
from tl_backward.lens.patterns import attention_patterns
from tl_backward.render import lens_report, pattern_names, visible_token
from tl_backward.render.attention_report import attention_section
from tl_backward.render.figures import Curve
from tl_backward.render.key_figures import PromptView, key_figures, lens_data
from tl_backward.render.rank_curves import rank_curves, rank_height, rank_ticks

from .browsing import clean
from .reading import PICTURE, read

HEADINGS = [
    "The target and the old answer, layer by layer",
    "The question",
    "Shift: what W_out would write",
    "Imprint: what W_in would take in",
    "Where the gradient arrives",
    "Attention and its gradient",
    "Method, and what counts as evidence",
]
PROMPT, TARGET = "w5 w6 w7 w8", "w9"
every_world = pytest.mark.parametrize("world", worlds())


@functools.cache
def html_of(page):
    """The page without its scripts, whose megabytes take a while to parse."""
    return re.sub(r"<(script|style)>.*?</\1>", "", page.to_html(), flags=re.DOTALL)


def text_of(page):
    """What a reader sees."""
    return " ".join(read(html_of(page)).texts)


def data_of(page, name):
    """The rows of a CSV that the page offers, as dicts."""
    found = re.search(rf'download="{name}.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html_of(page))
    assert found, name
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))


def full_lens(model, prompt=PROMPT, target=TARGET, **options):
    options = {"control": "random_init", "k": 3, "names_filter": pattern_names(model)} | options
    return tlb.backward_lens(model, prompt, target, **options)


@pytest.fixture(scope="module")
def facts():
    model = tlb.zoo.load("facts")
    prompt, target = tlb.zoo.facts.example_edit()
    lens = full_lens(model, prompt, target, k=10, subject="Anna Berg")
    return lens, lens_report(lens, model)


def test_every_part_is_there(facts):
    lens, page = facts
    shown = text_of(page)
    places = [shown.index(said) for said in (lens.summary(), *(f" {heading} " for heading in HEADINGS))]
    assert places == sorted(places), "the finding comes first, then the picture, the method last"
    for said in ("Backward Lens: facts", "Anna Berg lives in the city of", "␣Oslo", "␣Graz", "untrained control"):
        assert said in shown
    for unit_or_sign in ("nats per unit of output", "SUBTRACTS", "raw gradient", "EMNLP 2024"):
        assert unit_or_sign in shown
    drawn = "".join(page._scripts()[2:])
    assert drawn.count("CircuitsVis.AttentionHeads") == 2 * len(lens.layers)
    assert page.to_html().count('class="tlb-picture') == 3
    # one copy of the library for attention, and nothing from elsewhere
    assert len(page.to_html()) < 2.5e6 and "Plotly" not in page.to_html()
    assert not [value for name, value in read(page.to_html()).attributes if name == "src" and "http" in value]


def test_its_data_are_the_lens_s(facts):
    lens, page = facts
    for of in ("imprint", "shift"):
        rows = data_of(page, of)
        assert len(rows) == len(lens.layers) * len(lens.tokens)
        for row in rows:
            read_one = lens.readouts()[of][int(row["layer"])][int(row["pos"])]
            assert float(row["norm"]) == pytest.approx(float(read_one.norm))
            assert int(row["target_rank"]) == int(read_one.target_rank)
            assert len(json.loads(row["top_tokens"])) == 10
    for row in data_of(page, "ranks"):
        own, *draws = (each.shift[int(row["layer"])][-1] for each in (lens, *lens.controls))
        for words, quantity in (("target", "target_rank"), ("old answer", "answer_rank")):
            ranks = sorted(int(getattr(draw, quantity)) for draw in draws)
            assert int(row[words]) == int(getattr(own, quantity)) and len(ranks) == 5
            shown = [int(row[f"{words}, untrained control{end}"]) for end in (", lowest", "", ", highest")]
            assert shown == [ranks[0], ranks[2], ranks[4]]
    norms = data_of(page, "vjp_norms")
    assert [float(row["norm"]) for row in norms] == pytest.approx(lens.stacked("norm").flatten().tolist())
    beside = torch.stack([each.stacked("norm") for each in lens.controls]).mean(0)
    assert [float(row["control"]) for row in norms] == pytest.approx(beside.flatten().tolist())
    means = {(mean["layer"], mean["segment"]): mean for mean in lens.segment_means().to_dict("records")}
    for row in data_of(page, "segment_means"):
        for segment in ("first", "subject", "last", "other"):
            mean = means[int(row["layer"]), segment]
            assert float(row[segment]) == pytest.approx(mean["mean"])
            assert float(row[f"{segment}, control"]) == pytest.approx(mean["control"])
    for row in data_of(page, "attention")[::50]:
        place = tuple(int(row[name]) for name in ("head", "query", "key"))
        gradient = lens.cache["pattern", int(row["layer"])][0]
        assert float(row["gradient"]) == pytest.approx(float(gradient[place]), rel=1e-5)


def test_key_figures_of_the_demo(facts):
    figures = {figure.name: figure for figure in key_figures(PromptView(facts[0]))}
    assert figures["target's rank in layer 3's shift"].value == "424 of 424"
    old = figures["old answer's rank in layer 3's shift"]
    untrained = "15 to 216 of 424" if HAS_HOOKED_TRANSFORMER else "14 to 390 of 424"
    assert old.value == "0 of 424" and old.control == untrained
    share = figures["the subject's share of all VJP norms"]
    assert int(share.value.removesuffix(" %")) > int(share.control.removesuffix(" %").split(" to ")[-1])


SPLIT = ("gqa_ungrouped_split",)
"""Its W_V reads a vector a query head for each stored head, which the lens refuses to average."""
FAMILIES = [("bridge", family) for family in BRIDGED if family != "mixtral"]
if HAS_HOOKED_TRANSFORMER:
    FAMILIES += [("hooked", family) for family in HOOKED]


@pytest.mark.parametrize(("world", "family"), FAMILIES, ids=["-".join(pair) for pair in FAMILIES])
def test_every_architecture(world, family):
    model = (hooked if world == "hooked" else bridge)(family, torch.float32)
    lens = full_lens(model, attention=family not in SPLIT, subject="w6")
    page = lens_report(lens, model, name=f"{world} {family}")
    shown = text_of(page)
    assert ("Shift in attention: what W_O would write" in shown) == (family not in SPLIT)
    assert "Attention and its gradient" in shown
    experts = world == "hooked" and family == "moe"
    assert ("Shift: what W_out would write" in shown) == (family != "attn_only" and not experts)
    assert ("Shift: what the experts would write" in shown) == ("Which experts would learn" in shown) == experts
    gated = not experts and any(weight.endswith("W_gate") for weight in lens.cache.factors)
    assert ("MLPs are gated" in shown) == gated
    assert len(data_of(page, "ranks")) == 2
    for of in lens.readouts():
        assert len(data_of(page, of)) == 2 * len(lens.tokens)


@every_world
def test_without_control_model_or_pattern_gradients(world):
    model = build(world)
    bare = text_of(lens_report(tlb.backward_lens(model, PROMPT, TARGET, k=3)))
    assert "Attention" not in bare and "untrained control," not in bare and "control='random_init'" in bare
    alone = text_of(lens_report(tlb.backward_lens(model, PROMPT, TARGET, k=3), model))
    assert "names_filter=tl_backward.render.pattern_names(model)" in alone and "raw gradient of the loss" not in alone


@every_world
def test_tokens_without_a_tokenizer(world):
    model = build(world)
    model.tokenizer = None
    page = lens_report(full_lens(model, TOKENS[0], 9), model)
    assert [row["token"] for row in data_of(page, "shift")][: len(TOKENS[0])] == [f"[{i}]" for i in TOKENS[0]]
    assert "toward  [9] " in text_of(page) and "One step toward [9] would" in text_of(page)


@every_world
def test_one_prompt_of_a_padded_batch(world):
    model = build(world)
    prompts, targets = ["w5 w6 w7 w8 w9", "w10 w11"], ["w9", "w4"]
    lens = full_lens(model, prompts, targets)
    page, alone = lens_report(lens, model, example=1), full_lens(model, prompts[1], targets[1])
    shown = text_of(page)
    assert "prompt 2 of 2" in shown and "w11" in shown
    assert len(data_of(page, "shift")) == 2 * len(alone.tokens)
    expected = data_of(lens_report(alone, model), "attention")
    for row, same in zip(data_of(page, "attention"), expected, strict=True):
        assert float(row["attention"]) == pytest.approx(float(same["attention"]), abs=1e-6)
        assert float(row["gradient"]) == pytest.approx(float(same["gradient"]), abs=1e-6)
    with pytest.raises(IndexError, match=r"Expected an example in \[0, 2\), got 2; the lens has 2 prompts"):
        lens_report(lens, model, example=2)


@every_world
def test_a_target_of_several_tokens_is_asked_for_where_the_prompt_ends(world):
    model = build(world)
    lens = full_lens(model, PROMPT, "w9 w10 w11")
    view = PromptView(lens)
    assert view.tokens[view.asked].strip() == "w8" and len(view.tokens) - 1 - view.asked == 2
    shown = text_of(lens_report(lens, model))
    assert "The target has several tokens" in shown and "w9 w10" in shown.replace("w9w10", "w9 w10")
    assert [float(row["target"]) for row in data_of(lens_report(lens), "ranks")] == [
        float(lens.shift[layer].target_rank[view.asked]) for layer in lens.layers
    ]


def test_sixty_tokens():
    model = build(worlds()[0], **({"n_ctx": 64} if worlds()[0] == "hooked" else {"n_positions": 64}))
    prompt = " ".join(f"w{i % 47 + 3}" for i in range(60))
    lens = full_lens(model, prompt)
    page = lens_report(lens, model)
    assert len(data_of(page, "vjp_norms")) == 2 * len(lens.tokens) and len(lens.tokens) >= 60


@every_world
def test_a_lens_that_kept_its_patterns_needs_no_other_pass(world):
    """What the page shows is of the lens's own pass, the same as one more would give."""
    model = build(world)
    lens = full_lens(model)
    again = attention_patterns(model, lens.token_ids, lens.layers)
    assert lens.patterns.keys() == again.keys() != set()
    for layer, pattern in lens.patterns.items():
        assert torch.allclose(pattern, again[layer], atol=1e-6)
    assert data_of(lens_report(lens), "attention") == data_of(lens_report(lens, model), "attention")
    assert not tlb.backward_lens(model, PROMPT, TARGET, k=3).patterns


@every_world
def test_attention_patterns_are_the_model_s_and_leave_no_hook(world):
    model = build(world)
    hooks_before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    found = attention_patterns(model, TOKENS[0], [0, 1])
    _, cache = model.run_with_cache(TOKENS[:1], names_filter=lambda name: name.endswith("hook_pattern"))
    for layer, pattern in found.items():
        assert torch.allclose(pattern.double(), cache["pattern", layer][0].double(), atol=1e-6)
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks_before
    assert attention_patterns(model, TOKENS[0], []) == {}


def test_layers_that_a_browser_cannot_draw_are_left_out_and_named():
    model = build(worlds()[0])
    view = PromptView(full_lens(model))
    n = len(view.tokens)
    many = {layer: torch.rand(120_000 // n**2, n, n).tril() for layer in range(3)}
    gradients = {layer: (layer + 1) * torch.ones_like(many[layer]) for layer in many}
    note, boxes = attention_section(view, many, {})
    assert "layers 1, 2" in note and "run_with_cache" in note and boxes.html.count("<details") == 1
    note, boxes = attention_section(view, many, gradients)
    assert "layers 0, 1, 2" in note and "<details" not in boxes.html


def test_lens_data_is_json_and_has_the_control(facts):
    lens, _ = facts
    data = json.loads(json.dumps(lens_data(PromptView(lens)), allow_nan=False))
    assert data["answer"] == " Graz" and data["tokens"] == lens.tokens and data["answer_position"] == 7
    entry = data["shift"][-1]
    assert entry["layer"] == 3 and entry["target_rank"][:-1] == [None] * 7 and entry["target_rank"][-1] == 424
    assert entry["norm"] == pytest.approx(lens.shift[3].norm.tolist())
    assert entry["control_answer_rank"][-1] == int(lens.control.shift[3].answer_rank[-1])
    assert entry["bottom_tokens"][-1][0] == " Oslo" and data["segments"].count("subject") == 2


@pytest.mark.parametrize("d_vocab", [2, 5, 50, 425, 50257])
def test_rank_axis(d_vocab):
    ranks = range(0, d_vocab, max(1, d_vocab // 500))
    heights = [rank_height(rank, d_vocab) for rank in ranks]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(heights)
    assert rank_height(0, d_vocab) == pytest.approx(-rank_height(d_vocab - 1, d_vocab))
    ticks = rank_ticks(d_vocab)
    assert [rank for rank, _ in ticks] == sorted({rank for rank, _ in ticks})
    assert ticks[0] == (0, "0 (top)") and ticks[-1] == (d_vocab - 1, f"{d_vocab - 1} (bottom)")
    line = Curve("target", [0.0, math.nan, float(d_vocab - 1)])
    (drawn,) = rank_curves([line], d_vocab=d_vocab, x=[0, 1, 2], title="t")["data"]
    assert drawn["customdata"] == ["0", "none", str(d_vocab - 1)]
    assert drawn["y"][0] > 0 > drawn["y"][2] and math.isnan(drawn["y"][1])


@pytest.mark.parametrize("kind", worlds())
def test_a_real_llama(kind):
    model = stories(kind)
    lens = full_lens(model, "Once upon a time, there was a little", "girl", subject="Once", k=5)
    page = lens_report(lens, model)
    shown = text_of(page)
    assert all(heading in shown for heading in HEADINGS)
    assert "<s>" in shown and "MLPs are gated" in shown
    assert len(data_of(page, "ranks")) == 5


def hostile_model(strings):
    """A model every one of whose tokens tries to become markup."""
    words = dict.fromkeys(s.encode("utf-8", "ignore").decode() for s in strings if s)
    words = {word: index for index, word in enumerate(w for w in words if w)}
    core = Tokenizer(tokenizer_models.WordLevel(words, unk_token=next(iter(words))))
    # Every id must come back as its own string, so nothing may strip or join.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, name_or_path="<img src=x onerror=pwned()>", clean_up_tokenization_spaces=False
    )
    size = {"d_vocab": len(words)} if worlds()[0] == "hooked" else {"vocab_size": len(words)}
    context = {"n_ctx": 512} if worlds()[0] == "hooked" else {"n_positions": 512}
    model = build(worlds()[0], **size, **context)
    model.tokenizer = tokenizer
    return model, len(words)


@pytest.fixture(scope="module")
def hostile_page():
    model, n = hostile_model(HOSTILE)
    lens = full_lens(model, torch.arange(n), 3)
    return lens_report(lens, model, name="<script>pwned()</script>")


def test_hostile_tokens_stay_text(hostile_page):
    html = hostile_page.to_html()
    reader = read(html)
    allowed = set("html head meta link title style body main nav h1 h2 p section div span b i sub code".split())
    assert (
        set(reader.tags)
        <= allowed | set("table thead tbody tr th td details summary a img footer script style".split()) | PICTURE
    )
    assert reader.tags.count("script") == len(hostile_page._scripts())
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    links = [value for name, value in reader.attributes if name in ("href", "src")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script>pwned()</script>" in " ".join(reader.texts)


@pytest.fixture
def chrome(browser):
    return browser.driver


def wait(chrome, condition, seconds=30):
    end = time.monotonic() + seconds
    while not chrome.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, (condition, chrome.get_log("browser"))
        time.sleep(0.1)


def opened(chrome, page, path):
    """Open a page with every box open, and wait until each of its parts is drawn."""
    page.save(path)
    chrome.get_log("browser"), chrome.get_log("performance")
    chrome.get(path.as_uri())
    wait(chrome, "document.querySelectorAll('svg.tlb-picture text').length > 6")
    chrome.execute_script("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    wait(chrome, "[...document.querySelectorAll('[data-tlb]')].every(place => place.id && place.children.length)")
    wait(chrome, "[...document.querySelectorAll('canvas')].every(canvas => canvas.width > 10 && canvas.height > 10)")


def test_in_a_browser_without_network(chrome, facts, tmp_path):
    lens, page = facts
    path = tmp_path / "report.html"
    opened(chrome, page, path)
    assert [entry for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    script = (
        "return [...document.querySelectorAll('canvas')].filter(c => c.width > 100).map(c => new Set(c.getContext('2d')"
    )
    script += ".getImageData(0, 0, c.width, c.height).data).size)"
    wait(chrome, f"(() => {{ {script} }})().every(colours => colours > 10)")
    assert len(chrome.execute_script(script)) == 2 * len(lens.layers)
    drawn = chrome.execute_script("return document.body.innerText")
    for said in (*HEADINGS, "␣Oslo", "Ranks at ␣of", "Head Selector", "Download CSV", "0 (top)", "424 (bottom)"):
        assert said in drawn, said
    # nothing sticks out of the page, on a phone neither
    for width in (1400, 420):
        chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
        )
        wait(chrome, "document.documentElement.scrollWidth <= window.innerWidth")
    assert [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:", "chrome:", path.as_uri()))] == []


def test_hostile_tokens_in_a_browser(browser, hostile_page, tmp_path):
    path = tmp_path / "hostile.html"
    opened(browser.driver, hostile_page, path)
    time.sleep(1)
    assert browser.number("window.pwnedCount") == 0
    assert browser.console() == [] and browser.foreign_requests(path) == []
    texts = set(map(clean, browser.texts("th [dir=auto]")))
    words = (word.encode("utf-8", "ignore").decode() for word in HOSTILE)
    assert not [word for word in words if word and visible_token(word, 18) not in texts]
