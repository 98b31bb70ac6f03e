"""Inner products between the gradients of examples, to find those that would write the same thing into the weights.

The kernel behind TracIn (Pruthi et al. 2020, eq. 1) and influence functions (Koh and Liang 2017, without the inverse
Hessian): <dL_a/dW, dL_b/dW>, straight from the factors, sum over their tokens i, j of (x_i.x_j)(delta_i.delta_j).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import short
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.memory import keep_freed_memory
from tl_backward._support.public import public
from tl_backward._support.shown import Shown
from tl_backward._support.threads import steps
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.gradients.examples import (
    BATCHING,
    EXAMPLES,
    Example,
    Examples,
    batching,
    by_length,
    capture_batch,
    check_several,
    encode_examples,
    is_pair,
)
from tl_backward.gradients.gram import ExampleRows, inner_products
from tl_backward.gradients.losses import next_token_loss
from tl_backward.gradients.summary import similarity_sentence
from tl_backward.model.inputs import check_text_model, has_decoder
from tl_backward.text.asked import mask_token
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.options import TextOptions
from tl_backward.text.tables import Cases, cases_of, is_file, rows_of
from tl_backward.text.token_strings import text_column
from tl_backward.weights import weight_sites
from tl_backward.weights.blocks import chosen_weights

Metric: TypeAlias = Literal["inner", "cosine"]

MAX_FACTOR_BYTES = 1 << 30
"""Of factors held at once, unless told otherwise."""
_HTML_PAIRS = 20
_TILE = 1024
"""Examples of either side whose products are held at a time."""


@dataclass(frozen=True, repr=False, eq=False)
class GradientSimilarity(Shown):
    """The result of `gradient_similarity`: one row an example of A, one column an example of B; raw gradients."""

    _report = "similarity_report"

    inner: Float[Tensor, "weight a b"]
    """<dL_a/dW, dL_b/dW> of each weight; summed over weights, that of all of them as one vector."""
    norms_a: Float[Tensor, "weight a"]
    """|dL_a/dW|."""
    norms_b: Float[Tensor, "weight b"]
    """|dL_b/dW|."""
    weights: tuple[str, ...]
    """Full names, in the model's order."""
    names_a: tuple[str, ...]
    """The examples as text, the target after an arrow."""
    names_b: tuple[str, ...]
    metric: Metric
    """What `matrix`, `pairs` and `to_frame` show."""
    within: bool
    """Whether A and B are the same examples."""

    @property
    def matrix(self) -> Float[Tensor, "a b"]:
        """Over all chosen weights together: inner products, or cosines between the concatenated gradients."""
        norms = (each.square().sum(0).sqrt() for each in (self.norms_a, self.norms_b))
        return self._in_metric(self.inner.sum(0), *norms)

    def _in_metric(self, inner: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        """Inner products, or the cosines that they make of gradients of these norms."""
        if self.metric == "inner":
            return inner
        norms = norms_a[:, None] * norms_b
        return torch.where(norms > 0, inner / norms, 0.0)

    def __repr__(self) -> str:
        return (
            f"GradientSimilarity({len(self.names_a)} x {len(self.names_b)} examples, {self.metric} of "
            f"{len(self.weights)} weights)"
        )

    def summary(self) -> str:
        """In one sentence: the pair of examples whose gradients are most alike, beside the median of all pairs."""
        return similarity_sentence(self.metric, self.names_a, self.names_b, self.matrix, within=self.within)

    def of_weight(self, weight: str) -> Float[Tensor, "a b"]:
        """The matrix of one weight alone, by its full name."""
        if weight not in self.weights:
            raise KeyError(f"Expected one of {list(self.weights)}, got {weight!r}.")
        at = self.weights.index(weight)
        return self._in_metric(self.inner[at], self.norms_a[at], self.norms_b[at])

    def pairs(self, k: int = 10, *, largest: bool = True) -> DataFrame:
        """The k pairs whose gradients are most (or, with `largest=False`, least) alike, best first.

        Among one set of examples each pair is listed once, and no example beside itself. Ties are in order of index.
        """
        import pandas

        values = self.matrix
        listed = torch.ones_like(values).triu(1) if self.within else torch.ones_like(values)
        rows, columns = listed.nonzero().unbind(1)
        order = values[rows, columns].argsort(descending=largest, stable=True)[:k]
        chosen = [(int(rows[i]), int(columns[i])) for i in order]
        frame = pandas.DataFrame([(a, b, float(values[a, b])) for a, b in chosen], columns=["a", "b", self.metric])
        frame["example_a"] = text_column(self.names_a[a] for a, _ in chosen)
        frame["example_b"] = text_column(self.names_b[b] for _, b in chosen)
        return frame

    def to_frame(self) -> DataFrame:
        """The matrix with the examples' texts as its index and columns."""
        import pandas

        return pandas.DataFrame(self.matrix.tolist(), text_column(self.names_a), text_column(self.names_b))

    def _repr_html_(self) -> str:
        """The most alike pairs, as a static table."""
        from tl_backward._support.html import frame_table

        return frame_table(self.pairs(_HTML_PAIRS), caption=repr(self))


@public
@old_keywords({name: f"text_options.{name}" for name in BATCHING}, text_options=TextOptions)
def gradient_similarity(
    model: TransformerLensModel,
    examples_a: Examples,
    examples_b: Examples | None = None,
    *,
    weights: str | Sequence[str] | None = None,
    metric: Metric = "inner",
    max_bytes: int = MAX_FACTOR_BYTES,
    text_options: TextOptions = EXAMPLES,
    show_progress: bool = True,
) -> GradientSimilarity:
    """Inner products or cosines between the gradients of examples, without forming any.

    <dL_a/dW, dL_b/dW> = sum_ij (x_i.x_j)(delta_i.delta_j) over tokens i of a and j of b: two thin matrix products a
    batch. Each example has the gradient it has alone. A positive inner product says that a descent step on b lowers a's
    loss too, to first order by lr times it (TracIn).

    Args:
        model: a HookedTransformer or TransformerBridge.
        examples_a: texts (under `next_token_loss`: what training on the sentence would write), (prompt, target) or
            (prompt, loss) pairs, or edit cases, a table or file of which will do as in `sweep`.
        examples_b: others; None compares A with itself.
        weights: whose gradients, as in `run_with_gradient_cache`; several are taken as one long vector, and are kept
            apart in the result. None for the matrix that each block writes with: W_out, and where a block has none its
            experts' down projection or its mixer's out projection.
        metric: "inner" or "cosine".
        max_bytes: of factors of A held at a time; where A needs more, B is captured once for each part of A. Beside
            them are held the result, 8 bytes a weight and pair, and up to 250 MB of a pass or of products.
        text_options: its batch_size (examples a pass at most) and prepend_bos; the others have no use here.
        show_progress: show a bar.

    Raises:
        ValueError, TypeError, IndexError: bad input as in `sweep`, with the example's index; a loss or gradient that is
            not finite (`NonFiniteError`).

    Examples:
        >>> texts = ["Anna Berg lives in", "Anna Berg resides in", "The pet of Anna Berg is a"]
        >>> g = tlb.gradient_similarity(model, texts, metric="cosine", show_progress=False)
        >>> g.pairs(1)[["a", "b"]].values.tolist()
        [[0, 1]]
    """
    check_text_model(model)
    if metric not in ("inner", "cosine"):
        raise ValueError(f"Expected metric 'inner' or 'cosine', got {metric!r}; a cosine leaves lengths out.")
    if max_bytes < 1:
        raise ValueError(f"Expected max_bytes of at least 1, got {max_bytes}; one batch is held whatever it takes.")
    batch_size, prepend_bos = batching(text_options)
    names = tuple(chosen_weights(model, weight_sites(model), weights))
    within = examples_b is None
    a, names_a = encoded(model, examples_a, prepend_bos)
    b, names_b = (a, names_a) if examples_b is None else encoded(model, examples_b, prepend_bos)
    inner = torch.zeros(len(names), len(a), len(b), dtype=torch.float64)
    norms_a, norms_b = (torch.zeros(len(names), len(side), dtype=torch.float64) for side in (a, b))
    left = list(b)
    with tqdm(total=len(a), desc="similarity", unit="example", disable=not show_progress) as bar:
        for part in _parts(model, a, names, batch_size, max_bytes):
            norms_a[:, part.indices] = part.norms
            if within:  # each pair once
                part.write_products(part, inner, mirrored=True)
                done = set(part.indices.tolist())
                left = [example for example in left if example.index not in done]
            for batch in by_length(model, left, batch_size):
                other = captured(model, batch, names)
                norms_b[:, other.indices] = other.norms
                part.write_products(other, inner, mirrored=within)
                del other  # nothing is held twice, here or while the next part is captured
            bar.update(len(part.indices))
            del part
    return GradientSimilarity(inner, norms_a, norms_a if within else norms_b, names, names_a, names_b, metric, within)


@dataclass(frozen=True)
class Part:
    """The factors of some examples, as rows that lie beside each other."""

    indices: Int[Tensor, "example"]
    norms: Float[Tensor, "weight example"]
    rows: list[ExampleRows]
    """Of each weight."""

    def write_products(self, other: "Part", out: Float[Tensor, "weight a b"], *, mirrored: bool) -> None:
        """Inner products of every pair of examples, a tile at a time: little is held beside what they are written to.

        Those of a part with itself are taken once for each pair. `mirrored` writes them for (b, a) too.
        """
        for found, one, two in zip(out, self.rows, other.rows, strict=True):
            for i in steps(len(one.counts), _TILE):
                for j in steps(len(two.counts), _TILE, start=i.start if self is other else 0):
                    mine = one[i]
                    tile = inner_products(mine, mine if self is other and i == j else two[j]).cpu()
                    rows, columns = self.indices[i], other.indices[j]
                    found[rows[:, None], columns] = tile
                    if mirrored:
                        found[columns[:, None], rows] = tile.T


def _parts(
    model: TransformerLensModel, examples: Sequence[Example], names: tuple[str, ...], batch_size: int, max_bytes: int
) -> Iterator[Part]:
    """The examples' factors, as many at a time as fit into `max_bytes` (at least one batch).

    They are written into memory made for all of them: batches joined at the end would be held twice.
    """
    held: list[Part] = []
    rows: list[ExampleRows] = []
    n_left = sum(example.n_tokens for example in examples)
    for batch in by_length(model, examples, batch_size):
        found, n = captured(model, batch, names), sum(example.n_tokens for example in batch)
        if held and not all(one.has_room(two) for one, two in zip(rows, found.rows, strict=True)):
            yield _joined(held, rows)
            held = []
        if not held:
            # A token has a row, or one for each expert that it goes to.
            each = [max(1, -(-len(two.deltas) // n)) for two in found.rows]
            n_bytes = sum(k * two.row_bytes for k, two in zip(each, found.rows, strict=True))
            fit = min(n_left, max_bytes // n_bytes)
            rows = []  # the last ones leave before others come
            rows = [two.room(max(k * fit, len(two.deltas))) for k, two in zip(each, found.rows, strict=True)]
        rows = [one.followed_by(two) for one, two in zip(rows, found.rows, strict=True)]
        held.append(replace(found, rows=[]))
        n_left -= n
        del found
    if held:
        yield _joined(held, rows)


def _joined(parts: list[Part], rows: list[ExampleRows]) -> Part:
    """The examples of all parts, whose rows lie in `rows`."""
    indices, norms = torch.cat([part.indices for part in parts]), torch.cat([part.norms for part in parts], 1)
    return Part(indices, norms, [each[: len(each.counts)] for each in rows])


def captured(model: TransformerLensModel, batch: Sequence[Example], names: Sequence[str]) -> Part:
    """One batch's factors of the named weights, on the model's device, and its norms."""
    keep_freed_memory()
    cache, norms, rows = capture_batch(model, batch, names).cache, [], []
    for name in names:
        try:
            norms.append(cache.factors[name].example_norms())
            rows.append(ExampleRows.of(*cache.factors[name].active(), n_examples=len(batch)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return Part(torch.tensor([example.index for example in batch]), torch.stack(norms).cpu(), rows)


def listed(examples: Examples) -> Examples:
    """Rows of a table or file, or whatever else is iterable, as a list; the rest as it is, to be refused."""
    if is_file(examples) or rows_of(examples) is not None:
        return cases_of(cast(Cases, examples))
    if isinstance(examples, Iterable) and not isinstance(examples, str | Mapping):  # of a dictionary it lists the keys
        check_several(examples)
        return cast(Examples, list(examples))
    return examples


def encoded(
    model: TransformerLensModel, examples: Examples, prepend_bos: bool | None
) -> tuple[list[Example], tuple[str, ...]]:
    """Examples with their losses, and how each is called."""
    examples = listed(examples)
    if not isinstance(examples, Sequence) or isinstance(examples, str) or not examples:
        got = "one text" if isinstance(examples, str) else "none" if not examples else short(examples)
        raise ValueError(f"Expected a list of examples, got {got}; a single one is a list of one.")
    cases = [each for each in examples if isinstance(each, EditCase)]
    if cases:
        if len(cases) != len(examples):
            raise ValueError("Expected edit cases alone, got others beside them; give examples of one kind.")
        names = tuple(f"{case.prompt} -> {case.target}" for case in cases)
        return encode_examples(model, cases, None, prepend_bos=prepend_bos), names
    pairs = [each if is_pair(each) else (each, next_token_loss) for each in examples]
    plain = next((prompt_text(model, each[0]) for each in pairs if each[-1] is next_token_loss), None)
    if plain is not None and (has_decoder(model) or mask_token(model) is not None):
        raise ValueError(
            f"Expected (prompt, target) pairs for a model that does not predict its prompt's next tokens, got the text "
            f"{plain[:40]!r} alone; for example [({plain[:40]!r}, ' word')]."
        )
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("Expected examples as texts, (prompt, target) pairs or edit cases, got other tuples.")
    prompts, losses = (list(side) for side in zip(*pairs, strict=True))
    encoded = encode_examples(model, prompts, losses, prepend_bos=prepend_bos)
    texts = (prompt_text(model, prompt) for prompt in prompts)
    names = (f"{text} -> {loss}" if isinstance(loss, str) else text for text, loss in zip(texts, losses, strict=True))
    return encoded, tuple(names)
