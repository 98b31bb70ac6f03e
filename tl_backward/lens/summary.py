"""What a Backward Lens found, in one sentence: which words a step writes and pushes down, and where a control does too.

A word is "written" in a layer whose raw shift has it alone at the very bottom, and "pushed down most" where the shift
has it alone at the very top. What an untrained network does too is said as such; what none of at least five does is
claimed as training's work only where no draw does it in any layer and the word's place, as log odds of its rank, lies
outside of where a further draw would put it: in its best layers, as many as the model has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_backward._support.html import visible_token
from tl_backward._support.sentences import DRAWS_NEEDED, NETWORKS, beyond, count_text, layers_text, no_comparison

HOW = "control='random_init'"
_LONGEST = 40  # characters of a word

Ends: TypeAlias = tuple[Bool[Tensor, "layer"], Float[Tensor, "layer"]]


@dataclass(frozen=True)
class Places:
    """Where both words stand in one network's raw shift, for each prompt and layer."""

    target: Float[Tensor, "prompt layer"]
    """Rank of the target, 0 the largest logit; NaN where the vector is zero."""
    answer: Float[Tensor, "prompt layer"]
    """The same of the old answer."""
    alone: Bool[Tensor, "prompt layer"]
    """Whether no two words share the top."""
    d_vocab: int

    def __getitem__(self, prompt: int) -> "Places":
        """Those of one prompt."""
        row = slice(prompt, prompt + 1)
        return Places(self.target[row], self.answer[row], self.alone[row], self.d_vocab)

    @property
    def written(self) -> Bool[Tensor, "prompt layer"]:
        """Where the target is alone at the bottom: all other words have a larger logit."""
        return self.target == self.d_vocab - 1

    @property
    def pushed(self) -> Bool[Tensor, "prompt layer"]:
        """Where the old answer is alone at the top."""
        return (self.answer == 0) & self.alone

    def downward(self) -> Float[Tensor, "prompt layer"]:
        """How far down the target stands, as log odds of a word above it."""
        return -_log_odds(self.target, self.d_vocab)

    def upward(self) -> Float[Tensor, "prompt layer"]:
        """How far up the old answer stands, as log odds of a word below it."""
        return _log_odds(self.answer, self.d_vocab)


def _log_odds(rank: Tensor, d_vocab: int) -> Tensor:
    return ((d_vocab - rank - 0.5) / (rank + 0.5)).log()


def lens_sentence(
    target: str,
    answer: str,
    layers: Sequence[int],
    places: Places,
    draws: Sequence[Places],
    *,
    whole: str | None = None,
) -> str:
    """The finding of one prompt (row 0 of `places`); `draws` are the same prompt in untrained networks.

    Args:
        target: the new answer's (first) token, raw.
        answer: the old one's.
        layers: that were read.
        places: of the model.
        draws: of its control.
        whole: the new answer, where it has more tokens than that one.
    """
    new, old = _word(target), _word(answer)
    toward, word, said = new, new, new
    if whole is not None and whole != target:
        toward = f'"{visible_token(whole, _LONGEST)}"'
        word, said = f"its first token, {new},", f"{new}, the first token of {toward}"
    enough = len(draws) >= DRAWS_NEEDED
    beside = draws if enough else []
    end = "" if enough else no_comparison(len(draws), HOW)
    if bool(places.target[0].isnan().all()):
        where = layers_text(list(layers), layers)
        return f"One step toward {toward} would write nothing at the token asked at: its gradient is zero in {where}."
    written = _part(f"write {word}", layers, *_ends(places, "written"), [_ends(each, "written") for each in beside])
    pushed = _part(f"push {old} down", layers, *_ends(places, "pushed"), [_ends(each, "pushed") for each in beside])
    writes, pushes = bool(places.written.any()), bool(places.pushed.any())
    not_written = f"write {word} before all other words{_they(beside, 'written')}"
    not_pushed = f"push {old} down most{_they(beside, 'pushed')}"
    if target == answer:
        does = written if writes else f"not {not_written} in any layer"
        return f"The model already says {said}, and one step toward it would {does}{end}."
    if writes and pushes:
        does = f"{written} and {pushed}"
    elif writes:
        does = f"{written}, but in none {not_pushed}"
    elif pushes:
        does = f"{pushed}, but in none {not_written}"
    else:
        does = f"neither {not_written} nor {not_pushed} in any layer"
    return f"One step toward {toward} would {does}{end}."


def _word(token: str) -> str:
    """A token as a sentence has it: in quotes where it might be taken for the sentence's own punctuation."""
    shown = visible_token(token, _LONGEST)
    return shown if any(map(str.isalnum, token)) else f'"{shown}"'


