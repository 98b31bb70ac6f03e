"""A lens in a dictionary's latents: against autograd through the dictionary, and a planted latent."""

import pytest
import torch
from models import build, worlds

import tl_backward as tlb

every_world = pytest.mark.parametrize("world", worlds())
PROMPT, TARGET = "w5 w6 w7 w8 w9", "w10"


def dictionary(d, n=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))


def loss_of(model, tokens):
    target = model.to_tokens(TARGET, prepend_bos=False)[0, 0]
    return -model(tokens, return_type="logits")[0, -1].log_softmax(-1)[target]


@every_world
@pytest.mark.parametrize("layer", [0, 1])
def test_scores_are_autograds_through_the_dictionary(world, layer):
    """dL/df = dL/dx_hat @ W_dec.T of a dictionary with ReLU latents that stands where W_out writes, with its error."""
    model = build(world)
    decoder, encoder = dictionary(model.cfg.d_model)
    basis = tlb.Basis(decoder, encoder=encoder)
    lens = tlb.backward_lens(model, PROMPT, TARGET, layers=layer, k=len(decoder), basis=basis)
    tokens, seen = model.to_tokens(PROMPT), {}

    def spliced(activation, hook):
        seen["f"] = (activation.detach() @ encoder.T).relu().requires_grad_()
        decoded = seen["f"] @ decoder
        return decoded + (activation - decoded).detach()  # the activation itself, differentiable in f alone

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", spliced)]):
        loss = loss_of(model, tokens)
    (expected,) = torch.autograd.grad(loss, seen["f"])
    read = lens.latents["shift"][layer]
    found = torch.zeros_like(expected[0]).scatter(-1, read.top_ids.clamp(min=0), read.top_values)
    known = ~read.is_zero
    assert known.any()
    torch.testing.assert_close(found[known], expected[0][known], rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    assert not expected[0][~known].any()
    inputs = lens.cache.factors["W_in", layer].inputs[0]
    imprint = lens.latents["imprint"][layer]
    found = torch.zeros(len(inputs), len(encoder)).double().scatter(-1, imprint.top_ids, imprint.top_values)
    torch.testing.assert_close(found, inputs @ encoder.T, rtol=1e-12, atol=1e-12)
    assert imprint.side == "encoder" and read.side == "decoder"
    assert read.words == {
        latent: tlb.readout(model, decoder[latent], k=len(decoder)).top_tokens for latent in read.listed.tolist()
    }


@every_world
def test_a_planted_latent_is_raised(world, tmp_path):
    model = build(world)
    decoder, encoder = dictionary(model.cfg.d_model, n=200)
    plain = tlb.backward_lens(model, [PROMPT, "w3 w4"], TARGET, k=3)
    assert plain.latents == {}
    at = int(plain.answer_position[0])
    decoder[17] = -plain.cache.factors["W_out", 1].deltas[0, at]
    basis = tlb.Basis(decoder, encoder=encoder, names=[f"f{i}<b>" for i in range(200)])
    lens = tlb.backward_lens(model, [PROMPT, "w3 w4"], TARGET, k=3, basis=basis, control="random_init")
    read = lens.latents["shift"][-1][0, at]
    assert int(read.bottom_ids[0]) == 17 and read.bottom_stands_out[0] and read.bottom_names[0] == "f17<b>"
    assert "against latent 17" in read.summary()
    assert torch.equal(lens.shift[1].top_ids, plain.shift[1].top_ids)
    back = tlb.load_lens(lens.save(tmp_path / "lens.safetensors"), tokenizer=model.tokenizer)
    for of in ("imprint", "shift"):
        for layer in (0, 1):
            assert back.latents[of][layer].to_frame().equals(lens.latents[of][layer].to_frame())
    page = tlb.render.lens_report(back, example=0).to_html()
    assert "Shift in features" in page and "Imprint in features" in page and "f17&lt;b&gt;" in page
    assert "f17<b>" not in page and "in features" not in tlb.render.lens_report(plain).to_html()
    with pytest.raises(KeyError, match="Expected one of the layers that were read"):
        lens.latents["shift"][7]


@every_world
def test_directions_without_an_encoder_and_of_another_width(world):
    model = build(world)
    decoder, encoder = dictionary(model.cfg.d_model, n=4)
    lens = tlb.backward_lens(model, PROMPT, TARGET, basis=tlb.Basis(decoder), attention=True)  # k=10 of 4 latents
    assert set(lens.latents) == {"shift", "attn_shift"} and lens.latents["shift"][0].top_ids.shape[-1] == 4
    with pytest.raises(ValueError, match="Expected a basis of d_model"):
        tlb.backward_lens(model, PROMPT, TARGET, basis=tlb.Basis(decoder[:, 1:]))
    with pytest.raises(ValueError, match="got encoder directions of width"):
        tlb.backward_lens(model, PROMPT, TARGET, basis=tlb.Basis(decoder, encoder=encoder[:, 1:]))
