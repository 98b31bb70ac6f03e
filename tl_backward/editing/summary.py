"""What an edit changed, and which way to edit does best, in one sentence each."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.bootstrap import Interval
from tl_backward._support.html import visible_text, visible_token
from tl_backward._support.sentences import count_text, listed, percent, spread

FEWEST = 5
"""Cases from which on methods are told apart."""


def effect_sentence(
    prompt: str, before: tuple[str, float, float], after: tuple[str, float, float],
    others: Sequence[tuple[int, int]] = (),
) -> str:  # fmt: skip
    """The most likely token without and with the edit, and how many other prompts have another one now.

    Args:
        prompt: that was edited.
        before: the unedited model's most likely token, its probability, and that which the edit leaves it.
        after: the edited model's most likely token, the probability it had, and the one it has.
        others: the most likely token before and after, of each other prompt that was tried.
    """
    (old, old_was, old_is), (new, new_was, new_is) = before, after
    asked = f'After "{visible_text(prompt)[:200]}"'
    if old == new:
        elsewhere = f"; {answers_changed(others)}" if others else ""
        return (
            f"{asked} the answer stays {visible_token(new)}: {percent(new_was)} -> {percent(new_is)} with the edit"
            f"{elsewhere}."
        )
    elsewhere = answers_changed(others) if others else "that it works where it was made says nothing of other prompts"
    return (
        f"{asked} the answer goes from {visible_token(old)} {percent(old_was)} to {visible_token(new)} "
        f"{percent(new_is)}: {visible_token(old)} is left {percent(old_is)}, {visible_token(new)} had "
        f"{percent(new_was)}; {elsewhere}."
    )


def answers_changed(answers: Sequence[tuple[int, int]], what: str = "other prompt") -> str:
    """How many prompts have another answer than before.

    Args:
        answers: the most likely token before and after, of each prompt.
        what: one of them is called.
    """
    changed = sum(old != new for old, new in answers)
    return f"{changed} of {count_text(len(answers), what)} {'has' if changed == 1 else 'have'} another answer now"


def targets_met(answers: Sequence[tuple[int, int]], targets: Sequence[int]) -> str:
    """How many prompts are answered with the token that was wanted, and how many were before.

    Args:
        answers: the most likely token before and after, of each prompt.
        targets: the token that each should be answered with.
    """
    met = [(old == target, new == target) for (old, new), target in zip(answers, targets, strict=True)]
    before, after = (sum(each) for each in zip(*met, strict=True)) if met else (0, 0)
    return f"{after} of {len(met)} answer with what was wanted, {before} before"


def edit_sentence(
    asked: str, weights: str, ranks: Sequence[int], shares: Sequence[float], lost: Sequence[tuple[str, float]],
    *, applied: bool,
) -> str:  # fmt: skip
    """What an edit adds to which weights, beside what they are.

    Args:
        asked: what it was made of, in words, with a space behind it; "" where that is not known.
        weights: in words.
        ranks: of what is added to each.
        shares: |dW| / |W| of each.
        lost: weights whose numbers did not take their update as it is, and the share that they took.
        applied: whether the model is edited now.
    """
    low, high = min(ranks), max(ranks)
    if not high:
        now = "" if applied else "not "
        return f"The edit {asked}changes nothing: what it adds to {weights} is zero; it is {now}applied."
    what, whose = ("a matrix", "that weight's norm") if len(ranks) == 1 else ("matrices", "the weights' norms")
    taken = "".join(f"; {name} took {share:.2f} of it" for name, share in lost)
    return (
        f"The edit {asked}adds {what} of rank {low if low == high else f'{low} to {high}'} to "
        f"{weights}, {spread(shares)} of {whose}{taken}; it is {'' if applied else 'not '}applied."
    )


def scores_sentence(scores: dict[str, float]) -> str:
    """The scores of one edit that are known."""
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    if not known:
        return "The case has no prompts to score the edit with."
    return f"Of one edit: {', '.join(f'{name} {value:.2f}' for name, value in known.items())}; no other was compared."


def comparison_sentence(
    methods: Sequence[str], objective: Float[Tensor, "method"], draws: Float[Tensor, "draw method"], n_cases: int,
    scores: dict[str, Interval],
) -> str:  # fmt: skip
    """Which method does best, and which it is not clearly ahead of.

    Args:
        methods: how each is called.
        objective: of each, over all cases.
        draws: the same over cases drawn anew, for each draw.
        n_cases: how many there are.
        scores: metrics [method] with their intervals, to be named of the best.
    """
    over = f"Over {count_text(n_cases, 'edit')}"
    if not bool(torch.isfinite(objective).all()):
        return f"{over}, not every method has the scores to be compared by."
    best = int(objective.argmax())
    named = [visible_text(name) for name in methods]
    told = _told({name: float(each.mean[best]) for name, each in scores.items()})
    first = f"{over}, the best balance of scores is that of {named[best]}, {float(objective[best]):.2f}{told}"
    others = [i for i in range(len(named)) if i != best]
    if not others:
        return f"{first}; nothing was compared with it."
    if n_cases < FEWEST:
        return f"{first}, but so few edits tell no method from another."
    near = [i for i in others if float((draws[:, best] > draws[:, i]).double().mean()) < 0.975]
    if near:
        return f"{first}, but is not clearly ahead of {listed([named[i] for i in near])}."
    ahead = f"{named[i]} ({float(objective[i]):.2f})" if len(others) == 1 and (i := others[0]) >= 0 else "all others"
    return f"{first}, clearly ahead of {ahead}."


def _told(scores: dict[str, float]) -> str:
    known = {name: mean for name, mean in scores.items() if not math.isnan(mean)}
    shown = [f"{name} {mean:.2f}" for name, mean in known.items()]
    return f" ({', '.join(shown)})" if shown else ""


def grid_sentence(best: tuple[int, float], value: float, near: int, n_cells: int, n_validation: int) -> str:
    """The best cell of a grid, and how many others come within 0.01 of it."""
    layer, scale = best
    others = f"; {count_text(near, 'other cell')} of {n_cells} come within 0.01 of it" if near else ""
    edits = count_text(n_validation, "other edit")
    few = "; so few edits tell no cell from another" if n_validation < FEWEST else ""
    return f"On {edits}, layer {layer} with scale {scale:g} does best (harmonic mean {value:.2f}){others}{few}."
