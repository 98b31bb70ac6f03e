"""The model's own head: how a vector of the last residual stream becomes logits, learnt from one short pass.

Architectures differ after their last block: a final norm, or none (OPT-350m); a projection to the embedding's width; a
dense layer, an activation and a norm (BERT); a factor before or after the unembedding (T5, Cohere, Granite), a softcap
(Gemma). Instead of a table of names, a pass over a few tokens is watched: the modules that lead from the last block's
output to the unembedding's input are the head's steps, and what is done to the unembedding's output is measured on
numbers put in its place. All of it is then held against that pass. What does not reproduce it is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tl_backward._support.submodules import offer
from tl_backward._support.types import TransformerLensModel
from tl_backward.model.checks import check_model
from tl_backward.model.guard import unobserved
from tl_backward.model.head._watched import (
    Learnt,
    after_unembedding,
    close,
    may_be_plain,
    name_of,
    runnable,
    signature_of,
    steps_to,
    stored,
    unembedding,
    watch,
)
from tl_backward.model.inputs import check_reads_text

__all__ = ["Head", "Product"]

__all__ = ["Head", "Product"]

offer(__name__, {})

Product: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""A matrix [d, d_vocab], or a function that multiplies rows [n, d] with it whole."""

_STEP_ROWS = 64  # unit vectors taken through an unembedding at once


@dataclass(frozen=True, eq=False)
class Head:
    """logits = post(pre(v) @ W_U + b_U), with post(z) = cap * tanh(scale * z / cap), or scale * z without a cap."""

    model: TransformerLensModel
    learnt: Learnt

    @staticmethod
    def of(model: TransformerLensModel) -> "Head":
        """The model's head, derived from a short pass at its first use and cached until a module or setting changes.

        Raises:
            ValueError: no such head was found, or it does not reproduce the model's logits.
            TypeError: the model reads no text.
        """
        known = _KNOWN.get(model)
        if known is None or known.signature != signature_of(model, known.steps):
            known = _KNOWN[model] = _learn(model)
        return Head(model, known)

    @property
    def d_model(self) -> int:
        """Width of the stream that the head reads."""
        return self.learnt.d_model

    @property
    def d_vocab(self) -> int:
        """How many tokens have a logit."""
        return self.learnt.d_vocab

    @property
    def dtype(self) -> torch.dtype:
        """The data type of what W_U multiplies."""
        return self.learnt.dtype

    def pre(self, vectors: Tensor, *, ln: bool = True) -> Tensor:
        """The unembedding's input [n, d] for vectors of the stream [n, d_model]; `ln=False` skips the final norm."""
        rows = vectors.to(self.dtype)[None]  # modules expect [batch, pos, d_model]
        rows = rows if self.learnt.first == 1 else rows * self.learnt.first
        for step in (step for step in self.learnt.steps if ln or not step.is_norm):
            rows = runnable(self.model, step)(rows)
            rows = rows if step.factor == 1 else rows * step.factor
        return rows[0]

    def normed(self, vectors: Tensor) -> Tensor:
        """Vectors of the stream after the final norm, if there is one: what `matrix` multiplies."""
        norms = tuple(step for step in self.learnt.steps if step.is_norm)
        return replace(self, learnt=replace(self.learnt, steps=norms)).pre(vectors)

    def product(self) -> Product:
        """W_U [d, d_vocab] as it is stored where the model uses it so, else its unembedding without the bias."""
        if self.learnt.is_plain:
            return stored(self.model)[0]
        unembed = unembedding(self.model)
        return lambda rows: unembed(rows) - unembed(rows[:1] * 0)

    def bias(self) -> Tensor:
        """The unembedding's bias [d_vocab], added before `post`."""
        zero = torch.zeros(1, self.learnt.width, dtype=self.dtype, device=self._device())
        bias = stored(self.model)[1] if self.learnt.is_plain else unembedding(self.model)(zero)[0]
        return bias if self.learnt.offset is None else bias + self.learnt.offset

    def post(self, logits: Tensor) -> Tensor:
        """Apply the model's logit scale and softcap to the unembedding's output, in place."""
        scale, cap = self.learnt.scale, self.learnt.cap
        if cap:
            return logits.mul_(scale / cap).tanh_().mul_(cap)
        return logits if scale == 1 else logits.mul_(scale)

    def matrix(self, ids: Tensor | list[int] | None = None) -> Tensor:
        """[d_model, d_vocab] (or the columns `ids`): what the head does to a vector once it is normed, where linear.

        It is W_U as stored for most models; with a projection before it, or an adapter on it, the product of both.

        Raises:
            ValueError: something between the stream and the logits is not linear but the final norm.
        """
        norms = [i for i, step in enumerate(self.learnt.steps) if step.is_norm]
        if norms not in ([], [0]):
            raise ValueError(self._not_linear())
        rest = self.learnt.steps[len(norms) :]
        if not rest and self.learnt.is_plain:
            plain = stored(self.model)[0]
            return plain if ids is None else plain[:, ids]
        product = self.product()

        def through(rows: Tensor) -> Tensor:
            rows = self.pre(rows, ln=False)
            return rows @ product if isinstance(product, Tensor) else product(rows)

        with torch.no_grad():
            zero = torch.zeros(1, self.d_model, dtype=self.dtype, device=self._device())
            at_zero = through(zero)
            if not _is_affine(through, zero, at_zero):
                raise ValueError(self._not_linear())
            chosen: slice | Tensor | list[int] = slice(None) if ids is None else ids
            unit = torch.eye(self.d_model, dtype=self.dtype, device=self._device()).split(_STEP_ROWS)
            return torch.cat([(through(rows) - at_zero)[:, chosen] for rows in unit])

    def _not_linear(self) -> str:
        path = " and ".join(step.path for step in self.learnt.steps) or "the unembedding"
        return (
            f"Expected a head that is linear after its final norm, got {path} between the stream and the logits, which "
            "no direction of the stream stands for; use readout, which runs it, and gradient_edit to edit."
        )

    def _device(self) -> torch.device:
        return self.model.W_U.device


