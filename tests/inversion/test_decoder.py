import math
import random
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from models import build, randomise, worlds

from inversion.gpt2_by_hand import log_probabilities
from inversion.small import CONFIG, QUIET, SITES, options, texts, trained
from tl_backward._support.storage import load_json, save_json
from tl_backward.inversion.decoder import load_from
from tl_backward.inversion.network import DecoderConfig
from tl_backward.inversion.options import SamplingOptions
from tl_backward.inversion.query import distances, read_query
from tl_backward.inversion.shipped import load
from tl_backward.inversion.storage import DESCRIPTION, TENSORS
from tl_backward.inversion.training import train

QUERY = "w5 w9 w4 w12"


def saved(decoder, folder):
    decoder.save(folder)
    return folder / DESCRIPTION


def described(description):
    """As a file has it beside its tensors, whose checksum it adds."""
    return {**description, "crc32 of decoder.safetensors": ANY}


@pytest.fixture(scope="module", params=worlds())
def decoder(request):
    return trained(request.param)


def cached(model, row):
    _, cache = model.run_with_cache(torch.tensor([row]))
    z = cache["blocks.1.attn.hook_z"][0]
    return [cache["blocks.0.hook_resid_post"][0], z[:, 2], z[:, 0] @ model.W_O[1, 0]]


@pytest.mark.parametrize("site", [0, 1, 2])
def test_every_distance_is_the_probed_models_own(decoder, site):
    model = decoder.model
    p = decoder.preimage(QUERY, site=SITES[site], position=-1, n=20, epsilon=0.5, seed=3, **QUIET)
    assert p.method == "decoder" and len(p) == 20
    z = cached(model, [0, 5, 9, 4, 12])[site][-1]
    for i, text in enumerate(p.texts):
        row = p.tokens[i, : p.lengths[i]].tolist()
        assert row[0] == 0 and model.tokenizer.decode(row[1:]) == text
        expected = ((cached(model, row)[site] - z).norm(dim=1) / z.norm()).min()
        assert p.distances[i].item() == pytest.approx(expected.item(), rel=1e-6)
        assert p.inside[i] == (expected <= 0.5)


def test_samples_come_from_the_network_at_the_querys_activation(decoder):
    asked = read_query(decoder.model, QUERY, SITES[1], 2)
    n = 600
    drawn = decoder.sample(asked, n, seed=1)
    z = torch.nn.functional.pad(asked.activation.float(), (0, decoder.network.mean.shape[1] - len(asked.activation)))
    said = log_probabilities(decoder.network, z, 1, [])[0]
    said[decoder.network.end] = -math.inf
    found = torch.bincount(drawn.tokens[:, 1], minlength=50) / n
    assert (found - said.softmax(0)[:50]).abs().max() < 5 * math.sqrt(0.25 / n)
    assert torch.equal(decoder.sample(asked, n, seed=1).tokens, drawn.tokens)
    again = decoder.sample(QUERY, n, site=SITES[1], position=2, seed=1)
    assert torch.equal(again.tokens, drawn.tokens)


def test_noise_moves_the_activation_by_its_length(decoder, monkeypatch):
    seen = []
    generate = decoder.network.generate
    monkeypatch.setattr(decoder.network, "generate", lambda z, *a, **k: (seen.append(z), generate(z, *a, **k))[1])
    asked = read_query(decoder.model, QUERY, SITES[0], -1)
    decoder.sample(asked, 300, sampling_options=SamplingOptions(noise=0.2))
    moved = distances(seen[0][:, : len(asked.activation)], asked.activation.float())
    assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=0.05)
    assert len({round(d, 6) for d in moved.tolist()}) > 250


