"""Places by every name, in both kinds of model and in each feature, and what is refused."""

import ast
import re
from pathlib import Path

import pytest
import torch
from inversion.tiny import cached
from models import TOKENS, bridge, worlds

import tl_backward
from tl_backward import inversion
from tl_backward.activations import PlaceReader
from tl_backward.dissimilarity import compare
from tl_backward.inversion import collect, read_query
from tl_backward.model.place import Place, resolve_place, resolve_places

QUIET = {"show_progress": False}
every_world = pytest.mark.parametrize("world", worlds())


@every_world
@pytest.mark.parametrize(
    ("given", "name", "head"),
    [
        ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_mid", None),
        (("resid_mid", 1), "blocks.1.hook_resid_mid", None),
        (("resid_mid", -1), "blocks.1.hook_resid_mid", None),
        ("resid_mid,-1", "blocks.1.hook_resid_mid", None),
        ("result, 1, 0", "blocks.1.attn.hook_result", 0),
        (("z", 0, 2), "blocks.0.attn.hook_z", 2),
        (("z", 0, -1), "blocks.0.attn.hook_z", None),
        (("result", 1, 0), "blocks.1.attn.hook_result", 0),
        ("blocks.1.attn.hook_result[1]", "blocks.1.attn.hook_result", 1),
        (("mlp_out", 0), "blocks.0.hook_mlp_out", None),
        (("post", -2), "blocks.0.mlp.hook_post", None),
        (Place("blocks.0.attn.hook_v", head=1), "blocks.0.attn.hook_v", 1),
        ("ln_final.hook_normalized", "ln_final.hook_normalized", None),
    ],
)
def test_names(world, given, name, head):
    model = cached(world)
    if given == ("z", 0, -1):
        head = model.cfg.n_heads - 1
    site = resolve_place(model, given)
    assert (site.name, site.head) == (name, head)
    assert resolve_place(model, str(site)) == site and hash(resolve_place(model, site)) == hash(site)
    assert str(site) == (name if head is None else f"{name}[{head}]")


def test_the_bridges_own_names_are_the_same_sites():
    model = cached("bridge")
    for own, classical in [("blocks.0.hook_in", "blocks.0.hook_resid_pre"), ("blocks.1.attn.o.hook_in", "blocks.1.attn.hook_z"),
                           ("blocks.0.mlp.out.hook_in", "blocks.0.mlp.hook_post"), ("embed.hook_out", "hook_embed")]:  # fmt: skip
        assert resolve_place(model, own) == Place(classical)
    assert resolve_place(model, "blocks.0.ln1.hook_in").name == "blocks.0.ln1.hook_in"  # has no other name


def test_key_heads_are_counted_as_stored():
    model = bridge("llama")  # 4 heads over 2 key-value heads
    assert resolve_place(model, ("z", 0, 3)).head == 3 and resolve_place(model, ("k", 0, 1)).head == 1
    with pytest.raises(IndexError, match=r"Expected head in \[-2, 2\), got 2"):
        resolve_place(model, ("k", 0, 2))


@every_world
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("blocks.1.hook_resid_mi", ValueError, "Expected a hook point of the model, got 'blocks.1.hook_resid_mi', which it lacks; the nearest are 'blocks.1.hook_resid_mid'"),
        (("resid", 0), ValueError, "Expected a hook point of the model, got 'blocks.0.hook_resid'"),
        ("blocks.9.attn.hook_result[0]", ValueError, "which it lacks"),
        (("result", 0), ValueError, r"Expected a head for 'blocks.0.attn.hook_result', .* pass \('result', layer, head\)"),
        (("z", 0, 4), IndexError, "Expected head in"),
        (("resid_mid", 2), IndexError, r"Expected layers in \[-2, 2\), got 2"),
        (("resid_mid", 0, 0), ValueError, "Expected no head for 'blocks.0.hook_resid_mid', which has none, got head=0"),
    ],
)  # fmt: skip
def test_refused(world, given, error, message):
    with pytest.raises(error, match=message):
        resolve_place(cached(world), given)


FORMS = [
    ("blocks.1.hook_resid_mid", ("resid_mid", 1), ("resid_mid", -1), "resid_mid,1", Place("resid_mid", 1), "hook_resid_mid,-1"),
    ("blocks.0.attn.hook_z[2]", ("z", 0, 2), "z, 0, 2", Place("z", 0, 2), "z,0[2]", Place("blocks.0.attn.hook_z", head=2)),
    ("blocks.1.attn.hook_result[0]", ("result", 1, 0), "result,1,0", Place("result", -1, head=0)),
    ("ln_final.hook_normalized", Place("ln_final.hook_normalized")),
]  # fmt: skip
TEXTS = ["w3 w4 w5", "w6 w7", "w8 w9 w3 w4"]


