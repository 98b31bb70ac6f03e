"""Options of preimages: when activations count as equal, how a search walks, how a decoder draws, what is asked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from tl_backward._support.checks import check_choice, check_integers
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward.text.options import TextOptions

Metric: TypeAlias = Literal["euclidean", "cosine"]
Match: TypeAlias = Literal["any", "same"]
Edit: TypeAlias = Literal["substitute", "swap", "relabel", "insert", "delete"]
Way: TypeAlias = Literal["decoder", "search", "pool", "enumerate"]

EPSILON = 0.1
"""The paper's threshold."""
EDITS: tuple[Edit, ...] = get_args(Edit)
TEXTS = TextOptions(batch_size=256)
"""How inputs are read by default: forward passes up to one site take many at once."""


@public
@dataclass(frozen=True)
class Closeness(Saved):
    """When an activation counts as the query's: D(z, z') <= epsilon. A number stands for one with the paper's D.

    Attributes:
        epsilon: the threshold on D.
        metric: "euclidean", relative to the query's norm, or "cosine"; see `distances`.
        match: "any": D is the smallest over all of a text's positions, as in the paper; "same": at the query's own
            position alone, as the rule that was given finds it in that text.

    Raises:
        ValueError: epsilon <= 0, an unknown metric or match.
    """

    epsilon: float = EPSILON
    metric: Metric = "euclidean"
    match: Match = "any"

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"Expected epsilon > 0, got {self.epsilon}; the paper's is {EPSILON}.")
        check_choice("metric", self.metric, get_args(Metric))
        check_choice("match", self.match, get_args(Match))

    @classmethod
    def of(cls, epsilon: "float | Closeness") -> "Closeness":
        """What a number stands for."""
        return epsilon if isinstance(epsilon, Closeness) else cls(epsilon)


@public
@dataclass(frozen=True)
class SearchOptions:
    """How a search walks, and what it draws from: see `search_preimage`.

    Attributes:
        chains: walks side by side; each step scores all of them at once.
        steps: of each walk, burn-in included.
        burn_in: first steps, which anneal and are left out; None for half.
        thin: one state in so many is given back.
        tau: temperature, in units of D.
        plateau: D below which nothing is preferred; None for epsilon.
        n_proposals: how many a generator or decoder is asked for.
        log_prior: text -> log of the task's prior, up to a constant; None for one uniform over valid texts.
        token_edits: which edits are proposed; for inputs of one length leave out "insert" and "delete".
        vocabulary: token ids that edits write and erase; None for those that occur in the proposals and the query.

    Raises:
        TypeError: a count that is no integer.
        ValueError: settings out of range.
    """

    chains: int = 64
    steps: int = 400
    burn_in: int | None = None
    thin: int = 10
    tau: float = 0.001
    plateau: float | None = None
    n_proposals: int = 1000
    log_prior: Callable[[str], float] | None = None
    token_edits: Sequence[Edit] = EDITS
    vocabulary: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_integers(self, "chains", "steps", "burn_in", "thin", "n_proposals")
        if not self.tau > 0 or (self.plateau or 0) < 0:
            raise ValueError(
                f"Expected tau > 0 and plateau >= 0, got {self.tau} and {self.plateau}; 0.001 and epsilon serve."
            )
        if self.chains < 1 or self.thin < 1 or not 0 <= self.n_annealed < self.steps:
            raise ValueError(
                f"Expected chains and thin of at least 1 and 0 <= burn_in < steps, got chains={self.chains}, "
                f"thin={self.thin}, burn_in={self.n_annealed}, steps={self.steps}; the defaults serve."
            )

    @property
    def n_annealed(self) -> int:
        """Steps of the burn-in."""
        return self.steps // 2 if self.burn_in is None else self.burn_in


@public
@dataclass(frozen=True)
class SamplingOptions:
    """How a decoder draws texts.

    Attributes:
        temperature: of every token's distribution.
        noise: z is moved by Gaussian noise of this length relative to its own, different for each text, which makes the
            texts more various (Huang et al. 2024, appendix).

    Raises:
        ValueError: a temperature that is not positive, or negative noise.
    """

    temperature: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.noise < 0:
            raise ValueError(
                f"Expected temperature > 0 and noise >= 0, got {self.temperature} and {self.noise}; correct them."
            )


@public
@dataclass(frozen=True)
class InversionOptions:
    """How `invert` finds preimages.

    Attributes:
        method: decoder, search, pool or enumerate; None for the decoder where it knows the sites, else enumerate where
            all inputs are few, pool of given texts, else search.
        n: texts of each preimage.
        n_pool: texts drawn of the task.
        seed: of everything that is drawn.

    Raises:
        TypeError: a number that is no integer.
        ValueError: another method, or a number below 1.
    """

    method: Way | None = None
    n: int = 200
    n_pool: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, "n", "n_pool", "seed")
        if self.method is not None:
            check_choice("method", self.method, get_args(Way))
        if min(self.n, self.n_pool) < 1:
            raise ValueError(f"Expected n and n_pool of at least 1, got {self.n} and {self.n_pool}; take more.")


def check_text_options(options: TextOptions) -> None:
    """Refuse what would be passed over: of the options of texts, those of batches and BOS alone are used here.

    Raises:
        ValueError: another is given.
    """
    used = ("batch_size", "prepend_bos")
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in used and value != field.default:
            raise ValueError(
                f"Expected text_options of {' and '.join(used)} alone, got {field.name}={value!r}, which preimages do "
                "not use; prepare the inputs themselves."
            )
