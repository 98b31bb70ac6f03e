"""What a model reads beside tokens: decoders, images, sounds, positions; and sentences where they do not fit."""

import re

import pytest
import torch
from architectures import ROWS, registered
from architectures.build import bridge
from architectures.measure import every_parameter
from architectures.table import noise, tokens
from models import HAS_HOOKED_TRANSFORMER, hooked, tokenizer
from torch.nn.functional import cross_entropy

import tl_backward as tlb
from tl_backward.lens.sweeps import sweep

EVERY = lambda name: True  # noqa: E731
START = {"T5ForConditionalGeneration": 1}  # T5's configuration names no start: it is the pad token
BUILT = {}


def build(name):
    if ROWS[name].architecture not in registered():
        pytest.skip("not registered by this version of TransformerLens")
    if name not in BUILT:
        BUILT[name] = bridge(ROWS[name])
    if name in SEQ2SEQ:
        try:
            BUILT[name](tokens(5), decoder_input_ids=tokens(3))
        except ValueError as error:  # TransformerLens 3 and T5 of this transformers
            pytest.skip(f"TransformerLens does not run it: {error}")
    return BUILT[name]


def square(logits, tokens):
    """A loss of any output."""
    return logits.square().sum()


def autograd(model, loss):
    """dL/dparameter by the parameter's identity, from transformers' own model."""
    parameters = {id(p): p for p in every_parameter(model).values() if p.is_floating_point()}
    asked = {key: p.requires_grad for key, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    finally:
        for key, p in parameters.items():
            p.requires_grad_(asked[key])
    return dict(zip(parameters, found, strict=True))


def assert_exact(sites, found, truth, limit=1e-9):
    """Gradients by site, summed by parameter, against autograd's; `limit` is looser where transformers rounds."""
    sums = {}
    for name, gradient in found.items():
        key = id(sites[name].parameter)
        sums[key] = sums[key] + gradient if key in sums else gradient
    floor = 1e-3 * max(float(g.abs().max()) for g in truth.values() if g is not None)
    assert sums
    for key, gradient in sums.items():
        real = torch.zeros_like(gradient) if truth[key] is None else truth[key]
        name = next(name for name, site in sites.items() if id(site.parameter) == key)
        assert float((gradient - real).abs().max()) <= limit * max(floor, float(real.abs().max())), name


def every_gradient(sites, cache):
    return {
        name: cache.parameter_gradients[name] if site.kind == "parameter" else cache.factors[name].gradient("parameter")
        for name, site in sites.items()
    }


# --- encoder-decoders --------------------------------------------------------------------------------------------------

SEQ2SEQ = ["T5ForConditionalGeneration", "BartForConditionalGeneration", "SwitchTransformersForConditionalGeneration",
           "T5GemmaForConditionalGeneration"]  # fmt: skip


def rounds(name):
    """Routers of Switch and norms of T5Gemma are computed in float32."""
    return 1e-6 if name.startswith(("Switch", "T5Gemma")) else 1e-9


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_target_is_what_the_decoder_says_first(name):
    """-log p(target | prompt), by transformers' own model, whose decoder reads what it would generate after."""
    model, ids = build(name), tokens(7)
    loss, cache = tlb.run_with_gradient_cache(model, ids, tlb.target_loss([20, 21, 22]), names_filter=[])
    start = START.get(name, 0)
    assert cache.tokens.tolist() == [[start, 20, 21]] * 2
    assert torch.equal(cache.prompt_tokens, ids) and cache.logits.shape == (2, 3, 50)
    with torch.no_grad():
        logits = model.original_model(input_ids=ids, decoder_input_ids=cache.tokens).logits
    expected = cross_entropy(logits.flatten(0, 1), torch.tensor([20, 21, 22] * 2))
    assert abs(float(loss - expected)) < 1e-9
    torch.testing.assert_close(cache.logits, logits)
    one, short = tlb.run_with_gradient_cache(model, ids, tlb.target_loss(20), names_filter=[])
    assert short.tokens.tolist() == [[start]] * 2
    assert abs(float(one - cross_entropy(logits[:, 0], torch.tensor([20, 20])))) < 1e-9


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_each_example_of_each_side_has_its_own_gradient(name):
    """Seven tokens for the encoder, four for the decoder: no size is the other's."""
    model, ids, said = build(name), tokens(7), tokens(4, first=12)
    loss = tlb.target_loss([[20, 21], [22]], reduction="sum")
    _, cache = tlb.run_with_gradient_cache(model, ids, loss, weights=EVERY, names_filter=[], decoder_input_ids=said)
    assert cache.tokens[0].tolist() == [*said[0].tolist(), 20] and cache.mask.tolist() == [
        [True] * 5,
        [True] * 4 + [False],
    ]
    sites = tlb.weight_sites(model)
    limit = rounds(name)

    def alone(example):
        inner = model.original_model
        if example:
            logits = inner(input_ids=ids[1:], decoder_input_ids=said[1:]).logits
            return cross_entropy(logits[0, -1:], torch.tensor([22]))
        more = torch.cat([said[:1], torch.tensor([[20]])], 1)
        logits = inner(input_ids=ids[:1], decoder_input_ids=more).logits
        return cross_entropy(logits[0, -2:], torch.tensor([20, 21]))

    truth = [autograd(model, lambda example=example: alone(example)) for example in (0, 1)]
    total = {
        key: None if a is None and truth[1][key] is None else sum(g for g in (a, truth[1][key]) if g is not None)
        for key, a in truth[0].items()
    }
    assert_exact(sites, every_gradient(sites, cache), total, limit)
    apart = [name for name, f in cache.factors.items() if f.origin is None or not (f.origin.example < 0).any()]
    assert all(len(cache.factors[name].per_example()) == 2 for name in apart)
    left = set(cache.factors) - set(apart)
    assert all("pos_embed" in name for name in left), left  # a bias between positions has no example
    split = {id(sites[name].parameter) for name in left}
    split |= {id(site.parameter) for site in sites.values() if site.kind == "parameter"}
    apart = [name for name in apart if id(sites[name].parameter) not in split]
    for example in (0, 1):
        own = {name: cache.factors[name].per_example()[example].gradient("parameter") for name in apart}
        assert_exact(sites, own, truth[example], limit)
    assert cache.factors[next(n for n in sites if "encoder_blocks.0" in n and n.endswith("W_V"))].deltas.shape[:2] == (
        2,
        7,
    )
    reads = next(n for n in sites if n.startswith("decoder_blocks.0") and n.endswith("cross_attn.W_V"))
    assert cache.factors[reads].deltas.shape[:2] == (2, 7), "the decoder reads the encoder there"
    assert cache.factors["unembed.W_U"].deltas.shape[:2] == (2, 5)


def test_what_the_decoder_reads_is_what_losses_are_given():
    model, ids, said = build("BartForConditionalGeneration"), tokens(6), tokens(4, first=12)
    seen = []

    def loss(logits, tokens, attention_mask=None):
        seen.append((logits.shape, tokens, attention_mask))
        return logits.square().mean()

    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    _, cache = tlb.run_with_gradient_cache(
        model, ids, loss, names_filter=[], decoder_input_ids=said, decoder_attention_mask=mask
    )
    ((shape, given, real),) = seen
    assert shape == (2, 4, 50) and torch.equal(given, said) and torch.equal(real, mask.bool())
    assert torch.equal(cache.tokens, said) and torch.equal(cache.mask, mask.bool()) and cache.prompt_mask is None
    value, _ = tlb.run_with_gradient_cache(model, ids, tlb.next_token_loss, names_filter=[], decoder_input_ids=said)
    with torch.no_grad():
        logits = model.original_model(input_ids=ids, decoder_input_ids=said).logits
    assert abs(float(value - cross_entropy(logits[:, :-1].flatten(0, 1), said[:, 1:].flatten()))) < 1e-12


def test_prompts_as_text_are_padded_and_masked():
    model = build("BartForConditionalGeneration")
    prompts = ["w5 w6 w7 w8 w9", "w10 w11"]
    loss, cache = tlb.run_with_gradient_cache(
        model, prompts, tlb.target_loss([" w20", " w21"], reduction="sum"), names_filter=[]
    )
    alone = [tlb.run_with_gradient_cache(model, p, tlb.target_loss(t), names_filter=[])[0]
             for p, t in zip(prompts, [" w20", " w21"], strict=True)]  # fmt: skip
    assert abs(float(loss - sum(alone))) < 1e-9
    lengths = [len(model.to_tokens(prompt)[0]) for prompt in prompts]
    assert cache.mask is None and cache.prompt_mask.sum(1).tolist() == lengths and lengths[0] > lengths[1]


def test_a_decoder_begins_as_it_generates():
    """With the configuration's forced first token, where there is one."""
    model = build("BartForConditionalGeneration")
    config = model.original_model.generation_config
    before, config.forced_bos_token_id = config.forced_bos_token_id, 9
    try:
        _, cache = tlb.run_with_gradient_cache(model, tokens(5), tlb.target_loss(20), names_filter=[])
        assert cache.tokens.tolist() == [[0, 9]] * 2
    finally:
        config.forced_bos_token_id = before
    inner = model.original_model
    generated = inner.generate(tokens(5), max_new_tokens=2, do_sample=False)
    _, cache = tlb.run_with_gradient_cache(model, tokens(5), tlb.target_loss(20), names_filter=[])
    assert generated[:, :1].tolist() == cache.tokens.tolist()
    assert generated[:, 1].tolist() == cache.logits[:, -1].argmax(-1).tolist()


# --- images and sounds -------------------------------------------------------------------------------------------------

SIGNALS = {
    "ViTForImageClassification": dict(pixel_values=noise(2, 3, 8, 8)), "ViTModel": dict(pixel_values=noise(2, 3, 8, 8)),
    "DeiTForImageClassification": dict(pixel_values=noise(2, 3, 8, 8)),
    "ASTForAudioClassification": dict(input_values=noise(2, 24, 16)), "HubertModel": dict(input_values=noise(2, 64)),
    "HubertForCTC": dict(input_values=noise(2, 64)), "Wav2Vec2ForCTC": dict(input_values=noise(2, 64)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
def test_models_without_text(name):
    model, given = build(name), SIGNALS[name]
    seen = []

    def loss(output, tokens):
        seen.append((output.shape, tokens.shape))
        return output.square().sum()

    value, cache = tlb.run_with_gradient_cache(model, None, loss, weights=EVERY, **given)
    with torch.no_grad():
        out = model.original_model(**given)
    main = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    assert seen == [(main.shape, (2, 0))] and cache.tokens.shape == (2, 0)
    assert main.ndim == (2 if "Classification" in name else 3)
    assert abs(float(value - main.square().sum())) < 1e-9 * float(value)
    sites = tlb.weight_sites(model)

    def own():
        out = model.original_model(**given)
        return (out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state).square().sum()

    assert_exact(sites, every_gradient(sites, cache), autograd(model, own))
    assert cache.account()["reason"].eq("").mean() > 0.9
    assert repr(cache)


def test_an_output_that_is_no_tensor_gives_its_first():
    from transformers.modeling_outputs import Wav2Vec2BaseModelOutput

    from tl_backward.model.inputs import main_output

    first = torch.zeros(2, 3)
    assert main_output(Wav2Vec2BaseModelOutput(last_hidden_state=first, extract_features=first + 1)) is first
    assert main_output((None, first)) is first
    with pytest.raises(
        TypeError, match=re.escape("Expected a model that returns a tensor, got dict; wrap it so that it does.")
    ):
        main_output({})


def test_images_beside_text():
    """The tower runs with its image and not without: its weights are captured, or did not run."""
    model = build("LlavaForConditionalGeneration")
    ids, given = ROWS["LlavaForConditionalGeneration"].inputs(None)
    loss = tlb.target_loss([20, 21])
    value, cache = tlb.run_with_gradient_cache(model, ids, loss, weights=EVERY, names_filter=[], **given)
    sites = tlb.weight_sites(model, ids, **given)
    longer = torch.cat([ids, torch.full((2, 1), 20)], 1)

    def own():
        logits = model.original_model(input_ids=longer, **given).logits
        return cross_entropy(logits[:, -2:].flatten(0, 1), torch.tensor([20, 21] * 2))

    assert abs(float(value - own())) < 1e-9
    assert_exact(sites, every_gradient(sites, cache), autograd(model, own))
    tower = [name for name in sites if name.startswith("vision")]
    assert len(tower) > 30 and set(tower) <= {*cache.factors, *cache.parameter_gradients}
    _, plain = tlb.run_with_gradient_cache(model, tokens(6), loss, names_filter=[])
    assert not [name for name in plain.factors if name.startswith("vision")]
    account = plain.account().set_index("parameter")["reason"]
    assert (account[account.index.str.contains("vision_encoder")] == "did not run in this pass").all()
    matrix = next(name for name in tower if sites[name].kind == "matrix")
    with pytest.raises(
        ValueError,
        match=re.escape(f"Expected a weight that can be captured, got {matrix!r}: did not run in this pass."),
    ):
        tlb.run_with_gradient_cache(model, tokens(6), loss, weights=matrix)


def test_a_longer_target_goes_on_with_what_each_token_has():
    """Positions count on; an example of fewer target tokens stays padded."""
    model, ids = build("GPT2LMHeadModel"), tokens(5)
    places = torch.arange(5)[None] + 2
    loss, cache = tlb.run_with_gradient_cache(
        model,
        ids,
        tlb.target_loss([[4, 5, 6], [7]], reduction="sum"),
        names_filter=[],
        weights="W_pos",
        position_ids=places,
    )
    (factors,) = cache.factors.values()
    assert factors.inputs[0].tolist() == [2, 3, 4, 5, 6, 7, 8] and factors.inputs[1, :5].tolist() == [2, 3, 4, 5, 6]
    inner = model.original_model
    with torch.no_grad():
        long = torch.cat([ids[:1], torch.tensor([[4, 5]])], 1)
        first = inner(input_ids=long, position_ids=torch.arange(7)[None] + 2).logits[0, -3:]
        second = inner(input_ids=ids[1:], position_ids=places).logits[0, -1:]
    expected = cross_entropy(first, torch.tensor([4, 5, 6])) + cross_entropy(second, torch.tensor([7]))
    assert abs(float(loss - expected)) < 1e-9


def test_segments_of_tokens_reach_the_model():
    model = build("BertForMaskedLM")
    ids = torch.tensor([[10, 3, 12, 13]])
    segments = torch.tensor([[0, 0, 1, 1]])
    value, _ = tlb.run_with_gradient_cache(model, ids, tlb.target_loss(20), names_filter=[], token_type_ids=segments)
    with torch.no_grad():
        logits = model.original_model(input_ids=ids, token_type_ids=segments).logits
    assert abs(float(value - cross_entropy(logits[:, 1], torch.tensor([20])))) < 1e-12


def test_a_pass_with_inputs_leaves_no_trace():
    model = build("LlavaForConditionalGeneration")
    ids, given = ROWS["LlavaForConditionalGeneration"].inputs(None)
    before = {name: value.clone() for name, value in given.items()}, torch.random.get_rng_state()
    with torch.no_grad():
        logits = model(ids, return_type="logits", **given)
    tlb.run_with_gradient_cache(model, ids, square, names_filter=[], **given)
    assert all(torch.equal(value, before[0][name]) and value.grad is None for name, value in given.items())
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(ids, return_type="logits", **given), logits)


# --- sweeps and similarities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_a_sweep_of_an_encoder_decoder_is_its_captures(name):
    model = build(name)
    prompts, targets = ["w5 w6 w14", "w7 w8 w9 w10", "w11 w12 w13"], ["w20", "w21 w22", "w23"]
    subjects = ["w6", "w8 w9", None]
    weights = ["encoder_blocks.W_out", "decoder_blocks.W_out", "decoder_blocks.cross_attn.W_V"]
    found = sweep(
        model, prompts, targets, subjects=subjects, weights=weights,
        collect=["norm", "gradient_norm", "share", "target_rank"], batch_size=2, control=None, show_progress=False,
    )  # fmt: skip
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        loss, cache = tlb.run_with_gradient_cache(
            model, prompt, tlb.target_loss(target), weights=list(found.weights), names_filter=[]
        )
        assert abs(float(found.loss[row] - loss)) < 1e-9
        for column, name in enumerate(found.weights):
            factors = cache.factors[name]
            assert abs(float(found.values["gradient_norm"][row, column] - factors.gradient().norm())) < 1e-9
            of_prompt = "cross" in name or name.startswith("encoder")
            rank = found.values["target_rank"][row, column]
            assert bool(rank.isnan()) == of_prompt, "the head reads the decoder's stream alone"
            norms, (first, subject, last, other, said) = (
                factors.deltas[0].norm(dim=-1),
                found.values["norm"][row, column],
            )
            if of_prompt:
                length = len(cache.prompt_tokens[0])
                assert said.isnan() and abs(float(last - norms[-1])) < 1e-9 and len(norms) == length
                assert bool(subject.isnan()) == (subjects[row] is None)
            else:
                assert len(norms) == len(cache.tokens[0]) and subject.isnan() and other.isnan() and first.isnan()
                assert abs(float(last - norms[0])) < 1e-9, "asked at what the decoder begins with"
                read = tlb.readout(model, factors.deltas[:, 0], target=target.split()[0])
                assert float(rank) == float(read.target_rank)
            shares = found.values["share"][row, column]
            assert abs(float(shares.nansum()) - 1) < 1e-9


def test_a_similarity_of_an_encoder_decoder_is_of_dense_gradients():
    model = build("BartForConditionalGeneration")
    pairs = [("w5 w6", "w20"), ("w7 w8 w9 w10", "w21 w22"), ("w5 w6 w7", "w20")]
    weights = ["encoder_blocks.W_out", "decoder_blocks.W_in"]
    found = tlb.gradient_similarity(model, pairs, weights=weights, batch_size=2, show_progress=False)
    dense = []
    for prompt, target in pairs:
        _, cache = tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target), weights=weights, names_filter=[])
        dense.append(torch.cat([f.gradient().flatten() for f in cache.factors.values()]))
    stacked = torch.stack(dense)
    torch.testing.assert_close(found.matrix, stacked @ stacked.T, rtol=1e-9, atol=1e-12)


