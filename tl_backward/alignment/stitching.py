"""Two models in one: the first layers of one, the kernel, the last layers of the other (Dar et al. 2022, sec. 5)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_backward._support.checks import all_finite
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.alignment.kernels import translation
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.alignment.vocabularies import TokenMap
from tl_backward.model.checks import check_model, check_one_device
from tl_backward.model.head import Head


class Kernel(nn.Module):
    """x -> xK, with a fixed K."""

    def __init__(self, weight: Float[Tensor, "d_model_a d_model_b"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def __repr__(self) -> str:
        return f"kernel {list(self.weight.shape)}"

    def forward(self, x: Float[Tensor, "*lead d_model_a"]) -> Float[Tensor, "*lead d_model_b"]:
        """Carry A's residual stream into B's."""
        return x @ self.weight


@public
@typed
def zero_shot_stitch(
    model_a: TransformerLensModel,
    cut_a: int,
    model_b: TransformerLensModel,
    cut_b: int,
    *,
    kernel: Float[Tensor, "d_model_a d_model_b"] | None = None,
    fold_ln: bool = False,
    token_map: TokenMap | None = None,
) -> StitchedModel:
    """Stitch two models together without any training: x_B = x_A K with K = `translation(model_a, model_b)`.

    Cuts count blocks: A is left at the end of layer `cut_a` - 1, and B entered at the end of its layer `cut_b` - 1. The
    same place by `tl_backward.dissimilarity.stitch`, which names those layers and fits the map, is
    `stitch(model_a, cut_a - 1, model_b, cut_b - 1, data)`.

    Args:
        model_a: gives the embedding and its first `cut_a` blocks.
        cut_a: how many, from 0 to all of them.
        model_b: gives its blocks from `cut_b` on, final norm and unembedding; of any width.
        cut_b: the first that runs, from 0 to their number (the unembedding alone).
        kernel: another kernel than the translation, such as `random_kernel(...)`.
        fold_ln: as in `translation`.
        token_map: as in `translation`.

    Raises:
        IndexError: a cut that is not between two layers.
        ValueError: vocabularies that differ without a map, a kernel of another shape or not finite, a model whose
            layers cannot be entered (shortformer).

    Examples:
        >>> stitched = tlb.alignment.zero_shot_stitch(model, 2, model, 2)
        >>> stitched
        StitchedModel(blocks 0-1 of A, kernel [128, 128], blocks 2-3 of B)
    """
    for model in (model_a, model_b):
        check_model(model)
        check_one_device(model)
    for name, cut, model in (("cut_a", cut_a, model_a), ("cut_b", cut_b, model_b)):
        if not 0 <= cut <= model.cfg.n_layers:
            raise IndexError(
                f"Expected {name} in [0, {model.cfg.n_layers}], got {cut}; it counts the blocks before the cut."
            )
    if getattr(model_b.cfg, "positional_embedding_type", None) == "shortformer":
        raise ValueError(
            "Expected a model B that reads positions from the residual stream or by rotation, got shortformer "
            "attention, which adds them in every layer; use it as model A."
        )
    if kernel is None:
        kernel = translation(model_a, model_b, fold_ln=fold_ln, token_map=token_map)
    shape = (model_a.cfg.d_model, model_b.cfg.d_model)
    if tuple(kernel.shape) != shape or not all_finite(kernel):
        raise ValueError(
            f"Expected a finite kernel of shape {list(shape)} (d_model of A, d_model of B), got {list(kernel.shape)}; "
            "make it with translation(model_a, model_b)."
        )
    with torch.no_grad():
        kernel = kernel.detach().to(model_b.W_U.device, Head.of(model_b).dtype)
        return StitchedModel(model_a, cut_a - 1, model_b, cut_b - 1, Kernel(kernel))
