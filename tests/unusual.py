"""What the tests of unusual models share: every captured gradient against autograd's, and nothing left without a word."""

import torch
from models import TOKENS
from torch import nn

import tl_backward as tlb


def autograd(model, tokens=TOKENS, loss=tlb.next_token_loss, hooks=()):
    """(loss, gradients) by plain autograd through the model as it is, by the identity of each floating parameter."""
    parameters = [p for p in dict.fromkeys(model.parameters()) if p.is_floating_point()]
    parameters = [p for p in parameters if not hasattr(type(p), "__tensor_flatten__")]  # packed numbers have none
    asked = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with model.hooks(fwd_hooks=list(hooks)):
        value = loss(model(tokens, return_type="logits"), tokens)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    for parameter, before in zip(parameters, asked, strict=True):
        parameter.requires_grad_(before)
    return value.detach(), {id(p): g for p, g in zip(parameters, gradients, strict=True)}


def holds(model, tokens=TOKENS, tolerance=1e-11, hooks=()):
    """Capture every weight of a model and check it; returns (sites, cache)."""
    value, gradients = autograd(model, tokens, hooks=hooks)
    sites = tlb.weight_sites(model)
    captured, cache = tlb.run_with_gradient_cache(
        model, tokens, tlb.next_token_loss, weights=lambda name: True, names_filter=[], fwd_hooks=list(hooks)
    )
    assert torch.equal(captured, value), "the output is the model's own"
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for parameter in model.parameters():
        gradient = gradients.get(id(parameter))
        own = [site for site in sites.values() if site.parameter is parameter and not site.computed_from]
        if not own:
            continue
        found = sum(
            cache.parameter_gradients[site.name]
            if site.kind == "parameter"
            else cache.factors[site.name].gradient("parameter")
            for site in own
        )
        expected = torch.zeros_like(parameter) if gradient is None else gradient
        error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3 * largest))
        assert error <= tolerance, ([site.name for site in own], error)
    for row in cache.account().itertuples():
        assert row.sites or row.reason, row.parameter
        gradient = gradients.get(id(dict(model.named_parameters())[row.parameter]))
        assert row.sites or gradient is None or not gradient.any(), (row.parameter, row.reason)
    return sites, cache


def layer(model: nn.Module, of: str, block: int = 0) -> nn.Module:
    """The Hugging Face layer inside a Bridge's component: `layer(model, "mlp.out")`."""
    return model.blocks[block].get_submodule(of).original_component
