"""How good an edit is, and what it changes at one prompt.

The scores are those of the knowledge-editing literature (Meng et al. 2022, ROME, sec. 3.4; MEMIT). P(answer | prompt)
is the geometric mean of the answer's token probabilities; o* is the new answer, o_c the true one. Whether the model
still writes is told by the entropy of the n-grams of sampled continuations.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import check_k
from tl_backward._support.html import Cell, TableCell, table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, Prompt, Tokenizer, TransformerLensModel
from tl_backward.editing.edit import Edit
from tl_backward.editing.summary import effect_sentence, scores_sentence
from tl_backward.model.inputs import check_text_model
from tl_backward.text.asked import asked_index, check_one_token, mask_token
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.ids import Id, one_id
from tl_backward.text.prompts import encode_prompt, encode_prompts, forward, pad
from tl_backward.text.tables import cases_of
from tl_backward.text.token_strings import output_size, text_column, token_string

_ROWS = 128  # prompts a pass

TOP_K = 5
"""Tokens sampled among, as in ROME's evaluation."""

METRICS: dict[str, str] = {
    "efficacy": "P(o*) > P(o_c) after the edited prompt",
    "efficacy_magnitude": "P(o*) - P(o_c) there",
    "efficacy_top1": "o* is the most likely answer there",
    "paraphrase": "share of paraphrases with P(o*) > P(o_c)",
    "paraphrase_magnitude": "mean of P(o*) - P(o_c) over them",
    "paraphrase_top1": "share of them with o* the most likely answer",
    "neighbourhood": "share of other subjects of the same true answer with P(o_c) > P(o*)",
    "neighbourhood_magnitude": "mean of P(o_c) - P(o*) over them",
    "neighbourhood_top1": "share of them with o_c still the most likely answer",
    "relations": "share of other questions about the subject whose answer is still the most likely",
    "portability": "share of what should follow from the edit whose new answer is the most likely",
    "entropy": "weighted 2- and 3-gram entropy of sampled continuations, in bits (fluency)",
    "score": "harmonic mean of efficacy, paraphrase and neighbourhood (ROME's S)",
}
"""What each score is, by name. All but the magnitudes and the entropy lie in [0, 1]; higher is better."""


