"""Ways to edit, compared on the same cases, each at a setting that was chosen on cases apart from those."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.bootstrap import Interval, bootstrap
from tl_backward._support.checks import check_layers, short
from tl_backward._support.html import table, visible_text
from tl_backward._support.public import public
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.editing.edit import Edit
from tl_backward.editing.methods import Scaling, gradient_edit, shift_edit
from tl_backward.editing.scores import METRICS, EditScores, ask, score
from tl_backward.editing.summary import comparison_sentence
from tl_backward.model.inputs import check_text_model
from tl_backward.text.cases import EditCase
from tl_backward.text.tables import Cases, cases_of
from tl_backward.text.token_strings import text_frame

Method: TypeAlias = Callable[[TransformerLensModel, EditCase], Edit | None]
"""Makes the edit of a case; None for no edit."""

CHOSEN_BY = ("efficacy", "paraphrase", "neighbourhood", "relations")
"""What a setting is chosen by: the harmonic mean of these, of those that the cases have."""
SCALES = (0.4, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0, 1.5, 2.0)
"""Of unit-normalised factors, to try."""
LRS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.02)
"""Learning rates to try."""
SHOWN = ("efficacy", "paraphrase", "neighbourhood", "relations", "portability", "entropy")
_DRAWS = 1000  # of cases, for the summary
_BOUNDS = ("mean", "low", "high", "n")
_MEASURED = tuple(each.name for each in fields(EditScores))


@dataclass(frozen=True, repr=False, eq=False)
class EditComparison(Shown):
    """The result of `compare_edits`."""

    _report = "comparison_report"

    scores: Float[Tensor, "method case metric"]
    """NaN where a case has no such prompts; metrics in the order of `metrics`."""
    methods: tuple[str, ...]
    metrics: tuple[str, ...]

    def __repr__(self) -> str:
        return f"EditComparison({visible_text(', '.join(self.methods))}; {self.scores.shape[1]} cases)"

    def interval(self, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0) -> Interval:
        """Mean over cases of each [method, metric], with a percentile bootstrap interval over cases."""
        return bootstrap(self.scores.transpose(0, 1), level=level, n_boot=n_boot, seed=seed)

    @property
    def objective(self) -> Float[Tensor, "method"]:
        """The harmonic mean of the methods' mean scores of `CHOSEN_BY`, to choose a setting by on validation cases."""
        means = self.scores.nanmean(1)[:, [self.metrics.index(name) for name in CHOSEN_BY]]
        known = means[:, ~means.isnan().any(0)]
        return known.shape[1] / (1 / known.clamp(min=1e-9)).sum(1)

    @property
    def best(self) -> str:
        """The method of the highest objective; of equal ones the first."""
        return self.methods[int((self.objective >= self.objective.max() - 1e-12).int().argmax())]

    def summary(self) -> str:
        """In one sentence: the method of the best objective, and which others it is not clearly ahead of.

        Clearly means: in at least 97.5 % of 1,000 sets of cases drawn anew. Fewer than five cases tell nothing apart.
        """
        n = self.scores.shape[1]
        generator = torch.Generator().manual_seed(0)
        drawn = [self.scores[:, torch.randint(n, (n,), generator=generator)] for _ in range(_DRAWS)]
        objectives = torch.stack([replace(self, scores=each).objective for each in drawn])
        interval = self.interval()
        told = {
            name: Interval(*(getattr(interval, each)[:, self.metrics.index(name)] for each in _BOUNDS))
            for name in CHOSEN_BY[:3]
        }
        return comparison_sentence(self.methods, self.objective, objectives, n, told)

    def to_frame(self, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0) -> DataFrame:
        """One row a method and metric: mean, low, high, n."""
        interval = self.interval(level=level, n_boot=n_boot, seed=seed)
        rows = [
            (
                method,
                metric,
                *(float(each[m, i]) for each in (interval.mean, interval.low, interval.high)),
                int(interval.n[m, i]),
            )
            for m, method in enumerate(self.methods)
            for i, metric in enumerate(self.metrics)
        ]
        return text_frame(dict(zip(("method", "metric", "mean", "low", "high", "n"), row, strict=True)) for row in rows)

    def table(self, metrics: Sequence[str] = SHOWN) -> tuple[list[str], list[list[str]]]:
        """Column names and rows of text, "mean (low to high)", one row a method, of the metrics that any method has."""
        interval = self.interval()

        def shown(method: int, metric: int) -> str:
            mean, low, high = (float(each[method, metric]) for each in (interval.mean, interval.low, interval.high))
            return "" if mean != mean else f"{mean:.2f} ({low:.2f} to {high:.2f})"

        known = (interval.mean == interval.mean).any(0)
        places = [i for name in metrics if known[i := self.metrics.index(name)]]
        rows = [[method, *(shown(m, i) for i in places)] for m, method in enumerate(self.methods)]
        return ["method", *(self.metrics[i] for i in places)], rows

    def _repr_html_(self) -> str:
        """The main scores as a static table, with 95 % intervals."""
        return table(*self.table(), caption=repr(self))


