"""Backward Lens: what one prompt's gradient would write into each layer, read in words (Katz et al. 2024).

A gradient-descent step on W_in (the paper's FF1) adds a multiple of the token's own input x_i to every neuron's
reading direction: it *imprints* x_i. A step on W_out (FF2) adds a multiple of -delta_i to what the neurons write: it
*shifts* the output against the VJP delta_i, toward the target. So W_in is read through its inputs and W_out through
its VJPs; the same pairing serves attention, W_V through its inputs and W_O through its VJPs (sec. 4 and 5).

All readouts are of x_i and of the raw delta_i = dL/dy_i. A descent step SUBTRACTS: the target shows at the BOTTOM of
the raw shift, what the model said before at its top.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Never, TypeAlias, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_k, check_layers
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, lens_table, visible_token
from tl_backward._support.types import NamesFilter, Prompts, TransformerLensModel
from tl_backward.gradients.cache import GradientCache
from tl_backward.gradients.capture import HookList, run_with_gradient_cache
from tl_backward.gradients.losses import Target, target_loss
from tl_backward.lens.answers import Answer, answer_position, answer_tokens
from tl_backward.lens.control import OLD_KEYWORDS, Control, RandomInit, control_of
from tl_backward.lens.expert_learning import ExpertLearning, expert_learning
from tl_backward.lens.reading import vectors_read, what_to_read, with_points
from tl_backward.lens.segments import Segments, segment_tokens
from tl_backward.model.checks import check_model
from tl_backward.model.inputs import check_reads_text
from tl_backward.text.ids import ARRAYS
from tl_backward.text.subjects import Subject, subject_spans
from tl_backward.text.token_strings import output_size, text_column, token_string, token_strings
from tl_backward.vocabulary.readout import Readout, readout
from tl_backward.weights import weight_sites

if TYPE_CHECKING:
    import pandas

Quantity: TypeAlias = Literal["norm", "target_rank", "answer_rank"]


class LayerReadouts(dict[int, Readout]):
    """One Readout a layer; negative layers count from the model's end."""

    def __init__(self, readouts: dict[int, Readout], n_layers: int) -> None:
        super().__init__(readouts)
        self._n_layers = n_layers

    def __missing__(self, layer: int) -> Readout:
        if isinstance(layer, int) and layer < 0 and layer + self._n_layers in self:
            return self[layer + self._n_layers]
        raise KeyError(f"Expected one of the layers that were read, {list(self)}, got {layer!r}.")


