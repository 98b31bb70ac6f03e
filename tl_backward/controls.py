"""The control beside a finding: the same architecture that has learned nothing; and whole copies of models."""

from copy import deepcopy

import torch
from torch import Tensor

from tl_backward._typing import TransformerLensModel
from tl_backward._visits import check_visitor
from tl_backward.sites import weight_sites


def copied(model: TransformerLensModel) -> TransformerLensModel:
    """A copy of `model` that shares nothing but the tokenizer with it and has no hooks."""
    check_visitor(model)  # whose hooks would be copied
    # TransformerBridge keeps the last attention pattern, a tensor inside a graph, which cannot be copied.
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, object] = {id(value): value.detach() for value in kept if not value.is_leaf}
    memo[id(model.tokenizer)] = model.tokenizer
    clone = deepcopy(model, memo)
    # In compatibility mode a gated MLP computes with aliases of its parameters, which a copy tears from them.
    twins = {(p.data_ptr(), p.shape): q for p, q in zip(model.parameters(), clone.parameters(), strict=True)}
    for module, copy in zip(model.modules(), clone.modules(), strict=True):
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and (value.data_ptr(), value.shape) in twins:
                vars(copy)[name] = twins[value.data_ptr(), value.shape].detach()
    clone.reset_hooks(including_permanent=True)
    return clone


def random_init(model: TransformerLensModel, *, seed: int = 0) -> TransformerLensModel:
    """A copy of `model` with fresh weights and no hooks: what a finding looks like before any training.

    Matrices and embeddings are drawn from N(0, cfg.initializer_range^2) (0.02 where the configuration has none), norm
    weights are one, biases zero. Tied weights stay tied. Neither `model` nor the global RNG is touched.
    """
    clone = copied(model)
    deviation = float(getattr(clone.cfg, "initializer_range", 0) or 0)
    deviation = deviation if deviation > 0 else 0.02
    one_plus = bool(getattr(clone.cfg, "rmsnorm_uses_offset", False))  # Gemma multiplies by 1 + weight
    kinds = {id(site.parameter): site.kind for site in weight_sites(clone).values()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in clone.parameters():
            kind = kinds.get(id(parameter), "bias" if parameter.ndim == 1 else "matrix")
            if kind == "norm":
                parameter.fill_(0.0 if one_plus else 1.0)
            elif kind == "bias":
                parameter.zero_()
            elif parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return clone
