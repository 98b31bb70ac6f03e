"""Every measure with what can be relied on: range, invariances, metric or not, the reference it reproduces."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, overload

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import nearest, short
from tl_backward._support.public import public
from tl_backward.dissimilarity import measures
from tl_backward.dissimilarity.measures import additive as sums
from tl_backward.dissimilarity.measures._cka import Alignment
from tl_backward.dissimilarity.measures._matching import one_to_many, one_to_one
from tl_backward.dissimilarity.measures._shape import angle, disparity, similarity
from tl_backward.dissimilarity.measures._topology import RTD_MOST
from tl_backward.dissimilarity.measures.moments import PairSums

if TYPE_CHECKING:
    import pandas as pd

PERMUTATION, ORTHOGONAL, LINEAR = "permutation", "orthogonal", "invertible linear"
SCALE, TRANSLATION = "isotropic scaling", "translation"
_ARRANGEMENT = (PERMUTATION, TRANSLATION)
_ORDER = (PERMUTATION, SCALE, TRANSLATION)
_DIRECTION = (PERMUTATION, ORTHOGONAL, SCALE)
_POSITION = (PERMUTATION, ORTHOGONAL, TRANSLATION)
_SHAPE = (*_DIRECTION, TRANSLATION)
_SPAN = (*_SHAPE, LINEAR)
_UNIT, _SIGNED, _ANGLE, _NON_NEGATIVE = (0.0, 1.0), (-1.0, 1.0), (0.0, math.pi / 2), (0.0, math.inf)


@dataclass(frozen=True, repr=False, eq=False)
class Measure:
    """A measure with its range, invariances and streamed form; call it as `measure(x, y)`."""

    name: str
    """The name in the registry: the function's, or the function's and the option that sets it apart."""
    function: Callable[..., Float[Tensor, ""]]
    """The function of (x, y) and options."""
    kind: Literal["similarity", "distance"]
    """Whether larger means more alike, or less."""
    range: tuple[float, float]
    """Bounds of the value; inf where there is none."""
    invariances: tuple[str, ...]
    """What may be done to either side alone without changing the value, among "permutation" (of neurons), "orthogonal",
    "invertible linear", "isotropic scaling" (positive) and "translation"."""
    metric: bool = False
    """Whether the triangle inequality holds, and 0 means equal up to the invariances."""
    symmetric: bool = True
    """Whether x and y may be exchanged."""
    streamed: Callable[[PairSums], float] | None = None
    """The same from sums over samples, whose size does not grow with n; None where there is none."""
    what: str = ""
    """In words, with its source, for a value over all samples."""
    null: Callable[[PairSums], float] | None = None
    """Its mean over all pairings of the samples, in closed form; None where none is known."""
    double: bool = True
    """Whether its sums need float64 products: it inverts a covariance, or is the small difference of large numbers."""
    oracle: str | None = None
    """Key of the reference values that the measure reproduces; None where there are none."""
    most: int | None = None
    """The most samples that it takes; None where there is no bound."""
    package: str | None = None
    """What must be installed beyond the requirements; None for nothing."""
    extra: str | None = None
    """The extra of ours that brings the package."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Options with which all three functions are called."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        for name in ("streamed", "null"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._with_options(getattr(self, name)))

    def __repr__(self) -> str:
        chosen = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"Measure({self.name!r}: {self.kind}, {self.function.__name__}(x, y{chosen}))"

    @overload
    def __call__(
        self, x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], **options: object
    ) -> Float[Tensor, ""]: ...

    @overload
    def __call__(self, x: PairSums) -> float: ...

    def __call__(
        self,
        x: Float[Tensor, "sample d1"] | PairSums,
        y: Float[Tensor, "sample d2"] | None = None,
        **options: object,
    ) -> Float[Tensor, ""] | float:
        """The measure of two sample matrices, further options overriding the registered ones; or of sums.

        Raises:
            TypeError: sums, for a measure that does not follow from them.
        """
        if not isinstance(x, PairSums):
            return self.function(x, y, **{**self.options, **options})
        if self.streamed is None or y is not None or options:
            raise TypeError(
                f"Expected two matrices of samples for {self.name}, got sums over samples"
                f"{'' if self.streamed is None else ' and options'}; "
                f"{'it does not follow from sums' if self.streamed is None else 'sums take none'}."
            )
        return self.streamed(x)

    @property
    def additive(self) -> bool:
        """Whether the value follows from sums over samples: whether there is a streamed evaluation."""
        return self.streamed is not None

    @property
    def any_basis(self) -> bool:
        """Whether it is the same in every orthonormal basis of each layer, about any point."""
        return {ORTHOGONAL, TRANSLATION} <= set(self.invariances)

    @property
    def bound(self) -> Callable[..., Float[Tensor, ""]]:
        """The function with the registered options filled in."""
        return self._with_options(self.function)

    def _with_options(self, function: Callable) -> Callable:
        return functools.partial(function, **self.options) if self.options else function

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]