def _ends(places: Places, which: Literal["written", "pushed"]) -> Ends:
    """Of the first prompt, where a word stands at its end, and how near to it everywhere: both [layer]."""
    height = places.downward() if which == "written" else places.upward()
    return getattr(places, which)[0], height[0].double()


def _part(what: str, layers: Sequence[int], there: Tensor, height: Tensor, draws: Sequence[Ends]) -> str:
    """What happens in which layers, and in brackets how many untrained networks do it there too."""
    chosen = [layer for layer, holds in zip(layers, there.tolist(), strict=True) if holds]
    said = f"{what} in {layers_text(chosen, layers)}"
    if not draws or not chosen:
        return said
    return f"{said} ({_compared(there, height, draws)})"


def _compared(there: Tensor, height: Tensor, draws: Sequence[Ends]) -> str:
    n, k = len(draws), int(there.sum())
    everywhere = sum(bool(each[there].all()) for each, _ in draws)
    somewhere = sum(bool(each[there].any()) for each, _ in draws)
    elsewhere = sum(bool(each.any()) for each, _ in draws)
    if everywhere == n:
        return f"all {n} {NETWORKS} do that too"
    if somewhere:
        where = "" if k == 1 or somewhere == everywhere else " in at least one of them"
        return f"{_networks(somewhere, n)} that too{where}"
    if elsewhere:
        return f"{_networks(elsewhere, n)} that in other layers"
    # The model's layers were chosen for standing out: so are each draw's.
    if beyond(_highest(height, k), [_highest(each, k) for _, each in draws]) == "above":
        return f"none of {n} {NETWORKS} does"
    return f"none of {n} {NETWORKS} does, but they differ so much among themselves that this may be chance"


def _networks(count: int, n: int) -> str:
    return f"{count} of {n} {NETWORKS} {'do' if count > 1 else 'does'}"


def _highest(heights: Tensor, k: int) -> float:
    """Mean of the k largest, NaN where so many are not known."""
    known = heights[~heights.isnan()]
    return float(known.topk(k).values.mean()) if len(known) >= k else math.nan


def _they(beside: Sequence[Places], quantity: str) -> str:
    """In brackets, how many untrained networks do what the model does nowhere."""
    n = sum(bool(getattr(each, quantity).any()) for each in beside)
    return f" ({_networks(n, len(beside))} somewhere)" if n else ""


def batch_sentence(
    layers: Sequence[int], places: Places, draws: Sequence[Places], differs: Bool[Tensor, "prompt"]
) -> str:
    """The finding of several prompts: for how many the words stand at their ends, each network in its best layer.

    Args:
        layers: that were read.
        places: of the model.
        draws: of its control.
        differs: which prompts ask for something else than the model says.
    """
    enough = len(draws) >= DRAWS_NEEDED
    n, others = len(differs), int(differs.sum())
    layer, count = _best(places.written)
    written = f"write it {_where(layer, count, layers, n)}"
    parts = [written + _counts(count, [_best(each.written)[1] for each in draws] if enough else [])]
    if others:
        layer, count = _best(places.pushed[differs.cpu()])
        pushed = f"push the old answer down most {_where(layer, count, layers, others)}"
        parts.append(
            pushed + _counts(count, [_best(each.pushed[differs.cpu()])[1] for each in draws] if enough else [])
        )
    end = "" if enough else no_comparison(len(draws), HOW)
    prompts = count_text(n, "prompt")
    return f"Over {prompts}, one step toward the prompt's own target would {' and '.join(parts)}{end}."


def _best(there: Bool[Tensor, "prompt layer"]) -> tuple[int, int]:
    """Index of the (last) layer where most prompts show it, and how many do."""
    counts = there.cpu().long().sum(0)
    return int((counts == counts.max()).nonzero()[-1]), int(counts.max())


def _where(index: int, count: int, layers: Sequence[int], n: int) -> str:
    return f"in layer {layers[index]} for {count} of {n}" if count else f"for none of {n} in any layer"


def _counts(count: int, draws: Sequence[int]) -> str:
    if not draws:
        return ""
    low, high = min(draws), max(draws)
    same = f"{low}" if low == high else f"{low} to {high}"
    clear = beyond(float(count), list(map(float, draws))) is not None
    return f" ({NETWORKS}, each in its best layer: {same}{'' if clear else ', so no clear difference'})"


def alone_at_top(top: Float[Tensor, "*lead k"], bottom: Float[Tensor, "*lead k"]) -> Bool[Tensor, "*lead"]:
    """Whether the largest logit is no other word's: of the k largest and smallest logits."""
    second = top[..., 1] if top.shape[-1] > 1 else bottom[..., 0]
    return torch.isfinite(top[..., 0]) & (top[..., 0] > second)
