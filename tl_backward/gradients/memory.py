"""How much memory the factors of a capture take, said before it is taken."""

import warnings
from collections.abc import Iterable

import torch

from tl_backward._support.checks import LargeCaptureWarning
from tl_backward._support.types import TransformerLensModel
from tl_backward.weights import WeightSite

NOTICE_BYTES = 4 * 2**30
"""From how many bytes of factors on a capture says so."""


def factor_bytes(model: TransformerLensModel, sites: Iterable[WeightSite], n_tokens: int) -> int:
    """Bytes of all x and delta: (d_in + d_out) numbers a token and matrix, of experts a token and chosen expert.

    Inputs that several weights share are counted for each: an upper bound where experts see as many tokens as they are
    chosen for.
    """
    own = getattr(getattr(model, "original_model", None), "config", None)
    configs = (getattr(own, "text_config", None), own, model.cfg)
    names = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "top_k")
    chosen = (getattr(config, name, None) for config in configs for name in names)
    per_token = next((value for value in chosen if isinstance(value, int) and value > 0), 1)
    total = 0
    for site in sites:
        if site.kind == "parameter":
            total += site.parameter.nbytes
        else:
            rows = n_tokens * (per_token if site.layout.experts else 1)
            total += rows * _widths(site) * site.parameter.element_size()
    return total


def _widths(site: WeightSite) -> int:
    """Numbers of x and delta of one token."""
    if site.kind in ("bias", "norm"):
        return torch.Size(site.layout.shape).numel()
    return site.layout.shape[1] if site.kind == "embedding" else sum(site.layout.matrix_shape)


def announce(model: TransformerLensModel, sites: Iterable[WeightSite], n_tokens: int) -> None:
    """Warn before a capture whose factors take much memory."""
    sites = list(sites)
    needed = factor_bytes(model, sites, n_tokens)
    if needed >= NOTICE_BYTES:
        warnings.warn(
            f"This capture will hold about {needed / 2**30:.1f} GiB of factors ({len(sites)} weights, {n_tokens} "
            "tokens); choose fewer weights, layers or tokens if that is too much.",
            LargeCaptureWarning,
            stacklevel=3,
        )