@public
def compare_edits(
    model: TransformerLensModel,
    cases: Cases,
    methods: Mapping[str, Method],
    *,
    n_tokens: int = 100,
    seed: int = 0,
    show_progress: bool = True,
) -> EditComparison:
    """Make and score the edit of every case with every method, one at a time, on the unedited model.

    Args:
        model: a HookedTransformer or TransformerBridge.
        cases: a list, a table or a file of edit cases (as in `sweep`), apart from those that any setting of the methods
            was chosen on (`find_layer`).
        methods: how each is called -> what makes its edit, as `edit_methods` gives them.
        n_tokens: sampled for the entropy, as in `evaluate_edit`; 0 leaves it out.
        seed: of the sampling.
        show_progress: show a bar.

    Raises:
        ValueError: no case or method; whatever making an edit raises, with the case's index.

    Examples:
        >>> from tl_backward.editing import shift_method
        >>> methods = {"no edit": lambda model, case: None, "shift": shift_method(2, 0.75)}
        >>> tlb.compare_edits(model, tlb.zoo.edit_cases("test")[:3], methods, n_tokens=0, show_progress=False).best
        'shift'
    """
    check_text_model(model)
    cases = cases_of(cases)
    if not isinstance(methods, Mapping) or not all(map(callable, methods.values())):
        raise TypeError(
            f"Expected methods as a dictionary of names to functions (model, case) -> edit, got {short(methods)}; such "
            'as tlb.editing.edit_methods(layer=2, scale=0.7, lr=0.001) or {"shift": tlb.editing.shift_method(2, 0.7)}.'
        )
    if not cases or not methods:
        raise ValueError(f"Expected at least one case and one method, got {len(cases)} and {len(methods)}; give both.")
    scores = torch.full((len(methods), len(cases), len(_MEASURED) + 1), torch.nan, dtype=torch.float64)
    with tqdm(total=len(cases) * len(methods), desc="edits", unit="edit", disable=not show_progress) as bar:
        for c, case in enumerate(cases):
            try:
                questions = ask(model, case)
                for m, method in enumerate(methods.values()):
                    with method(model, case) or nullcontext():
                        scored = score(model, questions, n_tokens=n_tokens, seed=seed)
                    scores[m, c] = torch.tensor([*(getattr(scored, name) for name in _MEASURED), scored.score])
                    bar.update()
            except (ValueError, TypeError, IndexError) as error:
                raise type(error)(f"Case {c} ({case.prompt!r}): {error}") from error
    return EditComparison(scores, tuple(methods), tuple(METRICS))


@public
def edit_methods(
    layer: int,
    scale: float,
    lr: float,
    *,
    steps: int = 5,
    scaling: Scaling = "unit",
    weights: str | Sequence[str] | None = None,
) -> dict[str, Method]:
    """No edit, the forward-pass shift, one gradient step, and `steps` of them of the same rate each.

    Args:
        layer: of the shift.
        scale: of the shift.
        lr: of the single step, and of each of the several.
        steps: how many.
        scaling: of the shift's factors.
        weights: that the gradient steps change.

    Examples:
        >>> list(tlb.editing.edit_methods(layer=2, scale=0.75, lr=0.001))
        ['no edit', 'forward-pass shift', '1 gradient step', '5 gradient steps']
    """
    return {
        "no edit": lambda model, case: None,
        "forward-pass shift": shift_method(layer, scale, scaling=scaling),
        "1 gradient step": gradient_method(lr, weights=weights),
        f"{steps} gradient steps": gradient_method(lr, steps=steps, weights=weights),
    }


@public
def shift_method(layer: int, scale: float, *, scaling: Scaling = "unit") -> Method:
    """`shift_edit` of a case's prompt and target.

    Examples:
        >>> case = tlb.zoo.edit_cases("test")[0]
        >>> tlb.editing.shift_method(2, 0.75)(model, case)
        Edit('The home town of Astrid Weiss is' -> ' Cairo': blocks.2.mlp.W_out rank <= 1)
    """
    return lambda model, case: shift_edit(model, case.prompt, case.target, layer, scale, scaling=scaling)


@public
def gradient_method(lr: float, *, steps: int = 1, weights: str | Sequence[str] | None = None) -> Method:
    """`gradient_edit` of a case's prompt and target.

    Examples:
        >>> case = tlb.zoo.edit_cases("test")[0]
        >>> tlb.editing.gradient_method(0.001, steps=2)(model, case).is_applied
        False
    """
    return lambda model, case: gradient_edit(model, case.prompt, case.target, weights=weights, lr=lr, steps=steps)


@public
def tuned_methods(
    model: TransformerLensModel,
    validation: Cases,
    *,
    layers: int | Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    lrs: Sequence[float] = LRS,
    steps: int = 5,
    show_progress: bool = True,
) -> dict[str, Method]:
    """The methods of `edit_methods`, each at the setting of the highest `EditComparison.objective` on validation edits.

    Args:
        model: a HookedTransformer or TransformerBridge.
        validation: edits apart from those that the methods will be reported on.
        layers: of the shift to try; None for all.
        scales: of the shift to try, with unit-normalised factors.
        lrs: to try, for one step and for several each.
        steps: how many the several are.
        show_progress: show a bar.

    Returns:
        The methods by name, the chosen setting in the name.

    Examples:
        >>> cases = tlb.zoo.edit_cases("validation")[:2]
        >>> methods = tlb.editing.tuned_methods(model, cases, layers=[2], show_progress=False)
        >>> len(methods)
        4
    """
    validation = cases_of(validation)
    cells = [(layer, scale) for scale in scales for layer in check_layers(layers, model.cfg.n_layers)]
    families = [
        {f"forward-pass shift (layer {layer}, scale {scale:g})": shift_method(layer, scale) for layer, scale in cells},
        {f"1 gradient step (lr {lr:g})": gradient_method(lr) for lr in lrs},
        {f"{steps} gradient steps (lr {lr:g})": gradient_method(lr, steps=steps) for lr in lrs},
    ]
    methods: dict[str, Method] = {"no edit": lambda model, case: None}
    for family in families:
        best = compare_edits(model, validation, family, n_tokens=0, show_progress=show_progress).best
        methods[best] = family[best]
    return methods
