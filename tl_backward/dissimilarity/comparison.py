"""Compare all layers of two models in one pass over the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.activations.reader import Heads, PlaceReader
from tl_backward.dissimilarity._processes import process
from tl_backward.dissimilarity.activations import labels
from tl_backward.dissimilarity.evaluation import N_PERMUTED, Wanted, check_sampled, find_measures
from tl_backward.dissimilarity.memory import plan_memory
from tl_backward.dissimilarity.reading import Align, Mask, Reading, Sample
from tl_backward.dissimilarity.result import Comparison
from tl_backward.dissimilarity.run import Run
from tl_backward.dissimilarity.tokens import count_tokens
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.model.place import Places


def compare(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    data: object,
    *,
    hook: Places = "resid_post",
    hook_b: Places | None = None,
    layers_a: int | Sequence[int] | None = None,
    layers_b: int | Sequence[int] | None = None,
    heads: str = "flatten",
    measures: str | Sequence[str] = ("cka",),
    estimator: str = "full",
    sample: str = "token",
    exclude_first: bool = False,
    mask: Mask | None = None,
    batching: int = 8,
    n_batches: int | None = None,
    align: str = "auto",
    text_key: str = "text",
    prepend_bos: bool | None = None,
    max_tokens: int | None = None,
    jackknife: int = 20,
    permutations: int = 20,
    sample_size: int = 2048,
    seed: int = 0,
    max_memory: int = 8_000_000_000,
    checkpoint: str | Path | None = None,
    show_plan: bool = False,
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
        hook_b: the same for B; None for A's.
        layers_a: layers for a short name; None for all, negative from the end.
        layers_b: the same for B.
        heads: "flatten" a hook point's heads side by side, or take "each" as a representation of its own.
        measures: names of measures: "cka" (debiased linear CKA, by `estimator`), any of
            `tl_backward.dissimilarity.ADDITIVE`, or of the registry of measures on tensors.
        estimator: of "cka": "full" over all samples, "minibatch_ratio_of_means" (Nguyen et al. 2021) or
            "minibatch_mean_of_ratios" (Brown et al. 2023), which depend on what is in a batch together.
        sample: what one sample is: every "token", each text's "last" token, or each text's "mean".
        exclude_first: leave position 0 out. One massive activation a text, which position 0 often holds, can make up
            most of CKA: a warning says when it does.
        mask: mask(tokens [batch, pos]) -> bool [batch, pos]: which of A's tokens count, each text's from position 0
            on. Padding never does.
        batching: texts a batch; token batches are taken as they come.
        n_batches: stop after so many; a warning says when there are fewer.
        align: "tokens" pairs the models' tokens one to one, "characters" those that end at the same character; "auto"
            does the former where both models tokenise a batch the same.
        text_key: the column of a dataset's rows.
        prepend_bos: as in `model.to_tokens`.
        max_tokens: where texts are cut; None for the model's n_ctx.
        jackknife: at most so many groups of consecutive batches are left out in turn for the standard errors; each
            takes sums of its own, so there may be fewer (at least 8) to fit `max_memory`, and takes each measure's
            own time again (decompositions, for all but CKA); 0 for none.
        permutations: how many random pairings of the sample's rows to measure, each taking that time too; 0 for none.
        sample_size: samples kept for permutations and for measures that need samples.
        seed: of the sample and the permutations.
        max_memory: bytes that may be held beside the models and a batch.
        checkpoint: a file to save to every 20 batches and to go on from if it is there, given the same data and
            options.
        show_plan: print the memory plan before the run.
        show_progress: show progress bars.

    Raises:
        TypeError: no TransformerLens model, or data of an unknown kind.
        ValueError: an unknown measure, hook point or layer; models without a common vocabulary for tokens; NaN or inf
            (the hook point and the batch are named); fewer than 4 samples, or a layer that never varies; more memory
            than allowed, with what would fit.

    Example:
        >>> texts = [example.text for example in tlb.zoo.facts.world().examples(split="held_out")[:40]]
        >>> c = tlb.dissimilarity.compare(model, model, texts, show_progress=False)
        >>> [round(float(value), 3) for value in c.values[0].diagonal()]  # CKA of each layer with itself
        [1.0, 1.0, 1.0, 1.0]
    """
    check_model(model_a)
    check_reads_text(model_a)
    check_model(model_b)
    check_reads_text(model_b)
    wanted = find_measures(measures, estimator)
    check_sampled(wanted, sample_size)
    _check_choices(sample=sample, align=align, heads=heads)
    _check_numbers(jackknife=(jackknife, 0), permutations=(permutations, 0))
    _check_numbers(sample_size=(sample_size, 4), batching=(batching, 1))
    reading = Reading(
        batching, cast(Sample, sample), exclude_first, mask, cast(Align, align), text_key, prepend_bos, max_tokens
    )
    hook_b = hook if hook_b is None else hook_b
    each = cast(Heads, heads)
    readers = (
        PlaceReader(model_a, hook, layers=layers_a, heads=each, which="model A"),
        PlaceReader(model_b, hook_b, layers=layers_b, heads=each, which="model B"),
    )
    models = (model_a, model_b)
    rank, world = process()
    dtype = torch.promote_types(model_a.W_U.dtype, model_b.W_U.dtype)
    n_samples = _most_samples(models, data, reading, max(max(reader.widths.values()) for reader in readers))
    widths_a, widths_b = (list(reader.widths.values()) for reader in readers)
    plan = plan_memory(
        widths_a, widths_b, itemsize=8 if wanted.double else dtype.itemsize,
        n_samples=n_samples if world == 1 else None, jackknife=jackknife,
        sample_size=_kept(wanted, permutations, sample_size), additive=bool(wanted.additive),
        any_basis=wanted.any_basis, minibatch=wanted.minibatch, max_memory=max_memory,
    )  # fmt: skip
    if show_plan:
        print(plan)
    run = Run(readers, (labels(readers[0], hook), labels(readers[1], hook_b)), reading, wanted, plan, dtype, seed)
    run.prepare(_kept(wanted, permutations, sample_size), n_samples)
    run.stream(data, n_batches, rank, world, checkpoint, show_progress)
    for part in run.gathered.values():
        part.reduce()
    return run.result(permutations, jackknife, show_progress)


