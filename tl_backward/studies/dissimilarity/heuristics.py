"""Which fine-tunings learned the rule and which a shortcut, and after which layer do they part? Their second finding.

Brown et al. 2023 take fine-tunings of one pretrained model that are alike in distribution and differ out of it, some
following a surface heuristic, and ask whether identity stitching and CKA tell the two kinds apart, and at which layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.html import frame_table
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.dissimilarity.measures import cka_debiased
from tl_backward.model.checks import check_model
from tl_backward.model.guard import rng_untouched
from tl_backward.model.partial import logits_after, streams_after
from tl_backward.studies.dissimilarity.statistics import GroupGap, group_gap
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.prompts import encode_prompts
from tl_backward.text.token_strings import text_frame, vocabulary_size
from tl_backward.zoo.classification import LABELS, CuedPrompts

MEASURES = (
    "1 - CKA, in distribution",
    "1 - CKA, out of distribution",
    "identity stitch, in distribution: nats",
    "identity stitch, out of distribution: answers changed",
)
"""1 - debiased linear CKA of the streams at the last token; the stitched model's loss minus its tail's own; the share
of prompts that it answers otherwise than its tail's own model."""


@dataclass(frozen=True, repr=False, eq=False)
class Heuristics:
    """Classifiers made of one pretrained model: how good, how alike after each layer, and whether their kinds part."""

    accuracy: Float[Tensor, "model"]
    """In distribution."""
    accuracy_out: Float[Tensor, "model"]
    """Out of distribution."""
    generalises: Bool[Tensor, "model"]
    """Whether that is above `threshold`."""
    threshold: float
    dissimilarities: Float[Tensor, "model model measure layer"]
    """Of `MEASURES`, between the head of the first model and the tail of the second; NaN on the diagonal."""
    follows_head: Float[Tensor, "model model layer"]
    """Out of distribution, of the prompts that the head's and the tail's own models answer differently: the share that
    the stitched model answers as the head's. NaN where there are none."""
    gaps: GroupGap
    """[measure, layer]: those that generalise against the others."""

    def __repr__(self) -> str:
        n, _, _, layers = self.dissimilarities.shape
        return f"Heuristics({n} models, of which {int(self.generalises.sum())} generalise; {layers} layers)"

    @property
    def crossover(self) -> Float[Tensor, "layer"]:
        """Mean of `follows_head` over pairs of a model that generalises and one that does not, both ways round.

        0 where what the head did up to a layer leaves the answer to the tail, 1 where it is settled by then.
        """
        apart = self.generalises[:, None] != self.generalises[None]
        return self.follows_head[apart].nanmean(0)

    def to_frame(self) -> DataFrame:
        """One row a measure and layer: means within and between the kinds, the gap, its interval, and its control."""
        g = self.gaps
        columns = {name: getattr(g, name) for name in ("within", "between", "gap", "low", "high")}
        columns |= {"permuted_gap": g.permuted.mean(0), "p": g.p, "follows_head": self.crossover.expand_as(g.gap)}
        return text_frame(
            {
                **{"measure": measure, "layer": layer},
                **{name: float(values[m, layer]) for name, values in columns.items()},
                "n_models": len(self.accuracy),
            }
            for m, measure in enumerate(MEASURES)
            for layer in range(g.gap.shape[1])
        )

    def models_frame(self) -> DataFrame:
        """One row a model: its accuracies, and its kind."""
        columns = (self.accuracy.tolist(), self.accuracy_out.tolist(), self.generalises.tolist())
        names = ("accuracy", "accuracy_out_of_distribution", "generalises")
        return text_frame(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

    def _repr_html_(self) -> str:
        """Both frames, as static tables."""
        frames = {repr(self): self.models_frame(), "Where the kinds part": self.to_frame()}
        return "".join(frame_table(frame, caption=caption, limit=60) for caption, frame in frames.items())


def heuristics(
    models: Sequence[TransformerLensModel],
    in_distribution: CuedPrompts,
    out_of_distribution: CuedPrompts,
    *,
    answers: tuple[str, str] = LABELS,
    threshold: float = 0.5,
    seed: int = 0,
    show_progress: bool = True,
) -> Heuristics:
    """Compare every pair of classifiers after every layer, and those that generalise with those that do not.

    Each model's stream up to a layer is put unchanged into every other model, which share a basis as fine-tunings of
    one pretrained model (identity stitching), and the streams at the last token are compared by CKA.

    Args:
        models: four or more of one shape and tokenizer.
        in_distribution: prompts with their labels.
        out_of_distribution: others, on which a shortcut fails.
        answers: the words that stand for labels 0 and 1; the likelier of the two is a model's answer.
        threshold: of accuracy out of distribution, above which a model generalises.
        seed: of the permutations, where they are drawn.
        show_progress: show a bar.

    Raises:
        ValueError: models of different shapes, an answer that is not one token, or fewer than two models of a kind.
    """
    shapes = {(model.cfg.n_layers, model.cfg.d_model, vocabulary_size(model)) for model in models}
    if len(models) < 4 or len(shapes) > 1:
        raise ValueError(
            f"Expected four or more models of one shape, got {len(models)} of {len(shapes)} shapes; identity stitching "
            "needs fine-tunings of one pretrained model."
        )
    answer_ids = [_one_token(models[0], answer) for answer in answers]
    inside, outside = (_Prompts(models[0], prompts, answer_ids) for prompts in (in_distribution, out_of_distribution))
    n, n_layers = len(models), models[0].cfg.n_layers
    own_in, own_out = ([_Own(model, prompts) for model in models] for prompts in (inside, outside))
    found = torch.full((n, n, len(MEASURES), n_layers), torch.nan, dtype=torch.float64)
    follows = torch.full((n, n, n_layers), torch.nan, dtype=torch.float64)
    places = list(product(permutations(range(n), 2), range(n_layers)))
    for (i, j), layer in tqdm(places, desc="stitches", unit="stitch", disable=not show_progress):
        for place, own in enumerate((own_in, own_out)):
            found[i, j, place, layer] = 1 - cka_debiased(own[i].rows[layer], own[j].rows[layer])
        stitched = inside.logits(models[j], layer, own_in[i].streams[layer])
        found[i, j, 2, layer] = inside.loss(stitched) - inside.loss(own_in[j].logits)
        said = outside.logits(models[j], layer, own_out[i].streams[layer]).argmax(1)
        head, tail = own_out[i].logits.argmax(1), own_out[j].logits.argmax(1)
        found[i, j, 3, layer] = (said != tail).double().mean()
        follows[i, j, layer] = (said == head)[head != tail].double().mean()
    right_in, right_out = (
        torch.tensor([prompts.accuracy(own.logits) for own in each], dtype=torch.float64)
        for prompts, each in ((inside, own_in), (outside, own_out))
    )
    generalises = right_out > threshold
    if not 2 <= int(generalises.sum()) <= n - 2:
        raise ValueError(
            f"Expected at least two models on either side of {threshold} out of distribution, got accuracies "
            f"{[round(each, 3) for each in right_out.tolist()]}; set threshold between the two kinds."
        )
    return Heuristics(
        right_in, right_out, generalises, threshold, found, follows, group_gap(found, generalises, seed=seed)
    )


class _Prompts:
    """Prompts as tokens, padded on the right, with their labels and the ids of the two answers."""

    def __init__(self, model: TransformerLensModel, prompts: CuedPrompts, answer_ids: Sequence[int]) -> None:
        check_model(model)
        rows = [torch.tensor(encode_prompts(model, prompt).rows()[0]) for prompt in prompts.prompts]
        self.tokens: Int[Tensor, "prompt pos"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.last = torch.tensor([len(row) - 1 for row in rows])
        self.labels, self._answers = prompts.labels, torch.tensor(answer_ids)

    def at_last(self, values: Float[Tensor, "prompt pos d"]) -> Float[Tensor, "prompt d"]:
        """The value at each prompt's last token."""
        return values[torch.arange(len(self.last)), self.last]

    def logits(
        self, model: TransformerLensModel, layer: int, stream: Float[Tensor, "prompt pos d_model"]
    ) -> Float[Tensor, "prompt answer"]:
        """The answers' logits of a model whose stream after a layer is `stream`."""
        with torch.no_grad(), rng_untouched(model):
            return self.at_last(logits_after(model, self.tokens, layer, stream))[:, self._answers].double()

    def loss(self, logits: Float[Tensor, "prompt answer"]) -> float:
        """Mean cross-entropy between the answers, in nats."""
        return float(torch.nn.functional.cross_entropy(logits, self.labels))

    def accuracy(self, logits: Float[Tensor, "prompt answer"]) -> float:
        """Share of prompts answered by the rule."""
        return float((logits.argmax(1) == self.labels).double().mean())


class _Own:
    """A model's own streams after each layer, and its logits of the answers."""

    def __init__(self, model: TransformerLensModel, prompts: _Prompts) -> None:
        layers = list(range(model.cfg.n_layers))
        with torch.no_grad(), rng_untouched(model):
            self.streams = {layer: each.clone() for layer, each in streams_after(model, prompts.tokens, layers).items()}
        self.rows = [prompts.at_last(self.streams[layer]).double() for layer in layers]
        self.logits = prompts.logits(model, layers[-1], self.streams[layers[-1]])


def _one_token(model: TransformerLensModel, answer: str) -> int:
    ids = encode_continuation(model, answer)
    if len(ids) != 1:
        raise ValueError(f"Expected an answer of one token, got {answer!r} of {len(ids)}; choose another word.")
    return ids[0]
