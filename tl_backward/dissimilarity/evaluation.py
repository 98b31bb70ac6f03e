"""From accumulated sums and samples to a `Comparison`: values, jackknife standard errors and null means."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.warnings import warn_user
from tl_backward.dissimilarity.gather import Accumulated, RowSample, Tally
from tl_backward.dissimilarity.grouped import GroupedStatistics, SumsView, jackknife
from tl_backward.dissimilarity.measures.moments import PairSums
from tl_backward.dissimilarity.measures.registry import Measure
from tl_backward.dissimilarity.minibatch import ESTIMATORS, permutations, permuted_cka
from tl_backward.dissimilarity.plan import FAST, N_PERMUTED, Plan, Wanted
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.statistics import CovarianceStatistics

FEWEST_SAMPLES = 4  # the unbiased HSIC divides by n - 3
_CCA = ("cca", "cca_squared", "svcca", "pwcca", "pwcca_y")


def evaluate(plan: Plan, accumulated: Accumulated, show_progress: bool) -> Comparison:
    """Every measure of every pair, its jackknife standard error, and its nulls.

    Raises:
        ValueError: fewer than 4 samples, or a layer that never varies.
    """
    wanted, options, tally = plan.wanted, plan.options, accumulated.tally
    sample, minibatch, sums = accumulated.sample, accumulated.minibatch, accumulated.sums
    if tally["samples"] < FEWEST_SAMPLES:
        raise ValueError(
            f"Expected at least {FEWEST_SAMPLES} samples, got {tally['samples']}; give more texts, or sample every "
            "token."
        )
    _check_varies(plan, sample)
    n_a, n_b = map(len, plan.labels)
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
    n_groups = len(minibatch.hsic) if minibatch is not None else 0 if sums is None else len(sums.groups)
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
        sample=plan.sample.sample,
        n_samples=tally["samples"],
        n_texts=tally["texts"],
        n_batches=tally["batches"],
        n_groups=n_groups if n_groups > 1 else 0,
        n_sampled=len(sample),
        n_permuted=tuple(n_permuted),
        n_permutations=options.permutations,
        first_excluded=plan.text.exclude_first,
        first_share=(share[:n_a], share[n_a:]),
        aligned="characters" if tally["by_characters"] else "tokens",
        coverage=(tally.share("pairs", "tokens_a"), tally.share("pairs", "tokens_b")),
        unknown=(tally.share("unknown_a", "tokens_a"), tally.share("unknown_b", "tokens_b")),
        n_truncated=tally["truncated"],
        n_empty=tally["empty"],
        plan=plan.memory,
        seed=options.seed,
    )


def _grid(
    n_a: int, n_b: int, at: Callable[[int, int], list[float]], what: str = "", show: bool = False, repeats: int = 1
) -> Float[Tensor, "value layer_a layer_b"]:
    """The numbers that at(i, j) gives for every pair of layers, as a tensor."""
    pairs = list(product(range(n_a), range(n_b)))
    shown = tqdm(pairs, desc=what, unit="pair", disable=not show or len(pairs) * repeats < 50, leave=False)
    return torch.tensor([at(i, j) for i, j in shown], dtype=torch.float64).T.reshape(-1, n_a, n_b)


def _from_sums(
    measures: Sequence[Measure], sums: GroupedStatistics, total: CovarianceStatistics, show: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Each measure's values, jackknife standard errors and null means, [measure, layer_a, layer_b] each."""

    def grid(view: SumsView, functions: Sequence[Callable[[PairSums], float] | None], what: str) -> Tensor:
        def at(i: int, j: int) -> list[float]:
            pair = view.pair(i, j)
            return [math.nan if function is None else function(pair) for function in functions]

        return _grid(len(total.widths_a), len(total.widths_b), at, what, show)

    functions = [*measures, *(measure.null for measure in measures)]
    values, nulls = grid(SumsView(total), functions, "measures").split(len(measures))
    left_out = [grid(part, measures, "without each group") for part in sums.left_out(total)]
    return values, jackknife(torch.stack(left_out)) if left_out else torch.full_like(values, math.nan), nulls


def _from_sample(measure: Measure, sample: RowSample, n_a: int, n_groups: int, show: bool) -> tuple[Tensor, Tensor]:
    """A measure's values on the sample [layer_a, layer_b], and jackknife errors over `n_groups` groups of batches."""
    batches = sample.batch.unique()
    groups = batches.tensor_split(min(n_groups, len(batches))) if n_groups > 1 and len(batches) > 1 else ()
    rest = [~torch.isin(sample.batch, group).to(sample.layers[0].device) for group in groups]
    a, b = sample.layers[:n_a], sample.layers[n_a:]

    def at(i: int, j: int) -> list[float]:
        return [float(measure(a[i], b[j])), *(float(measure(a[i][others], b[j][others])) for others in rest)]

    values = _grid(n_a, len(b), at, measure.name, show, 1 + len(rest))
    return values[0], jackknife(values[1:])


def _permuted(
    name: str, wanted: Wanted, sample: RowSample, n_a: int, count: int, seed: int, show: bool
) -> Float[Tensor, "permutation layer_a layer_b"]:
    """A measure's values with B's samples in each of `count` random orders."""
    if name in FAST:
        first = sample.first(N_PERMUTED)
        rows = [layer[first.to(layer.device)] for layer in sample.layers]
        return permuted_cka(rows[:n_a], rows[n_a:], permutations(len(first), count, seed))
    measure = wanted.additive.get(name) or wanted.sampled[name]
    a, b = sample.layers[:n_a], sample.layers[n_a:]
    orders = tqdm(permutations(len(sample), count, seed), desc=f"{name}, permuted", disable=not show, leave=False)
    return torch.stack([_of_rows(measure, a, [layer[order.to(layer.device)] for layer in b]) for order in orders])


def _of_rows(measure: Measure, a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, "layer_a layer_b"]:
    """A measure of every pair of layers [sample, d], by float64 sums where it is a function of sums.

    Without warnings of ranks: those of the value itself have been given.
    """
    if not measure.additive:
        return _grid(len(a), len(b), lambda i, j: [float(measure(a[i], b[j]))])[0]
    sums = CovarianceStatistics([x.shape[1] for x in a], [y.shape[1] for y in b], device=a[0].device)
    sums.names = {"a": [""] * len(a), "b": [""] * len(b)}
    sums.update(a, b)
    view = SumsView(sums)
    return _grid(len(a), len(b), lambda i, j: [measure(view.pair(i, j))])[0]


def _from_rows(sample: RowSample, n_a: int, n_groups: int) -> GroupedStatistics:
    """Sums over fewer samples than a layer is wide, of each layer's coordinates in the space that its samples span."""
    rows = [layer.double() for layer in sample.layers]
    narrow = [
        torch.linalg.qr((layer - layer.mean(0)).T, mode="r").R.T if layer.shape[1] > len(sample) else layer
        for layer in rows
    ]
    widths = [layer.shape[1] for layer in narrow]
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
    if not plan.text.exclude_first and float(share[worst]) > 0.5:
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
