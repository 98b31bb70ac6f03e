"""Coloured tokens, and attention patterns by circuitsvis, called safely."""

import unicodedata
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from tl_backward._support.html import (
    NEGATIVE,
    POSITIVE,
    SPACE,
    Number,
    legend,
    scale_bound,
    token_strip,
    visible_text,
    visible_token,
)
from tl_backward._support.public import public
from tl_backward.render.page import Fragment
from tl_backward.render.scripts import draw_script, place, place_key, to_json
from tl_backward.render.static import heat_image

_MOST_SQUARES = 300_000  # the chart holds one object per square; beyond this a browser tab stalls

CARD = "position:relative;background-color:#ffffff;color:#1a1a1a;color-scheme:light;padding:8px;margin:6px 0;"
"""circuitsvis and plotly draw for a white page, so in a dark theme they stand on a white card."""


def floats(values: Real[Tensor, "x"] | Sequence[Number]) -> list[float]:
    """A list of floats from a tensor (any dtype, device, with or without gradient) or a sequence."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).tolist()
    return [float(value) for value in values]


def isolate(text: str) -> str:
    """`text` isolated from its neighbours' writing direction, for places without markup (canvas, SVG)."""
    rtl = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text)
    return f"\u2068{text}\u2069" if rtl else text


def component_token(token: str, limit: int = 200) -> str:
    """Turn a raw token into a string that circuitsvis shows as it is.

    Its React code sets tokens as inner HTML. A ``<`` or ``&`` starts markup only together with the character
    that follows, so an invisible U+2060 after each keeps it text; entities would show up in the hover boxes,
    which are not inner HTML.
    """
    return visible_token(token, limit).replace("<", "<\u2060").replace("&", "&\u2060")


def circuitsvis(component: str, props: Mapping[str, object], static: str, style: str = CARD) -> Fragment:
    """One circuitsvis component with `props`; `static` is trusted HTML shown until (and unless) it is drawn.

    Token strings in `props` must have gone through `component_token`. `component` is trusted.
    """
    data = to_json(props)
    key = place_key(component, data)
    script = draw_script(key, "CircuitsVis", data, f"CircuitsVis.render(place.id, CircuitsVis.{component}, data);")
    return Fragment(place(key, static, style), (script,), frozenset({"circuitsvis"}))


@public
def tokens(
    tokens: Sequence[str],
    values: Real[Tensor, "pos"] | Sequence[Number],
    *,
    value_label: str,
    signed: bool = False,
    bound: Number | None = None,
    gaps: Sequence[bool] | None = None,
) -> Fragment:
    """Show the tokens of one text, coloured by one value each (exact value on hover), with a legend.

    `value_label` names the value, its unit and, if `signed`, the sign convention. Colours run from -`bound`
    (orange) over 0 (white) to `bound` (blue); the default bound is the largest absolute value. `gaps` says before
    which tokens there is a space that none of them has.

    Examples:
        >>> 'nats' in tlb.render.tokens(['<bos>', ' of'], [0.0, 1.5], value_label='loss, nats').html
        True
    """
    numbers = floats(values)
    if len(numbers) != len(tokens):
        raise ValueError(f"Need one value per token: got {len(tokens)} tokens and {len(numbers)} values.")
    bound = scale_bound(numbers) if bound is None else bound
    return Fragment(token_strip(tokens, numbers, value_label=value_label, signed=signed, bound=bound, gaps=gaps))


@public
def attention(
    tokens: Sequence[str],
    patterns: Float[Tensor, "head query key"],
    *,
    value_label: str = "attention",
    signed: bool = False,
    bound: Number | None = None,
    head_names: Sequence[str] | None = None,
    causal: bool = True,
) -> Fragment:
    """Show a small square per head and the chosen one in full: rows attend (query) to columns (key).

    `patterns` are probabilities, scores or gradients, on the scale of `tokens`; the default bound is the
    largest absolute value, shared by all heads, counting only keys up to the query if `causal` (the rest is
    masked in grey).

    Examples:
        >>> page = tlb.render.attention(['a', 'b'], torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]))
        >>> isinstance(page, tlb.render.Fragment)
        True
    """
    heads, queries, keys = patterns.shape
    if queries != keys or keys != len(tokens) or heads == 0 or keys == 0:
        raise ValueError(
            f"Expected patterns of shape [head, query, key] with one query and one key per token, got "
            f"{list(patterns.shape)} for {len(tokens)} tokens."
        )
    if patterns.numel() > _MOST_SQUARES:
        raise ValueError(
            f"{heads} heads x {queries} x {keys} tokens are {patterns.numel()} squares; a browser can draw "
            f"about {_MOST_SQUARES}. Show fewer heads, or slice the tokens and both pattern axes."
        )
    if head_names is not None and len(head_names) != heads:
        raise ValueError(f"Need one name per head: got {len(head_names)} names for {heads} heads.")
    shown = patterns.detach().to("cpu", torch.float64)
    # Six digits are what hovering shows anyone can use, and a third of the size.
    rows = [[[float(f"{v:.6g}") for v in row] for row in head] for head in (shown.tril() if causal else shown).tolist()]
    bound = scale_bound(v for head in rows for row in head for v in row) if bound is None else bound
    names = [visible_text(name) for name in head_names] if head_names else [f"H{i}" for i in range(heads)]
    props = {
        "attention": rows,
        # The component takes spaces out of the names on its axes.
        "tokens": [isolate(component_token(token, 24).replace(" ", SPACE)) for token in tokens],
        "attentionHeadNames": names,
        "minValue": -bound,
        "maxValue": bound,
        "negativeColor": NEGATIVE,
        "positiveColor": POSITIVE,
        "maskUpperTri": causal,
    }
    images = "".join(
        heat_image(head, bound=bound, label=name, pixels=160) + " " for head, name in zip(rows, names, strict=True)
    )
    # Room for every token's name up to about 45; the component itself never grows beyond 1140 pixels.
    width = min(max(480, 220 + 20 * keys), 1140)
    return Fragment(legend(value_label, bound, signed=signed)) + circuitsvis(
        "AttentionHeads", props, images, CARD + f"max-width:{width}px;overflow-x:auto;"
    )
