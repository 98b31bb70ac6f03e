"""Gradients over a data set: norms, ranks and shares of each prompt's gradient; factors are freed batch by batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.checks import NonFiniteError, check_k, nearest
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.gradients.cache import GradientCache
from tl_backward.gradients.examples import (
    BATCHING,
    EXAMPLES,
    Example,
    Examples,
    Losses,
    batching,
    by_length,
    capture_batch,
    encode_examples,
)
from tl_backward.lens.control import OLD_KEYWORDS, Control, RandomInit, control_of
from tl_backward.lens.reading import side_in_stream
from tl_backward.lens.segments import NAMES, answer_tokens, segment_tokens
from tl_backward.lens.sweep_checkpoint import SweepCheckpoint, run_digest
from tl_backward.lens.sweep_result import Quantity, Sweep, in_order
from tl_backward.model.digest import model_digest
from tl_backward.model.inputs import check_text_model
from tl_backward.text.ids import Id
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch
from tl_backward.text.subjects import Span
from tl_backward.text.token_strings import output_size
from tl_backward.vocabulary.readout import readout
from tl_backward.weights import weight_sites
from tl_backward.weights.blocks import chosen_weights, stream_writers
from tl_backward.weights.factors import GradientFactors

Collect: TypeAlias = Quantity | Literal["top_tokens"]

COLLECT: tuple[Collect, ...] = ("norm", "gradient_norm", "share", "target_rank", "answer_rank")
"""What a sweep keeps by default."""

SAVE_EVERY = 20
"""Batches between checkpoints."""


@public
@old_keywords(
    OLD_KEYWORDS | {name: f"text_options.{name}" for name in BATCHING}, control=RandomInit, text_options=TextOptions
)
def sweep(
    model: TransformerLensModel,
    prompts: Examples,
    losses: Losses = None,
    *,
    subjects: Iterable[Span] | None = None,
    answers: Iterable[str | Id] | None = None,
    collect: Sequence[Collect] = COLLECT,
    weights: str | Sequence[str] | None = None,
    k: int = 5,
    control: Control | None = "random_init",
    text_options: TextOptions = EXAMPLES,
    start: int = 0,
    checkpoint: str | Path | None = None,
    show_progress: bool = True,
    **inputs: object,
) -> Sweep:
    """Capture the gradient of every prompt of a data set, in batches, and keep a few numbers of each.

    Each prompt has the gradient it would have alone. Of each weight's gradient dL/dW (raw sign) can be collected:

    - `norm`: |delta_i|, averaged over the tokens of each segment (first, subject, last, other, target).
    - `gradient_norm`: |dL/dW|, the Frobenius norm.
    - `share`: <sum of outer(x_i, delta_i) over a segment, dL/dW> / |dL/dW|^2, the part of the squared norm that the
      segment carries. The segments' shares sum to 1; one that works against the rest has a negative share.
    - `rank`: the numerical rank (`GradientFactors.rank`).
    - `target_rank`, `answer_rank`: ranks of the (first) target token and of the old answer at the prompt's last token,
      in the VJP of W_out, W_O or a mixer's out projection (shift) or the input of W_in, W_gate, W_Q, W_K or W_V
      (imprint); 0 is the largest.
    - `top_tokens`: the `k` top and bottom tokens there, to be counted by `Sweep.top_tokens`.

    The control is the same architecture untrained, at the cost of one more pass.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: texts, (prompt, target) pairs, or edit cases, which bring their targets, subjects and old answers
            along: a list, a DataFrame or a `datasets` split with the columns prompt, target, subject and answer (the
            last two may lack), or the path of such a file.
        losses: one target (text or token id) or loss a prompt, or one for all, such as `next_token_loss`. A loss that
            is no `target_loss` is taken of each prompt alone and has no target's rank.
        subjects: one a prompt, as text, (start, end) token span, or None.
        answers: one old answer a prompt; None for the model's own most likely next tokens, which its control keeps.
        collect: what to keep of each prompt.
        weights: short or full names, as in `run_with_gradient_cache`; None for the matrix that each block writes with:
            W_out, and where a block has none its experts' down projection or its mixer's out projection.
        k: how many tokens `top_tokens` keeps at either end.
        control: "random_init", or a `RandomInit` that says how many draws and from which seed; None for no control.
        text_options: its batch_size (prompts a pass at most, fewer of long ones; they are sorted by length, so that
            little is padded) and prepend_bos; the others have no use here.
        start: index of the first prompt, for parts of one data set that are to be merged.
        checkpoint: a file that is saved every 20 batches; a run that finds its own goes on from it, to the same numbers
            bit for bit. `load_sweep` reads it too.
        show_progress: show a bar.
        inputs: the model's own further inputs (`pixel_values`, `decoder_input_ids`, ...), each a tensor with a row for
            each prompt.

    Of an encoder-decoder, segments are those of the tokens that a weight reads: the prompt's in its encoder (and where
    its decoder reads the encoder), else the decoder's, of which the last is where the answer is asked for; words are
    read in the decoder alone.

    Returns:
        A Sweep: of all prompts or, interrupted by hand (KeyboardInterrupt), of those that were done. A prompt whose
        loss or gradient is not finite is left out and listed in `skipped`.

    Raises:
        ValueError, TypeError, IndexError: bad input as in `run_with_gradient_cache`, with the prompt's index, before
            anything is run; ValueError also for a checkpoint that is damaged or another run's.

    Examples:
        >>> s = tlb.sweep(model, tlb.zoo.edit_cases("test")[:3], collect=["norm", "target_rank"], show_progress=False)
        >>> s.values["norm"].shape  # prompt, weight, segment
        torch.Size([3, 4, 5])
    """
    check_text_model(model)
    check_k(k, output_size(model) or model.cfg.d_vocab)
    _check_collect(collect)
    batch_size, prepend_bos = batching(text_options)
    untrained = control_of(control)
    items = encode_examples(
        model, prompts, losses, subjects=subjects, answers=answers, start=start, prepend_bos=prepend_bos, inputs=inputs
    )
    first = items[0]
    sites = weight_sites(model, torch.tensor([first.tokens]), **first.inputs) if first.inputs else weight_sites(model)
    names = tuple(chosen_weights(model, sites, weights))
    wanted = tuple(name for name in get_args(Quantity) if name in collect) + ("top_tokens",) * ("top_tokens" in collect)
    draws, left_out = untrained or RandomInit(), sites.left_out()
    about: dict[str, object] = {"model": model_digest(model), "collect": list(wanted), **asdict(draws), "k": k}
    about |= {"left_out": left_out} if left_out else {}
    named = None if untrained is None else "random_init"
    options = about | {"weights": names, "batch_size": batch_size, "control": named, "start": start}
    saved = SweepCheckpoint.of(checkpoint, run_digest(items, options), model)
    run = _Run(names, wanted, k, batch_size, about, stream_writers(model, sites))
    with tqdm(total=len(items), desc="sweep", unit="prompt", disable=not show_progress) as bar:
        trained = run(model, items, bar, saved.done(None), saved.save)
    if untrained is None or trained.interrupted:
        return trained
    old = dict(zip(trained.items.tolist(), trained.answers.tolist(), strict=True))
    parts = [trained]
    draw_of = {index: index % draws.n_draws for index in old}
    seen_by = {
        draw: [replace(item, answer=old[item.index]) for item in items if draw_of.get(item.index) == draw]
        for draw in sorted(set(draw_of.values()))
    }
    with tqdm(total=len(draw_of), desc="control", unit="prompt", disable=not (show_progress and draw_of)) as bar:
        try:
            for draw, fresh in zip(seen_by, draws.models(model, seen_by), strict=True):
                beside = partial(_beside, trained, parts[1:])
                parts.append(
                    run(fresh, seen_by[draw], bar, saved.done(draw), lambda of, b=beside: saved.save(b(of)), draw)
                )
                if parts[-1].interrupted:
                    break
        except KeyboardInterrupt:  # while weights were drawn
            parts[-1] = replace(parts[-1], interrupted=True)
    return _beside(trained, parts[1:-1], parts[-1]) if parts[1:] else parts[0]


def _beside(trained: Sweep, before: Sequence[Sweep], last: Sweep) -> Sweep:
    """A sweep with the parts of its control joined, if there are any."""
    return replace(trained, control=in_order([*before, last]), interrupted=last.interrupted)


@dataclass(frozen=True)
class _Run:
    """Settings shared by the passes of a sweep over the model and over its controls."""

    weights: tuple[str, ...]
    collect: tuple[Collect, ...]
    k: int
    batch_size: int
    about: dict[str, object]
    shifts: frozenset[str]
    """Full names of weights whose VJPs are those of what a component writes to the stream."""

    def __call__(
        self,
        model: TransformerLensModel,
        items: list[Example],
        bar: tqdm,
        done: Sweep | None,
        save: Callable[[Sweep], None],
        draw: int = 0,
    ) -> Sweep:
        """Measure every item that is not `done`; what is not finite is skipped, and an interrupt ends the pass."""
        parts: list[tuple[list[Example], dict[str, Tensor]]] = []
        skipped: dict[int, str] = {}
        known = set() if done is None else {*done.items.tolist(), *done.skipped}
        bar.update(len(known))

        def so_far(*, interrupted: bool = False) -> Sweep:
            new = self._gathered(model, parts, skipped, interrupted, draw)
            return in_order([new] if done is None else [new, done])

        left_to_do = [
            batch
            for batch in by_length(model, items, self.batch_size)
            if not known.issuperset(item.index for item in batch)
        ]
        try:
            for number, batch in enumerate(left_to_do, 1):
                left = list(batch)
                while left:
                    try:
                        parts.append((left, self._measured(model, left)))
                        break
                    except NonFiniteError as error:
                        skipped[error.index] = str(error)
                        left = [example for example in left if example.index != error.index]
                bar.update(len(batch))
                if number % SAVE_EVERY == 0:
                    save(so_far())
        except KeyboardInterrupt:
            save(stopped := so_far(interrupted=True))
            return stopped
        if left_to_do:
            save(so_far())
        return so_far()

    def _gathered(
        self,
        model: TransformerLensModel,
        parts: list[tuple[list[Example], dict[str, Tensor]]],
        skipped: dict[int, str],
        interrupted: bool,
        draw: int,
    ) -> Sweep:
        indices = torch.tensor([example.index for batch, _ in parts for example in batch], dtype=torch.long)
        columns = {name: torch.cat([rows[name] for _, rows in parts]) for name in (parts[0][1] if parts else ())}
        none = torch.zeros(0, dtype=torch.long)
        return Sweep(
            items=indices,
            loss=columns.pop("loss", none.double()),
            targets=columns.pop("targets", none),
            answers=columns.pop("answers", none),
            draws=torch.full_like(indices, draw),
            weights=self.weights,
            values=columns,
            skipped=skipped,
            interrupted=interrupted,
            about=self.about,
            tokenizer=getattr(model, "tokenizer", None),
        )

    def _measured(self, model: TransformerLensModel, batch: list[Example]) -> dict[str, Tensor]:
        """Every quantity of each example, [batch, ...], on the CPU."""
        captured = capture_batch(model, batch, self.weights)
        cache, asked = captured.cache, captured.asked
        own = answer_tokens(model, None, cache.logits, asked).tolist()
        answers = [said if item.answer is None else item.answer for item, said in zip(batch, own, strict=True)]
        targets, answers = (torch.tensor(ids, device=asked.device) for ids in ([e.target for e in batch], answers))
        subjects, forced = [example.subject for example in batch], [example.n_forced for example in batch]
        encoder = cache.prompt_tokens is not cache.tokens
        codes = segment_tokens(captured.mask, asked, None if encoder else subjects, n_forced=forced).codes
        of_prompt = _prompt_segments(cache, subjects) if encoder else codes
        quantities = {"loss": captured.losses, "targets": targets, "answers": answers}
        quantities |= _gradient_quantities(cache, codes, of_prompt, self.collect)
        quantities |= self._words(model, cache, asked, targets, answers)
        return {name: value.cpu() for name, value in quantities.items()}

    def _words(
        self, model: TransformerLensModel, cache: GradientCache, asked: Tensor, targets: Tensor, answers: Tensor
    ) -> dict[str, Tensor]:
        """Ranks and top tokens at each prompt's predicting token; NaN and -1 for weights that have no readout."""
        readable = {i: side for i, name in enumerate(self.weights) if (side := self._side(cache, name)) is not None}
        ranks = asked.new_full((len(asked), len(self.weights)), torch.nan, dtype=torch.float64)
        ids = asked.new_full((*ranks.shape, self.k), -1)
        columns_of = {"target_rank": ranks, "answer_rank": ranks.clone(), "top_ids": ids, "bottom_ids": ids.clone()}
        if readable and {"target_rank", "answer_rank", "top_tokens"} & set(self.collect):
            batch, columns = torch.arange(len(asked), device=asked.device), list(readable)
            vectors = torch.stack([side[batch, asked] for side in readable.values()], 1)
            target, answer = (each.clamp(min=0)[:, None] for each in (targets, answers))
            k = self.k if "top_tokens" in self.collect else 1
            read = readout(model, vectors, k=k, target=target, answer=answer)
            for name, given in (("target_rank", targets), ("answer_rank", answers)):
                ranks = getattr(read, name)
                columns_of[name][:, columns] = torch.where(
                    (ranks >= 0) & (given >= 0)[:, None], ranks.double(), torch.nan
                )
            columns_of["top_ids"][:, columns, :k], columns_of["bottom_ids"][:, columns, :k] = (
                read.top_ids,
                read.bottom_ids,
            )
        wanted = {*self.collect} | ({"top_ids", "bottom_ids"} if "top_tokens" in self.collect else set())
        return {name: value for name, value in columns_of.items() if name in wanted}

    def _side(self, cache: GradientCache, name: str) -> Tensor | None:
        """The inputs or deltas of a weight that lie in the residual stream; separate parts of heads are averaged."""
        which = side_in_stream(name, self.shifts)
        if which is None or (cache.prompt_tokens is not cache.tokens and _reads_prompt(name)):
            return None
        if name in self.shifts and cache.factors[name].origin is not None:
            return _by_place(cache.factors[name])
        side = getattr(cache.factors[name], which)
        return side if side.ndim < 4 else side.mean(2)


