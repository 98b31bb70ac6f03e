"""Differences of models against dense SVDs in float64, beside noise and a control."""

import copy
from dataclasses import replace

import pytest
import torch
from architectures import ROWS
from architectures.build import bridge as architecture
from models import BRIDGED, HOOKED, bridge, build, hooked, randomise, worlds

import tl_backward as tlb
from tl_backward.training import difference, explained
from tl_backward.training.changes import _decomposed

every_world = pytest.mark.parametrize("world", worlds())


def changed(model, seed=1, scale=0.01):
    """The same model with every parameter moved a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize(
    ("world", "family"), [*[("hooked", each) for each in HOOKED], *[("bridge", each) for each in BRIDGED]]
)
def test_every_family_against_dense_svds(world, family):
    if world not in worlds():
        pytest.skip("NOT RUN: this TransformerLens has no HookedTransformer")
    make = hooked if world == "hooked" else bridge
    before, after = make(family), changed(make(family))
    found = difference(before, after, rank=3, k=2)
    old, new = tlb.weight_sites(before), tlb.weight_sites(after)
    assert set(found.weights) == {name for name, site in old.items() if site.is_default and not site.is_function}
    for name in found.weights:
        change = (new[name].parameter - old[name].parameter).detach()
        each = found.changes[name]
        assert abs(each.norm / float(change.norm()) - 1) < 1e-9
        assert abs(found.size[name] / float(change.norm() / old[name].parameter.detach().norm()) - 1) < 1e-9
        dense = found.change(name)
        assert abs(float(dense.norm()) / float(change.norm()) - 1) < 1e-9
        torch.testing.assert_close(each.S, torch.linalg.svdvals(dense)[:3], rtol=1e-8, atol=1e-12)
        missing = dense - (each.U * each.S) @ each.V.T
        assert abs(float(missing.norm()) - each.error) < 1e-9
        noise = found.noise.changes[name]
        assert abs(noise.norm / each.norm - 1) < 1e-9


@every_world
def test_sizes_of_large_weights(world):
    """Of weights in float32, of which torch's own norm of 4 million numbers is .007 % off."""
    sizes = {"hooked": {"d_model": 1024, "d_mlp": 4096}, "bridge": {"n_embd": 1024, "n_inner": 4096, "n_head": 4}}
    before, after = (build(world, dtype=torch.float32, **sizes[world]) for _ in range(2))
    changed(after)
    name = "blocks.0.mlp.W_in"
    found = difference(before, after, name, rank=2, noise=False)
    one, two = (tlb.weight_sites(model)[name].parameter.detach().double() for model in (before, after))
    assert one.numel() > 4e6
    assert found.size[name] == pytest.approx(float((two - one).norm() / one.norm()), rel=1e-6)


@every_world
def test_an_even_change_of_a_large_weight(world):
    """Its equal numbers are rounded alike, which is no change since the models were compared."""
    sizes = {"hooked": {"d_model": 256, "d_mlp": 2048}, "bridge": {"n_embd": 256, "n_inner": 2048, "n_head": 4}}
    before, after = (build(world, dtype=torch.float32, **sizes[world]) for _ in range(2))
    name = "blocks.0.mlp.W_in"
    one, two = (tlb.weight_sites(model)[name].parameter for model in (before, after))
    with torch.no_grad():
        one.zero_()
        two.fill_(0.02)
    found = difference(before, after, name, rank=2, noise=False)
    assert found.changes[name].norm == pytest.approx(float(two.detach()[0, 0]) * two.numel() ** 0.5, rel=2e-7)
    assert found.change(name).eq(float(two.detach()[0, 0])).all()


def test_larger_changes_are_decomposed_at_random():
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (700, 600))
    low = x @ d.T
    noise = torch.randn(700, 600, generator=generator, dtype=torch.float64)
    for change, tolerance in ((low, 1e-4), (low + 0.1 * noise, 1e-3), (noise, 0.1)):
        found, s = _decomposed(change, 5, 0), torch.linalg.svdvals(change)
        torch.testing.assert_close(found.S, s[:5], rtol=tolerance, atol=0)
        assert (found.S <= s[:5] * (1 + 1e-6)).all()
        assert abs(found.norm / float(change.norm()) - 1) < 1e-9
        missing = change - (found.U * found.S) @ found.V.T
        assert abs(float(missing.norm()) - found.error) < 2e-3 * float(change.norm())