def test_a_sweep_with_images_takes_each_prompts_own():
    model = build("LlavaForConditionalGeneration")
    prompts, images = ["w10 w5 w5 w5 w5 w6", "w8 w5 w5 w5 w5 w9 w10", "w11 w5 w5 w5 w5"], noise(3, 3, 8, 8)
    options = dict(collect=["gradient_norm"], control=None, show_progress=False, batch_size=2)
    found = sweep(model, prompts, ["w20", "w21 w22", "w23"], weights=["W_out", "W_in"], pixel_values=images, **options)
    for row, (prompt, target) in enumerate(zip(prompts, ["w20", "w21 w22", "w23"], strict=True)):
        _, cache = tlb.run_with_gradient_cache(
            model,
            prompt,
            tlb.target_loss(target),
            weights=list(found.weights),
            names_filter=[],
            pixel_values=images[row : row + 1],
        )
        for column, name in enumerate(found.weights):
            assert abs(float(found.values["gradient_norm"][row, column] - cache.factors[name].norm())) < 1e-9
    other = sweep(model, prompts, ["w20", "w21 w22", "w23"], weights=["W_out"], pixel_values=images.flip(0), **options)
    assert not torch.allclose(other.values["gradient_norm"], found.values["gradient_norm"][:, ::2])