def test_no_information_is_the_activation_of_bos(decoder):
    for index, value in enumerate(cached(decoder.model, [0])):
        null = decoder.network.null[index]
        torch.testing.assert_close(null[: value.shape[1]], value[0].float(), rtol=1e-5, atol=1e-6)
        assert not null[value.shape[1] :].any()
    drawn = decoder.sample_unconditional(SITES[0], n=5, seed=2)
    assert len(drawn) == 5 and (drawn.tokens[:, 0] == 0).all()


def test_token_probabilities_given_z_and_given_nothing(decoder):
    found = decoder.token_probabilities([QUERY, "w3 w4"], QUERY, site=SITES[2], position=-1)
    z = read_query(decoder.model, QUERY, SITES[2], -1).activation.float()
    z = torch.nn.functional.pad(z, (0, decoder.network.mean.shape[1] - len(z)))
    for values, given in zip(found, (z, decoder.network.null[2]), strict=True):
        for row, tokens in enumerate(([5, 9, 4, 12], [3, 4])):
            said = log_probabilities(decoder.network, given, 2, tokens).exp()
            expected = torch.stack([said[i, token] for i, token in enumerate(tokens)])
            torch.testing.assert_close(values[row, 1 : 1 + len(tokens)].double(), expected, rtol=1e-4, atol=1e-6)
            assert values[row, 0].isnan() and values[row, 1 + len(tokens) :].isnan().all()


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded(decoder, tmp_path, half):
    decoder.save(tmp_path, half=half)
    again = load(tmp_path, model=decoder.model)
    assert again.sites == decoder.sites and described(again.description) == load_json(tmp_path / DESCRIPTION)
    for name, tensor in decoder.network.state_dict().items():
        found = again.network.state_dict()[name]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, tensor, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)
    if not half:
        options = {"site": SITES[0], "position": -1, "n": 30, "seed": 5} | QUIET
        a, b = decoder.preimage(QUERY, **options), again.preimage(QUERY, **options)
        assert a.texts == b.texts and torch.equal(a.distances, b.distances)


def test_it_meets_the_same_model_in_the_other_world(tmp_path):
    from tl_backward import zoo

    kinds = worlds()
    prompts = [example.prompt for example in zoo.facts.world().examples()][:200]
    made = train(
        zoo.load("facts", kind=kinds[0]), ("resid_post", 1), prompts, budget=32, config=CONFIG,
        options=options(), out=tmp_path / "d", **QUIET,
    )  # fmt: skip
    other = zoo.load("facts", kind=kinds[-1])
    again = load_from(tmp_path / "d", other)
    assert again.sites == made.sites
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if "mlp" in name and p.ndim == 2).mul_(1.5)
    with pytest.raises(
        ValueError, match="Expected the model 'model' .*other activations at 'blocks.1.hook_resid_post'"
    ):
        load_from(tmp_path / "d", other)


def test_another_model_or_tokenizer_is_refused(decoder, tmp_path):
    decoder.save(tmp_path)
    other = build(worlds()[0])
    randomise(other, seed=9)
    with pytest.raises(ValueError, match="other activations at 'blocks.0.hook_resid_post'"):
        load(tmp_path, model=other)
    other = build(worlds()[0])
    other.tokenizer = build(worlds()[0]).tokenizer
    other.tokenizer.add_tokens(["w99"])
    save_json(tmp_path / DESCRIPTION, load_json(tmp_path / DESCRIPTION) | {"vocabulary": "0" * 64})
    with pytest.raises(ValueError, match="Expected the tokenizer of 'model'.*got one with other tokens"):
        load(tmp_path, model=decoder.model)


def test_another_site_is_refused(decoder):
    with pytest.raises(
        ValueError, match=r"was trained on, got 'blocks.1.hook_resid_post'; it knows blocks.0.hook_resid_post"
    ):
        decoder.sample(QUERY, site=("resid_post", 1), position=-1)
    with pytest.raises(
        ValueError, match="Expected a hook point of the model, got 'blocks.0.hook_resid_pst', which it lacks"
    ):
        decoder.preimage(QUERY, site="blocks.0.hook_resid_pst", position=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "Expected n of at least 1, got 0"),
        ({"epsilon": 0.0}, "Expected epsilon > 0, got 0.0"),
        ({"position": 9}, "Expected a position in the query's 5 tokens"),
        ({"site": None}, "Expected a site and a position beside the query"),
    ],
)
def test_bad_questions(decoder, changes, message):
    with pytest.raises(ValueError, match=message):
        decoder.preimage(QUERY, **{"site": SITES[0], "position": -1} | QUIET | changes)