@dataclass(frozen=True)
class EditScores(Saved):
    """The scores of one edit; NaN where the case has no such prompts. `METRICS` says what each is."""

    efficacy: float
    efficacy_magnitude: float
    efficacy_top1: float
    paraphrase: float
    paraphrase_magnitude: float
    paraphrase_top1: float
    neighbourhood: float
    neighbourhood_magnitude: float
    neighbourhood_top1: float
    relations: float
    portability: float
    entropy: float

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, paraphrase and neighbourhood, of those that are known (ROME's S)."""
        parts = [part for part in (self.efficacy, self.paraphrase, self.neighbourhood) if part == part]
        return 0.0 if min(parts) == 0 else len(parts) / sum(1 / part for part in parts)

    def summary(self) -> str:
        """In one sentence: the scores that are known."""
        return scores_sentence({name: getattr(self, name) for name in ("efficacy", "paraphrase", "neighbourhood")})

    def to_frame(self) -> DataFrame:
        """One row a metric: its value and what it is."""
        import pandas

        rows = ((name, getattr(self, name), what) for name, what in METRICS.items())
        return pandas.DataFrame(rows, columns=["metric", "value", "meaning"])

    def _repr_html_(self) -> str:
        """The scores as a static table."""
        return table(["metric", "value", "meaning"], self.to_frame().astype(object).values.tolist())


@public
def evaluate_edit(
    model: TransformerLensModel,
    edit: Edit | None,
    case: EditCase | Mapping[str, object],
    *,
    n_tokens: int = 100,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> EditScores:
    """Score an edit on a case.

    Args:
        model: the model that the edit is of.
        edit: is applied for the scoring, unless it is applied already, and left as it was; None for the unedited model.
        case: the prompts and answers, or a dictionary with the fields of one; an empty true answer is the unedited
            model's own.
        n_tokens: sampled after each opening for the entropy (up to the context's length); 0 for none.
        seed: of the sampling.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        ValueError: an edit of another model, a case whose true answer is unknown while the edit is applied, or one
            whose target is that answer.

    Examples:
        >>> case = tlb.zoo.edit_cases("test")[0]
        >>> edit = tlb.shift_edit(model, case.prompt, case.target, layer=2, scale=0.75)
        >>> tlb.evaluate_edit(model, edit, case, n_tokens=0).efficacy
        1.0
    """
    check_text_model(model)
    if isinstance(case, Mapping):
        (case,) = cases_of([case])
    if not isinstance(case, EditCase) or not isinstance(edit, Edit | None):
        raise TypeError(
            f"Expected an edit (or None), then an edit case, got {type(edit).__name__} and {type(case).__name__}; give "
            "them in that order."
        )
    if edit is not None and edit.model is not model:
        raise ValueError("Expected an edit of this model, got one of another; make it anew for this one.")
    if not case.answer and edit is not None and edit.is_applied:
        raise ValueError(
            "Expected the case's true answer, got none while the edit is applied; revert() it, or give an answer."
        )
    questions = ask(model, case, prepend_bos=prepend_bos)
    with nullcontext() if edit is None or edit.is_applied else edit:
        return score(model, questions, n_tokens=n_tokens, seed=seed)


@dataclass(frozen=True)
class Encoded:
    """A prompt with all but the last token of its answer, and the answer's ids."""

    row: tuple[int, ...]
    answer: tuple[int, ...]
    asked: int
    """Index in `row` at which the answer's first token is asked for."""


@dataclass(frozen=True)
class Questions:
    """A case's prompts, encoded once for however many edits are scored on it."""

    case: EditCase
    groups: tuple[list[Encoded], ...]
    """Edited prompts with o* and o_c in turn, neighbours with o_c and o* in turn, relations, portability."""


def ask(model: TransformerLensModel, case: EditCase, *, prepend_bos: bool | None = None) -> Questions:
    """Encode what a case is scored on, an empty true answer being the model's own; the model is not edited now.

    Raises:
        ValueError: the target is the true answer.
    """
    answer: str | Id = case.answer
    if not case.answer:
        batch = encode_prompts(model, case.prompt, prepend_bos=prepend_bos)
        with torch.no_grad():
            logits = forward(model, batch)
        answer = int(logits[0, asked_index(batch.rows()[0], mask_token(model))].argmax())
    edited = [(prompt, each) for prompt in (case.prompt, *case.paraphrases) for each in (case.target, answer)]
    around = [(prompt, each) for prompt, true in case.neighbours for each in (true, case.target)]
    groups = tuple(encode(model, each, prepend_bos) for each in (edited, around, case.relations, case.portability))
    if groups[0][0].answer == groups[0][1].answer:
        raise ValueError(
            f"Expected a target other than the model's answer, got {case.target!r} for both; there is nothing to edit."
        )
    return Questions(case, groups)


def score(model: TransformerLensModel, questions: Questions, *, n_tokens: int = 100, seed: int = 0) -> EditScores:
    """Score the model as it is now, edited or not."""
    sizes = [len(group) for group in questions.groups]
    answered = probabilities(model, [each for group in questions.groups for each in group])
    (edited_p, around_p, _, _), hits = (side.double().split(sizes) for side in answered)
    moved, unmoved = edited_p[::2] - edited_p[1::2], around_p[::2] - around_p[1::2]
    openings = questions.case.generation or (questions.case.prompt,)
    texts = sample(model, openings, n_tokens=n_tokens, seed=seed) if n_tokens else []
    return EditScores(
        efficacy=_mean(moved[:1] > 0),
        efficacy_magnitude=_mean(moved[:1]),
        efficacy_top1=_mean(hits[0][:1]),
        paraphrase=_mean(moved[1:] > 0),
        paraphrase_magnitude=_mean(moved[1:]),
        paraphrase_top1=_mean(hits[0][2::2]),
        neighbourhood=_mean(unmoved > 0),
        neighbourhood_magnitude=_mean(unmoved),
        neighbourhood_top1=_mean(hits[1][::2]),
        relations=_mean(hits[2]),
        portability=_mean(hits[3]),
        entropy=_mean(torch.tensor([generation_entropy(text) for text in texts])),
    )


def encode(
    model: TransformerLensModel,
    asked: Sequence[tuple[str | tuple[int, ...], str | Id]],
    prepend_bos: bool | None = None,
) -> list[Encoded]:
    """(prompt, answer) pairs as ids; a prompt may be its ids, an answer one id."""
    mask = mask_token(model)
    prompts = {
        prompt: encode_prompts(model, prompt, prepend_bos=prepend_bos).rows()[0]
        for prompt in dict.fromkeys(prompt for prompt, _ in asked)
    }
    answers = {
        answer: tuple(encode_continuation(model, answer)) if isinstance(answer, str) else (one_id(answer),)
        for answer in dict.fromkeys(answer for _, answer in asked)
    }
    check_one_token(list(answers.values()), mask)
    places = {prompt: asked_index(ids, mask) for prompt, ids in prompts.items()}
    return [
        Encoded((*prompts[prompt], *answers[answer][:-1]), answers[answer], places[prompt]) for prompt, answer in asked
    ]


def probabilities(
    model: TransformerLensModel, asked: Sequence[Encoded]
) -> tuple[Float[Tensor, "asked"], Bool[Tensor, "asked"]]:
    """Probability of each answer, and whether each of its tokens is the most likely one: two tensors [answer].

    An answer of several tokens is teacher-forced; its probability is the geometric mean over its tokens.
    """
    order = sorted({each.row for each in asked}, key=len)
    spans: dict[tuple[int, ...], tuple[int, int]] = {}  # of the positions whose words are needed
    for each in asked:
        begin, end = spans.get(each.row, (len(each.row), 0))
        spans[each.row] = min(begin, each.asked), max(end, each.asked + len(each.answer))
    log_probs: dict[tuple[int, ...], Tensor] = {}
    for first in range(0, len(order), _ROWS):
        chunk = order[first : first + _ROWS]
        batch = pad(model, [list(row) for row in chunk])
        with torch.no_grad():
            logits = forward(model, batch)
        for row, tokens, last in zip(chunk, logits, batch.last.tolist(), strict=True):
            start = last + 1 - len(row)
            log_probs[row] = tokens[start + spans[row][0] : start + spans[row][1]].float().log_softmax(-1)
    means, right = [], []
    for each in asked:
        at = each.asked - spans[each.row][0]
        log_p = log_probs[each.row][at : at + len(each.answer)]
        wanted = torch.tensor(each.answer, device=log_p.device)
        means.append(log_p.gather(1, wanted[:, None]).mean().exp())
        right.append((log_p.argmax(-1) == wanted).all())
    return torch.stack(means), torch.stack(right)


def _mean(values: Tensor) -> float:
    """Mean of the values; NaN where there are none."""
    return float(values.double().mean())


def generation_entropy(text: str) -> float:
    """ROME's fluency (Meng et al. 2022, sec. 3.4): weighted mean of 2- and 3-gram entropies, in bits.

    GE = (2/3 H_2 + 4/3 H_3) / 2 with H_n = -sum_g f(g) log2 f(g), f(g) the share of n-gram g among the text's words
    (punctuation marks count as words). Repetition lowers it: 0 for one word over and over.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    pairs, triples = list(zip(words, words[1:], strict=False)), list(zip(words, words[1:], words[2:], strict=False))
    return (2 / 3 * _entropy(pairs) + 4 / 3 * _entropy(triples)) / 2


def _entropy(grams: Sequence[tuple[str, ...]]) -> float:
    shares = torch.tensor(list(Counter(grams).values()), dtype=torch.float64) / max(1, len(grams))
    return float(-(shares * shares.log2()).sum())


def sample(
    model: TransformerLensModel,
    prompts: Sequence[str],
    *,
    n_tokens: int = 100,
    top_k: int = TOP_K,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> list[str]:
    """Continue each prompt by sampling among the `top_k` most likely tokens, up to the model's context.

    The global RNG is not touched.

    Returns:
        The continuations alone, without their prompts.

    Raises:
        ValueError: a model that fills in masks, which continues no text.
    """
    if mask_token(model) is not None:
        raise ValueError(
            "Expected a model that continues a text, got one that fills in masks and sees what follows; leave fluency "
            "out with n_tokens=0."
        )
    rows = [encode_prompts(model, prompt, prepend_bos=prepend_bos).rows()[0] for prompt in prompts]
    lengths = [len(row) for row in rows]
    generator = torch.Generator(model.W_U.device).manual_seed(seed)
    for _ in range(min(n_tokens, model.cfg.n_ctx - max(lengths))):
        batch = pad(model, rows)
        with torch.no_grad():
            logits = forward(model, batch)[torch.arange(len(rows)), batch.last]
        values, ids = logits.topk(min(top_k, logits.shape[1]))
        drawn = torch.multinomial(values.float().softmax(-1), 1, generator=generator)
        for row, token in zip(rows, ids.gather(1, drawn).flatten().tolist(), strict=True):
            row.append(token)
    decode = getattr(model.tokenizer, "decode", str)
    return [decode(row[length:]) for row, length in zip(rows, lengths, strict=True)]


@dataclass(frozen=True, repr=False, eq=False)
class EditEffect(Shown):
    """The result of `edit_effect`."""

    _report = "edit_report"

    prompt: str
    before: Float[Tensor, "d_vocab"]
    """Next-token probabilities of the unedited model."""
    after: Float[Tensor, "d_vocab"]
    """Those of the edited one."""
    top_before: Int[Tensor, "k"]
    top_after: Int[Tensor, "k"]
    tokenizer: Tokenizer | None = None

    def __repr__(self) -> str:
        return f"EditEffect({self.prompt!r}: {self._word(self.top_before[0])!r} -> {self._word(self.top_after[0])!r})"

    def summary(self, others: Sequence["EditEffect"] = ()) -> str:
        """In one sentence: the most likely token without the edit and with it, and their probabilities.

        Of the edit's effects on `others`, prompts that it was not made for, it says how many have another answer.
        """
        old, new = self.top_before[0], self.top_after[0]
        sides = ((self._word(each), float(self.before[each]), float(self.after[each])) for each in (old, new))
        return effect_sentence(self.prompt, *sides, others=[each.answers() for each in others])

    def answers(self) -> tuple[int, int]:
        """The most likely token before and after."""
        return int(self.top_before[0]), int(self.top_after[0])

    def _word(self, token: Tensor) -> str:
        return token_string(self.tokenizer, int(token))

    def to_frame(self) -> DataFrame:
        """One row a token among the most likely before or after: both probabilities, and both ranks from 0."""
        import pandas

        ids = list(dict.fromkeys([*self.top_after.tolist(), *self.top_before.tolist()]))
        sides = (self.before, self.after)
        ranks = [side.argsort(descending=True).argsort() for side in sides]
        rows = [(*(float(side[i]) for side in sides), *(int(rank[i]) for rank in ranks)) for i in ids]
        frame = pandas.DataFrame(rows, columns=["before", "after", "rank_before", "rank_after"])
        frame.insert(0, "token", text_column(token_string(self.tokenizer, i) for i in ids))
        return frame

    def _repr_html_(self) -> str:
        """Before and after side by side, as a static table."""
        return table(*self.table(), caption=f"The most likely tokens after {self.prompt!r}")

    def table(self) -> tuple[list[str], list[list[TableCell]]]:
        """Columns and rows: the k-th most likely token and its probability, before and after."""

        def cells(token: Tensor, side: Tensor) -> tuple[Cell, Cell]:
            return Cell(self._word(token)), Cell(f"{float(side[token]):.3f}", value=float(side[token]))

        return ["rank", "before", "p before", "after", "p after"], [
            [rank, *cells(old, self.before), *cells(new, self.after)]
            for rank, (old, new) in enumerate(zip(self.top_before, self.top_after, strict=True))
        ]


@public
def edit_effect(
    model: TransformerLensModel, edit: Edit, prompt: Prompt, *, k: int = 10, prepend_bos: bool | None = None
) -> EditEffect:
    """The next-token probabilities after `prompt` (or those at its mask), without an edit and with it.

    Raises:
        ValueError: the edit is applied, so that the model without it is not at hand.

    Examples:
        >>> prompt = "Anna Berg lives in the city of"
        >>> edit = tlb.shift_edit(model, prompt, " Oslo", layer=2, scale=0.75)
        >>> tlb.editing.edit_effect(model, edit, prompt)
        EditEffect('Anna Berg lives in the city of': ' Graz' -> ' Oslo')
    """
    check_text_model(model)
    check_k(k, output_size(model) or model.cfg.d_vocab)
    if edit.is_applied:
        raise ValueError("Expected an edit that is not applied, got one that is; revert() it first.")
    batch = encode_prompt(model, prompt, prepend_bos=prepend_bos)
    at = asked_index(batch.rows()[0], mask_token(model))

    def next_token_probabilities() -> Tensor:
        with torch.no_grad():
            return forward(model, batch)[0, at].float().softmax(-1).cpu()

    before = next_token_probabilities()
    with edit:
        after = next_token_probabilities()
    tops = (side.topk(k).indices for side in (before, after))
    return EditEffect(
        prompt_text(model, prompt), before, after, next(tops), next(tops), getattr(model, "tokenizer", None)
    )
