"""Activations in batches against one text at a time, in both worlds, and no trace of having looked."""

import pytest
import torch
from leaves_no_trace import Boom, assert_same, boom, state
from models import HAS_HOOKED_TRANSFORMER, TOKENS, bridge, build, hooked, worlds
from shared import stories

from inversion.oracle import activations, run
from tl_backward.activations import PlaceReader
from tl_backward.inversion import collect, resolve_place
from tl_backward.inversion.activations import batches, collect_at
from tl_backward.text.encoded import encode, encode_rows

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
SITES = [
    ("resid_mid", 1),
    ("result", 1, 0),
    ("z", 0, 2),
    ("z", 1),
    ("mlp_out", 0),
    ("v", 0, 1),
    "ln_final.hook_normalized",
]
ROWS = [[0, 4, 5, 6, 9, 7, 4], [0, 8, 9], [0, 3], [0, 20, 41, 3, 8], [0]]


def oracle(model, row, site):
    return of_cache(model, run(model, torch.as_tensor(row)), site)


def of_cache(model, cache, site):
    return torch.from_numpy(activations(model, cache, (site.read_at, site.head, site.is_result)))


def padded(side):
    tokens = torch.full((len(ROWS), 9), 1)
    for index, row in enumerate(ROWS):
        tokens[index, slice(9 - len(row), 9) if side == "left" else slice(0, len(row))] = torch.tensor(row)
    return tokens


@every_world
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_collect_is_each_text_alone(world, side, batch_size):
    model = build(world)
    tokens = padded(side)
    mask = tokens != 1
    values = collect(model, tokens, SITES, mask=mask, batch_size=batch_size, **QUIET)
    assert list(values) == [resolve_place(model, site) for site in SITES]
    caches = [run(model, torch.tensor(row)) for row in ROWS]
    for site, value in values.items():
        for index, cache in enumerate(caches):
            torch.testing.assert_close(value[index, mask[index]], of_cache(model, cache, site), atol=1e-12, rtol=1e-10)
        assert value.dtype == torch.float64 and not value.requires_grad
        assert not value[~mask].any()  # padding is no position


@every_world
def test_without_padding_and_at_one_position(world):
    model = build(world)
    site = resolve_place(model, ("result", 0, 1))
    values = collect(model, TOKENS, site, **QUIET)[site]
    for row, value in zip(TOKENS, values, strict=True):
        torch.testing.assert_close(value, oracle(model, row, site))
    texts = encode_rows(model, ROWS)
    at = torch.tensor([3, -1, 1, 4, 0])
    some = collect_at(model, texts, site, at, batch_size=2, **QUIET)[site]
    for row, position, value in zip(ROWS, at.tolist(), some, strict=True):
        expected = oracle(model, row, site)[position] if position >= 0 else torch.zeros_like(value)
        torch.testing.assert_close(value, expected)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has TransformerBridge alone")
def test_a_heads_result_is_the_models_own():
    model = hooked("attn_result")
    _, cache = model.run_with_cache(TOKENS)
    for head in range(4):
        site = resolve_place(model, ("result", 1, head))
        torch.testing.assert_close(
            collect(model, TOKENS, site, **QUIET)[site], cache["blocks.1.attn.hook_result"][:, :, head]
        )


@pytest.mark.parametrize("family", ["llama", "qwen2", "neox", "gemma2"])
def test_heads_of_other_architectures_sum_to_the_attentions_output(family):
    model = bridge(family)
    sites = [resolve_place(model, ("result", 1, head)) for head in range(4)]
    values = collect(model, TOKENS, sites, **QUIET)
    _, cache = model.run_with_cache(TOKENS)
    out = cache["blocks.1.attn.hook_out"]
    bias = getattr(model.blocks[1].attn, "b_O", None)
    total = sum(values.values()) + (0 if bias is None else bias.detach())
    torch.testing.assert_close(total, out)


@pytest.mark.parametrize("kind", worlds())
def test_a_real_model(kind):
    model = stories(kind)
    texts = encode(model, ["Once upon a time there was a dog.", "Lily", "The sun was hot and"])
    site = resolve_place(model, ("resid_mid", 2))
    values = collect(model, texts.tokens, site, mask=texts.mask, **QUIET)[site]
    for index in range(3):
        expected = oracle(model, texts.row(index), site).float()
        torch.testing.assert_close(values[index, : len(expected)], expected, atol=1e-4, rtol=1e-4)


