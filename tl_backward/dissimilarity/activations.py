"""Activations at hook points: which there are, how wide, and their values at chosen tokens, leaving no trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_layers, nearest
from tl_backward._support.types import TransformerLensModel
from tl_backward.dissimilarity.reading import Sample
from tl_backward.dissimilarity.tokens import PairedTokens
from tl_backward.model.activations import forward, last_layer, watch
from tl_backward.model.inputs import check_reads_text

Hook: TypeAlias = str | Sequence[str]
Heads: TypeAlias = Literal["flatten", "each"]


@dataclass(frozen=True)
class Point:
    """One representation of a model: a hook point, or one head's part of it."""

    label: str
    """Short: "L3", "L3H5", or the hook point's full name."""
    name: str
    """The hook point's full name."""
    head: int | None
    width: int


def find_points(
    model: TransformerLensModel, hook: Hook, layers: int | Sequence[int] | None, heads: Heads, which: str = "model"
) -> list[Point]:
    """The hook points that `hook` and `layers` name, probed by a forward pass over a few tokens.

    Args:
        model: any TransformerLens model.
        hook: TransformerLens's short name ("resid_post", "z", "mlp_out", "post"), taken at each of `layers`; or full
            names ("blocks.3.hook_resid_mid", "ln_final.hook_normalized"), one or a list.
        layers: as in `tl_backward.backward_lens`; None for all.
        heads: "flatten" puts a point's heads side by side, "each" makes every head a point of its own.
        which: what messages call the model.

    Raises:
        ValueError: a hook point that the model lacks, that never runs, or that holds no vector a token.
    """
    check_reads_text(model)
    named = list(_named(model, hook, layers, which).items())
    n = 3 if model.cfg.n_heads == 2 else 2
    tokens = torch.zeros(1, min(n, model.cfg.n_ctx), dtype=torch.long, device=model.W_U.device)
    probe = torch.arange(tokens.shape[1])
    names = [name for _, name in named]
    with watch(model, names, torch.zeros_like(probe), probe) as seen:
        forward(model, tokens, last_layer(names))
    points = []
    for label, name in named:
        value = seen.get(name)
        if value is None:
            raise ValueError(
                f"Expected {name!r} of {which} to hold one vector a token, got something else or nothing in a forward "
                "pass (a pattern over pairs of tokens, a scale, or a flag such as use_attn_result that is off); choose "
                "another hook point."
            )
        if heads == "each":
            if value.ndim != 3:
                raise ValueError(
                    f"Expected {name!r} of {which} to have heads for heads='each', got a value of shape "
                    f"{list(value.shape[1:])} a token; use hook='z', 'q', 'k', 'v' or 'result'."
                )
            points += [Point(f"{label}H{head}", name, head, value.shape[2]) for head in range(value.shape[1])]
        else:
            points.append(Point(label, name, None, value[0].numel()))
    return points


def _named(model: TransformerLensModel, hook: Hook, layers: int | Sequence[int] | None, which: str) -> dict[str, str]:
    """Label -> full name."""
    from transformer_lens.utilities.components_utils import get_act_name

    known = model.hook_dict
    if isinstance(hook, str) and hook not in known and "." not in hook:
        wanted = {f"L{layer}": get_act_name(hook, layer) for layer in check_layers(layers, model.cfg.n_layers)}
    else:
        names = [hook] if isinstance(hook, str) else list(hook)
        if layers is not None:
            raise ValueError(
                f"Expected layers only with a short hook name such as 'resid_post', got layers={layers!r} beside full "
                f"names; leave layers out of {which}."
            )
        if not names:
            raise ValueError("Expected at least one hook point, got an empty list; for example hook='resid_post'.")
        wanted = {name: name for name in names}
    for name in wanted.values():
        if name not in known:
            raise ValueError(
                f"Expected a hook point of {which}, got {name!r}, which it lacks; the nearest are "
                f"{nearest(name, known)}."
            )
    return wanted


def read_points(
    model: TransformerLensModel, points: Sequence[Point], pairs: PairedTokens, side: Literal["a", "b"], sample: Sample
) -> list[Float[Tensor, "sample _"]]:
    """Each point's activations at a batch's samples, in the model's dtype.

    Raises:
        ValueError: NaN or inf; the hook point and the batch are named.
        RuntimeError: a hook point did not run.
    """
    batch, at = (pairs.a, pairs.at_a) if side == "a" else (pairs.b, pairs.at_b)
    names = list(dict.fromkeys(point.name for point in points))
    with watch(model, names, pairs.text, at) as seen:
        forward(model, batch.tokens, last_layer(names))
    rows = []
    for point in points:
        if point.name not in seen:
            raise RuntimeError(
                f"Expected {point.name!r} to run in every forward pass, but it did not in batch {pairs.number}; the "
                "model takes another way through these tokens, choose another hook point."
            )
        value = seen[point.name]
        value = value[:, point.head] if point.head is not None else value.flatten(1)
        if not torch.isfinite(value).all():
            raise ValueError(
                f"Expected finite activations, got NaN or inf at {point.name!r} of model {side.upper()} in batch "
                f"{pairs.number}; look upstream for an overflow, or leave that batch out."
            )
        rows.append(_means(value, pairs.text) if sample == "mean" else value)
    return rows


def _means(value: Tensor, text: Tensor) -> Tensor:
    """The mean over each text's samples, in order of the texts."""
    _, index, counts = torch.unique(text.to(value.device), return_inverse=True, return_counts=True)
    total = torch.zeros(len(counts), value.shape[1], dtype=torch.float64, device=value.device)
    total.index_add_(0, index, value.double())
    return (total / counts[:, None]).to(value.dtype)
