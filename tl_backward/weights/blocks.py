"""The components of each block (attention, MLP, experts, mixer), and the weights that read and write the stream.

A block's components are TransformerLens's: an MLP, experts behind a router, a mixer (Mamba, gated delta rule, RWKV), an
attention. What reads the stream imprints it; what writes to it is shifted against the VJP there, and is what is taken
where nobody chose any weights.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tl_backward._support.types import TransformerLensModel
from tl_backward.model.points import hook_points
from tl_backward.weights import WeightSite, WeightSites, select_sites

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
        return ", ".join(dict.fromkeys(part.kind for part in (self.mixing, self.main) if part is not None))


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
    stack, points = stack_name(sites), hook_points(model)
    grouped: dict[int, dict[str, list[WeightSite]]] = {}
    for site in sites.values():
        parts = site.name.split(".")
        if parts[0] == stack and site.kind == "matrix" and site.layer is not None:
            layer = grouped.setdefault(site.layer, {})
            if len(parts) > 3:
                layer.setdefault(".".join(parts[:3]), []).append(site)
    blocks = {}
    for layer, components in sorted(grouped.items()):
        every = [_part(name, held, d_model, _point(points, name)) for name, held in components.items()]
        parts = [part for part in every if part is not None]
        token_wise = [part for part in parts if part.kind in ("MLP", "experts")]
        mixing = [part for part in parts if part.kind in ("attention", "mixer")]
        mixers = [part for part in mixing if part.kind == "mixer"]
        blocks[layer] = Block(layer, next(iter(token_wise[-1:] or mixers), None), next(iter(mixing), None))
    return blocks


def _point(points: Collection[str], component: str) -> str:
    """The hook point at a component's output to the stream."""
    block, _, last = component.rpartition(".")
    names = (f"{component}.hook_out", f"{block}.hook_{last}_out")
    return next((name for name in names if name in points), names[0])


def _part(name: str, sites: list[WeightSite], d_model: int, point: str) -> Part | None:
    """A component's kind and weights; None for one that neither reads the stream nor writes to it."""
    short = {_USUAL.get(site.name.removeprefix(f"{name}."), site.name.removeprefix(f"{name}.")): site for site in sites}
    weights = tuple(site.name for site in sites)
    experts = [site for site in sites if is_expert(site)]
    if not any(d_model in _widths(site) for site in experts):  # blocks on a diagonal, which every token goes through
        experts = []
    plain = sorted((site for site in sites if site not in experts), key=lambda site: site.order)
    reading = [site for site in plain if _widths(site)[0] == d_model and site is not short.get("W_O")]
    kind: PartKind = "mixer"
    if "W_O" in short:
        kind, writer = "attention", short["W_O"].name
        # Latent attention reads keys and values through a projection of their own.
        latent = [site for site in reading if "kv" in site.name.rsplit(".", 1)[-1]]
        readers = [short["W_V"]] if "W_V" in short else latent + reading
    elif experts:
        kind, writer = "attention" if name.endswith("attn") else "experts", ""
        n = next((site.layout.shape[0] for site in experts if site.layout.experts), 0)
        readers = [site for site in reading if n in (0, _widths(site)[1])] + reading
    elif "W_in" in short and "W_out" in short:
        kind, writer, readers = "MLP", short["W_out"].name, [short["W_in"]]
    else:
        writing = [site.name for site in plain if _widths(site)[1] == d_model and site not in reading[:1]]
        writer, readers = next(reversed(writing), ""), reading if writing else []
    return Part(kind, name, readers[0].name, writer, weights, point) if readers else None


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


USUAL = "W_out"
"""What blocks with an MLP write with."""