def test_a_directory_without_a_decoder(decoder, tmp_path):
    with pytest.raises(ValueError, match="which lacks decoder.safetensors and decoder.json; make one with"):
        load(tmp_path, model=decoder.model)
    with pytest.raises(ValueError, match="got '.*nowhere'; there is no such directory"):
        load(tmp_path / "nowhere", model=decoder.model)
    decoder.save(tmp_path)
    with pytest.raises(ValueError, match="Expected the model beside the directory"):
        load(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{}")
    with pytest.raises(ValueError, match="Expected a file that tl_backward saved, got .*decoder.json.*checksum"):
        load(tmp_path, model=decoder.model)
    other = "crc32 of decoder.safetensors"
    save_json(tmp_path / DESCRIPTION, {other: load_json(saved(decoder, tmp_path))[other]})
    with pytest.raises(ValueError, match="Expected a decoder's description"):
        load(tmp_path, model=decoder.model)
    decoder.save(tmp_path)
    (tmp_path / TENSORS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="Expected a file that tl_backward saved, got .*decoder.safetensors.*damaged"):
        load(tmp_path, model=decoder.model)
    decoder.save(tmp_path)
    description = load_json(tmp_path / DESCRIPTION)
    assert other in description
    description["network"]["config"]["d_hidden"] = 9
    save_json(tmp_path / DESCRIPTION, description)
    with pytest.raises(ValueError, match="the two files do not belong together"):
        load(tmp_path, model=decoder.model)
    save_json(tmp_path / DESCRIPTION, description | {other: "0"})
    with pytest.raises(
        ValueError, match="decoder.safetensors.*it is missing, or was not saved together with decoder.json"
    ):
        load(tmp_path, model=decoder.model)


def test_nothing_is_pickled(decoder, tmp_path):
    decoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, TENSORS]


@pytest.mark.parametrize("world", worlds())
def test_training_leaves_no_trace(world):
    model = build(world)
    model(torch.tensor([[0, 4, 5]]))  # a TransformerBridge hooks itself when it first runs
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    flags = [p.requires_grad for p in model.parameters()]
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    trained(world, model=model, budget=16 * 3, options=options())
    assert state[1:] == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_cross_attention_trains_and_samples_too(tmp_path):
    config = DecoderConfig(n_layers=1, d_model=16, n_heads=2, conditioning="cross", n_vectors=3, d_hidden=8)
    made = trained(worlds()[0], config=config, budget=16 * 3, out=tmp_path / "d")
    again = load(tmp_path / "d", model=made.model)
    a, b = (d.sample(QUERY, 10, site=SITES[0], position=-1) for d in (made, again))
    assert torch.equal(a.tokens, b.tokens)


def test_a_model_without_bos(tmp_path):
    """Then no token is silent: the mean activation tells nothing."""
    model = build(worlds()[0])
    model.tokenizer.add_bos_token = False
    model.cfg.default_prepend_bos = False
    sentences = list(texts(0))
    if model.to_tokens(sentences[0])[0, 0] == 0:
        pytest.skip("NOT TESTED: this TransformerLens prepends BOS whatever the tokenizer says")
    made = trained(worlds()[0], model=model, budget=16 * 3)
    assert made.description["start"] == []
    assert torch.equal(made.network.null, made.network.mean)
    assert made.preimage(QUERY, site=SITES[0], position=-1, n=5, **QUIET).lengths.min() >= 1