@every_world
def test_nothing_changed(world):
    found = difference(build(world), build(world))
    assert found.summary().startswith("None of ") and not len(found.to_frame())
    assert "None of" in found._repr_html_() and all(not each.norm for each in found.changes.values())


@every_world
def test_beside_a_control(world):
    before, after, control = build(world), build(world), changed(build(world))
    site = tlb.weight_sites(after)["blocks.1.mlp.W_out"]
    word = tlb.weight_sites(after)["unembed.W_U"].parameter if world == "hooked" else None
    with torch.no_grad():
        one = torch.outer(torch.randn(site.layout.shape[0]).double(), torch.randn(site.layout.shape[1]).double())
        stored = site.layout.to_stored(one)
        site.parameter.add_(stored)
    found = difference(before, after, control=control, rank=2)
    assert word is None or word.shape
    frame = found.to_frame()
    row = frame[frame["weight"] == "blocks.1.mlp.W_out"].iloc[0]
    assert row["share"] > 1 - 1e-9 and row["noise"] < 0.6 and row["control"] < 0.6
    assert "most of all blocks.1.mlp.W_out (100% of the squared change)" in found.summary()
    assert "Difference(" in repr(found) and "control" in repr(found) and "<table" in found._repr_html_()


@every_world
def test_bad_input(world):
    model = build(world)
    with pytest.raises(ValueError, match="Expected rank of at least 1"):
        difference(model, model, rank=0)
    with pytest.raises(ValueError, match="nearest"):
        difference(model, model).change("blocks.0.mlp.W_uot")
    other = bridge("llama") if world == "bridge" else hooked("rms_gated")
    with pytest.raises(ValueError, match="Expected two models of one architecture"):
        difference(model, other)
    wider = bridge("gpt2", n_embd=36) if world == "bridge" else hooked(d_mlp=30)
    with pytest.raises(ValueError, match="Expected two models of one architecture"):
        difference(model, wider)
    randomise(other)
    with tlb.training.watch(model, "W_out") as w:
        model(torch.tensor([[0, 4, 5]]), return_type="loss").backward()
    with pytest.raises(ValueError, match="none in common"):
        explained(w.result(), difference(model, model, "W_in"))


@every_world
def test_what_is_not_finite_is_named(world):
    before, after = build(world), build(world)
    with torch.no_grad():
        tlb.weight_sites(after)["blocks.1.mlp.W_out"].parameter.view(-1)[3] = float("nan")
    with pytest.raises(
        ValueError, match=r"blocks\.1\.mlp\.W_out: Expected a change of finite numbers, got NaN or inf;"
    ):
        difference(before, after, "W_out")


def test_the_sentence_says_what_the_control_does():
    before, after, other = (build(worlds()[0]) for _ in range(3))
    for model, seed in ((after, 1), (other, 2)):
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    change = difference(before, after, "W_out", control=other)
    name = max(change.weights, key=lambda each: change.changes[each].norm)
    share = change.control.changes[name].share
    assert f", of the control model's change there {share:.0%}, of noise" in change.summary()
    assert "one control has no spread, so no difference between them is claimed." in change.summary()
    alone = difference(before, after, "W_out").summary()
    assert alone.endswith(
        "; no control was run, so any training may do the same (training.difference(..., control=...) shows it)."
    )


def test_a_part_of_a_parameter_is_measured_alone():
    """Queries and their gates lie in one parameter: W_Q doubled and its gate made a hundred times as large."""
    model = architecture(replace(ROWS["Qwen3NextForCausalLM"], eager_experts=True))
    after = copy.deepcopy(model)
    sites = tlb.weight_sites(after)
    name = next(each for each in sites if each.endswith("attn.W_Q"))
    heads, _, width = sites[name].layout.shape
    with torch.no_grad():
        parameter = sites[name].parameter
        parts = parameter.T.unflatten(1, (heads, 2, width)).clone()
        parts[:, :, 0] *= 2
        parts[:, :, 1] *= 100
        parameter.copy_(parts.flatten(1).T)
    found = difference(model, after, [name, f"{name}_gate"], k=2, noise=False)
    assert found.size[name] == pytest.approx(1) and found.size[f"{name}_gate"] == pytest.approx(99)


def test_one_direction_is_said_in_the_singular():
    before = build(worlds()[0])
    assert " 1 direction holds " in difference(before, changed(build(worlds()[0])), rank=1, noise=False).summary()
