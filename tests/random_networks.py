"""Random small networks of known operations, from a seed: how a weight may be used, told apart from any architecture.

A network maps tokens [batch, pos] to logits through a stream [batch, pos, D] to which each layer adds. What a layer does
with its weights is drawn: products of every spelling, heads, experts by loop, index or group, norms, casts, functions of
a weight, ties, changes in place, views.
"""

import random
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations import moe  # noqa: F401  registers grouped_mm_fallback, which takes float64

D, V, N_CTX = 6, 11, 8
Layer = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A stream of drawn layers; `notes` say what was drawn."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.cfg = SimpleNamespace(d_model=D)
        self.embed = self.weight("embed", V, D)
        self.notes: list[str] = []
        self.kinds = [self.choose(LAYERS) for _ in range(self.draw.randint(1, 4))]
        self.layers = [LAYERS[kind](self, f"{kind}{i}") for i, kind in enumerate(self.kinds)]
        self.head = self.draw.choice(HEADS)(self)
        self.looked_up = self.draw.choice(LOOKUPS)
        for parameter in self.parameters():
            parameter.requires_grad_(self.draw.random() < 0.8)

    def choose(self, options) -> str:
        """One of some names."""
        self.notes.append(self.draw.choice(list(options)))
        return self.notes[-1]

    def weight(self, name: str, *shape: int) -> nn.Parameter:
        """A new parameter."""
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 0.5
        parameter = nn.Parameter(value.to(self.dtype))
        self.register_parameter(name, parameter)
        return parameter

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, pos, V]."""
        stream = self.looked_up(self.embed, tokens)
        self.embedded = stream
        for layer in self.layers:
            stream = layer(stream)
        return self.head(stream)


LOOKUPS = (
    lambda w, ids: F.embedding(ids, w),
    lambda w, ids: w[ids],
    lambda w, ids: F.embedding(ids, w) * 2.5,
    lambda w, ids: w[ids.flatten()].view(*ids.shape, -1),
    lambda w, ids: F.embedding(ids, w, padding_idx=3),
    lambda w, ids: torch.index_select(w, 0, ids.flatten()).unflatten(0, ids.shape),
    lambda w, ids: F.one_hot(ids, V).to(w.dtype) @ w,
    lambda w, ids: F.embedding(ids, w.float()).to(w.dtype),
)

PRODUCTS: dict[str, tuple[bool, Callable[[Tensor, Tensor], Tensor]]] = {
    # name: (whether the weight is stored as [out, in], y from x and w)
    "linear": (True, lambda x, w: F.linear(x, w)),
    "matmul": (False, lambda x, w: x @ w),
    "transposed": (True, lambda x, w: torch.matmul(x, w.T)),
    "method": (True, lambda x, w: x.matmul(w.t())),
    "left": (True, lambda x, w: (w @ x.mT).mT),
    "flat": (False, lambda x, w: torch.mm(x.flatten(0, 1), w).view(*x.shape[:2], -1)),
    "addmm": (
        False,
        lambda x, w: torch.addmm(torch.zeros(w.shape[1], dtype=x.dtype), x.flatten(0, 1), w).view(*x.shape[:2], -1),
    ),
    "einsum": (False, lambda x, w: torch.einsum("bpi,io->bpo", x, w)),
    "einsum_out_in": (True, lambda x, w: torch.einsum("oi,bpi->bpo", w, x)),
    "tensordot": (False, lambda x, w: torch.tensordot(x, w, dims=1)),
    "linear_of_transposed": (False, lambda x, w: F.linear(x, w.T)),
    "by_token": (True, lambda x, w: torch.stack([torch.stack([w @ row for row in example]) for example in x])),
    "bmm": (False, lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1))),
    "baddbmm": (False, lambda x, w: torch.baddbmm(torch.zeros(1, dtype=x.dtype), x, w.repeat(len(x), 1, 1))),
    "pos_first": (True, lambda x, w: F.linear(x.transpose(0, 1), w).transpose(0, 1)),
    "halves": (True, lambda x, w: torch.cat([F.linear(x, half) for half in w.chunk(2)], -1)),
    "inner_halves": (True, lambda x, w: F.linear(x[..., :3], w[:, :3]) + F.linear(x[..., 3:], w[:, 3:])),
    "rows_summed": (False, lambda x, w: (x[..., None] * w).sum(-2)),
    "conv": (True, lambda x, w: F.conv1d(x.mT, w[..., None]).mT),
}


def _set(w: Tensor) -> Tensor:
    w[0] = 0.25
    return w


def _viewed_then_changed(w: Tensor) -> Tensor:
    view = w.view(w.shape)
    w.tanh_()
    return view


def _changed(w: Tensor) -> Tensor:
    w.view(-1)[:3].mul_(0.5)
    return w


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda w: w,
    "one_plus": lambda w: 1 + w,
    "plus_one": lambda w: w + 1.0,
    "minus_one": lambda w: w - 1,
    "cast": lambda w: w.float().to(w.dtype),
    "double": lambda w: w.double().to(w.dtype),
    "exp": lambda w: torch.exp(w),
    "minus_exp": lambda w: -torch.exp(w.float()).to(w.dtype),
    "scaled": lambda w: w * 0.7,
    "clone": lambda w: w.clone(),
    "contiguous": lambda w: w.T.contiguous().T,
    "softmax": lambda w: w.softmax(-1),
    "rounded": lambda w: w + ((w * 4).round() / 4 - w).detach(),
    "tanh_in_place": lambda w: w.clone().tanh_(),
    "set_in_place": lambda w: _set(w.clone()),
    "view_in_place": lambda w: _changed(w.clone()),
    "added_in_place": lambda w: torch.zeros_like(w).add_(w),
    "copied": lambda w: torch.zeros_like(w).copy_(w),
    "viewed_then_changed": lambda w: _viewed_then_changed(w.clone()),
    "normed": lambda w: w / w.norm(),
    "masked": lambda w: w * torch.ones_like(w).tril(1),
    "added": lambda w: torch.add(w, w, alpha=2),
    "detached_part": lambda w: w + w.detach(),
    "view": lambda w: w.view(-1).view(w.shape),
    "reversed": lambda w: w.flip(0),
    "clamped": lambda w: w.clamp(-0.4, 0.4),
}


def product_layer(net: Network, name: str) -> Layer:
    out_in, product = PRODUCTS[net.choose(PRODUCTS)]
    function = FUNCTIONS[net.choose(["plain"] * 8 + list(FUNCTIONS))]
    w, b = net.weight(f"W_{name}", D, D), net.weight(f"b_{name}", D)
    second = FUNCTIONS[net.choose(["plain"] * 8 + list(FUNCTIONS))]
    twice, biased = net.draw.random() < 0.2, net.draw.random() < 0.5
    add_in_place, relu_in_place = net.draw.random() < 0.3, net.draw.random() < 0.2

    def run(stream: Tensor) -> Tensor:
        y = product(stream, function(w))
        if biased:
            y = y + b
        if relu_in_place:
            y = F.relu(y, inplace=True)
        if twice:
            y = product(y.tanh(), second(w))
        if add_in_place:
            stream = stream.clone()
            stream += y
            return stream
        return stream + y

    return run


class SomeNorm(nn.Module):
    """What holds a norm's weight."""


