"""From what a run has gathered to values, standard errors and nulls."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import nearest
from tl_backward.dissimilarity.grouped import GroupedStatistics, SumsView, jackknife
from tl_backward.dissimilarity.measures.registry import ADDITIVE, Measure, get_measure, list_names
from tl_backward.dissimilarity.minibatch import ESTIMATORS, Estimator, MinibatchCKA
from tl_backward.dissimilarity.sampling import RowSample, permutations, permuted_cka
from tl_backward.dissimilarity.statistics import CovarianceStatistics

N_PERMUTED = 512  # samples whose Gram matrices are permuted: their cost is the square of it, a layer
_FAST = ("cka", "cka_debiased")
_CCA = ("cca", "cca_squared", "svcca", "pwcca", "pwcca_y")


@dataclass(frozen=True)
class Wanted:
    """The measures of one comparison, by how they are computed."""

    names: tuple[str, ...]
    estimator: Estimator
    additive: dict[str, Measure]
    """From sums; `cka` among them under the estimator "full"."""
    sampled: dict[str, Measure]
    """On a bounded sample."""

    @property
    def minibatch(self) -> bool:
        """Whether CKA is estimated batch by batch."""
        return "cka" in self.names and self.estimator != "full"

    @property
    def any_basis(self) -> bool:
        """Whether every additive measure may be taken in coordinates of another basis."""
        return all(measure.any_basis for measure in self.additive.values())

    @property
    def double(self) -> bool:
        """Whether the sums are to be multiplied in float64."""
        return any(measure.double for measure in self.additive.values())


def find_measures(measures: str | Sequence[str], estimator: str) -> Wanted:
    """Look measures up, and part those that follow from sums from those that need samples.

    Raises:
        ValueError: an unknown measure or estimator; the nearest are named.
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"Expected an estimator among {', '.join(ESTIMATORS)}, got {estimator!r}; 'full' takes all together."
        )
    if not names:
        raise ValueError("Expected at least one measure, got none; for example measures=('cka',).")
    additive, sampled = {}, {}
    for name in names:
        if name == "cka":
            if estimator == "full":
                additive[name] = ADDITIVE["cka_debiased"]
        elif name not in (known := list_names()):
            raise ValueError(
                f"Expected the name of a measure, got {name!r}; the nearest are {nearest(name, ['cka', *known])}."
            )
        else:
            (additive if name in ADDITIVE else sampled)[name] = get_measure(name)
    return Wanted(names, cast(Estimator, estimator), additive, sampled)


def check_sampled(wanted: Wanted, sample_size: int) -> None:
    """Refuse before the run what a measure would refuse after it.

    Raises:
        ImportError: a measure's package is not installed.
        ValueError: more samples than a measure takes.
    """
    for name, measure in wanted.sampled.items():
        package, most = measure.package, measure.most
        if package is not None and find_spec(package) is None:
            raise ImportError(
                f"Expected the package {package} for {name}, but it is not installed; install "
                f"tl-backward[{measure.extra}], or choose another measure."
            )
        if most is not None and sample_size > most:
            raise ValueError(
                f"Expected sample_size of at most {most} for {name}, whose cost grows with its cube, got "
                f"{sample_size}; pass a smaller one, such as 100."
            )


@dataclass(frozen=True, eq=False)
class Values:
    """[measure, layer_a, layer_b] of each."""

    values: Float[Tensor, "measure layer_a layer_b"]
    errors: Float[Tensor, "measure layer_a layer_b"]
    nulls: Float[Tensor, "measure layer_a layer_b"]
    permuted_means: Float[Tensor, "measure layer_a layer_b"]
    permuted_deviations: Float[Tensor, "measure layer_a layer_b"]
    n_permuted: tuple[int, ...]
    computed_from: tuple[str, ...]


def evaluate(
    wanted: Wanted,
    *,
    sums: GroupedStatistics | None,
    sample: RowSample,
    minibatch: MinibatchCKA | None,
    layers: tuple[list[str], list[str]],
    n_permutations: int,
    n_groups: int,
    seed: int,
    show_progress: bool,
) -> Values:
    """Every measure of every pair, its jackknife standard error, and its nulls."""
    n_a, n_b = len(layers[0]), len(layers[1])
    shape = (len(wanted.names), n_a, n_b)
    values, errors, nulls, means, deviations = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(5))
    words = dict.fromkeys(wanted.names, "")
    rows = {name: index for index, name in enumerate(wanted.names)}
    if wanted.minibatch and minibatch is not None:
        m = rows["cka"]
        values[m], errors[m] = minibatch.values(wanted.estimator)
        nulls[m] = 0.0
        words["cka"] = f"batches: {ESTIMATORS[wanted.estimator]}"
    if wanted.additive and sums is not None:
        total = sums.total()
        total.names = {"a": [f"{name} of A" for name in layers[0]], "b": [f"{name} of B" for name in layers[1]]}
        found, found_errors, found_nulls = _from_sums(list(wanted.additive.values()), sums, total, show_progress)
        for index, name in enumerate(wanted.additive):
            values[rows[name]], errors[rows[name]], nulls[rows[name]] = (
                found[index], found_errors[index], found_nulls[index]
            )  # fmt: skip
            words[name] = f"all {total.n} samples: {wanted.additive[name].what}"
        _warn_of_cca(wanted, total)
    for name, measure in wanted.sampled.items():
        values[rows[name]], errors[rows[name]] = _from_sample(measure, sample, n_a, n_groups, show_progress)
        words[name] = f"a seeded sample of {len(sample)} of {sample.n_seen} samples"
    if n_permutations:
        for name in wanted.names:
            drawn = _permuted(name, wanted, sample, n_a, n_permutations, seed, show_progress)
            means[rows[name]], deviations[rows[name]] = drawn.mean(0), drawn.std(0)
    permuted = [min(N_PERMUTED, len(sample)) if name in _FAST else len(sample) for name in wanted.names]
    said = tuple(words[name] for name in wanted.names)
    return Values(
        values, errors, nulls, means, deviations, tuple(permuted if n_permutations else [0] * len(said)), said
    )


