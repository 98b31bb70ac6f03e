"""Which experts of a block would learn from a prompt: their tokens, routing weights and share of the gradient."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.html import table
from tl_backward._support.saved import Saved
from tl_backward._support.types import DataFrame
from tl_backward.weights import WeightSites
from tl_backward.weights.blocks import Part, is_expert
from tl_backward.weights.factors import GradientFactors


@dataclass(frozen=True, repr=False, eq=False)
class ExpertLearning(Saved):
    """What one gradient step would write into each expert of one block.

    An expert that no token reached has no gradient: its share is 0.
    """

    component: str
    """TransformerLens's path of the block's mixture: "blocks.3.mlp"."""
    n_tokens: Int[Tensor, " expert"]
    """Real tokens (of all examples together) that were routed to each expert."""
    routing_weight: Float[Tensor, " expert"]
    """Mean factor with which each expert's output enters the block's, over the tokens that reached it and have a
    gradient; NaN where none does or where the output is not simply scaled."""
    norm: Float[Tensor, " expert"]
    """Frobenius norm of the gradient of each expert's matrices together."""
    router_norm: Float[Tensor, " expert"]
    """Norm of the router's gradient at each expert's own row; NaN where the router has no such rows."""

    @property
    def share(self) -> Float[Tensor, " expert"]:
        """Each expert's share of the squared gradient norm of all experts; sums to 1, or 0 where nothing is learnt."""
        squared = self.norm.double() ** 2
        total = squared.sum()
        return torch.where(total > 0, squared / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)

    def __repr__(self) -> str:
        first = int(self.norm.argmax()) if len(self.norm) else -1
        return f"ExpertLearning({self.component}, {len(self.norm)} experts, most: {first} with {self.share[first]:.0%})"

    def to_frame(self) -> DataFrame:
        """One row an expert: n_tokens, routing_weight, share, norm, router_norm."""
        import pandas

        columns = {name: getattr(self, name).cpu().tolist() for name in _HEADINGS}
        return pandas.DataFrame({"expert": range(len(self.norm))} | columns)

    def _repr_html_(self) -> str:
        """A static table, the expert that would learn most first."""
        records = self.to_frame().sort_values("share", ascending=False, kind="stable").to_dict("records")
        rows = [["–" if row[name] != row[name] else row[name] for name in _HEADINGS] for row in records]
        caption = (
            f"Which experts of {self.component} would learn: tokens that reached each, mean routing weight, share of "
            "the squared gradient norm, that norm, the norm of the router's gradient for it"
        )
        names = [f"expert {row['expert']}" for row in records]
        return table(list(_HEADINGS.values()), rows, row_names=names, caption=caption)


_HEADINGS = {
    "n_tokens": "tokens",
    "routing_weight": "routing",
    "share": "share",
    "norm": "norm",
    "router_norm": "router",
}
"""What is known of each expert, and its column in a table."""


def expert_learning(
    part: Part,
    sites: WeightSites,
    factors: dict[str, GradientFactors],
    vjp: Float[Tensor, "batch pos d_model"],
    mask: Bool[Tensor, "batch pos"],
) -> ExpertLearning:
    """What one gradient step would write into each expert of a block.

    Args:
        part: a block's mixture.
        sites: the model's weights.
        factors: of all of the part's matrices.
        vjp: dL/d(what the part writes to the stream), raw sign.
        mask: True at real tokens.
    """
    groups, read, d_model = _groups(part, sites, factors), factors[part.reader].inputs, vjp.shape[-1]
    n = max([sites[name].layout.shape[0] for name in part.weights if sites[name].layout.experts], default=0)
    n = max([n, *(int(expert) + 1 for group in groups for each in group for expert in each.experts)])
    n_tokens, squared = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.float64)
    weight = torch.full((n,), torch.nan, dtype=torch.float64)
    for group in groups:
        experts = group[0].experts
        squared[experts] = torch.stack([each.norms() for each in group]).square().sum(0)
        n_tokens[experts] = _n_tokens(group, mask)[experts]
        reader = next((each for each in group if each.factors.inputs.shape[-1] == d_model), None)
        writer = next((each for each in reversed(group) if each.factors.deltas.shape[-1] == d_model), None)
        if reader is not None and writer is not None:
            # A model weighs what an expert writes, or (Llama 4) what it reads.
            scale = _scales(writer, writer.factors.deltas, vjp) * _scales(reader, reader.factors.inputs, read)
            weight[experts] = scale[experts]
    return ExpertLearning(part.component, n_tokens, weight, squared.sqrt(), _router_norm(part, factors, n))