@every_world
def test_a_users_hooks_are_seen_and_layers_beyond_do_not_run(world):
    model = build(world)
    site = resolve_place(model, ("resid_post", 0))
    plain = collect(model, TOKENS, site, **QUIET)[site]
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * 2), ("blocks.1.hook_mlp_out", boom)]):
        torch.testing.assert_close(collect(model, TOKENS, site, **QUIET)[site], plain * 2)


@every_world
@pytest.mark.parametrize("setting", ["plain", "training", "hooked"])
def test_no_trace(world, setting):
    model = build(world)
    model.train(setting == "training")
    if setting == "hooked":
        model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x * 1.1)
    before = state(model)
    collect(model, TOKENS, SITES, **QUIET)
    assert_same(before, state(model))
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", boom)]), pytest.raises(Boom):
        collect(model, TOKENS, SITES, **QUIET)
    assert_same(before, state(model))


@every_world
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ("pattern", 0)}, "Expected 'blocks.0.attn.hook_pattern' of the model to hold one vector a token"),
        ({"sites": []}, "Expected at least one place, got an empty list"),
        ({"sites": ("resid_pre", 0), "mask": torch.zeros(TOKENS.shape, dtype=torch.bool)}, "Expected a real token in every row, got none in row 0"),
        ({"sites": ("resid_pre", 0), "batch_size": 0}, "Expected batch_size of at least 1, got 0"),
    ],
)  # fmt: skip
def test_refused(world, options, message):
    with pytest.raises(ValueError, match=message):
        collect(build(world), TOKENS, **options, **QUIET)


@every_world
def test_an_overflow_is_named(world):
    model = build(world)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * float("inf"))]):
        with pytest.raises(
            ValueError, match=r"Expected finite activations, got NaN or inf at 'blocks.0.hook_resid_post'"
        ):
            collect(model, TOKENS, ("resid_post", 0), **QUIET)


def test_batches_hold_like_lengths_and_each_text_once():
    texts = encode_rows(bridge(), ROWS)
    parts = list(batches(texts, None, 2))
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(len(ROWS)))
    assert [part.tokens.shape[1] for part in parts] == [2, 5, 7]
    assert sum(len(part.at) for part in parts) == int(texts.lengths.sum())
    (only,) = batches(texts, torch.tensor([2, -1, -1, 1, 0]), 10)
    assert only.index.tolist() == [4, 3, 0] and only.at.tolist() == [0, 1, 2]
    assert only.lengths.tolist() == texts.lengths[only.index].tolist()


def test_a_causal_model_is_given_no_more_than_what_is_read():
    model = bridge()
    (part,) = batches(encode_rows(model, ROWS), torch.tensor([2, -1, -1, 1, 0]), 10)
    widths, reader = [], PlaceReader(model, ("resid_post", 0))
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: widths.append(value.shape))]):
        reader(part.tokens, part.text, part.at, lengths=part.lengths)
    assert [tuple(shape[:2]) for shape in widths] == [(3, 3)]


@every_world
@pytest.mark.parametrize("sites", [("resid_mid", 1), [("z", 1), ("mlp_out", 0), ("resid_mid", 1)]])
def test_the_last_mlp_does_not_run_where_nothing_is_left_to_read(world, sites):
    model = build(world)
    before, whole = state(model), collect(model, TOKENS, [("resid_mid", 1), ("z", 1), *SITES, ("mlp_out", 1)], **QUIET)
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", boom)]):
        found = collect(model, TOKENS, sites, **QUIET)
        with pytest.raises(Boom):
            collect(model, TOKENS, [("resid_mid", 1), ("mlp_out", 1)], **QUIET)
    assert all(torch.equal(value, whole[site]) for site, value in found.items())
    assert_same(before, state(model))


@every_world
def test_a_pass_holds_few_tokens_and_one_text_at_least(world, monkeypatch):
    model, widths = build(world), []
    texts = encode_rows(model, ROWS)
    (part,) = batches(texts, None, 10)
    reader = PlaceReader(model, ("resid_post", 0))
    whole = reader(part.tokens, part.text, part.at, lengths=part.lengths)
    monkeypatch.setattr("tl_backward.activations.reader._NUMBERS", 0)
    monkeypatch.setattr("tl_backward.activations.reader._TOKENS", 6)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: widths.append(tuple(x.shape[:2])))]):
        found = reader(part.tokens, part.text, part.at, lengths=part.lengths)
    assert widths == [(2, 2), (1, 3), (1, 5), (1, 7)]
    for place, values in whole.items():
        torch.testing.assert_close(found[place], values, atol=1e-12, rtol=1e-10)