def norm_layer(net: Network, name: str) -> Layer:
    holder = SomeNorm()
    net.add_module(name, holder)
    w = holder.weight = nn.Parameter(net.weight(f"{name}_w", D).detach().clone())
    del net._parameters[f"{name}_w"]
    b = net.weight(f"b_{name}", D)
    how = net.choose(["layer_norm", "rms_norm", "mul", "rmul", "one_plus", "mul_in_place", "float"])
    function = FUNCTIONS[net.choose(["plain"] * 6 + ["cast", "one_plus", "exp"])]

    def run(stream: Tensor) -> Tensor:
        v = function(w)
        if how == "layer_norm":
            return F.layer_norm(stream, (D,), v, b, 1e-3)
        if how == "rms_norm":
            return F.rms_norm(stream, (D,), v, 1e-3)
        x = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + 1e-3)
        if how == "float":
            return (v * x.float()).to(stream.dtype) + b
        if how == "mul_in_place":
            x = x.mul_(v)
            return x + b
        return v * x + b if how == "rmul" else x * (1 + v) if how == "one_plus" else x * v

    return run


def heads_layer(net: Network, name: str) -> Layer:
    q, o = net.weight(f"W_{name}_Q", 2, D, 3), net.weight(f"W_{name}_O", 2, 3, D)
    how = net.choose(["einsum", "einsum_turned", "broadcast", "flat", "each"])

    def run(stream: Tensor) -> Tensor:
        if how == "einsum":
            z = torch.einsum("bpd,hdk->bphk", stream, q).tanh()
            return stream + torch.einsum("bphk,hkd->bpd", z, o)
        if how == "einsum_turned":
            z = torch.einsum("hdk,bpd->bhpk", q, stream).tanh()
            return stream + torch.einsum("bhpk,hkd->bpd", z, o)
        if how == "broadcast":
            z = (stream[:, None] @ q).tanh()
            return stream + (z @ o).sum(1)
        if how == "flat":
            z = F.linear(stream, q.permute(0, 2, 1).reshape(6, D)).tanh()
            return stream + F.linear(z, o.reshape(6, D).T)
        z = [(stream @ q[h]).tanh() @ o[h] for h in range(2)]
        return stream + z[0] + z[1]

    return run


