"""Coherence of parameter vectors as distributions, with the Gaussian baseline's behind them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.public import public
from tl_backward.render.figures import Curve, curves

if TYPE_CHECKING:
    import plotly.graph_objects

GAUSSIAN = "Gaussian vectors"

_POINTS = 160


@public
def coherence_figure(
    scores: Mapping[str, Tensor], gaussian: Tensor, *, title: str = "Coherence of the top tokens"
) -> "plotly.graph_objects.Figure":
    """Draw the distribution of each group of coherence scores, the Gaussian vectors' as a grey area behind.

    Args:
        scores: name of a group -> its scores [vector]; NaN is left out.
        gaussian: scores of Gaussian vectors through the same embedding [draw].
        title: above the figure.

    Examples:
        >>> found = tlb.embedding_space.parameter_coherence(model, 'W_out', 2)
        >>> len(tlb.render.coherence_figure({'W_out': found.score}, found.gaussian).data) > 1
        True
    """
    finite = {name: values.detach().double().cpu() for name, values in {GAUSSIAN: gaussian, **scores}.items()}
    finite = {name: values[values.isfinite()] for name, values in finite.items()}
    everything = torch.cat(list(finite.values()))
    margin = 0.05 * float(everything.max() - everything.min()) or 0.01
    x = torch.linspace(float(everything.min()) - margin, float(everything.max()) + margin, _POINTS, dtype=torch.float64)
    lines = [Curve(name, density(values, x)) for name, values in finite.items()]
    figure = curves(lines, title=title, x_title="mean cosine of the top tokens", y_title="density", x=x.tolist())
    figure.update_traces(mode="lines")
    figure.data[0].update(fill="tozeroy", fillcolor="rgba(120,120,120,0.35)", line={"color": "#787878", "width": 1})
    figure.update_layout(meta={"min_width": 480})
    return figure


def density(values: Float[Tensor, " value"], x: Float[Tensor, " point"]) -> Float[Tensor, " point"]:
    """Gaussian kernel density of values at points, with Silverman's bandwidth 0.9 min(std, IQR / 1.34) n^(-1/5)."""
    if len(values) < 2:
        return torch.full_like(x, torch.nan)
    low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype))
    spread = min([each for each in [float(values.std()), float(high - low) / 1.34] if each > 0], default=0.0)
    bandwidth = max(0.9 * spread * len(values) ** -0.2, 1e-3 * float(x[-1] - x[0]))
    total = torch.zeros_like(x)
    for some in values.split(8192):
        total += torch.exp(-0.5 * ((x - some[:, None]) / bandwidth).square()).sum(0)
    return total / (len(values) * bandwidth * math.sqrt(2 * math.pi))