def _by_place(factors: GradientFactors) -> Tensor | None:
    """Each token's VJP at the experts' output: the sum over its rows in all its experts, [batch, pos, d].

    None where it is not known which rows are whose.
    """
    origin = factors.origin
    if origin is None or bool((origin.example < 0).any()):
        return None
    total = factors.deltas.new_zeros(*origin.shape, factors.deltas.shape[-1])
    return total.index_put_((origin.example[0], origin.token[0]), factors.deltas[0], accumulate=True)


def _prompt_segments(cache: GradientCache, subjects: Sequence[tuple[int, int] | None]) -> Tensor:
    """Segment codes of an encoder's tokens [batch, pos]; the last one is the prompt's last."""
    given = Batch(cache.prompt_tokens, cache.prompt_mask)
    return segment_tokens(given.real, given.last, subjects, n_forced=[0] * given.n_examples).codes


def _reads_prompt(name: str) -> bool:
    """Whether a weight of an encoder-decoder reads the encoder's tokens."""
    component, _, short = name.rpartition(".")
    return name.startswith("encoder") or (component.endswith("cross_attn") and short in ("W_K", "W_V", "b_K", "b_V"))


def _gradient_quantities(
    cache: GradientCache, codes: Tensor, of_prompt: Tensor, collect: Sequence[Collect]
) -> dict[str, Tensor]:
    """`norm`, `gradient_norm`, `share` and `rank` of each example, [batch, weight, ...]."""
    rows: dict[str, list[Tensor]] = {name: [] for name in ("norm", "gradient_norm", "share", "rank")}
    for name, factors in cache.factors.items():
        segments = of_prompt if _reads_prompt(str(name)) else codes
        inside = (torch.nn.functional.one_hot(segments.clamp(min=0), len(NAMES)) * (segments >= 0)[..., None]).double()
        if "norm" in collect:
            norms = factors.deltas.flatten(2).norm(dim=-1, dtype=torch.float64)
            if factors.origin is None:
                norms = _by_token(str(name), factors, norms, segments)
            else:  # a token's rows in several experts are one vector
                norms = _by_token(str(name), factors, norms.square(), segments).sqrt()
            rows["norm"].append(torch.einsum("bp,bps->bs", norms, inside) / inside.sum(1))
        if "share" in collect or "gradient_norm" in collect:
            contributions = _by_token(str(name), factors, _contributions(factors), segments)
            total = contributions.sum(-1).clamp(min=0)
            rows["gradient_norm"].append(total.sqrt())
            share = torch.einsum("bp,bps->bs", contributions, inside) / total[:, None]
            rows["share"].append(share.masked_fill(inside.sum(1) == 0, torch.nan))
        if "rank" in collect:
            rows["rank"].append(torch.tensor([float(each.rank()) for each in factors.per_example()]).double())
    return {name: torch.stack(values, 1) for name, values in rows.items() if name in collect}


