"""Compare all layers of two models in one pass over the data."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch

from tl_backward._support.deprecation import old_keywords
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.dissimilarity.evaluation import evaluate
from tl_backward.dissimilarity.gather import gather
from tl_backward.dissimilarity.options import OLD_TEXT, RunOptions, SampleOptions
from tl_backward.dissimilarity.plan import plan_comparison
from tl_backward.dissimilarity.result import Comparison
from tl_backward.lens.control import control_of
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.model.place import Places
from tl_backward.text.data import TextData
from tl_backward.text.options import TextOptions

_OLD = {
    field.name: f"{parameter}.{field.name}"
    for parameter, options in (("sample_options", SampleOptions), ("run_options", RunOptions))
    for field in fields(options)
    if field.name != "control"  # it came later
}


@public
@old_keywords(
    OLD_TEXT | _OLD,
    text_options=TextOptions,
    sample_options=SampleOptions,
    run_options=RunOptions,
)
def compare(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: TextData,
    *,
    hook: Places = "resid_post",
    layers_a: int | Sequence[int] | None = None,
    layers_b: int | Sequence[int] | None = None,
    measures: str | Sequence[str] = ("cka",),
    text_options: TextOptions = TextOptions(),
    sample_options: SampleOptions = SampleOptions(),
    run_options: RunOptions = RunOptions(),
    show_progress: bool = True,
) -> Comparison:
    """Measures of every layer of A against every layer of B, from one pass of the data through both models.

    Linear measures are functions of sums over samples, which are streamed: exact over all the data, in memory that does
    not grow with it. Others are taken on a seeded sample of at most `sample_size` samples, and the result says so. The
    models, their hooks, flags and the RNG are left as found. Under torch.distributed (`accelerate launch`, once an
    Accelerator exists) every process takes each world-size-th batch of the same data, and all get the result of one.

    "cka" is debiased here (`measures.cka_debiased`): a biased one rises with width over samples.

    Args:
        model_a: a HookedTransformer or TransformerBridge.
        model_b: another, of any width, depth, kind and tokenizer, or the same.
        data: a list of texts; any iterable of texts, of rows with a column `text_key` or "input_ids" (a `datasets`
            split, streaming too), of token tensors [batch, pos], or of pairs (tokens, attention_mask); or one token
            tensor.
        hook: TransformerLens's short name of a hook point in every layer ("resid_post", "z", "post", "mlp_out"), or
            places by any of their names (see `tl_backward.model.place.resolve_place`), one or a list.
        layers_a: layers for a short name; None for all, negative from the end.
        layers_b: the same for B.
        measures: names of measures: "cka" (debiased linear CKA, by its estimator), any of
            `tl_backward.dissimilarity.ADDITIVE`, or of the registry of measures on tensors.
        text_options: how the data become batches. One massive activation a text, which position 0 often holds, can make
            up most of CKA: a warning says when it does, and `exclude_first` leaves it out.
        sample_options: what one sample is, how the models' tokens are paired, and B's own hook point.
        run_options: the estimator of "cka", standard errors, chance, untrained networks, the bounded sample, memory and
            checkpoint.
        show_progress: show progress bars.

    Raises:
        TypeError: no TransformerLens model, data of an unknown kind, or an iterator of them with a control.
        ValueError: an unknown measure, hook point or layer; models without a common vocabulary for tokens; NaN or inf
            (the hook point and the batch are named); fewer than 4 samples, or a layer that never varies; more memory
            than allowed, with what would fit; with a control, a model of which no untrained copy can be made.

    Examples:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:40]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, show_progress=False)
        >>> [round(float(value), 3) for value in c.values[0].diagonal()]  # CKA of each layer with itself
        [1.0, 1.0, 1.0, 1.0]
    """
    for model in (model_a, model_b):
        check_model(model)
        check_reads_text(model)
    models = (model_a, model_b)
    control, asked = control_of(run_options.control), replace(run_options, control=None)
    if control is not None and isinstance(data, Iterator):
        raise TypeError(
            "Expected data that can be read for every draw of the control, got an iterator; pass a list of it."
        )
    plan = plan_comparison(models, data, hook, (layers_a, layers_b), measures, text_options, sample_options, asked)
    n = 0 if control is None else control.n_draws  # B's are others than A's, or equal models would stay so
    if control is not None:  # a model of which none can be made is refused before the pass, which would be lost
        for model, draw in zip(models, (0, n), strict=True):
            next(control.models(model, [draw]))
    if run_options.show_plan:
        print(plan.memory)
    found = evaluate(plan, gather(data, plan, show_progress), show_progress)
    if control is None:
        return found
    once = replace(asked, jackknife=0, permutations=0, checkpoint=None, show_plan=False)
    pairs = zip(control.models(model_a, range(n)), control.models(model_b, range(n, 2 * n)), strict=True)
    draws = [
        compare(
            a, b, data, hook=hook, layers_a=layers_a, layers_b=layers_b, measures=measures, text_options=text_options,
            sample_options=sample_options, run_options=once, show_progress=show_progress,
        ).values
        for a, b in pairs
    ]  # fmt: skip
    return replace(found, untrained=torch.stack(draws))
