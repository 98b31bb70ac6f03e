import math

import pytest
import torch
from models import randomise
from transformers import GPT2Config, GPT2LMHeadModel

from inversion.gpt2_by_hand import log_probabilities
from tl_backward.inversion.network import DecoderConfig, DecoderNetwork

SIZES = {"n_sites": 3, "d_site": 7, "d_vocab": 11, "n_ctx": 6}


@pytest.fixture(params=["prefix", "cross"])
def network(request):
    config = DecoderConfig(n_layers=2, d_model=12, n_heads=3, conditioning=request.param, n_vectors=2, d_hidden=10)
    made = DecoderNetwork(config, **SIZES, seed=0).double()
    randomise(made)
    made.mean.copy_(torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(3, 7))
    made.scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
    return made.eval()


def some(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    sites = torch.randint(0, 3, (n,), generator=generator)
    tokens = torch.randint(0, 11, (n, 6), generator=generator)
    lengths = torch.tensor([6, 1, 3, 4, 2][:n])
    return z, sites, tokens, lengths


def test_the_loss_is_the_one_written_out(network):
    z, sites, tokens, lengths = some(5)
    terms = []
    for i, length in enumerate(lengths.tolist()):
        said = log_probabilities(network, z[i], sites[i], tokens[i, :length].tolist())
        expected = [*tokens[i, :length].tolist(), network.end]
        terms += [-said[place, token] for place, token in enumerate(expected)]
    loss = network(z, sites, tokens, lengths)["loss"]
    torch.testing.assert_close(loss.double(), torch.stack(terms).mean(), rtol=1e-6, atol=1e-6)  # taken in float32


def test_logits_are_those_written_out(network):
    z, sites, tokens, _ = some(5)
    logits = network.logits(z, sites, tokens)
    for i in range(5):
        expected = log_probabilities(network, z[i], sites[i], tokens[i].tolist())
        torch.testing.assert_close(logits[i].log_softmax(-1), expected, rtol=1e-9, atol=1e-9)


def test_padding_changes_nothing(network):
    z, sites, tokens, lengths = some(5)
    whole = network(z, sites, tokens, lengths)["loss"]
    other = torch.where(torch.arange(6) < lengths[:, None], tokens, 10 - tokens)
    assert torch.equal(network(z, sites, other, lengths)["loss"], whole)


def test_the_cache_changes_nothing(network):
    z, sites, _, _ = some(5)
    z, sites = z.repeat(20, 1), sites.repeat(20)
    cached = network.generate(z, sites, temperature=1.0, seed=3)
    plain = network.generate(z, sites, temperature=1.0, seed=3, use_cache=False)
    assert all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))
    other, _ = network.generate(z, sites, temperature=1.0, seed=4)
    assert not torch.equal(other, cached[0])


def test_cold_texts_are_the_likeliest_token_by_token(network):
    z, sites, _, _ = some(5)
    tokens, lengths = network.generate(z, sites, temperature=1e-6, seed=0)
    for i in range(5):
        row = []
        while len(row) < 6:
            said = log_probabilities(network, z[i], sites[i], row)[-1].clone()
            if not row:
                said[network.end] = -math.inf  # a text has a token
            best = int(said.argmax())
            if best == network.end:
                break
            row.append(best)
        assert tokens[i, : lengths[i]].tolist() == row
        assert not tokens[i, lengths[i] :].any()


def test_samples_follow_the_distribution(network):
    z, sites, _, _ = some(1)
    n = 4000
    tokens, lengths = network.generate(z.expand(n, -1), sites.expand(n), temperature=1.3, seed=0)
    said = log_probabilities(network, z[0], sites[0], [])[0] / 1.3
    said[network.end] = -math.inf
    expected = said.softmax(0)[:11]
    found = torch.bincount(tokens[:, 0], minlength=11) / n
    assert (found - expected).abs().max() < 5 * math.sqrt(0.25 / n)
    # and the length of one token, after the first
    first = int(expected.argmax())
    ends = log_probabilities(network, z[0], sites[0], [first])[1].div(1.3).softmax(0)[network.end]
    there = tokens[:, 0] == first
    share = (lengths[there] == 1).double().mean()
    assert abs(share - ends) < 5 * math.sqrt(0.25 / int(there.sum()))


def test_generating_leaves_the_random_state(network):
    z, sites, _, _ = some(5)
    state = torch.get_rng_state()
    network.generate(z, sites, temperature=1.0, seed=0)
    DecoderNetwork(network.layout, **SIZES, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "Expected n_layers of at least 1, got 0"),
        ({"n_vectors": 0}, "Expected n_vectors of at least 1, got 0"),
        ({"d_model": 10}, "d_model to be a multiple of n_heads, got 10 and 4"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)


def language(**changes):
    sizes = {"vocab_size": 11, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": 4}
    made = GPT2LMHeadModel(GPT2Config(**sizes | changes, activation_function="gelu_new", attn_pdrop=0.0)).double()
    randomise(made, seed=1)
    return made.eval()


def test_started_from_a_language_model_it_says_what_that_says():
    """Through cross-attention that adds nothing yet, so that z is not heard: END stands where BOS stood."""
    config = DecoderConfig(n_layers=2, d_model=12, n_heads=3, conditioning="cross", n_vectors=2, d_hidden=10)
    network, given = DecoderNetwork(config, **SIZES, seed=0).double(), language()
    network.start_from(given)
    for block in network.lm.transformer.h:
        block.crossattention.c_proj.weight.data.zero_()
    z, sites, tokens, _ = some(5)
    opened = torch.nn.functional.pad(tokens, (1, 0), value=4)
    expected = given(opened).logits
    found = network.logits(z, sites, tokens)
    torch.testing.assert_close(found[..., :11], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[..., 11], expected[..., 4], rtol=1e-9, atol=1e-9)


def test_a_prefix_moves_the_language_models_positions():
    config = DecoderConfig(n_layers=2, d_model=12, n_heads=3, n_vectors=2, d_hidden=10)
    network, given = DecoderNetwork(config, **SIZES, seed=0).double(), language()
    before = network.lm.transformer.wpe.weight.clone()
    network.start_from(given)
    found = network.lm.transformer.wpe.weight
    assert torch.equal(found[:2], before[:2])
    assert torch.equal(found[2:], given.transformer.wpe.weight[:7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 24}, "got n_embd=24 for 12; change the decoder's config"),
        ({"n_layer": 1}, "got n_layer=1 for 2"),
        ({"n_head": 2}, "got n_head=2 for 3"),
        ({"vocab_size": 12}, "Expected a language model of the probed model's 11 tokens and at least 6 positions"),
        ({"n_positions": 5}, "to start from, got 11 and 5"),
    ],
)
def test_another_shape_is_no_start(changes, message):
    config = DecoderConfig(n_layers=2, d_model=12, n_heads=3, n_vectors=2, d_hidden=10)
    with pytest.raises(ValueError, match=message):
        DecoderNetwork(config, **SIZES, seed=0).start_from(language(**changes))