def _contributions(factors: GradientFactors) -> Tensor:
    """<outer(x_i, delta_i), dL/dW> of each row, dL/dW being its own example's."""
    if factors.origin is None:
        return factors.token_products().sum(-1, dtype=torch.float64)
    contributions = torch.zeros(factors.origin.example.shape, dtype=torch.float64, device=factors.deltas.device)
    for example, own in enumerate(factors.per_example()):
        contributions[factors.origin.example == example] = own.token_products().sum(-1, dtype=torch.float64).flatten()
    return contributions


def _by_token(name: str, factors: GradientFactors, rows: Tensor, segments: Tensor) -> Tensor:
    """A number of each row, summed over the rows of each token [batch, pos]: one, or one for each expert it went to."""
    origin = factors.origin
    if origin is None and rows.shape == segments.shape:
        return rows
    if origin is None or origin.shape != tuple(segments.shape) or bool((origin.example < 0).any()):
        raise ValueError(
            f"Expected weights that read the prompt's tokens, got {name}, which reads {list(rows.shape)} rows for "
            f"tokens {list(segments.shape)}; choose others with weights=..."
        )
    return (
        rows.new_zeros(segments.numel())
        .index_add_(0, (origin.example * origin.shape[1] + origin.token).flatten(), rows.flatten())
        .reshape(segments.shape)
    )


def _check_collect(collect: Sequence[str]) -> None:
    known = [*get_args(Quantity), "top_tokens"]
    for name in [collect] if isinstance(collect, str) else collect:
        if name not in known:
            raise ValueError(f"Expected quantities of {known}, got {name!r}; the nearest are {nearest(name, known)}.")
    if isinstance(collect, str) or not collect:
        raise ValueError(f"Expected a list of quantities to collect, got {collect!r}; for example ['norm'].")
