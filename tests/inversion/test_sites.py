"""Sites by every name, in both worlds, and what is refused."""

import pytest
from models import bridge, worlds

from inversion.tiny import cached
from tl_backward.inversion import Place, resolve_place

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
