"""Every layer of one model stitched to every layer of another, both ways, beside each model stitched to itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import check_choice, check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, table
from tl_backward._support.types import TransformerLensModel
from tl_backward.dissimilarity.options import FitOptions, MapKind
from tl_backward.dissimilarity.stitching.model import StitchedModel, run_head
from tl_backward.dissimilarity.stitching.penalty import Penalty, own_losses, penalty_of
from tl_backward.dissimilarity.stitching.stitches import OLD_FIT, check_pair, fitted_map, residual_sums
from tl_backward.dissimilarity.stitching.texts import TextBatch, fit_and_held_out_texts
from tl_backward.model.guard import rng_untouched
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions

if TYPE_CHECKING:
    import pandas

DIRECTIONS = ("A->B", "B->A", "A->A", "B->B")


@dataclass(frozen=True, repr=False, eq=False)
class StitchingGrid:
    """Penalties of stitches [head layer][tail layer] in each direction; the last two are the self-stitch baselines."""

    layers_a: tuple[int, ...]
    layers_b: tuple[int, ...]
    map: MapKind
    penalties: dict[str, list[list[Penalty]]]
    """By direction, "A->B" being A's head and B's tail: [head layer][tail layer]."""
    n_fit_texts: int

    def __repr__(self) -> str:
        return (
            f"StitchingGrid({len(self.layers_a)} x {len(self.layers_b)} layers, {self.map} maps, "
            f"{', '.join(self.penalties)})"
        )

    def nats(self, direction: str) -> Float[Tensor, "head_layer tail_layer"]:
        """Penalties of one direction, in nats a token."""
        if direction not in self.penalties:
            raise KeyError(
                f"Expected a direction among {', '.join(self.penalties)}, got {direction!r}; choose one of them."
            )
        return torch.tensor([[each.nats for each in row] for row in self.penalties[direction]], dtype=torch.float64)

    def layers(self, direction: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layers of the head and of the tail in one direction."""
        named = {"A": self.layers_a, "B": self.layers_b}
        head, tail = direction.split("->")
        return named[head], named[tail]

    def to_frame(self) -> "pandas.DataFrame":
        """One row a stitch, each beside the self-stitch of its tail's model at the same relative depth.

        `baseline_nats` is the penalty of the tail model's own head, left at the layer nearest in relative depth to that
        of the foreign head, stitched to the same tail layer.
        """
        import pandas

        rows = []
        for direction in self.penalties:
            heads, tails = self.layers(direction)
            own = f"{direction[-1]}->{direction[-1]}"
            own_heads = self.layers(own)[0]
            for i, head in enumerate(heads):
                nearest = min(range(len(own_heads)), key=lambda k: abs(k / len(own_heads) - i / len(heads)))
                for j, tail in enumerate(tails):
                    each = self.penalties[direction][i][j]
                    baseline = self.penalties[own][nearest][j].nats if own in self.penalties else float("nan")
                    rows.append(
                        {
                            "direction": direction,
                            "head_layer": head,
                            "tail_layer": tail,
                            "penalty_nats": each.nats,
                            "nats_low": each.interval[0],
                            "nats_high": each.interval[1],
                            "penalty_bits_per_byte": each.bits_per_byte,
                            "baseline_nats": baseline,
                            "loss": each.loss,
                            "tail_loss": each.tail_loss,
                            "map": self.map,
                            "n_texts": each.n_texts,
                        }
                    )
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """A static table a direction: head layers down, tail layers across, 95 % half-widths beside the penalties."""
        parts = []
        bound = max(float(self.nats(direction).abs().max()) for direction in self.penalties)
        for direction, grid in self.penalties.items():
            heads, tails = self.layers(direction)
            rows = [
                [
                    Cell(f"{each.nats:+.3f} \N{PLUS-MINUS SIGN} {each.interval[1] - each.nats:.3f}", value=each.nats)
                    for each in row
                ]
                for row in grid
            ]
            parts.append(
                table(
                    [f"L{layer}" for layer in tails], rows, row_names=[f"L{layer}" for layer in heads],
                    caption=f"{direction}: penalty in nats a token, {self.map} map", corner="head, tail",
                    bound=bound or 1.0,
                )
            )  # fmt: skip
        return "".join(parts)