def experts_layer(net: Network, name: str) -> Layer:
    up, down = net.weight(f"{name}_up", 3, 4, D), net.weight(f"{name}_down", 3, D, 4)
    router = net.weight(f"W_{name}_router", 3, D)
    how = net.choose(["loop", "grouped", "bmm", "index", "dense", "gathered", "unused"])
    k = net.draw.randint(1, 2)

    def run(stream: Tensor) -> Tensor:
        x = stream.reshape(-1, D)
        scores, chosen = F.linear(x, router).softmax(-1).topk(k)
        out = torch.zeros_like(x)
        if how == "dense":  # every expert sees every token
            y = torch.bmm(torch.bmm(x.expand(3, -1, -1), up.mT).tanh(), down.mT)
            every = torch.zeros(len(x), 3, dtype=x.dtype).scatter(1, chosen, scores)
            return stream + (y * every.T[..., None]).sum(0).view(stream.shape)
        token = torch.arange(len(x)).repeat_interleave(k)
        expert = chosen.flatten().clamp(max=1) if how == "unused" else chosen.flatten()
        if how == "grouped":
            order = expert.argsort(stable=True)
            ends = torch.bincount(expert, minlength=3).cumsum(0).to(torch.int32)
            hidden = torch.ops.transformers.grouped_mm_fallback(x[token[order]], up.mT, offs=ends).tanh()
            y = torch.stack([hidden[i] @ down[expert[order[i]]].T for i in range(len(order))])
            return stream + out.index_add(0, token[order], y * scores.flatten()[order, None]).view(stream.shape)
        if how == "bmm":
            y = torch.bmm(up[expert], x[token][..., None]).tanh()
            y = torch.bmm(down[expert], y)[..., 0]
            return stream + out.index_add(0, token, y * scores.flatten()[:, None]).view(stream.shape)
        if how == "gathered":
            y = torch.einsum("nd,nhd->nh", x[token], up.index_select(0, expert)).tanh()
            y = torch.einsum("nh,ndh->nd", y, down.index_select(0, expert))
            return stream + out.index_add(0, token, y * scores.flatten()[:, None]).view(stream.shape)
        for e in range(3):
            rows = (expert == e).nonzero()[:, 0] if how == "index" else torch.where(expert == e)[0]
            if not len(rows):
                continue
            y = F.linear(F.linear(x[token[rows]], up[e]).tanh(), down[e]) * scores.flatten()[rows, None]
            out = out.index_add(0, token[rows], y) if how == "index" else out.index_put((token[rows],), y, True)
        return stream + out.view(stream.shape)

    return run


