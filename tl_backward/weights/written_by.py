"""The weights that a model's blocks write to the stream with: what is taken where nobody chose any."""

from collections.abc import Sequence

from tl_backward._support.types import TransformerLensModel
from tl_backward.weights import WeightSite, WeightSites, select_sites
from tl_backward.weights.blocks import Block, Part, blocks_of, is_expert

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
    found = {}
    for layer, block in blocks_of(model, sites, model.cfg.d_model).items():
        part = _writing(block, sites)
        if part is not None:
            found[layer] = part.writer or _fused(part, sites, model.cfg.d_model)
    return found


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
        stack = block.mixing.component.rpartition(".")[0]
        if any(name.startswith(f"{stack}.mlp.") for name in (*sites.missing, *sites)):
            missing = [f"{name}: {why}" for name, why in sites.missing.items() if name.startswith(f"{stack}.mlp.")]
            reason = f" ({missing[0].rstrip('.')})" if missing else ""
            raise ValueError(
                f"Expected a matrix that each block writes with, got {stack}.mlp without one that can be captured"
                f"{reason}; choose other weights or layers."
            )
    return block.main or block.mixing


def _fused(part: Part, sites: WeightSites, d_model: int) -> str:
    """The down projection of all experts in one parameter."""
    down = _downs(part, sites, d_model)
    if not down:
        experts = [sites[name] for name in part.weights if is_expert(sites[name])]
        writing = [site.short_name for site in experts if site.layout.shape[-1] == d_model]
        raise ValueError(
            f"Expected one matrix that each block writes with, got {part.component} with {len(writing)} "
            f"({', '.join(writing[:3])}{', ...' if len(writing) > 3 else ''}); name those you want."
        )
    return down[-1].name


def _downs(part: Part, sites: WeightSites, d_model: int) -> list[WeightSite]:
    """The weights of all experts in one parameter that are as wide as the stream, in the order of their use."""
    experts = [sites[name] for name in part.weights if is_expert(sites[name])]
    down = [site for site in experts if site.layout.experts and site.layout.shape[-1] == d_model]
    return sorted(down, key=lambda site: site.order)
