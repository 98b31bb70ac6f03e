"""Which experts of a block would learn from a prompt: their tokens, routing weights and share of the gradient."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._html import table
from tl_backward.blocks import Part, is_expert
from tl_backward.factors import GradientFactors
from tl_backward.sites import WeightSites

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False, eq=False)
class ExpertLearning:
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

    def to_frame(self) -> "pandas.DataFrame":
        """One row an expert: n_tokens, routing_weight, share, norm, router_norm."""
        import pandas

        columns = {"expert": torch.arange(len(self.norm)), "n_tokens": self.n_tokens}
        columns |= {"routing_weight": self.routing_weight, "share": self.share, "norm": self.norm}
        columns |= {"router_norm": self.router_norm}
        return pandas.DataFrame({name: value.cpu().tolist() for name, value in columns.items()})

    def _repr_html_(self) -> str:
        """A static table, the expert that would learn most first."""
        frame = self.to_frame().sort_values("share", ascending=False, kind="stable")
        names = ["tokens", "routing", "share", "norm", "router"]
        columns = ["n_tokens", "routing_weight", "share", "norm", "router_norm"]
        records = frame.to_dict("records")
        rows = [["–" if row[name] != row[name] else row[name] for name in columns] for row in records]
        caption = (
            f"Which experts of {self.component} would learn: tokens that reached each, mean routing weight, share of "
            "the squared gradient norm, that norm, the norm of the router's gradient for it"
        )
        numbers = [f"expert {expert}" for expert in frame["expert"]]
        return table(names, rows, row_names=numbers, caption=caption)


def expert_learning(
    part: Part,
    sites: WeightSites,
    factors: dict[str, GradientFactors],
    vjp: Float[Tensor, "batch pos d_model"],
    mask: Bool[Tensor, "batch pos"],
) -> ExpertLearning:
    """See ExpertLearning.

    Args:
        part: a block's mixture.
        sites: the model's weights.
        factors: of all of the part's matrices.
        vjp: dL/d(what the part writes to the stream), raw sign.
        mask: True at real tokens.
    """
    rows = _rows_of_experts(part, sites, factors)
    read = factors[part.reader].inputs
    n = max([sites[name].layout.shape[0] for name in part.weights if sites[name].layout.experts], default=0)
    n = max([n, *(expert + 1 for expert in rows)])
    d_model = vjp.shape[-1]
    n_tokens, weight = torch.zeros(n, dtype=torch.long), torch.full((n,), float("nan"), dtype=torch.float64)
    squared = torch.zeros(n, dtype=torch.float64)
    for expert, held in rows.items():
        squared[expert] = sum(float(each.norm()) ** 2 for each in held)
        reached = {place for each in held for place in _places(each, mask)}
        n_tokens[expert] = len(reached)
        reader = next((each for each in held if each.inputs.shape[-1] == d_model), None)
        writer = next((each for each in reversed(held) if each.deltas.shape[-1] == d_model), None)
        if reader is not None and writer is not None:
            # A model weighs what an expert writes, or (Llama 4) what it reads.
            weight[expert] = _scale(writer, writer.deltas, vjp) * _scale(reader, reader.inputs, read)
    return ExpertLearning(part.component, n_tokens, weight, squared.sqrt(), _router_norm(part, factors, n))


def _rows_of_experts(
    part: Part, sites: WeightSites, factors: dict[str, GradientFactors]
) -> dict[int, list[GradientFactors]]:
    """Each expert's own factors, in the order in which its matrices are used."""
    found: dict[int, list[GradientFactors]] = {}
    mine = sorted((sites[name] for name in part.weights if is_expert(sites[name])), key=lambda site: site.order)
    for site in mine:
        held = factors[site.name]
        if site.layout.experts:
            for expert in range(held.n_experts):
                found.setdefault(expert, []).append(held.expert(expert))
        else:
            number = re.search(r"expert[a-z]*[._](\d+)", site.name.removeprefix(part.component))
            if number is not None:
                found.setdefault(int(number[1]), []).append(held)
    return found


def _places(factors: GradientFactors, mask: Tensor) -> set[tuple[int, int]]:
    """The real tokens (example, place) of some rows."""
    if factors.origin is None:
        return set()
    used = factors.inputs.flatten(0, 1).any(-1)
    example, token = (side.flatten()[used].tolist() for side in (factors.origin.example, factors.origin.token))
    pairs = zip(example, token, strict=True)
    return {(example, place) for example, place in pairs if example < 0 or bool(mask[example, place])}


def _scale(factors: GradientFactors, rows: Tensor, whole: Tensor) -> float:
    """Mean of w where each row of an expert is w times its token's vector [batch, pos, d_model]; else NaN."""
    if factors.origin is None or bool((factors.origin.example < 0).any()):
        return float("nan")
    own = rows.flatten(0, 1).double()
    of_token = whole[factors.origin.example, factors.origin.token].flatten(0, 1).double()
    size = (of_token * of_token).sum(-1)
    some = (size > 0) & own.any(-1)
    if not some.any():
        return float("nan")
    own, of_token, size = own[some], of_token[some], size[some]
    scale = (own * of_token).sum(-1) / size
    parallel = (own - scale[:, None] * of_token).norm(dim=-1) <= 1e-3 * own.norm(dim=-1)
    return float(scale.mean()) if bool(parallel.all()) else float("nan")


def _router_norm(part: Part, factors: dict[str, GradientFactors], n: int) -> Tensor:
    """Norm of the gradient of the router's output for each expert."""
    router = factors[part.reader]
    if router.deltas.shape[-1] != n or router.origin is not None:
        return torch.full((n,), float("nan"), dtype=torch.float64)
    return router.gradient().reshape(-1, n).double().norm(dim=0).cpu()