def test_a_checkpoint_knows_the_images(tmp_path):
    model, path = build("LlavaForConditionalGeneration"), tmp_path / "sweep.safetensors"
    prompts, options = (
        ["w10 w5 w5 w5 w5 w6"],
        dict(collect=["gradient_norm"], control=None, show_progress=False, checkpoint=path),
    )
    first = sweep(model, prompts, ["w20"], pixel_values=noise(1, 3, 8, 8), **options)
    again = sweep(model, prompts, ["w20"], pixel_values=noise(1, 3, 8, 8), **options)
    assert torch.equal(first.values["gradient_norm"], again.values["gradient_norm"])
    with pytest.raises(ValueError, match="Expected the checkpoint of this run"):
        sweep(model, prompts, ["w20"], pixel_values=2 * noise(1, 3, 8, 8), **options)


def test_a_sweep_of_experts_is_by_token():
    """Rows of experts are put back to their tokens."""
    model = build("MixtralForCausalLM (eager experts)")
    prompts, targets = ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13"], ["w20", "w21", "w22"]
    found = sweep(
        model, prompts, targets, weights="experts.down_proj",
        collect=["norm", "gradient_norm", "share"], batch_size=3, control=None, show_progress=False,
    )  # fmt: skip
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        _, cache = tlb.run_with_gradient_cache(
            model, prompt, tlb.target_loss(target), weights=list(found.weights), names_filter=[]
        )
        for column, name in enumerate(found.weights):
            factors, values = cache.factors[name], {k: v[row, column] for k, v in found.values.items()}
            dense = factors.gradient()
            assert abs(float(values["gradient_norm"] - dense.norm())) < 1e-9
            last = cache.tokens.shape[1] - 1
            own = factors[:, last].gradient()
            assert abs(float(values["share"][2] - (own * dense).sum() / dense.square().sum())) < 1e-9
            assert abs(float(values["norm"][2] - factors[:, last].deltas.norm())) < 1e-9
            assert abs(float(values["share"].nansum()) - 1) < 1e-9


