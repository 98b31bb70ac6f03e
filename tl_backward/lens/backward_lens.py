"""Backward Lens: what one prompt's gradient would write into each layer, read in words (Katz et al. 2024).

A gradient-descent step on W_in (the paper's FF1) adds a multiple of the token's own input x_i to every neuron's
reading direction: it *imprints* x_i. A step on W_out (FF2) adds a multiple of -delta_i to what the neurons write: it
*shifts* the output against the VJP delta_i, toward the target. So W_in is read through its inputs and W_out through
its VJPs; the same pairing serves attention, W_V through its inputs and W_O through its VJPs (sec. 4 and 5).

All readouts are of x_i and of the raw delta_i = dL/dy_i. A descent step SUBTRACTS: the target shows at the BOTTOM of
the raw shift, what the model said before at its top.
"""

from collections.abc import Sequence
from functools import partial
from typing import Never, cast, overload

import torch
from torch import Tensor

from tl_backward._support.checks import check_k, check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.public import public
from tl_backward._support.types import NamesFilter, Prompts, TransformerLensModel
from tl_backward.gradients.cache import GradientCache
from tl_backward.gradients.capture import HookList, run_with_gradient_cache
from tl_backward.gradients.losses import Target, TargetLoss, target_loss
from tl_backward.lens.control import OLD_KEYWORDS, Control, RandomInit, control_of
from tl_backward.lens.expert_learning import expert_learning
from tl_backward.lens.latents import in_latents
from tl_backward.lens.lens_result import BackwardLens, ControlledLens, LayerReadouts
from tl_backward.lens.patterns import keeping
from tl_backward.lens.reading import vectors_read, what_to_read, with_points
from tl_backward.lens.segments import Answer, answer_position, answer_tokens, segment_tokens
from tl_backward.model.checks import model_kind
from tl_backward.model.inputs import check_text_model
from tl_backward.model.stamp import unchanged
from tl_backward.text.ids import ARRAYS, as_prompt
from tl_backward.text.subjects import Subject, subject_spans
from tl_backward.text.token_strings import output_size, token_string, token_strings
from tl_backward.vocabulary.basis import Basis
from tl_backward.vocabulary.readout import readout
from tl_backward.weights import weight_sites


