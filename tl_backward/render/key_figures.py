"""What a Backward Lens found, in a handful of numbers, each beside its control: for reports and terminals."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_backward._html import format_number, visible_token
from tl_backward.backward_lens import BackwardLens, Quantity


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
        return self.lens.mask[self.example] if self.lens.is_batch else self.lens.mask

    @property
    def places(self) -> list[int]:
        """Positions of the real tokens."""
        return self.mask.nonzero().flatten().tolist()

    @property
    def tokens(self) -> list[str]:
        """The real tokens as strings, raw."""
        row = self.lens.tokens[self.example] if self.lens.is_batch else self.lens.tokens
        return [str(row[place]) for place in self.places]

    @property
    def target(self) -> str:
        """The (first) target token, raw."""
        return _one(self.lens.target, self.example)

    @property
    def answer(self) -> str:
        """The model's old answer, raw."""
        return _one(self.lens.answer, self.example)

    @property
    def of(self) -> str:
        """The readout that speaks for the lens: the MLPs' shift, or attention's where there are no MLPs."""
        return "shift" if self.lens.shift else "attn_shift"

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary that ranks run over."""
        return next(iter(self.lens.readouts()[self.of].values())).d_vocab

    def stacked(self, quantity: Quantity, of: str | None = None) -> Float[Tensor, "layer token"]:
        """One quantity of one readout at the real tokens, on the CPU; ranks of zero vectors are NaN."""
        values = self.lens.stacked(quantity, of or self.of)
        row = values[:, self.example] if self.lens.is_batch else values
        return row[:, self.mask].detach().to("cpu", torch.float32)

    def control(self) -> "PromptView | None":
        """The same prompt in the untrained model, if the lens has that control."""
        return None if self.lens.control is None else PromptView(self.lens.control, self.example)

    @property
    def asked(self) -> int:
        """The token after which the (first) target token is expected: the prompt's last.

        In the last layer nothing before it can reach the loss, so its VJP is the first that is not zero; a target of
        several tokens, teacher-forced, follows it. Where the lens leaves the last layer out, the last token.
        """
        zero = self.stacked("norm")[-1] == 0
        return int((~zero).nonzero()[0]) if zero.any() and not zero.all() else len(zero) - 1

    @property
    def is_forced(self) -> bool:
        """Whether a target of several tokens was appended to the prompt."""
        return self.asked < len(self.places) - 1


@dataclass(frozen=True)
class KeyFigure:
    """One number of a lens, formatted, and the same number of its control."""

    name: str
    """What was counted or measured, with its unit; plain text."""
    value: str
    """Plain text; tokens in it are made visible."""
    control: str = ""
    """The same in the untrained model; "" without control."""


def key_figures(view: PromptView) -> list[KeyFigure]:
    """Where the target and the old answer stand in the raw shift, and where its VJPs are large."""
    control = view.control()
    last, rows = view.lens.layers[-1], _figures(view)
    beside = ["" for _ in rows] if control is None else [value for _, value in _figures(control)]
    layer = f"in layer {last}'s shift"
    names = {"target": f"target's rank {layer}", "answer": f"old answer's rank {layer}"}
    return [
        KeyFigure(names.get(name, name), value, other) for (name, value), other in zip(rows, beside, strict=True)
    ]


def _figures(view: PromptView) -> list[tuple[str, str]]:
    targets, answers = (view.stacked(quantity)[:, view.asked] for quantity in ("target_rank", "answer_rank"))
    norms, tokens, bottom = view.stacked("norm"), view.tokens, view.d_vocab - 1
    near = max(1, round(view.d_vocab / 100))
    n_layers = len(targets)
    rows = [
        ("loss, nats" + (f" (sum over {view.n_prompts} prompts)" if view.lens.is_batch else ""), _number(view.lens.loss)),
        ("target", _rank(targets[-1], bottom)),
        ("answer", _rank(answers[-1], bottom)),
        (f"layers with the target among the {near} lowest", f"{int((targets > bottom - near).sum())} of {n_layers}"),
        (f"layers with the old answer among the {near} highest", f"{int((answers < near).sum())} of {n_layers}"),
    ]
    largest = int(norms.sum(0).argmax())
    rows.append(("token with the largest VJP norms", f"{visible_token(tokens[largest], 24)} ({largest})"))
    subject = view.lens.segments.masks().get("subject")
    if subject is not None:
        inside = subject.reshape(view.lens.mask.shape)[view.example] if view.lens.is_batch else subject.flatten()
        share = norms[:, inside[view.mask.cpu()]].sum() / norms.sum()
        rows.append(("subject's share of all VJP norms", f"{100 * share:.0f} %"))
    return rows


def _number(value: Tensor) -> str:
    return format_number(value.item())


def _rank(rank: Tensor, bottom: int) -> str:
    return "none: its VJP is zero" if rank.isnan() else f"{int(rank)} of {bottom}"


def _one(value: str | list[str], example: int) -> str:
    return value if isinstance(value, str) else value[example]
