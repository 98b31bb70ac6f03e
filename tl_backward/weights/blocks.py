"""What each block of a model is made of, and which weights read the stream there and write to it.

A block's components are TransformerLens's: an MLP, experts behind a router, a mixer (Mamba, gated delta rule, RWKV), an
attention. What reads the stream imprints it; what writes to it is shifted against the VJP there.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tl_backward._support.types import TransformerLensModel
from tl_backward.weights import WeightSite, WeightSites

PartKind: TypeAlias = Literal["MLP", "experts", "mixer", "attention"]


@dataclass(frozen=True)
class Part:
    """One component of one block."""

    kind: PartKind
    component: str
    """TransformerLens's path of it: "blocks.3.mlp"."""
    reader: str
    """The weight whose inputs are what the component reads of the stream."""
    writer: str
    """The weight whose VJPs are those of what the component writes to the stream; "" where several write together."""
    weights: tuple[str, ...]
    """All of its matrices."""

    point: str
    """The hook point at which the component writes to the stream."""


@dataclass(frozen=True)
class Block:
    """The parts of one block."""

    layer: int
    main: Part | None
    """What it computes token by token (an MLP, experts), or the mixer of a block that has nothing of the kind."""
    mixing: Part | None
    """What moves information between tokens: an attention or a mixer."""

    @property
    def kind(self) -> str:
        """What the block is, in words: "attention, experts"."""
        kinds = [part.kind for part in (self.mixing, self.main) if part is not None]
        return ", ".join(dict.fromkeys(kinds))


def stack_name(sites: WeightSites) -> str:
    """The stack of blocks whose stream the head reads: the decoder's, where there is an encoder too."""
    return "blocks" if any(name.startswith("blocks.") for name in sites) else "decoder_blocks"


def blocks_of(model: TransformerLensModel, sites: WeightSites, d_model: int) -> dict[int, Block]:
    """The blocks of the stack that the head reads, by layer.

    Args:
        model: whose blocks.
        sites: its weights.
        d_model: the width of the stream.
    """
    stack = stack_name(sites)
    grouped: dict[int, dict[str, list[WeightSite]]] = {}
    for site in sites.values():
        parts = site.name.split(".")
        if parts[0] == stack and site.kind == "matrix" and site.layer is not None:
            layer = grouped.setdefault(site.layer, {})
            if len(parts) > 3:
                layer.setdefault(".".join(parts[:3]), []).append(site)
    found = {}
    for layer, components in sorted(grouped.items()):
        every = [_part(name, held, d_model, _point(model, name)) for name, held in components.items()]
        parts = [part for part in every if part is not None]
        token_wise = [part for part in parts if part.kind in ("MLP", "experts")]
        mixing = [part for part in parts if part.kind in ("attention", "mixer")]
        mixer = next((part for part in mixing if part.kind == "mixer"), None)
        main = token_wise[-1] if token_wise else mixer
        found[layer] = Block(layer, main, mixing[0] if mixing else None)
    return found


def _point(model: TransformerLensModel, component: str) -> str:
    """Where what a component writes to the stream passes: its own output, or a HookedTransformer's point for it."""
    block, _, last = component.rpartition(".")
    names = (f"{component}.hook_out", f"{block}.hook_{last}_out")
    return next((name for name in names if name in model.hook_dict), names[0])


def _part(name: str, sites: list[WeightSite], d_model: int, point: str) -> Part | None:
    """What a component is by its matrices; None for one that neither reads the stream nor writes to it."""
    short = {_USUAL.get(site.name.removeprefix(f"{name}."), site.name.removeprefix(f"{name}.")): site for site in sites}
    weights = tuple(site.name for site in sites)
    experts = [site for site in sites if is_expert(site)]
    if not any(d_model in _widths(site) for site in experts):  # blocks on a diagonal, which every token goes through
        experts = []
    plain = sorted((site for site in sites if site not in experts), key=lambda site: site.order)
    if "W_O" in short and "W_V" in short:
        return Part("attention", name, short["W_V"].name, short["W_O"].name, weights, point)
    reading = [site for site in plain if _widths(site)[0] == d_model and site is not short.get("W_O")]
    if "W_O" in short:  # latent attention: keys and values are read through a projection of their own
        latent = [site for site in reading if "kv" in site.name.rsplit(".", 1)[-1]] + reading
        return Part("attention", name, latent[0].name, short["W_O"].name, weights, point) if latent else None
    if experts:
        kind: PartKind = "attention" if name.endswith("attn") else "experts"
        n = next((site.layout.shape[0] for site in experts if site.layout.experts), 0)
        routers = [site for site in reading if n in (0, _widths(site)[1])] + reading
        return Part(kind, name, routers[0].name, "", weights, point) if routers else None
    if "W_in" in short and "W_out" in short:
        return Part("MLP", name, short["W_in"].name, short["W_out"].name, weights, point)
    writing = [site for site in plain if _widths(site)[1] == d_model and site not in reading[:1]]
    if not reading or not writing:
        return None
    return Part("mixer", name, reading[0].name, writing[-1].name, weights, point)


_USUAL = {"W_v_proj": "W_V", "W_o_proj": "W_O", "W_up_proj": "W_in", "W_down_proj": "W_out"}
"""What models mostly call a matrix that TransformerLens has no name for where it is."""


def is_expert(site: WeightSite) -> bool:
    """Whether a weight is one expert's, or all experts' in one parameter."""
    return site.layout.experts or ".expert" in site.name.replace("shared_expert", "")


def _widths(site: WeightSite) -> tuple[int, int]:
    """[d_in, d_out] of a matrix, head axes flattened."""
    shape, heads = site.layout.shape, site.layout.heads
    if len(shape) == 3 and heads is not None:
        head, rows, columns = shape
        return (rows, head * columns) if heads == "out" else (head * rows, columns)
    return shape[-2], shape[-1]
