"""One prompt of a Backward Lens: its tokens, key figures beside the control's, and all values as plain data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_backward._support.html import format_number, visible_token
from tl_backward._support.sentences import spread
from tl_backward._support.types import Tokenizer
from tl_backward.lens.lens_result import BackwardLens, Quantity
from tl_backward.text.token_strings import token_strings

RANKS: dict[str, Quantity] = {"target": "target_rank", "old answer": "answer_rank"}
"""The two words whose ranks a report follows, and the quantity that holds each one's."""

Asks: TypeAlias = Literal["last", "mask", "place"]
"""Where an answer is asked for: after the last token, at a mask, or at another token that was given."""


@dataclass(frozen=True, repr=False)
class PromptView:
    """One prompt of a lens, without its padding: what a page about that prompt draws."""

    lens: BackwardLens
    example: int = 0
    """Which prompt of a batch."""

    def __post_init__(self) -> None:
        """Refuse a prompt that is not there."""
        n = self.n_prompts
        if not 0 <= self.example < n:
            raise IndexError(f"Expected an example in [0, {n}), got {self.example}; the lens has {n} prompts.")

    def __repr__(self) -> str:
        return f"PromptView(example={self.example}, {len(self.places)} tokens)"

    @property
    def n_prompts(self) -> int:
        """How many prompts the lens read."""
        return self.lens.token_ids.shape[0] if self.lens.is_batch else 1

    @property
    def mask(self) -> Bool[Tensor, "pos"]:
        """True at this prompt's real tokens."""
        return self.row(self.lens.mask)

    def row(self, of: Any) -> Any:
        """The row of a batched value that is this prompt's."""
        return of[self.example] if self.lens.is_batch else of

    @property
    def places(self) -> list[int]:
        """Positions of the real tokens."""
        return self.mask.nonzero().flatten().tolist()

    @property
    def tokens(self) -> list[str]:
        """The real tokens as strings, raw."""
        return [str(self.row(self.lens.tokens)[place]) for place in self.places]

    @property
    def ids(self) -> list[int]:
        """The real tokens' ids."""
        return self.row(self.lens.token_ids)[self.mask].tolist()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where it has none."""
        return next(iter(self.lens.readouts()[self.of].values())).tokenizer

    @property
    def gaps(self) -> list[bool]:
        """Whether the text has a space before each token that none of `tokens` has."""
        return token_gaps(self.tokenizer, self.ids, self.tokens)

    @property
    def encoder(self) -> tuple[list[str], list[bool]] | None:
        """What an encoder read, as strings and the gaps before them; None for a model without one."""
        cache = self.lens.cache
        if cache.prompt_tokens is cache.tokens:
            return None
        row = cache.prompt_tokens[self.example]
        row = row if cache.prompt_mask is None else row[cache.prompt_mask[self.example].bool()]
        strings = token_strings(self.tokenizer, row)
        return strings, token_gaps(self.tokenizer, row.tolist(), strings)

    @property
    def target(self) -> str:
        """The (first) target token, raw."""
        return self.row(self.lens.target)

    @property
    def whole_target(self) -> str:
        """The target with all its tokens."""
        return self.row(self.lens.whole_target)

    @property
    def answer(self) -> str:
        """The model's old answer, raw."""
        return self.row(self.lens.answer)

    @property
    def followed(self) -> dict[str, Quantity]:
        """`RANKS`, without the old answer's where it equals the target."""
        return {words: quantity for words, quantity in RANKS.items() if words == "target" or self.target != self.answer}

    @property
    def of(self) -> str:
        """Name of the main readout: the MLPs' shift, or attention's where there are no MLPs."""
        return "shift" if self.lens.shift else "attn_shift"

    @property
    def n_forced(self) -> int:
        """How many tokens of a longer target were appended to the prompt."""
        return self.lens.segments.labels()[self.example].count("target")

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary that ranks run over."""
        return next(iter(self.lens.readouts()[self.of].values())).d_vocab

    def stacked(self, quantity: Quantity, of: str | None = None) -> Float[Tensor, "layer token"]:
        """One quantity of one readout at the real tokens, on the CPU; ranks of zero vectors are NaN."""
        values = self.lens.stacked(quantity, of or self.of)
        values = values[:, self.example] if self.lens.is_batch else values
        return values[:, self.mask].detach().to("cpu", torch.float32)

    def control(self) -> "PromptView | None":
        """View the same prompt in the untrained model, if the lens has that control."""
        return PromptView(self.lens.control, self.example) if self.lens.control else None

    @property
    def draws(self) -> "list[PromptView]":
        """The same prompt in each draw of the control."""
        lens = self.lens
        draws = lens.controls or ([lens.control] if lens.control else [])
        return [PromptView(each, self.example) for each in draws]

    def named(self, words: str) -> str:
        """One of `RANKS` with the word itself: "old answer ␣Graz"."""
        return f"{words} {visible_token(self.target if words == 'target' else self.answer, 24)}"

    @property
    def last(self) -> int:
        """Index, in `lens.layers`, of the last layer."""
        return self.lens.layers.index(max(self.lens.layers))

    @property
    def asked(self) -> int:
        """Index, in `tokens`, of the one at which the (first) target token is asked for, the last or a mask."""
        return self.places.index(int(self.row(self.lens.answer_position)))

    @property
    def asks(self) -> Asks:
        """Whether the target is predicted at the last token, at a mask or at another position."""
        if self.ids[self.asked] == getattr(self.tokenizer, "mask_token_id", None):
            return "mask"
        return "last" if self.asked == len(self.tokens) - self.n_forced - 1 else "place"


@dataclass(frozen=True)
class KeyFigure:
    """One number of a lens, formatted, and the same number of its control."""

    name: str
    """What was counted or measured, with its unit; plain text."""
    value: str
    """Plain text; tokens in it are made visible."""
    control: str = ""
    """The same in the untrained networks, from the smallest to the largest; "" without control."""


def key_figures(view: PromptView) -> list[KeyFigure]:
    """Collect where the target and the old answer stand in the raw shift, and where its VJPs are large."""
    rows, draws = _figures(view), [_figures(draw) for draw in view.draws]
    return [KeyFigure(name, each.text(), _beside(name, draws)) for name, each in rows.items()]


@dataclass(frozen=True)
class _Figure:
    """A number, NaN where there is none, and how it is shown; or words alone."""

    value: float = math.nan
    shown: str = "{}"
    """With a place for the number."""
    instead: str = ""
    """Shown where there is no number."""

    def text(self) -> str:
        return self.instead if math.isnan(self.value) else self.shown.format(format_number(_whole(float(self.value))))


def _beside(name: str, draws: Sequence[dict[str, _Figure]]) -> str:
    """A figure of all draws: from the smallest to the largest, or the words that most of them have."""
    figures = [draw[name] for draw in draws if name in draw]
    known = [each.value for each in figures if not math.isnan(each.value)]
    if known:
        return figures[0].shown.format(spread(known, lambda value: format_number(_whole(value))))
    return max((each.instead for each in figures), key=[each.instead for each in figures].count, default="")


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _figures(view: PromptView) -> dict[str, _Figure]:
    bottom, last = view.d_vocab - 1, view.lens.layers[view.last]
    near = max(1, round(view.d_vocab / 100))  # one word in a hundred
    words_kept = "word" if near == 1 else f"{near} words"
    of_prompts = f", sum over {view.n_prompts} prompts" if view.lens.is_batch else ""
    of_tokens = ", mean over the target's tokens" if view.n_forced else ""
    figures = {f"loss, nats{of_tokens}{of_prompts}": _Figure(view.lens.loss.item())}
    ranks = {words: view.stacked(quantity)[:, view.asked] for words, quantity in view.followed.items()}
    for words, by_layer in ranks.items():
        rank = by_layer[view.last]
        figures[f"{words}'s rank in layer {last}'s shift"] = _Figure(
            float(rank), f"{{}} of {bottom}", "none: a zero VJP"
        )
    at_ends = {f"target among the lowest {words_kept}": ranks["target"] > bottom - near}
    if "old answer" in ranks:
        at_ends[f"old answer among the highest {words_kept}"] = ranks["old answer"] < near
    for name, there in at_ends.items():
        figures[f"layers with the {name}"] = _Figure(float(there.sum()), f"{{}} of {len(there)}")
    norms, words = view.stacked("norm").sum(0), view.tokens
    others = norms.clone()
    others[view.asked] = -1
    others[len(words) - view.n_forced :] = -1  # of a longer target
    if others.max() >= 0:
        largest = int(others.argmax())
        place = f"{visible_token(words[largest], 24)} (token {largest})"
        shown = place if others[largest] > 0 else "none: all are zero"
        figures[f"largest VJP norms {_BESIDE[view.asks]}"] = _Figure(instead=shown)
    subject = view.lens.segments.masks().get("subject")
    if subject is not None:
        inside = subject[view.example][view.mask.cpu()]
        share = float(round(100 * float(norms[inside].sum() / norms.sum()))) if norms.sum() > 0 else math.nan
        figures["the subject's share of all VJP norms"] = _Figure(share, "{} %", "none: all are zero")
    return figures


_BESIDE = {
    "last": "before the last token",
    "mask": "at other tokens than the mask",
    "place": "at other tokens than that asked at",
}


def lens_data(view: PromptView) -> dict[str, object]:
    """The lens of one prompt as numbers, strings, lists and dicts: nothing that JSON lacks.

    Per readout ("imprint", "shift", ...) one entry a layer, each with one value a token: `norm`, `target_rank`,
    `answer_rank` (0 the largest logit; None where the vector is zero), the same of the control with the prefix
    `control_`, and the top and bottom tokens. Raw gradients: a descent step subtracts.
    """
    return {
        "summary": view.lens.summary(view.example),
        "target_token": view.target,
        "answer": view.answer,
        "loss": view.lens.loss.item(),
        "d_vocab": view.d_vocab,
        "tokens": view.tokens,
        "token_ids": view.ids,
        "segments": [label for label in view.lens.segments.labels()[view.example] if label],
        "answer_position": view.asked,
        "sign": "raw gradient dL/d(output): a descent step subtracts it",
        **{of: _layers(view, of) for of in view.lens.readouts()},
    }


def _layers(view: PromptView, of: str) -> list[dict[str, object]]:
    sources = {"": view} | ({} if (control := view.control()) is None else {"control_": control})
    entries = []
    for index, (layer, read) in enumerate(view.lens.readouts()[of].items()):
        entry: dict[str, object] = {"layer": layer}
        for prefix, source in sources.items():
            entry[f"{prefix}norm"] = source.stacked("norm", of)[index].tolist()
            for quantity in RANKS.values():
                ranks = source.stacked(quantity, of)[index].tolist()
                entry[prefix + quantity] = [None if math.isnan(rank) else int(rank) for rank in ranks]
        own = view.row(read)
        for name in ("top_tokens", "bottom_tokens"):
            entry[name] = [getattr(own, name)[place] for place in view.places]
        entries.append(entry)
    return entries


def token_gaps(tokenizer: Tokenizer | None, ids: Sequence[int], strings: Sequence[str]) -> list[bool]:
    """Whether the tokenizer writes a space before each token that no token's own string has.

    Args:
        tokenizer: the model's; None for none, so that there are no gaps.
        ids: the tokens.
        strings: what each is by itself.
    """
    return [False, *map(cache(partial(_apart, tokenizer)), ids, ids[1:], strings, strings[1:])][: len(strings)]


def joined(strings: Sequence[str], gaps: Sequence[bool]) -> str:
    """Token strings joined to one text, with a space at each gap."""
    return "".join((" " if gap else "") + string for string, gap in zip(strings, gaps, strict=True))


def _apart(tokenizer: Tokenizer | None, a: int, b: int, first: str, second: str) -> bool:
    if tokenizer is None or first[-1:].isspace() or second[:1].isspace():
        return False
    try:
        return tokenizer.decode([a, b]).strip() == f"{first} {second}"
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # an id beyond the tokenizer
        return False