@dataclass(frozen=True)
class _Held:
    """One matrix's factors, and the expert that each of their rows belongs to."""

    factors: GradientFactors
    experts: Tensor
    """[expert], the numbers of all that have a matrix here."""
    of_row: Tensor
    """[row], each row's expert."""

    def norms(self) -> Tensor:
        """[expert], the gradient's norm of each."""
        own = self.factors.expert_norms() if self.factors.layout.experts else self.factors.norm()[None]
        return own.double().cpu()

    def mean(self, values: Tensor, rows: Tensor) -> Tensor:
        """[0 .. largest expert], each one's mean of values [row] over some of its rows; NaN where it has none."""
        experts = self.of_row[rows]
        n = int(self.experts[-1]) + 1
        return values.new_zeros(n).index_add_(0, experts, values[rows]) / torch.bincount(experts, minlength=n)


def _groups(part: Part, sites: WeightSites, factors: dict[str, GradientFactors]) -> list[list[_Held]]:
    """Factors of the experts' matrices, grouped by expert, in the order of their use."""
    groups: dict[int | None, list[_Held]] = {}
    mine = sorted((sites[name] for name in part.weights if is_expert(sites[name])), key=lambda site: site.order)
    for site in mine:
        held = factors[site.name]
        if site.layout.experts:
            assert held.origin is not None and held.origin.expert is not None
            groups.setdefault(None, []).append(_Held(held, torch.arange(held.n_experts), held.origin.expert.flatten()))
        else:
            number = re.search(r"expert[a-z]*[._](\d+)", site.name.removeprefix(part.component))
            if number is not None:
                expert = torch.tensor([int(number[1])])
                of_row = expert.to(held.deltas.device).expand(held.n_tokens)
                groups.setdefault(int(number[1]), []).append(_Held(held, expert, of_row))
    return list(groups.values())


def _n_tokens(group: list[_Held], mask: Tensor) -> Tensor:
    """Number of real tokens routed to each expert, [expert]; rows of unknown tokens count one by one."""
    n, places = int(group[0].experts[-1]) + 1, mask.numel()
    reached, unknown = torch.zeros(n, places, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
    for held in group:
        origin = held.factors.origin
        if origin is None:
            continue
        used = held.factors.inputs.flatten(0, 1).any(-1)
        example, token = origin.example.flatten(), origin.token.flatten()
        known = used & (example >= 0)
        reached[held.of_row[known].cpu(), (example * mask.shape[1] + token)[known].cpu()] = True
        unknown = unknown.maximum(torch.bincount(held.of_row[used & (example < 0)].cpu(), minlength=n))
    return (reached & mask.flatten().cpu()).sum(1) + unknown


def _scales(held: _Held, rows: Tensor, whole: Tensor) -> Tensor:
    """[0 .. largest expert], each one's mean of w where each of its rows is w times its token's vector; else NaN."""
    origin = held.factors.origin
    if origin is None or bool((origin.example < 0).any()):
        return torch.full((int(held.experts[-1]) + 1,), float("nan"), dtype=torch.float64)
    exact = torch.promote_types(rows.dtype, torch.float32)
    own = rows.flatten(0, 1).to(exact)
    of_token = whole[origin.example, origin.token].flatten(0, 1).to(exact)
    size = (of_token * of_token).sum(-1)
    some = (size > 0) & own.any(-1)
    scale = (own * of_token).sum(-1) / size
    apart = (own - scale[:, None] * of_token).norm(dim=-1) > 1e-3 * own.norm(dim=-1)
    return held.mean(torch.where(apart, float("nan"), scale).double(), some).cpu()


def _router_norm(part: Part, factors: dict[str, GradientFactors], n: int) -> Tensor:
    """Norm of the gradient of the router's output for each expert."""
    router = factors[part.reader]
    if router.deltas.shape[-1] != n or router.origin is not None:
        return torch.full((n,), float("nan"), dtype=torch.float64)
    return router.gradient().reshape(-1, n).double().norm(dim=0).cpu()