# --- sentences ---------------------------------------------------------------------------------------------------------

IMAGE = noise(2, 3, 8, 8)
SENTENCES = {
    "an unknown name": ("GPT2LMHeadModel", tokens(5), dict(posiotion_ids=IMAGE), TypeError,
        "Expected a keyword of run_with_gradient_cache or an input of the model, got 'posiotion_ids'; the nearest are "
        "'position_ids', 'token_type_ids', 'attention_mask'."),
    "an image for a model of text": ("GPT2LMHeadModel", tokens(5), dict(pixel_values=IMAGE), TypeError,
        "Expected a keyword of run_with_gradient_cache or an input of the model, got 'pixel_values'; known are "
        "model, prompts, loss, weights, names_filter, fwd_hooks, bwd_hooks, prepend_bos, attention_mask, encoder_attention_mask, encoder_hidden_states, position_ids, "
        "token_type_ids."),
    "labels": ("GPT2LMHeadModel", tokens(5), dict(labels=tokens(5)), TypeError,
        "Expected an input that the model reads, got 'labels'; pass a loss."),
    "a cache": ("GPT2LMHeadModel", tokens(5), dict(use_cache=True), TypeError,
        "Expected an input that the model reads, got 'use_cache'; a capture is one pass over all tokens."),
    "positions of other tokens": ("GPT2LMHeadModel", tokens(5), dict(position_ids=torch.arange(4)[None]), ValueError,
        "Expected position_ids for each of the tokens [2, 5], got [1, 4]; one entry a token."),
    "positions of other prompts": ("GPT2LMHeadModel", tokens(5), dict(position_ids=torch.zeros(3, 5).long()), ValueError,
        "Expected position_ids for each of the tokens [2, 5], got [3, 5]; one entry a token."),
    "no prompts": ("GPT2LMHeadModel", None, {}, TypeError,
        "Expected prompts for a model that reads text, got None; pass text or tokens."),
    "neither text nor image": ("ViTModel", None, {}, TypeError,
        "Expected pixel_values=..., a tensor, for a model that reads no text, got none; pass what it reads."),
    "text for an image": ("ViTModel", "w5", dict(pixel_values=IMAGE), TypeError,
        "Expected a model that reads text, got one that reads pixel_values, whose gradients are captured by "
        "run_with_gradient_cache(model, None, loss, pixel_values=...)."),
    "a sound for an image": ("ViTModel", None, dict(input_values=IMAGE), TypeError,
        "Expected a keyword of run_with_gradient_cache or an input of the model, got 'input_values'; the nearest are 'pixel_values'."),
    "a decoder of fewer prompts": ("BartForConditionalGeneration", tokens(5), dict(decoder_input_ids=tokens(3)[:1]), ValueError,
        "Expected decoder_input_ids for each of the 2 prompts, got 1 rows; give one row a prompt."),
    "a decoder of floats": ("BartForConditionalGeneration", tokens(5), dict(decoder_input_ids=IMAGE), TypeError,
        "Expected integer decoder_input_ids [batch, pos] or [pos], got torch.float64 of shape [2, 3, 8, 8]; token ids come "
        "from model.to_tokens(text)."),
    "a decoder of text": ("BartForConditionalGeneration", tokens(5), dict(decoder_input_ids="w5"), TypeError,
        "Expected decoder_input_ids and decoder_attention_mask as tensors [batch, pos], got other objects."),
    "a decoder's mask alone": ("BartForConditionalGeneration", tokens(5), dict(decoder_attention_mask=tokens(5)), ValueError,
        "Expected decoder_attention_mask only together with decoder_input_ids, got it alone; leave it out."),
    "a decoder's mask of another shape": ("BartForConditionalGeneration", tokens(5),
        dict(decoder_input_ids=tokens(3), decoder_attention_mask=tokens(4)), ValueError,
        "Expected decoder_attention_mask of the tokens' shape [2, 3], got [2, 4]; one entry a token, 1 where real."),
}  # fmt: skip