@overload
def backward_lens(
    model: TransformerLensModel,
    prompt: Prompts,
    target: Target,
    *,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    answer: Answer = None,
    subject: Subject = None,
    attention: bool = False,
    normalize: bool = False,
    control: None = None,
    names_filter: NamesFilter = (),
    fwd_hooks: HookList = (),
    prepend_bos: bool | None = None,
    position: int | None = None,
    basis: Basis | None = None,
    **inputs: object,
) -> BackwardLens: ...
@overload
def backward_lens(
    model: TransformerLensModel,
    prompt: Prompts,
    target: Target,
    *,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    answer: Answer = None,
    subject: Subject = None,
    attention: bool = False,
    normalize: bool = False,
    control: Control,
    names_filter: NamesFilter = (),
    fwd_hooks: HookList = (),
    prepend_bos: bool | None = None,
    position: int | None = None,
    basis: Basis | None = None,
    **inputs: object,
) -> ControlledLens: ...
@public
@old_keywords({"seed": OLD_KEYWORDS["seed"]}, control=RandomInit)
def backward_lens(
    model: TransformerLensModel,
    prompt: Prompts,
    target: Target,
    *,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    answer: Answer = None,
    subject: Subject = None,
    attention: bool = False,
    normalize: bool = False,
    control: Control | None = None,
    names_filter: NamesFilter = (),
    fwd_hooks: HookList = (),
    prepend_bos: bool | None = None,
    position: int | None = None,
    basis: Basis | None = None,
    **inputs: object,
) -> BackwardLens:
    """Read in words what one gradient-descent step on `target` after `prompt` would write (Katz et al. 2024).

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: text, a list of texts, or token ids (a list of them, a tensor or an array); a list of texts or of lists
            of ids gives every result a leading batch axis.
        target: the new answer (one, or one a prompt); several tokens are teacher-forced and ranks are the first one's.
        layers: which to read; None for all.
        k: how many top and bottom tokens to keep.
        answer: the old answer (one, or one a prompt), whose rank is reported too; None for the model's own most likely
            next token.
        subject: the subject's text (one, or one a prompt) or (start, end) token span, for segments.
        attention: also read W_V's inputs and W_O's VJPs, of latent attention its kv projection's, of a mixer
            beside an MLP what its first projection reads and its last one writes.
        normalize: scale vectors to unit norm before the final norm (the paper's Normalized Logit Lens).
        control: "random_init", or a `RandomInit` with another seed or number of draws, also runs the same architecture
            with fresh weights, five times; see `lens.control`, `lens.controls`.
        names_filter: hook points whose gradients to keep in `lens.cache`, as TransformerLens's; none by default.
        fwd_hooks: (name, hook) pairs active in the pass.
        prepend_bos: as in `model.to_tokens`.
        position: the token at which a target of one token is asked for, counted over the prompt's tokens; None for the
            last, or the one mask of a prompt for a model that sees both ways (BERT).
        basis: named directions, such as a sparse autoencoder's or transcoder's latents, in which the same vectors are
            read too, as `lens.latents`: imprints along what latents read, shifts along what they write, each beside as
            many random directions and with the latents' own words.
        inputs: the model's own further inputs, as in `run_with_gradient_cache`.

    Raises:
        ValueError: layers of attention alone (unless `attention`; beside others that can be read they are left out),
            or bad input as in `run_with_gradient_cache`; a basis of another width.
        IndexError: a layer out of range.

    Examples:
        >>> lens = tlb.backward_lens(model, "Anna Berg lives in the city of", " Oslo")
        >>> lens.answer
        ' Graz'
        >>> lens.shift[3].bottom_tokens[lens.answer_position][0], lens.shift[3].top_tokens[lens.answer_position][0]
        (' Oslo', ' Graz')
    """
    model_kind(model)  # refuses what is of none
    with unchanged(model):
        check_text_model(model)
        chosen = check_layers(layers, model.cfg.n_layers)
        check_k(k, output_size(model) or model.cfg.d_vocab)
        untrained = control_of(control)
        sites = weight_sites(model)
        reading = what_to_read(model, sites, chosen, attention)
    patterns: dict[int, Tensor] = {}
    _, cache = run_with_gradient_cache(
        model,
        prompt,
        target_loss(target, position, reduction="sum"),
        weights=list(dict.fromkeys(reading.weights)),
        names_filter=with_points(names_filter, reading.points),
        fwd_hooks=[*fwd_hooks, *keeping(model, chosen, names_filter, patterns)],
        prepend_bos=prepend_bos,
        **cast("dict[str, Never]", inputs),
    )
    given = as_prompt(prompt)
    bound = cache.bound
    assert isinstance(bound, TargetLoss)
    batched = not isinstance(given, str) and not (isinstance(given, ARRAYS) and given.ndim == 1)
    mask = cache.mask if cache.mask is not None else torch.ones_like(cache.tokens, dtype=torch.bool)
    asked = answer_position(bound, cache.tokens, mask)
    target_ids = torch.tensor([row[0] for row in bound.ids or ()], device=cache.tokens.device)
    answer_ids = answer_tokens(model, answer, cache.logits, asked)
    vectors = torch.stack(vectors_read(cache, reading))
    latents = {} if basis is None else in_latents(model, vectors if batched else vectors[:, 0], reading, basis, k)
    every = readout(
        model,
        vectors,
        k=k,
        normalize=normalize,
        target=target_ids[:, None],
        answer=answer_ids[:, None],
    )
    every = every if batched else every[:, 0]
    places = iter(range(len(every.norm)))
    reads = {
        of: LayerReadouts({layer: every[next(places)] for layer in layers_read}, model.cfg.n_layers)
        for of, layers_read in reading.sides.items()
    }
    factors = {str(name): each for name, each in cache.factors.items()}
    experts = {
        layer: expert_learning(part, sites, factors, cache[part.point], mask) for layer, part in reading.experts.items()
    }
    tokenizer = getattr(model, "tokenizer", None)
    strings = token_strings(tokenizer, cache.tokens.masked_fill(~mask, -1))
    forced = [len(ids) for ids in bound.continuation]
    where = "the prompt" if cache.prompt_tokens is cache.tokens else "what the decoder reads"
    # Each prompt's real tokens, without those of a longer target.
    each = zip(cache.tokens, mask, forced, strict=True)
    rows = [row[real].tolist()[: int(real.sum()) - n] for row, real, n in each]
    spans = subject_spans(tokenizer, rows, _texts(given, cache), subject, where=where)
    draws: tuple[BackwardLens, ...] = ()
    if untrained is not None:
        # The first draw comes last: what reads its weights later finds them in place.
        order = [*range(1, untrained.n_draws), 0]
        read = [
            backward_lens(
                fresh,
                prompt,
                target,
                layers=chosen,
                k=k,
                answer=answer_ids,
                subject=spans,
                attention=attention,
                normalize=normalize,
                prepend_bos=prepend_bos,
                position=position,
                **cast("dict[str, Never]", inputs),
            )
            for fresh in untrained.models(model, order)
        ]
        draws = (read[-1], *read[:-1])
    targets, answers = ([token_string(tokenizer, int(i)) for i in ids] for ids in (target_ids, answer_ids))
    kind = partial(ControlledLens, control=draws[0], controls=draws) if draws else BackwardLens
    return kind(
        loss=cache.loss,
        tokens=strings if batched else strings[0],
        token_ids=cache.tokens if batched else cache.tokens[0],
        mask=mask if batched else mask[0],
        target=targets if batched else targets[0],
        answer=answers if batched else answers[0],
        answer_position=asked if batched else asked[0],
        imprint=reads.get("imprint", {}),
        shift=reads.get("shift", {}),
        attn_imprint=reads.get("attn_imprint", {}),
        attn_shift=reads.get("attn_shift", {}),
        segments=segment_tokens(mask, asked, spans, n_forced=forced),
        cache=cache,
        kinds=reading.kinds,
        sources=reading.sources(),
        experts=experts,
        latents=latents,
        patterns=patterns if batched else {layer: pattern[0] for layer, pattern in patterns.items()},
    )


def _texts(prompt: object, cache: GradientCache) -> Sequence[str] | None:
    """The prompts as texts; None where tokens were given or the logits belong to a decoder's tokens."""
    texts = prompt if isinstance(prompt, list | tuple) else [prompt]
    if not all(isinstance(text, str) for text in texts) or cache.prompt_tokens is not cache.tokens:
        return None
    return cast("Sequence[str]", texts)
