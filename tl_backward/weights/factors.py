"""The gradient of a weight as a sum of outer products: norms, inner products and SVD without forming it.

For a weight used as `y = x @ W` at tokens i, with delta_i = dL/dy_i (its VJP),

    dL/dW = sum_i outer(x_i, delta_i)            (Katz et al. 2024, sec. 4)

so a gradient over n tokens has rank at most n, and n (d_in + d_out) numbers say all that d_in d_out do. Everything
here is tensors only: no model, no autograd. The sign is that of the raw gradient; a descent step subtracts it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from tl_backward._support.lengths import lengths
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward.text.ids import Id, Ids, as_ids, is_id, is_integers, one_id
from tl_backward.weights.layout import Layout, Origin

if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix

# Rows of a Gram matrix computed at once: bounds the float64 scratch of norm() and inner() for long batches.
_GRAM_ROWS = 1024

Index: TypeAlias = Id | slice | list[int] | list[bool] | Ids | Bool[Tensor, "..."] | Bool[np.ndarray, "..."]


class SVD(NamedTuple):
    """The singular value decomposition of a gradient, `U @ diag(S) @ V.T`."""

    U: Float[Tensor, "d_in k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "d_out k"]


@public
@dataclass(frozen=True, repr=False, eq=False)
class GradientFactors(Saved):
    """One weight's gradient, sum over tokens of outer(inputs, deltas); raw sign, a descent step subtracts it.

    All methods but `gradient()` work on the factors: cost and memory grow with the number of tokens, never with
    d_in x d_out. Sums and inner products are accumulated in float64.

    Where every head has an input of its own (split_qkv_input, use_attn_in, use_attn_result) both factors carry a
    `head_index` axis before the last. A bias or norm weight is a matrix with d_in = 1: its inputs are ones, its
    deltas each token's contribution. An embedding's inputs are the row ids, standing for one-hot vectors.
    """

    inputs: Float[Tensor, "batch pos *head d_in"] | Integer[Tensor, "batch pos"]
    """x_i, what the matrix read: [batch, pos, d_in]; row ids [batch, pos] for an embedding."""
    deltas: Float[Tensor, "batch pos *head d_out"]
    """delta_i = dL/dy_i, the raw gradient at what the matrix wrote: [batch, pos, d_out]."""
    layout: Layout
    """Where the matrix goes in TransformerLens's shape and in the stored parameter's."""
    origin: Origin | None = None
    """Example, token and expert of each row; None where the leading axes are [batch, pos]."""

    def __post_init__(self) -> None:
        """Convert row ids to int64."""
        if self.is_lookup:
            object.__setattr__(self, "inputs", as_ids(self.inputs, "row ids"))

    def __repr__(self) -> str:
        return (
            f"GradientFactors(inputs={list(self.inputs.shape)}, deltas={list(self.deltas.shape)}, "
            f"gradient={list(self.layout.shape)}, dtype={self.deltas.dtype}, device={self.deltas.device})"
        )

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse to be one array.

        Raises:
            TypeError: always; it says what to take.
        """
        raise TypeError(
            "Expected an array to be made of one tensor, got factors, which are two; take .inputs, .deltas or "
            ".gradient()."
        )

    def __dlpack__(self, **kwargs: object) -> NoReturn:
        """Refuse to be one tensor, as `__array__` does to be one array."""
        self.__array__()

    def __dlpack_device__(self) -> NoReturn:
        """Refuse to be one tensor: PyTorch asks for its device first."""
        self.__array__()

    # --- shape ---------------------------------------------------------------------------------------------

    @property
    def is_lookup(self) -> bool:
        """Whether the inputs are row ids (W_E, W_pos) rather than vectors."""
        return not self.inputs.is_floating_point()

    @property
    def per_head(self) -> bool:
        """Whether the factors carry a head axis: one block of the matrix per head, each with its own input."""
        return self.deltas.ndim == 4

    @property
    def n_experts(self) -> int:
        """How many matrices the rows are spread over: 1 but for experts that share one parameter."""
        return self.layout.shape[0] if self.layout.experts else 1

    @property
    def n_tokens(self) -> int:
        """Tokens summed over: an upper bound on the rank (times the heads, where factors are per head)."""
        return self.deltas.shape[0] * self.deltas.shape[1]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[d_in, d_out] of the whole matrix, head axes flattened as (head_index d_head), experts as (expert d_in)."""
        d_in = self.layout.shape[0] if self.is_lookup else self.inputs.shape[-1]
        d_out = self.deltas.shape[-1]
        if self.per_head:
            heads = self.deltas.shape[2]
            return (d_in * heads, d_out) if self.layout.heads == "in" else (d_in, d_out * heads)
        return d_in * self.n_experts, d_out

    # --- dense ---------------------------------------------------------------------------------------------

    def gradient(self, layout: Literal["tl", "parameter"] = "tl") -> Float[Tensor, "..."]:
        """The dense gradient dL/dW = sum_i outer(x_i, delta_i), raw sign.

        Args:
            layout: "tl" for TransformerLens's shape of the weight (e.g. [head_index, d_model, d_head]);
                "parameter" for the stored parameter's own (nn.Linear keeps [out, in], Conv1D [in, out]).
        """
        if layout not in ("tl", "parameter"):
            raise ValueError(
                f"Expected layout 'tl' (TransformerLens's shape) or 'parameter' (the stored one), got {layout!r}."
            )
        matrix = self._matrix()
        return self.layout.to_tl(matrix) if layout == "tl" else self.layout.to_stored(matrix)

    def _matrix(self) -> Float[Tensor, "*expert d_in d_out"]:
        if self.layout.experts:
            return torch.stack([x.T @ d for x, d in self._blocks()])
        if self.is_lookup:
            matrix = self.deltas.new_zeros(self.matrix_shape)
            return matrix.index_add_(0, self.inputs.flatten(), self.deltas.flatten(0, 1))
        if not self.per_head:
            return self.inputs.flatten(0, 1).T @ self.deltas.flatten(0, 1)
        blocks = torch.einsum("bphi,bpho->hio", self.inputs, self.deltas)
        return blocks.flatten(0, 1) if self.layout.heads == "in" else blocks.transpose(0, 1).flatten(1, 2)

    # --- without the dense gradient (numbers in float32 at least) -------------------------------------------

    def norm(self) -> Float[Tensor, ""]:
        """Frobenius norm |dL/dW|, from the Gram matrices of the factors: sqrt(sum_ij (x_i.x_j)(delta_i.delta_j))."""
        return self._inner64(self).clamp(min=0).sqrt().to(self._number_dtype)

    def token_norms(self) -> Float[Tensor, "batch pos"]:
        """Each token's share before they are summed: |outer(x_i, delta_i)| = |x_i| |delta_i|."""
        sizes = lengths(self.deltas)
        if not self.is_lookup:
            sizes = sizes * lengths(self.inputs)
        return lengths(sizes) if self.per_head else sizes

    def inner(self, other: "GradientFactors") -> Float[Tensor, ""]:
        """Frobenius inner product <dL/dW, dL'/dW> = sum_ij (x_i.x'_j)(delta_i.delta'_j).

        Raises:
            ValueError: `other` belongs to a weight of another shape.
        """
        return self._inner64(other).to(self._number_dtype)

    def cosine(self, other: "GradientFactors") -> Float[Tensor, ""]:
        """Cosine between two gradients of the same weight; 0 where one of them is 0."""
        scale = self._inner64(self).clamp(min=0).sqrt() * other._inner64(other).clamp(min=0).sqrt()
        inner = self._inner64(other)
        return torch.where(scale > 0, inner / scale, torch.zeros_like(inner)).to(self._number_dtype)

    def svd(self, k: int | None = None) -> SVD:
        """Singular value decomposition of the whole [d_in, d_out] matrix, largest first.

        By QR of both thin factors: G = X^T D = Q_x (R_x R_d^T) Q_d^T, so the SVD is of an n x n matrix. In float32
        at least.

        Args:
            k: how many components, at most all; None for all min(n_tokens, d_in, d_out).

        Raises:
            ValueError: k < 1.
        """
        if k is not None and not k >= 1:
            raise ValueError(f"Expected at least one component, got k={k}; leave k out for all.")
        x, d, rows = self._thin()
        q_x, r_x = torch.linalg.qr(x.T)
        q_d, r_d = torch.linalg.qr(d.T)
        u, s, vh = torch.linalg.svd(r_x @ r_d.T, full_matrices=False)
        u = q_x @ u[:, :k]
        if rows is not None:
            u = u.new_zeros(self.matrix_shape[0], u.shape[1]).index_copy_(0, rows, u)
        return SVD(u, s[:k], q_d @ vh.T[:, :k])

    def rank(self, tol: float | None = None) -> int:
        """Numerical rank: singular values above `tol`, an absolute size.

        Args:
            tol: None for max(d_in, d_out) * eps * the larger of the largest singular value (as in
                torch.linalg.matrix_rank) and the largest token norm (tokens that cancel leave only rounding errors).
        """
        s = self.svd().S
        if not len(s):
            return 0
        if tol is None:
            eps = max(torch.finfo(dtype).eps for dtype in (s.dtype, self.deltas.dtype))
            tol = max(self.matrix_shape) * eps * max(float(s[0]), float(self.token_norms().max()))
        return int((s > tol).sum())

    def to_factored_matrix(self) -> "FactoredMatrix":
        """TransformerLens's FactoredMatrix, A = X^T [d_in, n] and B = D [n, d_out]."""
        from transformer_lens import FactoredMatrix

        x, d = self.rows()
        if self.is_lookup:
            x = torch.nn.functional.one_hot(self.inputs.flatten(), self.matrix_shape[0]).to(d.dtype)
        return FactoredMatrix(x.T, d)

    def token_products(self) -> Float[Tensor, "batch pos pos"]:
        """Inner products between the tokens' shares of each example: K[i, j] = (x_i.x_j)(delta_i.delta_j).

        They sum to |dL/dW|^2, row i to what token i contributes to it: <outer(x_i, delta_i), dL/dW>. In float32 at
        least.
        """
        return self._token_products64().to(self._number_dtype)

    def example_norms(self) -> Float[Tensor, "batch"]:
        """Frobenius norm of each example's own gradient, in float64: tokens may cancel to little of what each adds."""
        if self.origin is not None:
            return torch.stack([each._inner64(each) for each in self.per_example()]).clamp(min=0).sqrt()
        return self._token_products64().sum((1, 2)).clamp(min=0).sqrt()

    def _token_products64(self) -> Float[Tensor, "batch pos pos"]:
        d, x = self.deltas.double(), self.inputs if self.is_lookup else self.inputs.double()
        if self.per_head:
            return torch.einsum("bihd,bjhd,biho,bjho->bij", x, x, d, d)
        products = d @ d.transpose(1, 2)
        if self.is_lookup:
            return products * (x[:, :, None] == x[:, None])
        products.mul_(x @ x.transpose(1, 2))
        expert = self.origin.expert if self.layout.experts and self.origin is not None else None
        return products if expert is None else products * (expert[:, :, None] == expert[:, None])

    def active(self) -> tuple[Tensor, Tensor, Int[Tensor, "n"]]:
        """`rows` of the tokens whose delta is not zero, and the example each belongs to.

        Pads have none, nor has any token but the last in the last layer's MLP under a loss at the last token.
        """
        (x, d), n = self.rows(), len(self.deltas)
        examples = torch.arange(n, device=d.device).repeat_interleave(len(d) // max(1, n))
        owner = examples if self.origin is None else self.origin.example.flatten()
        kept = (d.abs().amax(-1) != 0).nonzero().flatten()  # `any` of floats takes three times as long
        if len(kept) < len(d):
            x, d, owner = (each.index_select(0, kept) for each in (x, d, owner))
        return x, d, owner

    # --- parts ---------------------------------------------------------------------------------------------

    def __getitem__(self, index: Index | tuple[Index, ...]) -> "GradientFactors":
        """Keep some tokens: `f[:, 3:5]`, `f[:, -1]`, `f[mask]` (mask [batch, pos]); the rest leave the sum.

        Integers keep their axis, so the result is again a GradientFactors. A mask over one axis chooses from that axis:
        `f[mask]` examples for a mask [batch], `f[:, mask]` tokens.

        Raises:
            IndexError: anything else, True and False too.
        """
        index = tuple(map(_as_mask, index)) if isinstance(index, tuple) else _as_mask(index)
        if self.origin is not None:
            return self._where(self._chosen(index))
        if isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 2:
            return replace(self, inputs=self.inputs[index][None], deltas=self.deltas[index][None])
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(one_id(part) if is_id(part) else as_ids(part) if is_integers(part) else part for part in parts)
        known = [isinstance(part, int | slice | list | Tensor) and not isinstance(part, bool) for part in parts]
        if len(parts) > 2 or not all(known):
            raise IndexError(
                f"Expected an index over [batch, pos], got {index!r}; slice tokens as factors[:, 3:5] or with a "
                "boolean mask [batch, pos]."
            )
        inputs, deltas = self.inputs, self.deltas
        for axis, part in enumerate(parts):
            if isinstance(part, int):
                size = deltas.shape[axis]
                if not -size <= part < size:
                    raise IndexError(f"Expected an index in [-{size}, {size}), got {part}; axis {axis} has {size}.")
                part = slice(part % size, part % size + 1)
            inputs, deltas = (side[part] if axis == 0 else side[:, part] for side in (inputs, deltas))
        return replace(self, inputs=inputs, deltas=deltas)

    def per_example(self) -> list["GradientFactors"]:
        """One GradientFactors per example of the batch; their gradients sum to this one's."""
        return [self[i] for i in range(self.deltas.shape[0] if self.origin is None else self.origin.shape[0])]

    def expert(self, index: int) -> "GradientFactors":
        """The factors of one expert's own matrix [d_in, d_out], of those that share this parameter.

        `f.expert(e).gradient()` is `f.gradient()[e]`; an expert that no token reached has no rows and a zero gradient.

        Raises:
            ValueError: the weight has no experts.
            IndexError: there is no such expert.
        """
        if not self.layout.experts or self.origin is None or self.origin.expert is None:
            raise ValueError(
                "Expected factors of experts that share a parameter, got those of one matrix "
                f"{list(self.layout.shape)}; use them as they are."
            )
        if not -self.n_experts <= index < self.n_experts:
            raise IndexError(
                f"Expected an expert in [-{self.n_experts}, {self.n_experts}), got {index}; there are {self.n_experts}."
            )
        shape, stored_shape = self.layout.shape[1:], self.layout.stored_shape[1:]
        layout = replace(self.layout, shape=shape, stored_shape=stored_shape, experts=False, pull_back=None)
        own = replace(self, layout=layout, origin=replace(self.origin, expert=None))
        return own._where(self.origin.expert == index % self.n_experts)

    def expert_norms(self) -> Float[Tensor, "expert"]:
        """Frobenius norm of each expert's gradient; 0 for one that no token reached.

        Raises:
            ValueError: the weight has no experts.
        """
        if not self.layout.experts:
            self.expert(0)  # says what was expected
        squared = torch.stack([_gram_sum(*block, *block) for block in self._blocks()])
        return squared.clamp(min=0).sqrt().to(self._number_dtype)

    # --- inner workings ------------------------------------------------------------------------------------

    @property
    def _number_dtype(self) -> torch.dtype:
        """Norms and inner products are in float32 at least: float16 ends at 65,504 and knows no square of 1e-4."""
        return torch.promote_types(self.deltas.dtype, torch.float32)

    def _chosen(self, index: Index | tuple[Index, ...]) -> Bool[Tensor, "batch row"]:
        """Which rows belong to the tokens that an index over [batch, pos] names."""
        assert self.origin is not None
        batch, pos = self.origin.shape
        unknown = self.origin.example < 0
        if unknown.any() and self.deltas[unknown].any():
            raise ValueError(
                f"Expected rows whose examples and tokens are known, got {int(unknown.sum())} of which they are not (a "
                "table that all examples read together, or rows in an order of the model's own); take the sum of all, "
                "or capture one example at a time."
            )
        places = torch.arange(batch * pos, device=self.deltas.device).reshape(batch, pos)
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            wanted = places[index]
        else:
            table = GradientFactors(places[..., None].double(), places[..., None].double(), Layout((1, 1)))
            wanted = table[index].deltas.long()
        return torch.isin(self.origin.example * pos + self.origin.token, wanted)

    def _where(self, rows: Bool[Tensor, "batch row"]) -> "GradientFactors":
        """The rows that are chosen, in one batch axis of 1."""
        assert self.origin is not None
        inputs, deltas = self.inputs[rows][None], self.deltas[rows][None]
        return replace(self, inputs=inputs, deltas=deltas, origin=self.origin.where(rows))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(x [n, ...], delta [n, d_out]) for each block of the matrix that has an input of its own."""
        x, d = self.inputs.flatten(0, 1), self.deltas.flatten(0, 1)
        if self.layout.experts:
            expert = self._expert_of_row()
            yield from ((x[expert == e], d[expert == e]) for e in range(self.n_experts))
        elif self.per_head:
            yield from zip(x.unbind(1), d.unbind(1), strict=True)
        else:
            yield x, d

    def _expert_of_row(self) -> Int[Tensor, "n"]:
        assert self.origin is not None and self.origin.expert is not None
        return self.origin.expert.flatten()

    def _inner64(self, other: "GradientFactors") -> Float[Tensor, ""]:
        if self.matrix_shape != other.matrix_shape or self.per_head != other.per_head:
            raise ValueError(
                f"Expected two gradients of the same weight, got matrices {list(self.matrix_shape)} and "
                f"{list(other.matrix_shape)} (per head: {self.per_head}, {other.per_head}); capture both with the "
                "same model flags."
            )
        zero = torch.zeros((), dtype=torch.float64, device=self.deltas.device)
        return sum((_gram_sum(*a, *b) for a, b in zip(self._blocks(), other._blocks(), strict=True)), start=zero)

    def rows(self) -> tuple[Float[Tensor, "n d_in"] | Int[Tensor, "n"], Float[Tensor, "n d_out"]]:
        """(x [n, d_in], delta [n, d_out]) with x.T @ delta the whole matrix; blocks of heads or experts padded with 0.

        For an embedding x is the row ids [n].
        """
        x, d = self.inputs.flatten(0, 1), self.deltas.flatten(0, 1)
        if self.layout.experts:
            return _in_blocks(x, self._expert_of_row(), self.n_experts), d
        if not self.per_head:
            return x, d
        eye = torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
        if self.layout.heads == "in":
            return torch.einsum("nhi,hg->nhgi", x, eye).flatten(2).flatten(0, 1), d.flatten(0, 1)
        return x.flatten(0, 1), torch.einsum("nho,hg->nhgo", d, eye).flatten(2).flatten(0, 1)

    def _thin(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """`rows` in float32 at least, for a lookup or experts only the matrix rows that occur (their ids last)."""
        if self.layout.experts:
            x, d = self.inputs.flatten(0, 1), self.deltas.flatten(0, 1).to(self._number_dtype)
            present, index = self._expert_of_row().unique(return_inverse=True)
            ids = present[:, None] * x.shape[1] + torch.arange(x.shape[1], device=d.device)
            return _in_blocks(x, index, len(present)).to(d.dtype), d, ids.flatten()
        x, d = self.rows()
        d = d.to(self._number_dtype)
        if not self.is_lookup:
            return x.to(d.dtype), d, None
        rows, index = x.unique(return_inverse=True)
        return torch.nn.functional.one_hot(index, rows.numel()).to(d.dtype), d, rows


def _as_mask(part: Index) -> Index:
    """A NumPy mask as a tensor; anything else unchanged."""
    return torch.from_numpy(part) if isinstance(part, np.ndarray) and part.dtype == np.bool_ else part


def _gram_sum(x: Tensor, d: Tensor, x2: Tensor, d2: Tensor) -> Float[Tensor, ""]:
    """<x^T d, x2^T d2> = sum_ij (x_i.x2_j)(d_i.d2_j) in float64; x and x2 may be row ids."""
    total = torch.zeros((), dtype=torch.float64, device=d.device)
    is_lookup = not x.is_floating_point()
    d2, x2 = d2.double(), x2 if is_lookup else x2.double()
    for rows in range(0, x.shape[0], _GRAM_ROWS):
        x_rows, d_rows = x[rows : rows + _GRAM_ROWS], d[rows : rows + _GRAM_ROWS].double()
        gram = (x_rows[:, None] == x2[None]).double() if is_lookup else x_rows.double() @ x2.T
        total += (gram * (d_rows @ d2.T)).sum()
    return total


def _in_blocks(x: Float[Tensor, "n d_in"], block: Int[Tensor, "n"], n_blocks: int) -> Float[Tensor, "n d_blocks"]:
    """Rows widened to all blocks' columns: each in its own block, zeros in the others."""
    wide = x.new_zeros(len(x), n_blocks, x.shape[-1])
    wide[torch.arange(len(x), device=x.device), block] = x
    return wide.flatten(1)
