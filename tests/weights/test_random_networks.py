"""Random networks of known operations: what sites are found, and what is captured there, against autograd."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from random_networks import N_CTX, Network, V

from tl_backward.gradients.recorder import Recorder
from tl_backward.weights import operations
from tl_backward.weights.account import account_rows
from tl_backward.weights.learn import learn
from tl_backward.weights.names import named_weights
from tl_backward.weights.rows import factors_of


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten().roll(1)) + logits.pow(2).mean()


def check_origins(net, sites, recorder, value, shape) -> None:
    """Layers mix no tokens but convolutions: a row of an expert depends on the token that it is said to come from."""
    experts = [site for site in sites.values() if site.layout.experts and site.kind == "matrix"]
    if not experts or "kernel" in net.notes or not net.embedded.requires_grad:
        return
    graph = {site.name: [use.seen.use for use in recorder.uses[site.used]] for site in experts}
    rows = {name: [use.x_rows(use.x).flatten(0, -2) for use in uses] for name, uses in graph.items()}
    depends = {
        name: [
            torch.autograd.grad(row.sum(), net.embedded, retain_graph=True)[0].abs().sum(-1) > 0
            for x in each
            for row in x
            if row.requires_grad
        ]
        for name, each in rows.items()
    }
    written = [each.written for used in recorder.uses.values() for each in used]
    zeros = {id(one): torch.zeros(one.shape, dtype=one.dtype, device=one.device) for one in written}
    for site in experts:
        origin = factors_of(site, recorder._recorded(site, zeros), (shape,), recorder.asked.get(site.name)).origin
        if origin is None or len(depends[site.name]) != origin.token.shape[1]:
            continue
        for i, where in enumerate(depends[site.name]):
            example, token = int(origin.example[0, i]), int(origin.token[0, i])
            claimed = torch.zeros(shape, dtype=torch.bool)
            if token >= 0:
                claimed[example, token] = True
                assert not (where & ~claimed).any(), (site.name, i, example, token, where, net.notes)


def check(seed: int) -> Counter:
    """One network: every parameter has an account, every gradient is autograd's, nothing is left behind."""
    generator = torch.Generator().manual_seed(seed)
    shape = (
        int(torch.randint(1, 4, (), generator=generator)),
        int(torch.randint(1, N_CTX + 1, (), generator=generator)),
    )
    tokens = torch.randint(V, shape, generator=generator)
    net = Network(seed)
    parameters = dict(net.named_parameters())
    wanted = {name: p.requires_grad for name, p in parameters.items()}
    values = {name: p.detach().clone() for name, p in parameters.items()}
    sites = learn(
        parameters,
        named_weights(net, {}),
        lambda: net(tokens),
        (tuple(tokens.shape),),
        [*net.modules()],
        lambda _: None,
        dict(net.named_modules()),
    )
    own = net(tokens)
    recorder = Recorder(net)
    for site in sites.values():
        recorder.watch(site)
    with recorder.watching((shape,)):
        logits = net(tokens)
        value = loss(logits, tokens)
    check_origins(net, sites, recorder, value, shape)
    found = recorder.differentiate(value, (shape,))
    assert {name: p.requires_grad for name, p in parameters.items()} == wanted
    assert all(torch.equal(p, values[name]) and p.grad is None for name, p in parameters.items())

    for parameter in parameters.values():
        parameter.requires_grad_(True)
    plain = net(tokens)
    # A frozen weight that autograd is asked about needs a graph, and torch.matmul folds its operands by who has one.
    asked = [site for site in sites.values() if site.is_function or site.kind == "parameter"]
    if any(not wanted[name] for site in asked for name, p in parameters.items() if p is site.parameter):
        assert torch.allclose(own, logits, rtol=1e-12, atol=1e-12), net.notes
    else:
        assert torch.equal(own, logits), net.notes
    reference = torch.autograd.grad(loss(plain, tokens), list(parameters.values()), allow_unused=True)
    tolerance = 1e-5 if {"cast", "float", "minus_exp"} & set(net.notes) else 1e-9  # there autograd rounds to float32
    floor = 1e-3 * max(float(g.abs().max()) for g in reference if g is not None)
    of = {id(p): [s for s in sites.values() if s.parameter is p and not s.computed_from] for p in parameters.values()}
    kinds = Counter(f"{site.kind}{' function' if site.is_function else ''}" for site in sites.values())
    kinds["joint"] += sum(bool(site.roots) for site in sites.values())
    for (name, parameter), gradient in zip(parameters.items(), reference, strict=True):
        parts = [
            found.parameters[site.name] if site.kind == "parameter" else found.factors[site.name].gradient("parameter")
            for site in of[id(parameter)]
        ]
        if not parts:
            assert gradient is None or not gradient.any(), f"{name} has a gradient and no site"
            continue
        expected = torch.zeros_like(parameter) if gradient is None else gradient
        error = float((sum(parts) - expected).abs().max() / expected.abs().max().clamp(min=floor))
        assert error <= tolerance, (name, error, [site.kind for site in of[id(parameter)]], net.notes)
    assert all(names or reason for _, _, _, names, reason in account_rows(sites, sites))
    return kinds


def test_two_hundred_networks():
    kinds = Counter()
    for seed in range(200):
        kinds += check(seed)
    assert all(kinds[kind] > 10 for kind in ("matrix", "matrix function", "embedding", "bias", "norm", "parameter")), (
        kinds
    )


@pytest.mark.long
def test_ten_thousand_networks():
    for seed in range(10_000, 20_000):
        check(seed)


def test_the_draws_can_fail(monkeypatch):
    """A reader of operations that is wrong is found out within the default draws."""
    linear = operations._READERS["linear"]

    def wrong(call):
        uses = linear(call)
        return [replace(use, x_rows=lambda x: x.flip(-1)) if use.kind == "matrix" else use for use in uses]

    monkeypatch.setitem(operations._READERS, "linear", wrong)
    with pytest.raises(AssertionError, match="product|embed|head|experts|mixed"):
        for seed in range(200):
            check(seed)
