"""Who wrote it: the training examples whose own step would most write an answer, and what they would write there."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from tl_backward._support.checks import check_k
from tl_backward._support.html import frame_table, visible_text, visible_token
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, Prompt, TransformerLensModel, typed
from tl_backward.gradients.examples import EXAMPLES, Example, batching, capture_batch
from tl_backward.gradients.losses import Loss
from tl_backward.gradients.similarity import MAX_FACTOR_BYTES, Examples, Metric, encoded, gradient_similarity, listed
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import output_size, text_column
from tl_backward.vocabulary.readout import TargetReadout, readout
from tl_backward.weights import weight_sites
from tl_backward.weights.blocks import chosen_weights, stream_writers

if TYPE_CHECKING:
    import plotly.graph_objects

_LEAST_QUERIES = 20
"""Random queries below which no interval is given."""


@dataclass(frozen=True, repr=False, eq=False)
class Authors(Shown):
    """The examples of a data set by how much a step on each would write an answer, or by scores that were given."""

    _report = "authors_report"

    prompt: str
    target: str
    names: tuple[str, ...]
    """Every example of the data set as text."""
    scores: Float[Tensor, "example"]
    """<dL_query, dL_example>, or its cosine: positive where a descent step on the example lowers the query's loss;
    or what was given."""
    low: Float[Tensor, "example"]
    """2.5 % quantile of the example's scores for random queries; NaN where there are fewer than 20."""
    high: Float[Tensor, "example"]
    """97.5 % quantile."""
    top: Int[Tensor, "n"]
    """Examples with the largest scores, largest first."""
    written: TargetReadout | None
    """[n]: what a step on each of `top` would add to the residual stream where the query is asked, in words, with the
    answer's rank; None where no chosen weight writes to the stream."""
    weights: tuple[str, ...]
    metric: Metric | Literal["score"]
    """"score" where the scores were given."""
    n_random: int
    """Random queries that the interval is of."""
    errors: Float[Tensor, "example"] | None = None
    """How far each score may be from that by all that a store keeps: 0 of the examples that a quick query read whole;
    None where all were."""

    def __repr__(self) -> str:
        return f"Authors({len(self.names)} examples, {self.metric} of {len(self.weights)} weights: {self.summary()})"

    @property
    def stands_out(self) -> tuple[bool, ...]:
        """Whether each of `top` has a score above all but 2.5 % of what it has for random queries."""
        scores, high = self.scores[self.top], self.high[self.top]
        return tuple((scores > high + 1e-6 * high.abs()).tolist())  # by more than rounding

    def summary(self) -> str:
        """One sentence: who would most write the answer, whether it stands out, and what it would write there."""
        answer, first = visible_token(self.target), int(self.top[0])
        text = visible_text(self.names[first])
        text = text if len(text) <= 80 else f"{text[:79]}…"
        if self.metric != "score" and float(self.scores[first]) <= 0:  # other methods' scores may have another zero
            return (
                f"Of {len(self.names)} examples none would write {answer}: a step on number {first} ({text!r}), the "
                f"first, would make it no likelier ({self.metric} {float(self.scores[first]):.3g})."
            )
        rank = None if self.written is None else int(self.written.target_rank[0])
        does = "most write" if rank in (None, 0) else "most favour"
        there = ""
        if self.written is not None and rank is not None and rank > 0:
            first_word = visible_token(self.written.top_tokens[0][0])
            there = f"; what it would write there is {first_word} ({answer} has rank {rank})"
        n_tied = int((self.scores == self.scores[first]).sum())
        said = f"Of {len(self.names)} examples a step on number {first} ({text!r}) would {does} {answer}"
        if n_tied > 1:
            said = (
                f"Of {len(self.names)} examples {n_tied} have the same largest score for {answer}, number {first} "
                f"({text!r}) the first of them"
            )
        said += f" ({self.metric} {float(self.scores[first]):.3g}"
        if self.metric == "score":
            return (
                f"{said}); of scores that were given it is not known whether that is more than for other answers"
                f"{there}."
            )
        if self.n_random < _LEAST_QUERIES:
            return (
                f"{said}); with fewer than {_LEAST_QUERIES} random queries it is not known whether that is more than "
                f"for others{there}."
            )
        said += f"; for random queries {float(self.low[first]):.3g} to {float(self.high[first]):.3g})"
        if not self.stands_out[0]:
            return f"{said}, which is no more than for random queries: none stands out{there}."
        n = sum(self.stands_out)
        said += f"; {n} of the first {len(self.top)} stand out"
        if self.written is not None:
            ranks = self.written.target_rank[torch.tensor(self.stands_out)]
            n_first = int((ranks == 0).sum())
            said += f", {n_first} of which would write {answer} more than any other word there"
        return f"{said}{there}."

    def to_frame(self) -> DataFrame:
        """A row for each of `top`: index, score, the interval for random queries, words and text."""
        import pandas

        rows = []
        for place, index in enumerate(self.top.tolist()):
            words = (
                {}
                if self.written is None
                else {
                    "writes": self.written.top_tokens[place],
                    "target_rank": int(self.written.target_rank[place]),
                }
            )
            rows.append(
                {
                    "example": index,
                    self.metric: float(self.scores[index]),
                    "low": float(self.low[index]),
                    "high": float(self.high[index]),
                    "stands_out": self.stands_out[place] if self.n_random >= _LEAST_QUERIES else None,
                    **words,
                }
            )
        frame = pandas.DataFrame(rows)
        frame["text"] = text_column(self.names[index] for index in self.top.tolist())
        return frame

    def plot(self) -> "plotly.graph_objects.Figure":
        """The largest scores beside those for random queries, as a plotly figure."""
        return import_module("tl_backward.render").authors_curves(self)

    def _repr_html_(self) -> str:
        """The first examples, as a static table."""
        frame = self.to_frame()
        if "writes" in frame:
            frame["writes"] = [", ".join(map(visible_token, words[:5])) for words in frame["writes"]]
        return frame_table(frame, caption=self.summary())


