"""Two models in one: the first layers of one, the kernel, the last layers of the other (Dar et al. 2022, sec. 5)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import all_finite
from tl_backward._support.types import Prompts, TransformerLensModel, typed
from tl_backward.alignment._layers import logits_from, stream_at
from tl_backward.alignment.kernels import translation
from tl_backward.alignment.vocabularies import TokenMap
from tl_backward.model.checks import check_model, check_one_device
from tl_backward.model.head import Head
from tl_backward.text.prompts import Batch, encode_prompts


@dataclass(frozen=True, repr=False, eq=False)
class StitchedModel:
    """The first `cut_a` layers of A, the kernel, and the layers of B from `cut_b` on; neither model is changed.

    Call it as a model: prompts or tokens of A's vocabulary -> logits over B's. Hooks on the layers of either model that
    take part fire, and gradients flow through both.
    """

    model_a: TransformerLensModel
    """Embedding and first layers."""
    cut_a: int
    """Blocks of A that run."""
    model_b: TransformerLensModel
    """Last layers and unembedding."""
    cut_b: int
    """The first block of B that runs."""
    kernel: Float[Tensor, "d_model_a d_model_b"]
    """From A's residual stream to B's."""

    def __repr__(self) -> str:
        parts = f"blocks 0-{self.cut_a - 1} of A" if self.cut_a else "A's embedding"
        last = f"blocks {self.cut_b}-{self.model_b.cfg.n_layers - 1} of B"
        last = last if self.cut_b < self.model_b.cfg.n_layers else "B's unembedding"
        return f"StitchedModel({parts}, kernel {list(self.kernel.shape)}, {last})"

    def __call__(self, prompts: Prompts, *, prepend_bos: bool | None = None) -> Float[Tensor, "batch pos d_vocab_b"]:
        """Logits over B's vocabulary; several texts are padded, and the padding masked in both models."""
        batch = self.encode(prompts, prepend_bos=prepend_bos)
        return logits_from(self.model_b, batch, (self.cut_b, self.translated(batch)))

    def encode(self, prompts: Prompts, *, prepend_bos: bool | None = None) -> Batch:
        """Prompts as tokens of A, which B must have room for.

        Raises:
            ValueError: more tokens than either model takes.
        """
        batch = encode_prompts(self.model_a, prompts, prepend_bos=prepend_bos)
        if batch.tokens.shape[1] > self.model_b.cfg.n_ctx:
            raise ValueError(
                f"Expected at most n_ctx={self.model_b.cfg.n_ctx} tokens (model B's), got {batch.tokens.shape[1]}; "
                "shorten the prompt."
            )
        return batch

    def translated(self, batch: Batch) -> Float[Tensor, "batch pos d_model_b"]:
        """A's residual stream at its cut, in B's."""
        stream = stream_at(self.model_a, batch, self.cut_a)
        return stream.to(self.kernel) @ self.kernel


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

    Example:
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
        return StitchedModel(model_a, cut_a, model_b, cut_b, kernel)