def _most_samples(
    models: tuple[TransformerLensModel, TransformerLensModel], data: object, reading: Reading, width: int
) -> int | None:
    """How many samples the data give at most, where that is known and may be fewer than a layer is wide."""
    if isinstance(data, Tensor) and data.numel():
        texts, tokens = data.numel() // data.shape[-1], data.numel()
        return texts if reading.sample != "token" else tokens
    if not isinstance(data, list | tuple) or not 0 < len(data) < width:
        return None
    if not all(isinstance(item, str) and item for item in data):
        return None
    if reading.sample != "token":
        return len(data)
    return sum(min(count_tokens(model, text, reading) for model in models) for text in data)


def _kept(wanted: Wanted, permutations: int, sample_size: int) -> int:
    """How many samples to keep."""
    if wanted.sampled or (permutations and any(name not in ("cka", "cka_debiased") for name in wanted.names)):
        return sample_size
    return min(sample_size, N_PERMUTED)


_CHOICES = {
    "sample": ("token", "last", "mean"),
    "align": ("auto", "tokens", "characters"),
    "heads": ("flatten", "each"),
}


def _check_choices(**options: str) -> None:
    for name, value in options.items():
        if value not in _CHOICES[name]:
            choices = ", ".join(map(repr, _CHOICES[name]))
            raise ValueError(f"Expected {name} among {choices}, got {value!r}; choose one of them.")


def _check_numbers(**options: tuple[int, int]) -> None:
    for name, (number, least) in options.items():
        if number < least:
            raise ValueError(f"Expected {name} of at least {least}, got {number}; give a larger one.")