@pytest.mark.parametrize("what", SENTENCES)
def test_what_does_not_fit_is_said(what):
    name, prompts, inputs, error, sentence = SENTENCES[what]
    with pytest.raises(error) as raised:
        tlb.run_with_gradient_cache(build(name), prompts, square, **inputs)
    assert str(raised.value) == sentence


WORDS = (
    "Expected a loss of your own for a model that reads no text, got one of words; write loss(logits, tokens) -> scalar "
    "of what the model returns ([batch, class] of a classifier); `tokens` is empty."
)


@pytest.mark.parametrize(
    "loss", [tlb.target_loss(3), tlb.next_token_loss, tlb.logit_difference(3, 4)], ids=["target", "next", "difference"]
)
def test_losses_of_words_are_for_models_of_words(loss):
    with pytest.raises(TypeError, match=re.escape(WORDS)):
        tlb.run_with_gradient_cache(build("ViTForImageClassification"), None, loss, pixel_values=IMAGE)


def test_next_tokens_of_a_decoder_must_be_given():
    sentence = (
        "Expected decoder_input_ids, of which next_token_loss is taken in an encoder-decoder, got none; pass them, or use "
        "target_loss(...)."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tlb.run_with_gradient_cache(build("BartForConditionalGeneration"), tokens(5), tlb.next_token_loss)


def test_a_masked_model_without_a_mask_is_said():
    with pytest.raises(ValueError, match="Expected a mask where the answer belongs"):
        tlb.run_with_gradient_cache(build("BertForMaskedLM"), "w5 w6", tlb.target_loss(" w7"))


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: tlb.readout(m, torch.randn(2, 16, dtype=torch.float64)), lambda m: tlb.sweep(m, ["w5"], ["w6"]),
        lambda m: tlb.gradient_similarity(m, ["w5 w6"]), lambda m: tlb.backward_lens(m, "w5", "w6"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ViTForImageClassification", "Wav2Vec2ForCTC"])
def test_a_model_without_words_is_not_read_in_words(name, ask):
    with pytest.raises(TypeError, match="Expected a model that reads text, got one that reads (pixel|input)_values"):
        ask(build(name))


def test_a_towers_stream_is_not_read_in_words():
    sentence = "Expected vectors [..., d_model=24], got shape [3, 16]; only vectors of the residual stream can be read in words."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tlb.readout(build("LlavaForConditionalGeneration"), torch.randn(3, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("inputs", "error", "sentence"),
    [
        (dict(pixel_values=IMAGE[:1]), ValueError, "Expected pixel_values with a row for each of the 2 prompts, got shape [1, 3, 8, 8]; "
            "what cannot be told apart by prompt is captured one by one with run_with_gradient_cache."),
        (dict(pixel_values="image"), TypeError, "Expected pixel_values as a tensor with a row for each prompt, got str."),
        (dict(position_ids=torch.arange(3)[None]), ValueError, "Expected inputs that do not depend on how prompts are padded to "
            "batches, got position_ids; capture such prompts one by one with run_with_gradient_cache."),
        (dict(pixels=IMAGE), TypeError, "Expected a keyword of sweep or an input of the model, got 'pixels'; "
            "the nearest are 'pixel_values'."),
    ],
)  # fmt: skip
def test_a_sweep_says_what_it_cannot_batch(inputs, error, sentence):
    with pytest.raises(error) as raised:
        sweep(build("LlavaForConditionalGeneration"), ["w6 w7", "w8 w9"], ["w20", "w21"], show_progress=False, **inputs)
    assert str(raised.value) == sentence


def test_editing_says_that_logits_are_the_decoders():
    model = build("BartForConditionalGeneration")
    edit = tlb.gradient_edit(model, "w5 w6", "w20", weights="decoder_blocks.W_out")
    with pytest.raises(
        ValueError, match="Expected a model whose logits belong to the prompt's tokens, got an encoder-decoder"
    ):
        tlb.editing.edit_effect(model, edit, "w5 w6")
    with pytest.raises(
        ValueError,
        match=re.escape("got 'W_out', which this model has not: its blocks write with decoder_blocks.W_out;"),
    ):
        tlb.gradient_edit(model, "w5 w6", "w20", weights="W_out")
    assert sorted(tlb.gradient_edit(model, "w5 w6", "w20").updates) == [
        "decoder_blocks.0.mlp.W_out",
        "decoder_blocks.1.mlp.W_out",
    ]


# --- TransformerLens 3's own other models ------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_a_hooked_transformer_reads_tokens_alone():
    sentence = (
        "Expected a keyword of run_with_gradient_cache or an input of the model, got 'pixel_values'; known are model, "
    )
    with pytest.raises(TypeError, match=re.escape(sentence)):
        tlb.run_with_gradient_cache(hooked(), tokens(5), square, pixel_values=IMAGE)


def encoders():
    """Tiny models of the classes that hold no HookedTransformer, by name."""
    from transformer_lens import HookedEncoder, HookedEncoderDecoder, HookedTransformerConfig
    from transformer_lens.HookedAudioEncoder import HookedAudioEncoder

    common = dict(n_layers=1, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_mlp=12, d_vocab=20, act_fn="gelu", seed=0)
    both = dict(relative_attention_max_distance=8, relative_attention_num_buckets=4, decoder_start_token_id=0,
                tie_word_embeddings=True, use_attn_scale=False)  # fmt: skip
    cfg = lambda **more: HookedTransformerConfig(**common, attention_dir="bidirectional", **more)  # noqa: E731
    for model in (HookedEncoder(cfg()), HookedEncoderDecoder(cfg(**both)), HookedAudioEncoder(cfg())):
        model.tokenizer = tokenizer()
        with torch.no_grad():
            for weight in model.parameters():  # some are left uninitialised, and may hold NaN
                weight.normal_()
        yield model


def entry_points():
    """Every public function that takes a model, with arguments that a model of words would be asked with."""
    from tl_backward import alignment, dissimilarity, editing, embedding_space, inversion

    ids, prompt, site, x = torch.tensor([[3, 4, 5]]), "w5 w6", "blocks.0.mlp.W_out", torch.zeros(12)
    case = tlb.EditCase("w5 w6", "w7")
    edit = editing.Edit(build("GPT2LMHeadModel"), {}, {})
    embedding = embedding_space
    return {
        "run_with_gradient_cache": lambda m: tlb.run_with_gradient_cache(m, ids, square),
        "weight_sites": tlb.weight_sites, "extend": tlb.extend, "unextend": tlb.unextend,
        "backward_lens": lambda m: tlb.backward_lens(m, ids, 5), "readout": lambda m: tlb.readout(m, torch.zeros(2, 8)),
        "sweep": lambda m: tlb.sweep(m, [prompt], ["w7"]), "gradient_similarity": lambda m: tlb.gradient_similarity(m, [prompt]),
        "shift_edit": lambda m: tlb.shift_edit(m, prompt, "w7", layer=0), "gradient_edit": lambda m: tlb.gradient_edit(m, prompt, "w7"),
        "rank_one_edit": lambda m: tlb.rank_one_edit(m, site, x, torch.zeros(8)),
        "find_layer": lambda m: tlb.find_layer(m, prompt, "w7", validation=[case]), "evaluate_edit": lambda m: tlb.evaluate_edit(m, edit, case),
        "compare_edits": lambda m: tlb.compare_edits(m, [case], {}), "edit_effect": lambda m: editing.edit_effect(m, edit, prompt),
        "project_parameter": lambda m: tlb.project_parameter(m, "W_out", layer=0), "head_pairs": lambda m: tlb.head_pairs(m, "VO", 0, 0),
        "related_pairs": lambda m: embedding.related_pairs(m, "KV", 0),
        "parameter_coherence": lambda m: embedding.parameter_coherence(m, "W_out", layer=0),
        "parameter_activation_overlap": lambda m: embedding.parameter_activation_overlap(m, [prompt], "W_out", 0),
        "resolve_place": lambda m: inversion.resolve_place(m, "blocks.0.hook_resid_post"),
        "collect": lambda m: inversion.collect(m, ids, ["blocks.0.hook_resid_post"]),
        "read_query": lambda m: inversion.read_query(m, prompt, "blocks.0.hook_resid_post", -1),
        "preimage_of": lambda m: inversion.preimage_of(m, prompt, "blocks.0.hook_resid_post", -1, [prompt]),
        "train": lambda m: inversion.train(m, "blocks.0.hook_resid_post", [prompt]),
        "compare": lambda m: dissimilarity.compare(m, m, [prompt]), "stitch": lambda m: dissimilarity.stitch(m, 0, m, 0, [prompt]),
        "match_parameters": lambda m: alignment.match_parameters(m, m, "W_out"), "translation": lambda m: alignment.translation(m, m),
        "token_map": lambda m: alignment.token_map(m, m), "zero_shot_stitch": lambda m: alignment.zero_shot_stitch(m, 1, m, 1),
    }  # fmt: skip


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_what_is_no_such_model_is_said_everywhere():
    for model in encoders():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for name, ask in entry_points().items():
            try:
                ask(model)
            except TypeError as error:
                said = str(error)
            except Exception as error:
                pytest.fail(f"{name} of {type(model).__name__}: {type(error).__name__}: {error}")
            else:
                pytest.fail(f"{name} of {type(model).__name__}: nothing")
            assert said.startswith(
                f"Expected a TransformerLens model (HookedTransformer or TransformerBridge), got {type(model).__name__}; "
            ), (name, said)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


OF_IMAGES = ("weight_sites", "extend", "unextend", "rank_one_edit", "run_with_gradient_cache", "resolve_place")
"""What needs no words, or says so with a sentence of its own."""


def test_a_model_of_images_is_asked_for_no_words():
    """One sentence at every entrance that reads words or writes them; an edit by given vectors needs none."""
    model = build("ViTForImageClassification")
    wrong = {}
    for name, ask in entry_points().items():
        if name in OF_IMAGES:
            continue
        try:
            ask(model)
            wrong[name] = "nothing"
        except Exception as error:
            if not str(error).startswith("Expected a model that reads text"):
                wrong[name] = f"{type(error).__name__}: {error}"
    assert not wrong
    site = next(site for name, site in tlb.weight_sites(model).items() if name.endswith("W_out"))
    x, v = (torch.ones(width, dtype=site.parameter.dtype) for width in site.layout.shape)
    before = site.parameter.detach().clone()
    with tlb.rank_one_edit(model, site.name, x, v):
        assert not torch.equal(site.parameter, before)
    assert torch.equal(site.parameter, before)