def position_layer(net: Network, name: str) -> Layer:
    w = net.weight(f"W_{name}_pos", N_CTX, D)
    how = net.choose(["embedding", "index", "slice", "add_in_place"])

    def run(stream: Tensor) -> Tensor:
        n = stream.shape[1]
        places = torch.arange(n)
        if how == "embedding":
            return stream + F.embedding(places, w)
        if how == "index":
            return stream + w[places][None]
        if how == "slice":
            return stream + w[:n]
        stream = stream.clone()
        stream.add_(w[:n])
        return stream

    return run


def vector_layer(net: Network, name: str) -> Layer:
    a, s, k = net.weight(f"{name}_A_log", D), net.weight(f"{name}_scale", 1), net.weight(f"{name}_kernel", D, 1, 2)
    how = net.choose(["decay", "scalar", "kernel", "where", "cat", "prompt"])

    def run(stream: Tensor) -> Tensor:
        if how == "decay":
            return stream * torch.exp(-torch.exp(a))
        if how == "scalar":
            return stream * s + stream.tanh() * s.exp()
        if how == "kernel":
            return stream + F.conv1d(stream.mT, k, padding=1, groups=D)[..., :-1].mT
        if how == "where":
            return torch.where(stream > 0, stream, a)
        if how == "cat":
            return stream + torch.cat([a.expand(*stream.shape[:-1], -1), stream], -1)[..., :D] * stream
        return torch.cat([stream[:, :-1], stream[:, -1:] + a.expand(len(stream), 1, -1)], 1)

    return run


def mixed_layer(net: Network, name: str) -> Layer:
    w, other = net.weight(f"W_{name}", D, D), net.weight(f"W_{name}_other", D, D)
    a, b = net.weight(f"{name}_A", 2, D), net.weight(f"{name}_B", D, 2)
    mask = torch.ones(D, D, dtype=net.dtype).tril(2)
    net.register_buffer(f"{name}_mask", mask)
    how = net.choose(["sum", "low_rank", "product", "stacked", "norm_and_direction", "buffer", "sometimes"])

    def run(stream: Tensor) -> Tensor:
        if how == "sum":
            return stream + F.linear(stream, w + other)
        if how == "low_rank":
            return stream + F.linear(stream, w + 0.5 * b @ a)
        if how == "product":
            return stream + F.linear(stream, w @ other)
        if how == "stacked":
            return stream + F.linear(stream, torch.cat([w, other]))[..., 2 : D + 2]
        if how == "norm_and_direction":
            return stream + F.linear(stream, other[:, :1] * w / w.norm(dim=1, keepdim=True))
        if how == "buffer":
            return stream + F.linear(2 * stream, w * mask)
        with torch.no_grad():
            seen = F.linear(stream, w)
        return stream + F.linear(stream, w) * seen.sigmoid()

    return run


def tied_layer(net: Network, name: str) -> Layer:
    w = net.embed
    how = net.choose(["linear", "add", "twice"])

    def run(stream: Tensor) -> Tensor:
        if how == "add":
            return stream + w[:1]
        y = F.linear(stream, w).softmax(-1) @ w
        return stream + y if how == "linear" else stream + (y @ w.T).tanh() @ w

    return run


LAYERS = {
    "product": product_layer, "product_again": product_layer, "norm": norm_layer, "heads": heads_layer,
    "experts": experts_layer, "position": position_layer, "vector": vector_layer, "mixed": mixed_layer,
    "tied": tied_layer,
}  # fmt: skip


def tied_head(net: Network) -> Layer:
    return lambda stream: F.linear(stream, net.embed)


def own_head(net: Network) -> Layer:
    w, b = net.weight("W_head", D, V), net.weight("b_head", V)
    softcap = net.draw.random() < 0.5

    def run(stream: Tensor) -> Tensor:
        logits = stream @ w + b
        return 3 * torch.tanh(logits / 3) if softcap else logits

    return run


HEADS = (tied_head, own_head)