_KNOWN: "WeakKeyDictionary[TransformerLensModel, Learnt]" = WeakKeyDictionary()


def _learn(model: TransformerLensModel) -> Learnt:
    check_model(model)
    check_reads_text(model)
    with unobserved(model):
        seen = watch(model)
        stream, read, unembedded = seen.stream, seen.read, seen.unembedded
        chain = steps_to(model, seen)
        if chain is None:
            raise ValueError(
                "Expected a head made of modules in a row from the last residual stream to the unembedding, got one of "
                f"{name_of(model)} that is more; its stream cannot be read in words."
            )
        first, steps = chain
        scale, cap, offset = after_unembedding(seen, name_of(model))
        learnt = Learnt(
            steps=steps,
            first=first,
            d_model=stream.shape[-1],
            width=read.shape[-1],
            d_vocab=unembedded.shape[-1],
            dtype=read.dtype,
            is_plain=may_be_plain(model) and _multiplies(stored(model), read, unembedded),
            scale=scale,
            cap=cap,
            offset=offset,
            signature=signature_of(model, steps),
        )
        rows = Head(model, learnt).pre(stream.flatten(0, -2))
        if not close(rows, read.flatten(0, -2)) or not close(unembedding(model)(rows), unembedded.flatten(0, -2)):
            raise ValueError(
                f"Expected {' and '.join(step.path for step in steps) or 'the unembedding'} to give the same numbers "
                f"when run alone, got others in {name_of(model)}; its stream cannot be read in words."
            )
    return learnt


def _multiplies(plain: tuple[Tensor, Tensor], read: Tensor, unembedded: Tensor) -> bool:
    weight, bias = plain
    return read.shape[-1] == weight.shape[0] and close(read @ weight + bias, unembedded)


def _is_affine(function: Callable[[Tensor], Tensor], zero: Tensor, at_zero: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(zero.shape, generator=generator, dtype=torch.float64).to(zero) for _ in range(2))
    both = function(torch.cat([a, b, a + b]))
    return close(both[:1] + both[1:2] - at_zero, both[2:])
