"""Which example and token each row of a weight's factors belongs to, in every architecture, against autograd.

Examples: one example's loss at a time. Tokens: the same prompts within longer ones, whose sizes fit no other axis.
"""

import pytest
import torch
from architectures import ROWS, registered
from architectures.build import bridge as booted
from architectures.build import hugging_face, no_processors
from architectures.double import InDouble
from architectures.measure import default_dtype, run
from models import BRIDGED, HAS_HOOKED_TRANSFORMER, HOOKED, bridge, hooked

import tl_backward as tlb

SHAPES = [(2, 4), (3, 5), (4, 4)]
"""[batch, pos]: among them as many examples or positions as most of the models here have heads or experts."""
LONG = (5, 7)


def words(batch, pos):
    return torch.randint(6, 48, LONG, generator=torch.Generator().manual_seed(5))[:batch, :pos]


def loss_of(shape, example=None):
    """A loss of the first examples and positions that has a share for each example."""
    batch, pos = shape

    def loss(logits, tokens):
        own = logits[:batch, :pos]
        weights = torch.randn(
            LONG[0], LONG[1], own.shape[-1], generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
        each = (own * weights[:batch, :pos]).sum((1, 2)) + 0.1 * own.square().sum((1, 2))
        return each.sum() if example is None else each[example]

    return loss


def captured(model, tokens, loss):
    return tlb.run_with_gradient_cache(model, tokens, loss, weights=lambda name: True, names_filter=[])[1]


def check_examples(model, shape):
    """Each example's own gradient is autograd's of its own loss."""
    tokens = words(*shape)
    sites, factors = tlb.weight_sites(model), dict(captured(model, tokens, loss_of(shape)).factors.items())
    for name in [name for name, each in factors.items() if refuses(each, shape)]:
        assert name.endswith(TABLES), name
        del factors[name]
    parameters = {id(p): p for p in model.parameters() if p.is_floating_point()}
    flags = {key: p.requires_grad for key, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_(True)
    whole = {id(site.parameter) for name, site in sites.items() if name not in factors}
    truth = []
    for example in range(shape[0]):
        loss = loss_of(shape, example)(run(model, tokens, {}), tokens)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        truth.append(dict(zip(parameters, found, strict=True)))
    for key, p in parameters.items():
        p.requires_grad_(flags[key])
    floor = 1e-3 * max(float(g.abs().max()) for each in truth for g in each.values() if g is not None)
    for example in range(shape[0]):
        sums = {}
        for name, each in factors.items():
            parts = each.per_example()
            key = id(sites[name].parameter)
            if key not in whole and not sites[name].computed_from:
                sums[key] = sums.get(key, 0) + parts[example].gradient("parameter")
        for key, found in sums.items():
            real = truth[example][key]
            off = float((found if real is None else found - real).abs().max())
            names = [name for name, site in sites.items() if id(site.parameter) == key]
            assert off <= 1e-5 * max(floor, 0 if real is None else float(real.abs().max())), (names, example, off)


TABLES = ("W_pos", "time_decay", "time_first", "ln1.w", "ln1.b", "norm.w")
"""What may say that its rows are not told apart by example: tables that all of them read, norms in an order of theirs."""


def refuses(factors, shape):
    """Whether examples are not told apart, and it is said."""
    try:
        return len(factors.per_example()) != shape[0]
    except ValueError as error:
        assert "whose examples and tokens are known" in str(error)
        return True


def check_tokens(model, shape):
    """What each token adds is what it adds in longer prompts, among others, where the loss is the same."""
    short, long = captured(model, words(*shape), loss_of(shape)), captured(model, words(*LONG), loss_of(shape))
    for name, found in short.factors.items():
        if refuses(found, shape) or (found.origin is None and found.deltas.shape[1] != shape[1]):
            continue  # rows that stand for no one token: windows of several
        among, size = long.factors[name], float(found.norm()) + 1e-9
        for token in range(shape[1]):
            one, other = (each[:, token].gradient() for each in (found, among))
            assert float((one - other).norm()) <= 1e-4 * size, (name, token)


def check(model, causal=True, shapes=SHAPES):
    for shape in shapes:
        check_examples(model, shape)
    if causal:
        check_tokens(model, shapes[0])


def check_row(name, shapes=SHAPES):
    row = ROWS[name]
    if row.architecture not in registered() or not row.reads_text:
        pytest.skip("not registered by this version of TransformerLens, or without text")
    wide = torch.float64 if row.architecture == "XGLMForCausalLM" else torch.float32
    with InDouble(), no_processors(), default_dtype(wide), row.making():
        try:
            model = booted(row, None if row.boot else hugging_face(row))
            run(model, words(2, 3), {})
        except Exception as error:
            pytest.skip(f"does not run in TransformerLens: {type(error).__name__}: {str(error)[:80]}")
        with torch.compiler.set_stance("force_eager"):
            check(model, causal=not row.masked, shapes=shapes)


SOME = ["OPTForCausalLM (350m: narrow embedding, norms after)", "Qwen3ForCausalLM", "MixtralForCausalLM", "Llama4ForCausalLM",
        "JetMoeForCausalLM", "DeepseekV4ForCausalLM", "MambaForCausalLM", "RwkvForCausalLM", "BertForMaskedLM"]  # fmt: skip
"""Layers that flatten their input, norms behind a head axis, experts of three kinds, windows, recurrences, an encoder."""


@pytest.mark.parametrize("name", SOME)
def test_kinds(name):
    check_row(name, [(2, 4)])


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_every_architecture(name):
    check_row(name)


@pytest.mark.parametrize("family", BRIDGED)
def test_bridges(family):
    check(bridge(family), shapes=[(2, 4), (3, 3)])


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", HOOKED)
def test_hooked(family):
    check(hooked(family), shapes=[(2, 4), (3, 3)])