@dataclass(frozen=True, repr=False, eq=False)
class BackwardLens:
    """The result of `backward_lens`. For a list of prompts every [pos] below is [batch, pos].

    Read it at `answer_position`: a target of several tokens is appended to the prompt, and a batch is padded, so that
    [-1] need not be the prompt's last token.

    Attributes:
        loss: -log p(target | prompt) in nats.
        tokens: the tokens as strings; token_ids, mask: their ids, and which are real.
        target: the (first) target token. answer: the model's own before any edit.
        answer_position: index of the token at which the target is asked for: the prompt's last, or its mask.
        imprint: layer -> Readout of W_in's inputs. shift: layer -> Readout of W_out's VJPs, raw sign.
        attn_imprint, attn_shift: the same for W_V and W_O, with `attention=True`.
        segments: which tokens are first, subject, last, other, target.
        cache: the factors of the weights that were read (and of W_gate).
        control: the same lens on an untrained model, one random draw.
    """

    loss: Float[Tensor, ""]
    """-log p(target | prompt) in nats; summed over the examples of a batch, so that each has its own gradient."""
    tokens: list[str] | list[list[str]]
    """The tokens as strings, BOS and teacher-forced target tokens included; "" at padding."""
    token_ids: Int[Tensor, "*batch pos"]
    """Their ids."""
    mask: Bool[Tensor, "*batch pos"]
    """True at real tokens."""
    target: str | list[str]
    """The (first) target token."""
    answer: str | list[str]
    """The model's own answer before any edit: its most likely next token (or the one that was given)."""
    answer_position: Int[Tensor, "*batch"]
    """Index of the token at which the (first) target token is asked for: the prompt's last, or its mask."""
    imprint: dict[int, Readout]
    """Per layer, the inputs x_i of W_in (and of W_gate, which reads the same) in words: [pos]; of experts or a mixer
    what the block reads of the stream."""
    shift: dict[int, Readout]
    """Per layer, the VJPs delta_i of W_out in words, raw sign: [pos]; of experts or a mixer those of what it writes."""
    attn_imprint: dict[int, Readout]
    """Per layer, the inputs of W_V: [pos]; empty unless `attention=True`. Averaged over heads that have their own."""
    attn_shift: dict[int, Readout]
    """Per layer, the VJPs of W_O, raw sign: [pos]; empty unless `attention=True`. Averaged likewise."""
    segments: Segments
    """Which tokens are first, subject, last and other."""
    cache: GradientCache
    """The factors themselves (`cache.factors["W_gate", 3].token_norms()`), and gradients at hook points if kept."""
    kinds: dict[int, str] = field(default_factory=dict)
    """What each layer that was read is made of: "attention, MLP", "attention, experts", "mixer"."""
    sources: dict[str, dict[int, str]] = field(default_factory=dict)
    """Per readout and layer, what was read, by name: the weight whose inputs or VJPs they are ("blocks.3.mlp.W_in"), or
    the hook point of the gradient where several weights write together ("blocks.3.mlp.hook_out")."""
    experts: dict[int, ExpertLearning] = field(default_factory=dict)
    """Per layer with experts, which of them would learn: tokens, routing weights, shares of the gradient."""
    control: "BackwardLens | None" = None
    """The same lens on the same architecture with fresh weights, its answer rank being that of the trained answer."""

    @property
    def layers(self) -> list[int]:
        """The layers that were read."""
        return list(self.shift or self.attn_shift)

    @property
    def is_batch(self) -> bool:
        """Whether a list of prompts was given."""
        return self.token_ids.ndim == 2

    def __repr__(self) -> str:
        prompts = f"{self.token_ids.shape[0]} prompts" if self.is_batch else f"{self.token_ids.shape[0]} tokens"
        return (
            f"BackwardLens({prompts}, layers={self.layers}, target={self.target!r}, answer={self.answer!r}, "
            f"loss={self.loss.item():.4g}" + (f"; {short})" if (short := self.cache.left_out()) else ")")
        )

    def readouts(self) -> dict[str, dict[int, Readout]]:
        """Every readout by what it reads: "imprint", "shift", "attn_imprint", "attn_shift", where present."""
        every = {
            "imprint": self.imprint,
            "shift": self.shift,
            "attn_imprint": self.attn_imprint,
            "attn_shift": self.attn_shift,
        }
        return {name: layers for name, layers in every.items() if layers}

    def stacked(self, quantity: Quantity, of: str = "shift") -> Float[Tensor, "layer *batch pos"]:
        """One quantity of one readout for all layers, as a tensor; ranks of zero vectors are NaN."""
        if quantity not in get_args(Quantity) or of not in self.readouts():
            raise ValueError(
                f"Expected one of {get_args(Quantity)} of one of {tuple(self.readouts())}, got {quantity!r} of {of!r}."
            )
        layers = self.readouts()[of].values()
        values = torch.stack([getattr(read, quantity) for read in layers]).float()
        return values if quantity == "norm" else values.masked_fill(values < 0, float("nan"))

    def to_frame(self) -> "pandas.DataFrame":
        """One row a readout, layer, example and real token: segment, norm, ranks, top and bottom tokens.

        Where blocks have experts, one row more for each of them (`readout` "experts"), as `lens.experts[layer]` has it.
        """
        import pandas

        rows = [self.token_frame()]
        for layer, learning in self.experts.items():
            frame = learning.to_frame()
            frame.insert(0, "readout", "experts")
            frame.insert(1, "layer", layer)
            rows.append(frame)
        return rows[0] if len(rows) == 1 else pandas.concat(rows, ignore_index=True)

    def token_frame(self) -> "pandas.DataFrame":
        """The rows of `to_frame` that are of tokens."""
        import pandas

        rows = []
        ids, mask = self.token_ids.reshape(-1, self.token_ids.shape[-1]), self.mask.reshape(-1, self.mask.shape[-1])
        for of, layers in self.readouts().items():
            for layer, read in layers.items():
                frame = read.to_frame()
                frame.insert(0, "readout", of)
                frame.insert(1, "layer", layer)
                frame.insert(2, "example", [i for i in range(ids.shape[0]) for _ in range(ids.shape[1])])
                frame.insert(3, "pos", list(range(ids.shape[1])) * ids.shape[0])
                frame.insert(4, "token", text_column(token_strings(read.tokenizer, ids.flatten())))
                frame.insert(5, "segment", [name for row in self.segments.labels() for name in row])
                rows.append(frame[mask.flatten().tolist()])
        return pandas.concat(rows, ignore_index=True)

    def segment_means(self, quantity: Quantity = "norm", of: str = "shift") -> "pandas.DataFrame":
        """Mean over prompts and tokens of each segment: one row a layer and segment, with the number of tokens.

        Ranks of zero vectors are left out. With a control, its means stand beside in the column `control`.
        """
        import pandas

        rows = []
        values = self.stacked(quantity, of)
        control = None if self.control is None else self.control.stacked(quantity, of)
        for index, layer in enumerate(self.readouts()[of]):
            for segment, where in self.segments.masks().items():
                where = where.reshape(values.shape[1:])
                kept = where & ~values[index].isnan()
                mean = values[index][kept].mean().item()
                row = {"layer": layer, "segment": segment, "n": int(kept.sum()), "mean": mean}
                if control is not None:
                    row["control"] = control[index][where].nanmean().item()
                rows.append(row)
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Static tables of the first prompt: imprint and shift, layers x tokens."""
        dense = all(not kind or kind.endswith("MLP") for kind in self.kinds.values())
        reads, writes = (
            ("inputs of W_in", "VJPs of W_out")
            if dense
            else ("what each block reads of the stream", "VJPs of what each block writes to it")
        )
        titles = {
            "imprint": f"Imprint: {reads}, top token (below it the bottom one)",
            "shift": f"Shift: {writes}, raw gradient, BOTTOM token (below it the top one); a step subtracts it",
            "attn_imprint": "Imprint: inputs of W_V, top token (below it the bottom one)",
            "attn_shift": "Shift: VJPs of W_O, raw gradient, BOTTOM token (below it the top one)",
        }
        tables = [self.table(of, caption=title) for of, title in titles.items() if of in self.readouts()]
        return "".join([*tables, *(learning._repr_html_() for learning in self.experts.values())])

    def table(self, of: str = "shift", *, example: int = 0, caption: str = "") -> str:
        """A static HTML table of one readout, layers x tokens; the full lists on hover.

        An imprint's cell shows its top token, a shift's its BOTTOM one (what a descent step moves toward), with the
        other end below. VJPs are coloured by their norm.
        """
        towards = of.endswith("shift")
        layers, real = self.readouts()[of], self.mask.reshape(-1, self.mask.shape[-1])[example]
        names = [token for token, keep in zip(self._strings(example), real.tolist(), strict=True) if keep]
        cells = []
        for read in layers.values():
            read = read[example] if self.is_batch else read
            places = real.nonzero().flatten().tolist()
            cells.append([_cell(read[place], towards) for place in places])
        label = "|delta_i|, VJP norm (loss in nats per unit of output)" if towards else ""
        differ = len(set(self.kinds.values())) > 1
        rows = [f"layer {layer}" + (f" ({self.kinds[layer]})" if differ else "") for layer in layers]
        return lens_table(rows, names, cells, value_label=label, caption=caption)

    def _strings(self, example: int) -> list[str]:
        row = self.tokens[example] if self.is_batch else self.tokens
        return [str(token) for token in row]


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
    **inputs: object,
) -> BackwardLens:
    """Read in words what one gradient-descent step on `target` after `prompt` would write (Katz et al. 2024).

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: text, a list of texts, or tokens; a list gives every result a leading batch axis.
        target: the new answer (one, or one a prompt); several tokens are teacher-forced and ranks are the first one's.
        layers: which; None for all.
        k: how many top and bottom tokens to keep.
        answer: the old answer (one, or one a prompt), whose rank is reported too; None for the model's own most likely
            next token.
        subject: the subject's text (one, or one a prompt) or (start, end) token span, for segments.
        attention: also read W_V's inputs and W_O's VJPs, of latent attention its kv projection's, of a mixer
            beside an MLP what its first projection reads and its last one writes.
        normalize: scale vectors to unit norm before the final norm (the paper's Normalized Logit Lens).
        control: "random_init", or a `RandomInit` with another seed, also runs the same architecture with fresh weights;
            see `lens.control`.
        names_filter: hook points whose gradients to keep in `lens.cache`, as TransformerLens's; none by default.
        fwd_hooks: (name, hook) pairs active in the pass.
        prepend_bos: as in `model.to_tokens`.
        position: the token at which a target of one token is asked for, counted over the prompt's tokens; None for the
            last, or the one mask of a prompt for a model that sees both ways (BERT).
        inputs: the model's own further inputs, as in `run_with_gradient_cache`.

    Raises:
        ValueError: layers of attention alone (unless `attention`; beside others that can be read they are left out),
            or bad input as in `run_with_gradient_cache`.
        IndexError: a layer out of range.

    Example:
        >>> lens = tlb.backward_lens(model, "Anna Berg lives in the city of", " Oslo")
        >>> lens.answer
        ' Graz'
        >>> lens.shift[3].bottom_tokens[lens.answer_position][0], lens.shift[3].top_tokens[lens.answer_position][0]
        (' Oslo', ' Graz')
    """
    check_model(model)
    check_reads_text(model)
    chosen = check_layers(layers, model.cfg.n_layers)
    check_k(k, output_size(model) or model.cfg.d_vocab)
    untrained = control_of(control)
    sites = weight_sites(model)
    reading = what_to_read(model, sites, chosen, attention)
    loss = target_loss(target, position, reduction="sum")
    value, cache = run_with_gradient_cache(
        model,
        prompt,
        loss,
        weights=list(dict.fromkeys(reading.weights)),
        names_filter=with_points(names_filter, reading.points),
        fwd_hooks=fwd_hooks,
        prepend_bos=prepend_bos,
        **cast("dict[str, Never]", inputs),
    )
    bound = loss.bind(model, cache.tokens.shape[0])
    batched = not isinstance(prompt, str) and not (isinstance(prompt, ARRAYS) and prompt.ndim == 1)
    mask = cache.mask if cache.mask is not None else torch.ones_like(cache.tokens, dtype=torch.bool)
    asked = answer_position(bound, cache.tokens, mask)
    target_ids = torch.tensor([row[0] for row in bound.ids or ()], device=cache.tokens.device)
    answer_ids = answer_tokens(model, answer, cache.logits, asked)
    vectors = vectors_read(cache, reading)
    every = readout(
        model,
        torch.stack(vectors),
        k=k,
        normalize=normalize,
        target=target_ids[:, None],
        answer=answer_ids[:, None],
    )
    every = every if batched else every[:, 0]
    places = iter(range(len(vectors)))
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
    rows = _prompt_rows(cache, mask, forced)
    spans = subject_spans(tokenizer, rows, _texts(prompt, cache), subject, where=where)
    beside = None
    if untrained is not None:
        beside = backward_lens(
            untrained.model(model),
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
    targets, answers = ([token_string(tokenizer, int(i)) for i in ids] for ids in (target_ids, answer_ids))
    return BackwardLens(
        loss=value,
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
        control=beside,
    )


def _prompt_rows(cache: GradientCache, mask: Tensor, forced: Sequence[int]) -> list[list[int]]:
    """Each prompt's real tokens, without those of a longer target."""
    rows = [row[real].tolist() for row, real in zip(cache.tokens, mask, strict=True)]
    return [row[: len(row) - n] for row, n in zip(rows, forced, strict=True)]


def _texts(prompt: Prompts, cache: GradientCache) -> Sequence[str] | None:
    """The texts of the tokens that the logits belong to, where they came as such."""
    if isinstance(prompt, ARRAYS) or cache.prompt_tokens is not cache.tokens:
        return None
    return [prompt] if isinstance(prompt, str) else prompt


def _cell(read: Readout, towards_target: bool) -> Cell:
    """One place of a lens table."""
    if bool(read.is_zero):
        return Cell("—", title=("exactly zero: the loss does not depend on it",))
    top, bottom = read.top_tokens, read.bottom_tokens
    text, sub = (bottom[0], top[0]) if towards_target else (top[0], bottom[0])
    ranks = [("target", read.target_rank), ("answer", read.answer_rank)]
    title = (
        f"norm {read.norm.item():.4g}",
        *(f"{name} rank {int(rank)} of {read.d_vocab}" for name, rank in ranks if rank is not None),
        "top: " + ", ".join(map(visible_token, top)),
        "bottom: " + ", ".join(map(visible_token, bottom)),
    )
    # Inputs are what a norm let through, all of one length: colour would say nothing.
    return Cell(text, sub=sub, title=title, value=read.norm.item() if towards_target else None)
