"""From what was gathered to a comparison: values, standard errors and nulls."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.gather import Accumulated
from tl_backward.dissimilarity.grouped import GroupedStatistics, SumsView, jackknife
from tl_backward.dissimilarity.measures.registry import Measure
from tl_backward.dissimilarity.minibatch import ESTIMATORS
from tl_backward.dissimilarity.plan import Plan
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.sampling import RowSample, permutations, permuted_cka
from tl_backward.dissimilarity.statistics import CovarianceStatistics
from tl_backward.dissimilarity.tally import Tally
from tl_backward.dissimilarity.wanted import FAST, N_PERMUTED, Wanted

FEWEST_SAMPLES = 4  # the unbiased HSIC divides by n - 3
_CCA = ("cca", "cca_squared", "svcca", "pwcca", "pwcca_y")


def evaluate(plan: Plan, found: Accumulated, show_progress: bool) -> Comparison:
    """Every measure of every pair, its jackknife standard error, and its nulls.

    Raises:
        ValueError: fewer than 4 samples, or a layer that never varies.
    """
    wanted, options, tally, sample, minibatch = plan.wanted, plan.options, found.tally, found.sample, found.minibatch
    if tally["samples"] < FEWEST_SAMPLES:
        raise ValueError(
            f"Expected at least {FEWEST_SAMPLES} samples, got {tally['samples']}; give more texts, or sample every "
            "token."
        )
    _check_varies(plan, sample)
    n_a, n_b = map(len, plan.labels)
    sums = found.sums
    if plan.memory.route == "gram":
        sums = _from_rows(sample, n_a, plan.memory.n_groups)
    shape, rows = (len(wanted.names), n_a, n_b), {name: index for index, name in enumerate(wanted.names)}
    values, errors, nulls, means, deviations = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(5))
    words = dict.fromkeys(wanted.names, "")
    if minibatch is not None:
        if minibatch.n_skipped:
            warn_user(f"{minibatch.n_skipped} batches of fewer than 4 samples have no unbiased HSIC and were left out.")
        m = rows["cka"]
        values[m], errors[m] = minibatch.values(wanted.estimator)
        nulls[m] = 0.0
        words["cka"] = f"batches: {ESTIMATORS[wanted.estimator]}"
    if wanted.additive and sums is not None:
        total = sums.total()
        total.names = {side: [f"{name} of {side.upper()}" for name in plan.labels[side == "b"]] for side in "ab"}
        each = zip(*_from_sums(list(wanted.additive.values()), sums, total, show_progress), strict=True)
        for (name, measure), numbers in zip(wanted.additive.items(), each, strict=True):
            values[rows[name]], errors[rows[name]], nulls[rows[name]] = numbers
            words[name] = f"all {total.n} samples: {measure.what}"
        _warn_of_cca(wanted, total)
    for name, measure in wanted.sampled.items():
        values[rows[name]], errors[rows[name]] = _from_sample(measure, sample, n_a, options.jackknife, show_progress)
        words[name] = f"a seeded sample of {len(sample)} of {sample.n_seen} samples"
    n_permuted = [0] * len(rows)
    for name, m in rows.items() if options.permutations else ():
        drawn = _permuted(name, wanted, sample, n_a, options.permutations, options.seed, show_progress)
        means[m], deviations[m] = drawn.mean(0), drawn.std(0)
        n_permuted[m] = min(N_PERMUTED, len(sample)) if name in FAST else len(sample)
    _warn_of_first(plan, tally)
    share = tally.first_share()
    n_groups = len(minibatch.numbers) if minibatch is not None else 0 if sums is None else len(sums.groups)
    return Comparison(
        measures=wanted.names,
        layers_a=plan.labels[0],
        layers_b=plan.labels[1],
        values=values,
        standard_errors=errors,
        null_means=nulls,
        permutation_means=means,
        permutation_deviations=deviations,
        computed_from=tuple(words.values()),
        estimator=wanted.estimator,
        sample=plan.reading.sample,
        n_samples=tally["samples"],
        n_texts=tally["texts"],
        n_batches=tally["batches"],
        n_groups=n_groups if n_groups > 1 else 0,
        n_sampled=len(sample),
        n_permuted=tuple(n_permuted),
        n_permutations=options.permutations,
        first_excluded=plan.reading.exclude_first,
        first_share=(share[:n_a], share[n_a:]),
        aligned="characters" if tally["by_characters"] else "tokens",
        coverage=(tally.share("pairs", "tokens_a"), tally.share("pairs", "tokens_b")),
        unknown=(tally.share("unknown_a", "tokens_a"), tally.share("unknown_b", "tokens_b")),
        n_truncated=tally["truncated"],
        n_empty=tally["empty"],
        plan=plan.memory,
        seed=options.seed,
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
    if name in FAST:
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


def _from_rows(sample: RowSample, n_a: int, n_groups: int) -> GroupedStatistics:
    """Sums over fewer samples than a layer is wide, of each layer's coordinates in the space that its samples span."""
    n = len(sample)
    narrow = []
    for layer in sample.layers:
        rows = layer.double()
        if rows.shape[1] > n:
            rows = rows - rows.mean(0)
            rows = torch.linalg.qr(rows.T, mode="r").R.T
        narrow.append(rows)
    widths = [rows.shape[1] for rows in narrow]
    empty = CovarianceStatistics(widths[:n_a], widths[n_a:], device=narrow[0].device)
    # What coordinates are made of was rounded before, as the samples were.
    empty.eps["rows_a"] = empty.eps["rows_b"] = torch.finfo(sample.layers[0].dtype).eps
    grouped = GroupedStatistics(empty, n_groups)
    for number in sample.batch.unique().tolist():
        here = (sample.batch == number).to(narrow[0].device)
        rows = [layer[here] for layer in narrow]
        grouped.update(number, rows[:n_a], rows[n_a:])
    return grouped


def _check_varies(plan: Plan, sample: RowSample) -> None:
    """Refuse a layer that is the same at every sample."""
    for index, rows in enumerate(sample.layers):
        if len(rows) and bool((rows == rows[0]).all()):
            raise ValueError(
                f"Expected activations that vary, got one and the same vector at all {len(rows)} samples at "
                f"{plan.place(index)}; choose another hook point, or other tokens (position 0 is always the same)."
            )


def _warn_of_first(plan: Plan, tally: Tally) -> None:
    share = tally.first_share()
    worst = int(share.argmax())
    if not plan.reading.exclude_first and float(share[worst]) > 0.5:
        warn_user(
            f"The tokens at position 0 make up {float(share[worst]):.0%} of sum |x|^2 at {plan.place(worst)} and may "
            "decide the measures alone; pass text_options=TextOptions(exclude_first=True) to leave them out."
        )


def _warn_of_cca(wanted: Wanted, total: CovarianceStatistics) -> None:
    asked = [name for name in _CCA if name in wanted.additive]
    widest = max(*total.widths_a, *total.widths_b)
    if asked and total.n - 1 <= widest:
        warn_user(
            f"{', '.join(asked)} of {total.n} samples of layers up to {widest} wide: from n - 1 <= rank on every "
            "canonical correlation is 1 whatever the layers hold; use more samples."
        )