def chosen_weights(
    model: TransformerLensModel, sites: WeightSites, weights: str | Sequence[str] | None
) -> dict[str, WeightSite]:
    """The sites that `weights` names; None for the matrix that each block writes with.

    That is an MLP's W_out, else the experts' fused down projection, a mixer's (Mamba's out projection) or, of a block
    that has nothing but an attention, W_O. Of an encoder-decoder, the decoder's.

    Raises:
        ValueError: see `select_sites`; None where a block writes with several matrices.
    """
    if weights is None:
        own = (name for name in sites if name.endswith(f".{USUAL}"))  # of blocks in several stacks
        names = list(written_by(model, sites).values()) or list(own) or USUAL
    elif weights == USUAL and not any(site.short_name == USUAL for site in sites.values()):
        shorts = dict.fromkeys(sites[name].short_name for name in written_by(model, sites).values())
        if not shorts:
            return select_sites(sites, USUAL)
        raise ValueError(
            f"Expected the name of a weight, got {USUAL!r}, which this model has not: its blocks write with "
            f"{', '.join(shorts)}; pass weights={[*shorts]} or leave it out."
        )
    else:
        names = weights if isinstance(weights, str) else list(weights)
    chosen = select_sites(sites, names)
    whole = next((name for name, site in chosen.items() if site.kind == "parameter"), None)
    if whole is not None:
        raise ValueError(
            f"Expected weights whose gradients have factors, got {whole}, whose gradient is kept whole (a vector, a "
            "kernel, a matrix that is unpacked when it is used); choose others with weights=..., or take it from "
            "cache.parameter_gradients of run_with_gradient_cache."
        )
    return chosen


def written_by(model: TransformerLensModel, sites: WeightSites) -> dict[int, str]:
    """The name of the one matrix that each block writes to the stream with, by layer.

    Raises:
        ValueError: a block that has several, such as experts that are matrices of their own.
    """
    d_model = model.cfg.d_model
    parts = {layer: _writing(block, sites) for layer, block in blocks_of(model, sites, d_model).items()}
    return {layer: part.writer or _fused(part, sites, d_model) for layer, part in parts.items() if part is not None}


def stream_writers(model: TransformerLensModel, sites: WeightSites) -> frozenset[str]:
    """Every weight that a component of a block writes to the stream with: its matrix, or its experts' fused one."""
    d_model = model.cfg.d_model
    blocks = blocks_of(model, sites, d_model).values()
    parts = [part for block in blocks for part in (block.main, block.mixing) if part]
    downs = {site.name for part in parts if not part.writer for site in _downs(part, sites, d_model)[-1:]}
    return frozenset({part.writer for part in parts if part.writer} | downs)


def _writing(block: Block, sites: WeightSites) -> Part | None:
    """The component that a block stands for: an attention only where there is nothing else."""
    if block.main is None and block.mixing is not None:
        mlp = f"{block.mixing.component.rpartition('.')[0]}.mlp"
        if any(name.startswith(f"{mlp}.") for name in (*sites.missing, *sites)):
            missing = [
                f" ({name}: {why.rstrip('.')})" for name, why in sites.missing.items() if name.startswith(f"{mlp}.")
            ]
            raise ValueError(
                f"Expected a matrix that each block writes with, got {mlp} without one that can be captured"
                f"{''.join(missing[:1])}; choose other weights or layers."
            )
    return block.main or block.mixing


def _fused(part: Part, sites: WeightSites, d_model: int) -> str:
    """The down projection of all experts in one parameter."""
    down = _downs(part, sites, d_model)
    if not down:
        own = (sites[name] for name in part.weights)
        writing = [site.short_name for site in own if is_expert(site) and site.layout.shape[-1] == d_model]
        raise ValueError(
            f"Expected one matrix that each block writes with, got {part.component} with {len(writing)} "
            f"({', '.join(writing[:3])}{', ...' if len(writing) > 3 else ''}); name those you want."
        )
    return down[-1].name


def _downs(part: Part, sites: WeightSites, d_model: int) -> list[WeightSite]:
    """The weights of all experts in one parameter that are as wide as the stream, in the order of their use."""
    own = (sites[name] for name in part.weights)
    down = [site for site in own if site.layout.experts and site.layout.shape[-1] == d_model]
    return sorted(down, key=lambda site: site.order)
