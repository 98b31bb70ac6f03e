"""Sums over samples from which the linear measures follow exactly: streamed, merged, saved, reduced over processes.

With K = XX' and L = YY' over n samples, biased linear CKA, CCA and its kin, Procrustes and regression are functions of
n, sum x, sum y, sum xx', sum yy' and sum xy'. The unbiased HSIC of Song et al. (2012) leaves out the diagonals of K and
L, which takes the further sums |x|^2|y|^2, |y|^2 x, |x|^2 y, |x|^4 and |x|^2 x: additive too, so that debiased CKA is
exact over any number of batches. All sums are of x - shift, where the shift is the first batch's mean: without it a
mean that is large beside the spread leaves nothing of the digits.
"""

import json
import math
from collections.abc import Sequence
from operator import iadd
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.processes import from_process, gathered, greatest_of, several, sum_over
from tl_backward._support.public import public
from tl_backward._support.storage import check_kind, load_tensors, save_tensors
from tl_backward.dissimilarity._rows import TILE, RowBuffer, matrices, parts
from tl_backward.dissimilarity.measures.moments import LayerSums, PairSums

Rows = Sequence[Float[Tensor, "_ _"]]

Eps: TypeAlias = Literal["rows_a", "rows_b", "products"]
_EPS: tuple[Eps, ...] = ("rows_a", "rows_b", "products")