# fmt: off
_ALL = (
    Measure("cka_biased", measures.cka_biased, "similarity", _UNIT, _SHAPE, oracle="cka_linear_biased",
            streamed=sums.formula(Alignment.biased, "alignment"), what="linear CKA, biased (Kornblith et al. 2019)",
            null=sums.biased_null,
            double=False),
    Measure("cka_debiased", measures.cka_debiased, "similarity", _SIGNED, _SHAPE, oracle="cka_linear_song",
            streamed=sums.formula(Alignment.debiased, "alignment"),
            what="linear CKA with the unbiased HSIC (Song et al. 2012)",
            null=sums.debiased_null, double=False),
    Measure("cka_hollow", measures.cka_hollow, "similarity", _SIGNED, _SHAPE, oracle="cka_linear_lange",
            streamed=sums.formula(Alignment.hollow, "alignment"),
            what="linear CKA without the diagonals (Lange et al. 2022)", double=False),
    Measure("cka_angular", measures.cka_angular, "distance", _ANGLE, _SHAPE, metric=True,
            oracle="cka_linear_biased_angular", streamed=sums.cka_angular, what="arccos of biased linear CKA"),
    Measure("cka_rbf", measures.cka_rbf, "similarity", _UNIT, _SHAPE, oracle="cka_rbf_median1_biased"),
    Measure("cka_rbf_debiased", measures.cka_rbf, "similarity", _SIGNED, _SHAPE, oracle="cka_rbf_median1_song",
            options={"debiased": True}),
    Measure("cca", measures.cca, "similarity", _UNIT, _SPAN, oracle="cca_mean", streamed=sums.cca,
            what="mean canonical correlation"),
    Measure("cca_squared", measures.cca, "similarity", _UNIT, _SPAN, oracle="cca_mean_sq(pillai/k)",
            options={"mean": "rho2"}, streamed=sums.cca, what="mean squared canonical correlation",
            null=sums.cca_null),
    Measure("cca_yanai", measures.cca, "similarity", _UNIT, _SPAN, oracle="cca_yanai", options={"mean": "yanai"},
            streamed=sums.cca, what="cosine between the projections on both sides' spans", null=sums.cca_null),
    Measure("svcca", measures.svcca, "similarity", _UNIT, _SHAPE, oracle="svcca_0.99_mean", streamed=sums.svcca,
            what="CCA of the components of 99 % of the variance"),
    Measure("pwcca", measures.pwcca, "similarity", _UNIT, _ORDER, symmetric=False, oracle="pwcca_X",
            streamed=sums.pwcca, what="projection-weighted CCA, from A"),
    Measure("pwcca_y", measures.pwcca, "similarity", _UNIT, _ORDER, symmetric=False, oracle="pwcca_Y",
            options={"weights": "y"}, streamed=sums.pwcca, what="projection-weighted CCA, from B"),
    Measure("procrustes", measures.procrustes, "distance", _NON_NEGATIVE, _POSITION, metric=True,
            oracle="procrustes_centred", streamed=sums.procrustes, what="Procrustes distance, centred"),
    Measure("procrustes_squared", measures.procrustes_squared, "distance", _NON_NEGATIVE, _POSITION,
            oracle="procrustes_squared_centred", streamed=sums.procrustes_squared,
            what="squared Procrustes distance, centred"),
    Measure("procrustes_normalised", measures.procrustes_normalised, "distance", (0.0, math.sqrt(2)), _SHAPE,
            metric=True, oracle="procrustes_centred_normalised", streamed=sums.formula(Tensor.sqrt, "unit_distance"),
            what="Procrustes distance of unit-norm layers"),
    Measure("procrustes_disparity", measures.procrustes_disparity, "distance", _UNIT, _SHAPE,
            oracle="procrustes_disparity(1-nbs^2)", streamed=sums.formula(disparity, "unit_distance"),
            what="Procrustes disparity"),
    Measure("shape_angular", measures.shape_angular, "distance", _ANGLE, _SHAPE, metric=True, oracle="shape_angular",
            streamed=sums.formula(angle, "unit_distance"), what="angular shape metric"),
    Measure("shape_partial", measures.shape_partial, "distance", _ANGLE, _POSITION, metric=True,
            streamed=sums.shape_partial, what="angular shape metric after partial whitening"),
    Measure("bures_similarity", measures.bures_similarity, "similarity", _UNIT, _SHAPE, oracle="nbs(nuclear/fro fro)",
            streamed=sums.formula(similarity, "unit_distance"), what="normalised Bures similarity"),
    Measure("permutation_procrustes", measures.permutation_procrustes, "distance", _NON_NEGATIVE, _ARRANGEMENT,
            metric=True, streamed=sums.permutation_procrustes, what="Procrustes distance over permutations, centred"),
    Measure("permutation_procrustes_uncentred", measures.permutation_procrustes, "distance", _NON_NEGATIVE,
            (PERMUTATION,), metric=True, oracle="permutation_procrustes_uncentred_zero_padded",
            options={"center": False},
            streamed=sums.permutation_procrustes, what="Procrustes distance over permutations, not centred"),
    Measure("hard_match", measures.hard_match, "similarity", _SIGNED, _ORDER, oracle="hard_match",
            streamed=sums.formula(one_to_one, "neuron_correlations"),
            what="mean correlation of neurons matched one to one"),
    Measure("soft_match", measures.soft_match, "similarity", _SIGNED, _ORDER, oracle="soft_match",
            streamed=sums.formula(one_to_many, "neuron_correlations"),
            what="mean correlation of each neuron's best partner (Li et al. 2016)"),
    Measure("soft_match_transport", measures.soft_match_transport, "distance", _NON_NEGATIVE, _ARRANGEMENT, metric=True,
            package="ot", extra="transport"),
    Measure("linear_regression", measures.linear_regression, "similarity", _UNIT, _SHAPE, symmetric=False,
            oracle="r2_X_to_Y", streamed=sums.linear_regression,
            what="share of B's variance predicted linearly from A", null=sums.regression_null),
    Measure("linear_regression_y_to_x", measures.linear_regression, "similarity", _UNIT, _SHAPE, symmetric=False,
            oracle="r2_Y_to_X", options={"direction": "y_to_x"}, streamed=sums.linear_regression,
            what="share of A's variance predicted linearly from B", null=sums.regression_null),
    Measure("gulp", measures.gulp, "distance", _NON_NEGATIVE, _SHAPE, metric=True, streamed=sums.gulp,
            what="GULP distance at ridge 0.01"),
    Measure("gulp_squared", measures.gulp_squared, "distance", _NON_NEGATIVE, _SHAPE, oracle="gulp^2_1e-2",
            streamed=sums.gulp_squared, what="squared GULP distance at ridge 0.01"),
    Measure("gulp_squared_0", measures.gulp_squared, "distance", _NON_NEGATIVE, _SPAN, oracle="gulp^2_0",
            options={"regularization": 0.0}, streamed=sums.gulp_squared,
            what="squared GULP distance without a ridge"),
    Measure("gulp_squared_1", measures.gulp_squared, "distance", _NON_NEGATIVE, _SHAPE, oracle="gulp^2_1",
            options={"regularization": 1.0}, streamed=sums.gulp_squared, what="squared GULP distance at ridge 1"),
    Measure("eigenspace_overlap", measures.eigenspace_overlap, "similarity", _UNIT, (*_DIRECTION, LINEAR),
            oracle="eigenspace_overlap", streamed=sums.eigenspace_overlap,
            what="overlap of column spaces, not centred"),
    Measure("rsa", measures.rsa, "similarity", _SIGNED, _SHAPE, oracle="rsa_euclid_spearman"),
    Measure("rsa_euclidean_pearson", measures.rsa, "similarity", _SIGNED, _SHAPE, oracle="rsa_euclid_pearson",
            options={"comparison": "pearson"}),
    Measure("rsa_sqeuclidean_pearson", measures.rsa, "similarity", _SIGNED, _SHAPE, oracle="rsa_sqeuclid_pearson",
            options={"distance": "sqeuclidean", "comparison": "pearson"}),
    Measure("rsa_sqeuclidean_cosine", measures.rsa, "similarity", _UNIT, _SHAPE, oracle="rsa_sqeuclid_cosine",
            options={"distance": "sqeuclidean", "comparison": "cosine"}),
    Measure("rsa_correlation_spearman", measures.rsa, "similarity", _SIGNED, (PERMUTATION, SCALE),
            oracle="rsa_corr_spearman", options={"distance": "correlation"}),
    Measure("rsa_correlation_pearson", measures.rsa, "similarity", _SIGNED, (PERMUTATION, SCALE),
            oracle="rsa_corr_pearson", options={"distance": "correlation", "comparison": "pearson"}),
    Measure("rsm_difference", measures.rsm_difference, "distance", _NON_NEGATIVE, _POSITION, metric=True,
            oracle="rsm_euclid_fro_diff"),
    Measure("rsm_difference_spectral", measures.rsm_difference, "distance", _NON_NEGATIVE, _POSITION, metric=True,
            oracle="rsm_euclid_spectral_diff", options={"norm": "spectral"}),
    Measure("distance_correlation", measures.distance_correlation, "similarity", _UNIT, _SHAPE, oracle="dcor_biased"),
    Measure("distance_correlation_squared", measures.distance_correlation_squared, "similarity", _UNIT, _SHAPE,
            oracle="dcor2_biased"),
    Measure("distance_correlation_debiased", measures.distance_correlation_debiased, "similarity", _SIGNED, _SHAPE,
            oracle="dcor2_bias_corrected"),
    Measure("mutual_knn", measures.mutual_knn, "similarity", _UNIT, _DIRECTION, oracle="mutual_knn10_cos"),
    Measure("mutual_knn_inner_product", measures.mutual_knn, "similarity", _UNIT, _DIRECTION,
            oracle="mutual_knn10_ip", options={"metric": "inner_product"}),
    Measure("mutual_knn_euclidean", measures.mutual_knn, "similarity", _UNIT, _SHAPE, oracle="mutual_knn10_euclid",
            options={"metric": "euclidean"}),
    Measure("jaccard", measures.jaccard, "similarity", _UNIT, _DIRECTION, oracle="jaccard10_cos"),
    Measure("jaccard_centred", measures.jaccard, "similarity", _UNIT, _SHAPE, oracle="jaccard10_cos_centred",
            options={"center": True}),
    Measure("second_order_cosine", measures.second_order_cosine, "similarity", _SIGNED, _DIRECTION),
    Measure("cknna", measures.cknna, "similarity", (-math.inf, math.inf), _DIRECTION, symmetric=False),
    Measure("rtd", measures.rtd, "distance", _NON_NEGATIVE, _SHAPE, most=RTD_MOST, package="gudhi", extra="topology"),
)
# fmt: on
_BY_NAME = {measure.name: measure for measure in _ALL}
ADDITIVE = MappingProxyType({measure.name: measure for measure in _ALL if measure.additive})
"""Those with a streamed evaluation, by name: `compare` takes these over all samples, all others on a bounded sample."""