@typed
def who_wrote(
    model: TransformerLensModel,
    prompt: Prompt,
    target: str,
    dataset: Examples,
    *,
    weights: str | list[str] | None = None,
    metric: Metric = "cosine",
    n: int = 10,
    k: int = 10,
    random_queries: Examples | None = None,
    n_random: int = 100,
    seed: int = 0,
    scores: Real[Tensor, "n_scores"] | Real[np.ndarray, "n_scores"] | Sequence[float] | None = None,
    max_bytes: int = MAX_FACTOR_BYTES,
    text_options: TextOptions = EXAMPLES,
    show_progress: bool = True,
) -> Authors:
    """The examples whose own step would most write an answer, by exact factors, with the words that they would write.

    The score of an example e for the query q is <dL_q/dW, dL_e/dW> over all chosen weights, or its cosine (TracIn,
    Pruthi et al. 2020, at one checkpoint). Where the query is asked, token i, its weights read x_qi; a step on e adds
    - x_qi dL_e/dW = - sum_j (x_qi . x_ej) delta_ej to what they write there: the words of that sum over the weights
    that write to the residual stream are what the example has to say to the query.

    Args:
        model: the model that was trained on the data set, or is to be.
        prompt: of the query, as text or as token ids.
        target: its answer, whose author is asked for.
        dataset: texts, (prompt, target) pairs, edit cases, or a table or file of them, as in `gradient_similarity`.
        weights: as there; None for what each block writes with.
        metric: "cosine", which takes lengths out, or "inner".
        n: examples to read in words.
        k: words of each; 0 for none, which spares a pass of each.
        random_queries: (prompt, target) pairs of other queries; None for `n_random` examples of the data set, each left
            out of its own interval.
        n_random: how many; no interval below 20.
        seed: of the draw.
        scores: of another method, one for each example, larger where it would write the answer more; the examples are
            then captured only for the words of the first, and there is no interval.
        max_bytes: of factors held at a time.
        text_options: batch_size and prepend_bos.
        show_progress: show a bar.

    Raises:
        ValueError, TypeError: bad input as in `gradient_similarity`; a data set of none; scores of another number, or
            that are not finite.

    Examples:
        >>> facts = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:30]]
        >>> found = tlb.training.who_wrote(model, *facts[7], facts, show_progress=False)
        >>> found.top[0].item(), round(found.scores[7].item(), 3), found.written.target_rank[0].item()
        (7, 1.0, 0)
    """
    if k:
        check_k(k, output_size(model) or model.cfg.d_vocab)
    for name, value in (("n", n), ("n_random", n_random)):
        if value < (name == "n"):
            raise ValueError(f"Expected {name} of at least {int(name == 'n')}, got {value}.")
    _, prepend_bos = batching(text_options)
    dataset = listed(dataset)
    examples, names = encoded(model, dataset, prepend_bos)
    query = encoded(model, [(prompt, target)], prepend_bos)[0][0]
    asked = prompt_text(model, prompt)
    if scores is not None:
        given = _checked(scores, len(examples))
        chosen = tuple(chosen_weights(model, weight_sites(model), weights))
        top, unknown = leading(given, n), torch.full_like(given, float("nan"))
        words = written(model, query, [examples[i] for i in top.tolist()], chosen, k)
        return Authors(asked, target, names, given, unknown, unknown.clone(), top, words, chosen, "score", 0)
    own: list[int] = []
    queries: list[tuple[Prompt, str | Loss]] = [(prompt, target)]
    if random_queries is not None:
        queries += [
            (each.prompt, each.target) if isinstance(each, EditCase) else each
            for each in cast(list, listed(random_queries))
        ]
    elif n_random:
        own = drawn(len(examples), n_random, seed)
    options = {"weights": weights, "max_bytes": max_bytes, "text_options": text_options, "show_progress": show_progress}
    similarity = gradient_similarity(model, queries, dataset, metric=metric, **options)
    found = similarity.matrix
    others = found[1:]
    if own:
        others = gradient_similarity(
            model, [cast(list, dataset)[i] for i in own], dataset, metric=metric, **options
        ).matrix.clone()
        others[torch.arange(len(own)), torch.tensor(own)] = float("nan")
    low, high = interval(others)
    top = leading(found[0], n)
    words = written(model, query, [examples[i] for i in top.tolist()], similarity.weights, k)
    return Authors(asked, target, names, found[0], low, high, top, words, similarity.weights, metric, len(others))


