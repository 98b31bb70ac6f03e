"""The results of a watch in several processes as one."""

from dataclasses import replace

from tl_backward.training.largest import Contribution
from tl_backward.training.result import WatchResult


def merge(*results: WatchResult) -> WatchResult:
    """The results of the processes of one data-parallel training as one.

    Each process's optimizer reads the same gradient, the mean over all, so that sums are those of any of them; tokens
    and examples are those that contributed most of all processes', steps counted alike.

    Raises:
        ValueError: none; watches without `optimizer=`, whose sums are each process's own; of different weights,
            options, or sums.
    """
    if not results:
        raise ValueError("Expected the results of each process, got none.")
    odd = next((each for each in results if not isinstance(each, WatchResult)), None)
    if odd is not None:
        raise TypeError(f"Expected the results of each process, got {type(odd).__name__}.")
    first = results[0]
    for other in results:
        if (other.weights, other.about, other.steps) != (first.weights, first.about, first.steps):
            raise ValueError("Expected watches of one training, got some of other weights, options or lengths.")
        if "optimizer" not in str(other.about.get("summed")):
            raise ValueError(
                "Expected watches that were given the optimizer, whose sums are of the gradients that all processes "
                "share, got one without; watch(..., optimizer=...)."
            )
        for name in first.weights:
            one, two = first.sums[name].dense(), other.sums[name].dense()
            if not float((one - two).norm()) <= 1e-4 * float(one.norm()):  # nor of what is not finite
                raise ValueError(f"Expected one training, got processes that summed other gradients of {name}.")
    n = max(1, *(len(each) for each in first.tokens.values()), *(len(each) for each in first.examples.values()))
    largest = {
        of: {name: _largest([getattr(each, of)[name] for each in results], n) for name in first.weights}
        for of in ("tokens", "examples")
    }
    missing = {name: why for each in results for name, why in each.missing.items()}
    return replace(first, tokens=largest["tokens"], examples=largest["examples"], missing=missing)


def _largest(parts: list[tuple[Contribution, ...]], n: int) -> tuple[Contribution, ...]:
    return tuple(sorted({each for part in parts for each in part}, reverse=True)[:n])