_COMPARED = {"cka": "cka_debiased"}
"""What `compare` calls a measure, whose estimator is chosen there, and the entry that it is over all samples."""


def measure_name(name: str) -> str:
    """The name of a measure as `compare` and the registry have it, from one in upper or lower case.

    Raises:
        ValueError: no measure has it; the message names the nearest.
    """
    own = str(name).lower()
    if own not in _BY_NAME and own not in _COMPARED:
        raise ValueError(
            f"Expected the name of a measure, got {str(name)!r}; the nearest are "
            f"{nearest(own, [*_COMPARED, *_BY_NAME])}, and list_measures() shows all."
        )
    return own


@public
def get_measure(name: str) -> Measure:
    """The measure of that name, in upper or lower case; "cka" is the debiased one, as in `compare`.

    Raises:
        ValueError: no measure has it; the message names the nearest.

    Examples:
        >>> cka = tlb.dissimilarity.get_measure("cka_debiased")
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> round(float(cka.function(x, 3 * x)), 6)  # a scale does not matter
        1.0
    """
    if not isinstance(name, str):
        raise TypeError(f"Expected the name of a measure as text, got {short(name)}; list_measures() shows all.")
    own = measure_name(name)
    return _BY_NAME[_COMPARED.get(own, own)]


def list_measures() -> "pd.DataFrame":
    """Every measure, one a row.

    Columns: name, function (a callable of (x, y), the options filled in), options, kind ("similarity" or "distance"),
    range, invariances, metric, symmetric, additive, oracle (the key of the reference values that the measure
    reproduces, None without), most (samples that it takes, None without bound), package (that must be installed beyond
    the requirements, None for nothing) and summary.

    Examples:
        >>> measures = tlb.dissimilarity.list_measures()
        >>> bool(measures.set_index("name").loc["procrustes", "metric"])
        True
    """
    import pandas as pd

    fields = (
        "kind", "range", "invariances", "metric", "symmetric", "additive", "oracle", "most", "package", "summary",
    )  # fmt: skip
    rows = [
        {"name": measure.name, "function": measure.bound, "options": dict(measure.options)}
        | {field: getattr(measure, field) for field in fields}
        for measure in _ALL
    ]
    frame = pd.DataFrame(rows)
    for name in ("oracle", "most", "package"):  # None, not NaN, and whole numbers
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    return frame