def _checked(scores: object, n: int) -> Float[Tensor, "example"]:
    """Scores of another method, in float64.

    Raises:
        ValueError: not one finite number for each example.
    """
    given = torch.as_tensor(scores).detach().double().cpu().clone()
    if given.shape != (n,) or not given.isfinite().all():
        got = f"shape {list(given.shape)}" if given.shape != (n,) else "some that are NaN or inf"
        raise ValueError(f"Expected a finite score for each of the {n} examples, got {got}; give them in their order.")
    return given


def drawn(n_examples: int, n: int, seed: int) -> list[int]:
    """Indices of `n` examples, or of all, drawn without replacement."""
    return torch.randperm(n_examples, generator=torch.Generator().manual_seed(seed))[:n].tolist()


def leading(scores: Float[Tensor, "example"], n: int) -> Int[Tensor, "n"]:
    """The examples with the largest scores, largest first; of equal ones the first of the data set."""
    return scores.argsort(descending=True, stable=True)[:n]


def interval(others: Float[Tensor, "query example"]) -> tuple[Float[Tensor, "example"], Float[Tensor, "example"]]:
    """The 2.5 % and 97.5 % quantile of each example's scores for random queries, NaN left out; NaN of fewer than 20."""
    if len(others) < _LEAST_QUERIES:
        nothing = torch.full((others.shape[1],), float("nan"), dtype=torch.float64)
        return nothing, nothing.clone()
    return others.nanquantile(0.025, dim=0), others.nanquantile(0.975, dim=0)


def written(
    model: TransformerLensModel, query: Example, chosen: list[Example], names: tuple[str, ...], k: int
) -> TargetReadout | None:
    """What a step on each example adds, where the query is asked, to what its weights write to the stream.

    None where no weight writes there, and where no words (k = 0) are asked for.
    """
    if not k:
        return None
    sites = weight_sites(model)
    writers = stream_writers(model, sites)
    writing = [name for name in names if name in writers and not sites[name].layout.experts]
    if not writing:
        return None
    asks = capture_batch(model, [query], writing)
    at = int(asks.asked[0])
    vectors = torch.zeros(len(chosen), model.cfg.d_model)
    for place, example in enumerate(chosen):
        found = capture_batch(model, [example], writing).cache.factors
        for name in writing:
            read, own = asks.cache.factors[name], found[name]
            alike = own.inputs[0].flatten(1) @ read.inputs[0, at].flatten()  # heads read side by side
            vectors[place] -= (alike @ own.deltas[0]).float().cpu()
    like = next(iter(model.parameters()))
    return readout(model, vectors.to(like.device, like.dtype), k=k, target=query.target)