def _shapes(widths_a: Sequence[int], widths_b: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name: two shifts, then the sums."""
    total_a, total_b, n_a, n_b = sum(widths_a), sum(widths_b), len(widths_a), len(widths_b)
    shapes: dict[str, tuple[int, ...]] = {"shift_a": (total_a,), "shift_b": (total_b,)}
    for side, widths in (("a", widths_a), ("b", widths_b)):
        total, n = sum(widths), len(widths)
        sizes = {"sum": total, "square": n, "within": sum(width**2 for width in widths), "quartic": n, "cubic": total}
        shapes |= {f"{name}_{side}": (size,) for name, size in sizes.items()}
    shapes |= {"cross": (total_a, total_b), "square_cross": (n_a, n_b)}
    return shapes | {"weighted_a": (n_b, total_a), "weighted_b": (n_a, total_b)}


_NAMES = tuple(_shapes([1], [1]))
_SUMS = _NAMES[2:]


@public
class CovarianceStatistics:
    """The sums over samples of every layer of A, every layer of B, and every pair of them.

    Feed it with `update`, read it with `pair(i, j)`. Rows of any dtype are multiplied in float64, or in float32 where
    asked for (in half the time: enough for CKA of rows that are no more precise, but not for measures that invert a
    covariance), and everything is accumulated in float64. `a + b` equals one run over both, whatever their shifts; it
    can be saved, loaded, and summed over the processes of torch.distributed.

    Args:
        widths_a: the width of each layer of A.
        widths_b: the same of B.
        device: where the sums are.
        products: the dtype of matrix products, float64 or float32; rows of float64 are always multiplied in it.
    """

    shift_a: Float[Tensor, "features_a"]
    """What is subtracted from each sample of A, its layers side by side; of B: shift_b."""
    sum_a: Float[Tensor, "features_a"]
    """sum x."""
    square_a: Float[Tensor, "layer_a"]
    """sum |x|^2 of each layer."""
    within_a: Float[Tensor, "squares_a"]
    """sum xx' of each layer, flattened, one after the other."""
    quartic_a: Float[Tensor, "layer_a"]
    """sum |x|^4 of each layer."""
    cubic_a: Float[Tensor, "features_a"]
    """sum |x|^2 x of each layer."""
    shift_b: Float[Tensor, "features_b"]
    sum_b: Float[Tensor, "features_b"]
    square_b: Float[Tensor, "layer_b"]
    within_b: Float[Tensor, "squares_b"]
    quartic_b: Float[Tensor, "layer_b"]
    cubic_b: Float[Tensor, "features_b"]
    cross: Float[Tensor, "features_a features_b"]
    """sum xy', all layers of A against all of B."""
    square_cross: Float[Tensor, "layer_a layer_b"]
    """sum |x|^2 |y|^2."""
    weighted_a: Float[Tensor, "layer_b features_a"]
    """sum |y|^2 x for each layer of B."""
    weighted_b: Float[Tensor, "layer_a features_b"]
    """sum |x|^2 y for each layer of A."""

    def __init__(
        self,
        widths_a: Sequence[int],
        widths_b: Sequence[int],
        *,
        device: str | torch.device = "cpu",
        products: torch.dtype = torch.float64,
    ) -> None:
        self.widths_a, self.widths_b = tuple(widths_a), tuple(widths_b)
        if products not in (torch.float64, torch.float32):
            raise ValueError(
                f"Expected products in torch.float64 or torch.float32, got {products}; choose one of them."
            )
        if not self.widths_a or not self.widths_b or min(*self.widths_a, *self.widths_b) < 1:
            raise ValueError(
                f"Expected at least one layer a side, each with a width of at least 1, got {self.widths_a} and "
                f"{self.widths_b}; give the layers' widths."
            )
        self._n = 0
        self._widths = {"a": self.widths_a, "b": self.widths_b}
        self._parts = {side: parts(widths) for side, widths in self._widths.items()}
        for name, shape in _shapes(self.widths_a, self.widths_b).items():
            setattr(self, name, torch.zeros(shape, dtype=torch.float64, device=device))
        self.products = products
        self.eps: dict[Eps, float] = dict.fromkeys(_EPS, 0.0)
        """eps of A's rows, of B's rows, and of their products: the coarsest so far."""
        self.names = {side: [f"layer {i} of {side.upper()}" for i in range(len(self._parts[side]))] for side in "ab"}
        """What warnings call each layer; "" for those that are to stay silent."""
        self._rows: RowBuffer | None = None
        self._mirrored = True

    def __repr__(self) -> str:
        return (
            f"CovarianceStatistics(n={self.n}, {len(self.widths_a)} x {len(self.widths_b)} layers, "
            f"{self.nbytes / 1e6:.4g} MB)"
        )

    @property
    def n(self) -> int:
        """Samples seen."""
        return self._n + (0 if self._rows is None else self._rows.filled)

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return planned_bytes(self.widths_a, self.widths_b)

    def new(self) -> "CovarianceStatistics":
        """Empty statistics with this one's widths, device and, once it has one, shift; takes over its row buffer."""
        self.flush()
        fresh = self._empty()
        fresh._rows, self._rows = self._rows, None
        return fresh

    def _empty(self) -> "CovarianceStatistics":
        fresh = CovarianceStatistics(self.widths_a, self.widths_b, device=self.sum_a.device, products=self.products)
        fresh.shift_a, fresh.shift_b = self.shift_a.clone(), self.shift_b.clone()
        fresh.names, fresh.eps = self.names, dict(self.eps)
        return fresh

    def update(self, x: Rows, y: Rows) -> None:
        """Add samples: one [sample, d] a layer, row i of every one being the same sample.

        Raises:
            ValueError: other widths, different numbers of samples, or a value that is not finite (the layer is named).
        """
        counts = {len(rows) for rows in (*x, *y)}
        if len(counts) != 1:
            raise ValueError(
                f"Expected the same samples in every layer of both sides, got {sorted(counts)} rows; pair the samples "
                "before comparing."
            )
        for side, rows, widths in (("A", x, self.widths_a), ("B", y, self.widths_b)):
            if tuple(row.shape[1] for row in rows) != widths:
                raise ValueError(
                    f"Expected layers of {side} of widths {list(widths)}, got {[row.shape[1] for row in rows]}; pass "
                    "one [sample, d] a layer, in one order."
                )
        if not counts.pop():
            return
        x, y = [row.detach() for row in x], [row.detach() for row in y]
        double = self.products == torch.float64 or any(row.dtype == torch.float64 for row in (*x, *y))
        if self._rows is None or (double and self._rows.dtype == torch.float32):
            self.flush()
            self._rows = RowBuffer(
                self.widths_a, self.widths_b, torch.float64 if double else torch.float32, self.sum_a.device
            )
        self._note_precision(x, y, self._rows.dtype)
        if not self.n and not self.shift_a.any() and not self.shift_b.any():
            # Rounded to the inputs' dtype: the subtraction is then exact where a layer is far from zero.
            for shift, rows in ((self.shift_a, x), (self.shift_b, y)):
                shift.copy_(torch.cat([row.double().mean(0).to(_readable(row.dtype)).double() for row in rows]))
        self._rows.add(self, x, y)

    def _note_precision(self, x: Rows, y: Rows, products: torch.dtype) -> None:
        dtypes = {"rows_a": [row.dtype for row in x], "rows_b": [row.dtype for row in y], "products": [products]}
        for name in _EPS:
            self.eps[name] = max(self.eps[name], *(torch.finfo(_readable(dtype)).eps for dtype in dtypes[name]))

    def added(self, n: int) -> None:
        """Count n more samples; a `RowBuffer` calls this once it has added their products to the sums."""
        self._n += n
        self._mirrored = False

    def flush(self) -> None:
        """Add the products of rows still in the buffer; call it before reading the sums as attributes."""
        if self._rows is not None:
            self._rows.flush(self)
        if not self._mirrored:
            for side, widths in self._widths.items():
                for matrix in matrices(getattr(self, f"within_{side}"), widths):
                    matrix.copy_(torch.triu(matrix) + torch.triu(matrix, 1).T)
            self._mirrored = True

    def pair(self, layer_a: int, layer_b: int) -> PairSums:
        """The sums of one pair of layers, as views."""
        self.flush()
        a, b = self._parts["a"][layer_a], self._parts["b"][layer_b]
        return PairSums(
            a=self._layer("a", layer_a),
            b=self._layer("b", layer_b),
            cross=self.cross[a, b],
            square_cross=self.square_cross[layer_a, layer_b],
            weighted_a=self.weighted_a[layer_b, a],
            weighted_b=self.weighted_b[layer_a, b],
        )

    def _layer(self, side: str, layer: int) -> LayerSums:
        at = self._parts[side][layer]
        within = matrices(getattr(self, f"within_{side}"), self._widths[side])[layer]
        return LayerSums(
            n=self.n,
            shift=getattr(self, f"shift_{side}")[at],
            sum=getattr(self, f"sum_{side}")[at],
            square=getattr(self, f"square_{side}")[layer],
            within=within,
            quartic=getattr(self, f"quartic_{side}")[layer],
            cubic=getattr(self, f"cubic_{side}")[at],
            eps_rows=self.eps["rows_a" if side == "a" else "rows_b"],
            eps_products=self.eps["products"],
            accumulated=within.diagonal(),
            name=self.names[side][layer],
        )

    def copy(self) -> "CovarianceStatistics":
        """A copy of the sums, in memory of its own."""
        self.flush()
        twin = self._empty()
        twin._n = self.n
        for name in _SUMS:
            getattr(twin, name).copy_(getattr(self, name))
        return twin

    def __add__(self, other: "CovarianceStatistics") -> "CovarianceStatistics":
        return iadd(self.copy(), other)

    def __iadd__(self, other: "CovarianceStatistics") -> "CovarianceStatistics":
        if (self.widths_a, self.widths_b) != (other.widths_a, other.widths_b):
            raise ValueError(
                f"Expected statistics of layers of widths {self.widths_a} and {self.widths_b}, got {other.widths_a} "
                f"and {other.widths_b}; only statistics of the same layers add up."
            )
        self.flush()
        other.flush()
        if not self.n:
            self.shift_a, self.shift_b = other.shift_a.clone(), other.shift_b.clone()
        elif other.n and not (torch.equal(self.shift_a, other.shift_a) and torch.equal(self.shift_b, other.shift_b)):
            other = other.copy()
            other.move(self.shift_a, self.shift_b)
        self._n += other.n
        self._mirrored = False
        self.eps = {name: max(self.eps[name], other.eps[name]) for name in _EPS}
        for name in _SUMS:
            getattr(self, name).add_(getattr(other, name))
        return self

    def move(self, shift_a: Float[Tensor, "features_a"], shift_b: Float[Tensor, "features_b"]) -> None:
        """Rewrite every sum in place for another shift; nothing is lost but rounding in float64."""
        self.flush()
        delta, epsilon = self.shift_a - shift_a, self.shift_b - shift_b
        self.shift_a, self.shift_b = shift_a.clone(), shift_b.clone()
        if not self.n:
            return
        for i, a in enumerate(self._parts["a"]):
            for j, b in enumerate(self._parts["b"]):
                moved = self.pair(i, j).moved_cross(delta[a], epsilon[b])
                self.square_cross[i, j], self.weighted_a[j, a], self.weighted_b[i, b] = moved
        n = self.n
        for strip in torch.arange(len(delta)).split(TILE):
            rows = slice(int(strip[0]), int(strip[-1]) + 1)
            self.cross[rows].addr_(self.sum_a[rows], epsilon).addr_(delta[rows], self.sum_b + n * epsilon)
        for side, offset in (("a", delta), ("b", epsilon)):
            for layer, at in enumerate(self._parts[side]):
                self._layer(side, layer).move_(offset[at])

    def reduce(self) -> None:
        """Sum in place over all processes of torch.distributed, on every one of them; alone it does nothing.

        Every process must call it, also one that saw no sample.
        """
        self.flush()
        if not several():
            return
        counts = gathered(torch.tensor([self.n]))
        source = next((number for number, count in enumerate(counts) if int(count)), 0)
        shifts = from_process(torch.cat([self.shift_a, self.shift_b]), source)
        self.move(*shifts.split([len(self.shift_a), len(self.shift_b)]))
        self._n = sum(int(count) for count in counts)
        self.eps = {name: greatest_of(self.eps[name]) for name in _EPS}
        for name in _SUMS:
            sum_over(getattr(self, name))
        self._mirrored = False

    def save(self, path: str | Path) -> None:
        """Write safetensors with JSON metadata; the file is replaced only once the new one is whole."""
        save_tensors(path, self.tensors(), {"covariance_statistics": self.metadata()})

    def tensors(self) -> dict[str, Tensor]:
        """Every sum by its name."""
        self.flush()
        return {name: getattr(self, name) for name in _NAMES}

    def metadata(self) -> dict[str, object]:
        """What `restore` needs beside the tensors."""
        return {
            "version": 2,
            "n": self.n,
            "eps": self.eps,
            "products": "float64" if self.products == torch.float64 else "float32",
            "widths_a": self.widths_a,
            "widths_b": self.widths_b,
        }

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], metadata: dict) -> "CovarianceStatistics":
        """The statistics whose `tensors()` and `metadata()` these are."""
        device = tensors["sum_a"].device
        products = torch.float32 if metadata.get("products") == "float32" else torch.float64
        fresh = cls(metadata["widths_a"], metadata["widths_b"], device=device, products=products)
        fresh._n, fresh.eps = int(metadata["n"]), _saved_eps(metadata)
        for name in _NAMES:
            if tensors[name].shape != getattr(fresh, name).shape:
                raise ValueError(
                    f"Expected {name} of shape {list(getattr(fresh, name).shape)}, got {list(tensors[name].shape)}; "
                    "the file was not written by this version."
                )
            setattr(fresh, name, tensors[name])
        return fresh

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> "CovarianceStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: not such a file.
        """
        tensors, metadata = load_tensors(path, device)
        check_kind(path, "covariance_statistics" in metadata, "CovarianceStatistics.save", metadata)
        return cls.restore(tensors, json.loads(metadata["covariance_statistics"]))


def _readable(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _saved_eps(metadata: dict) -> dict[Eps, float]:
    """The eps of rows and products as saved; files of version 1 hold that of the products alone."""
    if "eps" in metadata:
        return {name: float(metadata["eps"][name]) for name in _EPS}
    single = float(metadata["tolerance"]) > 1e-8
    return dict.fromkeys(_EPS, torch.finfo(torch.float32 if single else torch.float64).eps)


def planned_bytes(widths_a: Sequence[int], widths_b: Sequence[int]) -> int:
    """Bytes of a CovarianceStatistics: little beside the 8 of each entry of sum xy', all layers against all."""
    return 8 * sum(math.prod(shape) for shape in _shapes(widths_a, widths_b).values())
