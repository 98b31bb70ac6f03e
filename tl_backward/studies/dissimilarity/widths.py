"""How representations change with width and depth: layer by layer CKA and block structure. Their third finding.

Brown et al. 2023 compare a family of language models of growing size layer by layer, find blocks of layers that are
nearly alike (block structure, Nguyen, Raghu and Kornblith 2021), and members that stand out from their family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import frame_table, visible_text
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.dissimilarity.comparison import compare
from tl_backward.dissimilarity.options import RunOptions
from tl_backward.studies.dissimilarity.outliers import nearest_layer
from tl_backward.studies.dissimilarity.statistics import over_seeds
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import text_frame


@dataclass(frozen=True, repr=False, eq=False)
class WidthsAndDepths:
    """Debiased CKA of every layer against every layer between the members of a family, seed by seed."""

    names: tuple[str, ...]
    cka: dict[tuple[str, str], Float[Tensor, "seed layer_a layer_b"]]
    """Between two members of one seed, in the order of `names`; a member with itself included."""
    other_seed: dict[tuple[str, str], Float[Tensor, "seed layer_a layer_b"]]
    """The first member against the second of the next seed; a member with itself says how alike one recipe's models are
    at all. Members of one seed may share initial weights, which these never do. Empty for a single seed."""
    threshold: float
    """Of CKA, from which on layers count as one block."""
    n_samples: int

    def __repr__(self) -> str:
        n_seeds = len(next(iter(self.cka.values())))
        return f"WidthsAndDepths({visible_text(', '.join(self.names))}; {n_seeds} seeds, {self.n_samples} samples)"

    def aligned(self, a: str, b: str, *, other_seed: bool = False) -> Float[Tensor, "seed"]:
        """Mean CKA at equal relative depth: each layer of the shallower member with the nearest of the other."""
        grid, nearest = self._shallow_first(a, b, other_seed)
        return grid[:, torch.arange(len(nearest)), nearest].mean(1)

    def best_matches(self, a: str, b: str, *, other_seed: bool = False) -> Float[Tensor, "seed"]:
        """How far in relative depth the best matches of the shallower member's layers lie from where they are expected.

        0 where every layer is most like that of its own relative depth.
        """
        grid, nearest = self._shallow_first(a, b, other_seed)
        return (grid.argmax(2) - nearest).abs().double().mean(1) / grid.shape[2]

    def _shallow_first(
        self, a: str, b: str, other_seed: bool
    ) -> tuple[Float[Tensor, "seed shallow deep"], Int[Tensor, "shallow"]]:
        """CKA, and which layer of the deeper member is nearest to each of the other."""
        grid = (self.other_seed if other_seed else self.cka)[a, b]
        grid = grid if grid.shape[1] <= grid.shape[2] else grid.mT
        _, n, n_other = grid.shape
        return grid, torch.tensor([nearest_layer(i, n, n_other) for i in range(n)])

    def blocks(self, name: str) -> Float[Tensor, "seed"]:
        """Size of a member's largest block, as a share of its layers: consecutive layers all alike in pairs."""
        return torch.tensor([largest_block(grid, self.threshold) / len(grid) for grid in self.cka[name, name]])

    def to_frame(self) -> DataFrame:
        """One row a pair of members: CKA at equal relative depth, and how far best matches lie, mean and interval."""
        rows = []
        same = [(a, b, False) for a, b in self.cka if a != b]
        for a, b, other_seed in same + [(a, b, True) for a, b in self.other_seed]:
            alike = over_seeds(self.aligned(a, b, other_seed=other_seed))
            off = over_seeds(self.best_matches(a, b, other_seed=other_seed))
            rows.append(
                {
                    "a": a,
                    "b": b,
                    "seeds": "other" if other_seed else "same",
                    "cka": float(alike.mean),
                    "low": float(alike.low),
                    "high": float(alike.high),
                    "best_match_off": float(off.mean),
                    "off_low": float(off.low),
                    "off_high": float(off.high),
                    "n_seeds": int(alike.n),
                }
            )
        return text_frame(rows)

    def blocks_frame(self) -> DataFrame:
        """One row a member: its largest block, as a share of layers, and the mean CKA of neighbours and of the ends."""
        rows = []
        for name in self.names:
            grid = self.cka[name, name]
            quantities = {
                "largest block / layers": self.blocks(name),
                "CKA of neighbouring layers": grid.diagonal(1, dim1=1, dim2=2).mean(1),
                "CKA of first and last layer": grid[:, 0, -1],
            }
            for quantity, values in quantities.items():
                found = over_seeds(values)
                rows.append(
                    {
                        "model": name,
                        "quantity": quantity,
                        "mean": float(found.mean),
                        "low": float(found.low),
                        "high": float(found.high),
                        "n_seeds": int(found.n),
                    }
                )
        return text_frame(rows)

    def _repr_html_(self) -> str:
        """Both frames, as static tables."""
        frames = {repr(self): self.to_frame(), "Block structure": self.blocks_frame()}
        return "".join(frame_table(frame, caption=caption, limit=60) for caption, frame in frames.items())


@old_keywords(
    {"batching": "text_options.batch_size", "exclude_first": "text_options.exclude_first"}, text_options=TextOptions
)
def widths_and_depths(
    families: Sequence[Mapping[str, TransformerLensModel]],
    data: TextData,
    *,
    threshold: float = 0.9,
    text_options: TextOptions = TextOptions(batch_size=32, exclude_first=True),
    show_progress: bool = True,
) -> WidthsAndDepths:
    """Compare every layer of every member with every layer of every other, of its own seed and of the next.

    Args:
        families: one a seed, each the same names with a model; any widths and depths of two layers or more.
        data: as in `compare`.
        threshold: of CKA, for a block.
        text_options: how the data become batches: without position 0, as one massive activation there can decide CKA.
        show_progress: show a bar.

    Raises:
        ValueError: no family, or families of different names.
    """
    if not families or any(list(family) != list(families[0]) for family in families):
        raise ValueError(
            "Expected one family a seed with the same names in the same order, got "
            f"{[list(each) for each in families]}; train every member for every seed."
        )
    names, n_samples = tuple(families[0]), 0
    partners = [families, [*families[1:], families[0]]] if len(families) > 1 else [families]  # of one seed, of the next
    grids: tuple[dict[tuple[str, str], Tensor], ...] = ({}, {})
    pairs = list(product(range(len(partners)), combinations_with_replacement(names, 2)))
    for which, (a, b) in tqdm(pairs, desc="compare", unit="pair", disable=not show_progress):
        compared = [
            compare(
                family[a], other[b], data, text_options=text_options,
                run_options=RunOptions(jackknife=0, permutations=0), show_progress=False,
            )
            for family, other in zip(families, partners[which], strict=True)
        ]  # fmt: skip
        grids[which][a, b] = torch.stack([each["cka"] for each in compared])
        n_samples = compared[-1].n_samples
    return WidthsAndDepths(names, *grids, threshold, n_samples)


def largest_block(grid: Float[Tensor, "layer layer"], threshold: float) -> int:
    """How many consecutive layers, at most, are all alike in pairs by at least `threshold`."""
    n, alike = len(grid), grid >= threshold
    return max(j - i for i in range(n) for j in range(i + 1, n + 1) if j - i == 1 or bool(alike[i:j, i:j].all()))