def _pairs(n_a: int, n_b: int, what: str, repeats: int, show: bool) -> Iterator[tuple[int, int]]:
    pairs = [(i, j) for i in range(n_a) for j in range(n_b)]
    yield from tqdm(pairs, desc=what, unit="pair", disable=not show or len(pairs) * repeats < 50, leave=False)


def _from_sums(
    measures: Sequence[Measure], sums: GroupedStatistics, total: CovarianceStatistics, show: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n_a, n_b = len(total.widths_a), len(total.widths_b)

    def grid(view: SumsView, what: str) -> tuple[Tensor, SumsView]:
        values = torch.zeros(len(measures), n_a, n_b, dtype=torch.float64)
        for i, j in _pairs(n_a, n_b, what, 1, show):
            pair = view.pair(i, j)
            for m, measure in enumerate(measures):
                values[m, i, j] = measure(pair)
        return values, view

    values, view = grid(SumsView(total), "measures")
    nulls = torch.full_like(values, math.nan)
    for m, measure in enumerate(measures):
        if measure.null is not None:
            for i in range(n_a):
                for j in range(n_b):
                    nulls[m, i, j] = measure.null(view.pair(i, j))
    left_out = [grid(part, "without each group")[0] for part in sums.left_out(total)]
    return values, jackknife(torch.stack(left_out)) if left_out else torch.full_like(values, math.nan), nulls


def _from_sample(measure: Measure, sample: RowSample, n_a: int, n_groups: int, show: bool) -> tuple[Tensor, Tensor]:
    """On the sample, and without each of at most `n_groups` groups of its batches."""
    batches = sample.batch.unique()
    groups = batches.tensor_split(min(n_groups, len(batches))) if n_groups > 1 and len(batches) > 1 else ()
    keeps = [~torch.isin(sample.batch, group) for group in groups]
    a, b = sample.layers[:n_a], sample.layers[n_a:]
    values = torch.zeros(1 + len(keeps), n_a, n_b := len(b), dtype=torch.float64)
    for i, j in _pairs(n_a, n_b, measure.name, 1 + len(keeps), show):
        values[0, i, j] = float(measure(a[i], b[j]))
        for k, keep in enumerate(keeps):
            kept = keep.to(a[i].device)
            values[1 + k, i, j] = float(measure(a[i][kept], b[j][kept]))
    return values[0], jackknife(values[1:])


def _permuted(
    name: str, wanted: Wanted, sample: RowSample, n_a: int, count: int, seed: int, show: bool
) -> Float[Tensor, "permutation layer_a layer_b"]:
    """The measure with the samples of B in random orders."""
    if name in _FAST:
        first = sample.first(N_PERMUTED)
        rows = [layer[first.to(layer.device)] for layer in sample.layers]
        return permuted_cka(rows[:n_a], rows[n_a:], permutations(len(first), count, seed))
    a, b = sample.layers[:n_a], sample.layers[n_a:]
    values = torch.zeros(count, n_a, len(b), dtype=torch.float64)
    orders = permutations(len(sample), count, seed)
    for k, order in enumerate(tqdm(orders, desc=f"{name}, permuted", disable=not show, leave=False)):
        turned = [layer[order.to(layer.device)] for layer in b]
        if name in wanted.additive:
            view = SumsView(_sums_of(a, turned))
            for i, j in _pairs(n_a, len(b), name, 1, False):
                values[k, i, j] = wanted.additive[name](view.pair(i, j))
        else:
            for i, j in _pairs(n_a, len(b), name, 1, False):
                values[k, i, j] = float(wanted.sampled[name](a[i], turned[j]))
    return values


def _sums_of(a: Sequence[Tensor], b: Sequence[Tensor]) -> CovarianceStatistics:
    """In float64, and without warnings of ranks: those of the value itself have been given."""
    stats = CovarianceStatistics([x.shape[1] for x in a], [y.shape[1] for y in b], device=a[0].device)
    stats.names = {"a": [""] * len(a), "b": [""] * len(b)}
    stats.update(a, b)
    return stats


def _warn_of_cca(wanted: Wanted, total: CovarianceStatistics) -> None:
    asked = [name for name in _CCA if name in wanted.additive]
    widest = max(*total.widths_a, *total.widths_b)
    if asked and total.n - 1 <= widest:
        warnings.warn(
            f"{', '.join(asked)} of {total.n} samples of layers up to {widest} wide: from n - 1 <= rank on every "
            "canonical correlation is 1 whatever the layers hold; use more samples.",
            stacklevel=4,
        )
