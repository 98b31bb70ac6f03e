"""Which measures a comparison is to take, and from what: sums over all samples, batches, or a bounded sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from tl_backward._support.checks import nearest
from tl_backward.dissimilarity.measures.registry import ADDITIVE, Measure, get_measure, list_names
from tl_backward.dissimilarity.options import Estimator, RunOptions

N_PERMUTED = 512  # samples whose Gram matrices are permuted: their cost is the square of it, a layer
FAST = ("cka", "cka_debiased")  # permuted in Gram matrices


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

    def n_kept(self, options: RunOptions) -> int:
        """How many samples to keep."""
        if self.sampled or (options.permutations and any(name not in FAST for name in self.names)):
            return options.sample_size
        return min(options.sample_size, N_PERMUTED)


def find_measures(measures: str | Sequence[str], options: RunOptions) -> Wanted:
    """Look measures up, and refuse before the run what one of them would refuse after it.

    Raises:
        ImportError: a measure's package is not installed.
        ValueError: an unknown measure (the nearest are named), or more samples than a measure takes.
    """
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    if not names:
        raise ValueError("Expected at least one measure, got none; for example measures=('cka',).")
    additive, sampled = {}, {}
    for name in names:
        if name == "cka":
            if options.estimator == "full":
                additive[name] = ADDITIVE["cka_debiased"]
        elif name not in (known := list_names()):
            raise ValueError(
                f"Expected the name of a measure, got {name!r}; the nearest are {nearest(name, ['cka', *known])}."
            )
        else:
            (additive if name in ADDITIVE else sampled)[name] = get_measure(name)
    for name, measure in sampled.items():
        if measure.package is not None and find_spec(measure.package) is None:
            raise ImportError(
                f"Expected the package {measure.package} for {name}, but it is not installed; install "
                f"tl-backward[{measure.extra}], or choose another measure."
            )
        if measure.most is not None and options.sample_size > measure.most:
            raise ValueError(
                f"Expected sample_size of at most {measure.most} for {name}, whose cost grows with its cube, got "
                f"{options.sample_size}; pass a smaller one, such as 100."
            )
    return Wanted(names, options.estimator, additive, sampled)