@old_keywords(OLD_FIT, text_options=TextOptions, fit_options=FitOptions)
def stitching_grid(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: TextData,
    *,
    layers_a: int | Sequence[int] | None = None,
    layers_b: int | Sequence[int] | None = None,
    map: MapKind = "affine",
    baselines: bool = True,
    held_out: float | TextData = 0.2,
    text_options: TextOptions = TextOptions(),
    fit_options: FitOptions = FitOptions(),
    show_progress: bool = True,
) -> StitchingGrid:
    """Stitch every layer of A to every layer of B and the other way round by least squares, and find the penalties.

    All maps come from one pass over the texts of the fit a pair of models. With `baselines`, each model is stitched to
    itself too: a penalty between two models says little by itself, as far-apart layers of one model cost something too.

    Args:
        model_a: a HookedTransformer or TransformerBridge.
        model_b: another that reads the data as the same tokens.
        data: as in `compare`.
        layers_a: A's layers; None for all.
        layers_b: B's layers.
        map: "identity", "orthogonal", "linear" or "affine".
        baselines: stitch each model to itself too.
        held_out: as in `stitch`.
        text_options: as in `stitch`.
        fit_options: as in `stitch`, of which the closed form takes `ridge` and `layer_norm`.
        show_progress: show progress bars.

    Raises:
        ValueError: see `stitch`.

    Example:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:60]]
        >>> options = {"map": "identity", "baselines": False, "show_progress": False}
        >>> grid = tlb.dissimilarity.stitching_grid(model, model, texts, layers_a=[1], layers_b=[1, 2], **options)
        >>> len(grid.to_frame())  # both directions
        4
    """
    check_pair(model_a, model_b)
    check_choice("map", map, get_args(MapKind))
    fitting, held = fit_and_held_out_texts(model_a, model_b, data, held_out, text_options)
    normed = bool(fit_options.layer_norm)
    models = {"A": model_a, "B": model_b}
    layers = {
        "A": check_layers(layers_a, model_a.cfg.n_layers),
        "B": check_layers(layers_b, model_b.cfg.n_layers),
    }
    own = {name: own_losses(model, held) for name, model in models.items()}
    n_stitches = sum(len(layers[d[0]]) * len(layers[d[-1]]) for d in DIRECTIONS[: 4 if baselines else 2])
    penalties = {}
    with tqdm(total=n_stitches, desc="stitches", unit="stitch", disable=not show_progress) as progress:
        for direction in DIRECTIONS[: 4 if baselines else 2]:
            head, tail = direction.split("->")
            a, b = models[head], models[tail]
            sums = residual_sums(
                a, layers[head], b, layers[tail], fitting, exclude_first=text_options.exclude_first, normed=normed,
                show_progress=False,
            )  # fmt: skip
            stitches = [
                [
                    StitchedModel(a, i, b, j, fitted_map(map, sums.pair(p, q), a, b, fit_options.ridge, normed))
                    for q, j in enumerate(layers[tail])
                ]
                for p, i in enumerate(layers[head])
            ]
            del sums
            penalties[direction] = _judge_all(stitches, held, own[tail], progress)
    return StitchingGrid(
        tuple(layers["A"]), tuple(layers["B"]), map, penalties, sum(len(batch.tokens) for batch in fitting)
    )


def _judge_all(
    stitches: list[list[StitchedModel]], batches: Sequence[TextBatch], own: Tensor, progress: tqdm
) -> list[list[Penalty]]:
    """Penalties of stitches that share a head's model, which runs once a batch."""
    model = stitches[0][0].model_a
    layers = [row[0].layer_a for row in stitches]
    losses = [[[] for _ in row] for row in stitches]
    with torch.no_grad(), rng_untouched(model), rng_untouched(stitches[0][0].model_b):
        for batch in batches:
            heads = run_head(model, batch.tokens, layers)
            for i, row in enumerate(stitches):
                for j, stitched in enumerate(row):
                    losses[i][j].append(batch.losses(stitched.tail(batch.tokens, heads[layers[i]])).cpu())
                    progress.update(1 / len(batches))
    tokens, sizes = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("n_predicted", "n_bytes"))
    return [[penalty_of(torch.cat(each), own, tokens, sizes) for each in row] for row in losses]