@every_world
@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: forms[0])
def test_every_form_is_one_place_in_each_feature(world, forms):
    model = cached(world)
    place = resolve_place(model, forms[0])
    tokens = model.to_tokens("w3 w4 w5")
    chosen = torch.zeros(3, dtype=torch.long), torch.arange(3)
    expected = PlaceReader(model, place)(tokens, *chosen, lengths=None)[place]
    compared = compare(model, model, TEXTS, hook=place, jackknife=0, permutations=0, **QUIET)
    for form in forms:
        assert resolve_places(model, [form, form]) == [place]
        assert torch.equal(PlaceReader(model, [form])(tokens, *chosen, lengths=None)[place], expected)
        torch.testing.assert_close(collect(model, tokens, [form], **QUIET)[place][0, :3], expected.cpu())
        query = read_query(model, "w3 w4 w5", form, -1)
        assert query.site == place
        found = compare(model, model, TEXTS, hook=[form], jackknife=0, permutations=0, **QUIET)
        assert found.layers_a == compared.layers_a and torch.equal(found.values, compared.values)


@every_world
def test_a_short_name_is_every_layers(world):
    model = cached(world)
    both = [Place("resid_post", 0), Place("resid_post", 1)]
    assert resolve_places(model, "resid_post") == resolve_places(model, Place("resid_post")) == both
    assert resolve_places(model, "resid_post", layers=[-1, 0]) == both[::-1]
    assert resolve_places(model, ("resid_post", "blocks.0.hook_resid_post")) == both
    assert list(collect(model, TOKENS, "resid_post", **QUIET)) == both
    with pytest.raises(
        ValueError, match="Expected one place, got 'resid_post', which each of 2 layers has; name one as"
    ):
        resolve_place(model, "resid_post")
    with pytest.raises(
        ValueError, match="Expected layers only with a short hook name .* beside 'blocks.0.hook_resid_mid'"
    ):
        resolve_places(model, ("resid_mid", 0), layers=1)


def test_a_head_is_none_where_the_value_has_none():
    with pytest.raises(
        ValueError, match="Expected 'blocks.0.hook_resid_mid' of the model to have heads for heads='each'"
    ):
        PlaceReader(cached("bridge"), "resid_mid", heads="each")


def test_a_place_is_written_sorted_and_read_back():
    place = Place("z", 1, 0, -2)
    assert str(place) == "blocks.1.attn.hook_z[0]@-2" and resolve_place(cached("bridge"), str(place)).position == -2
    assert sorted([Place("z", 1, 1), Place("z", 0, 3), Place("z", 1, 0)]) == [
        Place("z", 0, 3),
        Place("z", 1, 0),
        Place("z", 1, 1),
    ]
    assert Place("blocks.1.hook_resid_mid") == Place("resid_mid", 1) == Place("hook_resid_mid", 1)


@every_world
def test_one_tokens_place(world):
    model = cached(world)
    whole = collect(model, TOKENS, ("resid_mid", 1), **QUIET)[Place("resid_mid", 1)]
    last = Place("resid_mid", 1, position=-1)
    assert torch.equal(collect(model, TOKENS, last, **QUIET)[last], whole[:, -1])
    with pytest.raises(ValueError, match="Expected a token at position 99 in every row, got row 0 of"):
        collect(model, TOKENS, Place("resid_mid", 1, position=99), **QUIET)
    for ask in (
        lambda: compare(model, model, TEXTS, hook=last, **QUIET),
        lambda: read_query(model, TEXTS[0], last, -1),
    ):
        with pytest.raises(ValueError, match="Expected a place without a position .* got 'blocks.1.hook_resid_mid@-1'"):
            ask()


def test_there_is_one_definition():
    """Of a place, of what parses one, and of what reads one over batches."""
    package = Path(tl_backward.__file__).parent
    calls = {"get_act_name": set(), "watch": set(), "find_points": set()}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls:
                calls[node.func.id].add(str(path.relative_to(package)))
    assert calls["get_act_name"] == {"model/place.py", "gradients/cache.py"}  # the latter reads its own keys
    assert calls["watch"] - {"model/head/__init__.py", "training/callback.py"} == {"activations/reader.py"}
    assert {each.__module__ for each in (Place, resolve_place, resolve_places)} == {"tl_backward.model.place"}
    assert PlaceReader.__module__ == "tl_backward.activations.reader"
    inversion_imports = [
        path for path in (package / "inversion").rglob("*.py") if "tl_backward.dissimilarity" in path.read_text()
    ]
    assert not inversion_imports


OLD = {
    "Site": (lambda model: inversion.Site("blocks.0.attn.hook_z", 1), "Place(name, head=head)"),
    "resolve_site": (lambda model: inversion.resolve_site(model, ("z", 0, 1)), "is now resolve_place"),
}


@pytest.mark.parametrize("old", OLD)
def test_old_names_warn_and_give_a_place(old):
    ask, new = OLD[old]
    with pytest.warns(DeprecationWarning, match=re.escape(new)):
        assert ask(cached("bridge")) == Place("z", 0, 1)
