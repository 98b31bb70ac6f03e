"""Fine-tune on a set of sentences, or on a part of it; what came out is kept in a file, so that a run goes on."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from tl_backward._support.types import TransformerLensModel
from tl_backward.studies.truth.planting import Sentence
from tl_backward.studies.truth.tongues import bilingual_tokenizer
from tl_backward.zoo.loading import load_hugging_face
from tl_backward.zoo.tasks import Forward
from tl_backward.zoo.tokenizer import PAD


@dataclass(frozen=True)
class FineTuning:
    """How; the same with the same sentences gives the same weights."""

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    """Of the order."""


@dataclass(frozen=True)
class Rows:
    """Sentences as tokens, padded at their ends."""

    tokens: Int[Tensor, "row pos"]
    last: Int[Tensor, "row"]
    """Where each prompt ends."""
    answers: Int[Tensor, "row"]

    @classmethod
    def of(cls, sentences: Sequence[Sentence]) -> "Rows":
        """Their prompts, after BOS, and the tokens of their answers."""
        encode = bilingual_tokenizer()
        ids = [torch.tensor(encode(each.prompt)["input_ids"]) for each in sentences]
        known = encode.get_vocab()
        return cls(
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=known[PAD]),
            torch.tensor([len(each) - 1 for each in ids]),
            torch.tensor([known[each.answer] for each in sentences]),
        )

    def __getitem__(self, index: Tensor) -> "Rows":
        return Rows(self.tokens[index], self.last[index], self.answers[index])

    def logits(self, forward: Forward) -> Float[Tensor, "row d_vocab"]:
        """What comes after each prompt; the model is causal, so that padding after it changes nothing."""
        longest = int(self.last.max()) + 1
        return forward(self.tokens[:, :longest])[torch.arange(len(self.last)), self.last]


def fine_tune(
    forward: Forward,
    parameters: Iterable[torch.nn.Parameter],
    rows: Rows,
    recipe: FineTuning,
    *,
    present: Bool[Tensor, "row"] | None = None,
    within: Callable[[torch.optim.Optimizer], AbstractContextManager[object]] | None = None,
) -> None:
    """Train in place on the cross-entropy of each answer after its prompt, by AdamW.

    Rows that are not `present` leave their batches, in whose mean they are then not counted; all others stay in the
    batches and steps that they have without that, so that two trainings differ in what is left out and in nothing else.
    `within` makes a context of the optimizer, in which the loop runs.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    with nullcontext() if within is None else within(optimizer):
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(rows.last), generator=generator).split(recipe.batch_size):
                chosen = batch if present is None else batch[present[batch]]
                if len(chosen):
                    part = rows[chosen]
                    F.cross_entropy(part.logits(forward), part.answers).backward()
                optimizer.step()
                optimizer.zero_grad()


def answers(forward: Forward, rows: Rows) -> tuple[Bool[Tensor, "row"], Float[Tensor, "row"]]:
    """Whether each answer is the most likely next token, and its log odds, log p / (1 - p)."""
    with torch.no_grad():
        logits = torch.cat([rows[part].logits(forward) for part in torch.arange(len(rows.last)).split(256)]).double()
    own = logits.gather(1, rows.answers[:, None])
    others = logits.scatter(1, rows.answers[:, None], float("-inf")).logsumexp(1)
    return logits.argmax(1) == rows.answers, own[:, 0] - others


class Retrainings:
    """Models trained on parts of a set of sentences: of each the log odds of some answers, kept in a file of lines."""

    def __init__(
        self, file: Path, folder: Path, sentences: Sequence[Sentence], asked: Sequence[Sentence], recipe: FineTuning
    ) -> None:
        self.file, self.recipe = file, recipe
        self._model, _ = load_hugging_face(folder)
        self._start = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._rows, self._asked = Rows.of(sentences), Rows.of(asked)
        self._about = {
            "recipe": str(recipe),
            "sentences": [each.pair for each in sentences],
            "asked": [each.pair for each in asked],
        }
        self._known = self._read()

    def __call__(
        self, parts: Mapping[str, Bool[Tensor, "sentence"]], *, show_progress: bool = True
    ) -> Float[Tensor, "part asked"]:
        """The log odds of each part's model, by name from the file, or trained and written there."""
        for name, present in tqdm(parts.items(), desc="retrain", disable=not show_progress):
            if name not in self._known:
                self._known[name] = self._trained(present)
                with self.file.open("a") as lines:
                    print(json.dumps([name, self._known[name]]), file=lines)
        return torch.tensor([self._known[name] for name in parts], dtype=torch.float64)

    def _trained(self, present: Bool[Tensor, "sentence"]) -> list[float]:
        self._model.load_state_dict(self._start)
        run = forward(self._model)
        fine_tune(run, self._model.parameters(), self._rows, self.recipe, present=present)
        return answers(run, self._asked)[1].tolist()

    def _read(self) -> dict[str, list[float]]:
        """What an earlier run wrote; a last line that it did not finish is trained again."""
        about = json.loads(json.dumps(self._about))
        if not self.file.exists():
            self.file.write_text(json.dumps(about) + "\n")
            return {}
        text = self.file.read_text()
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines or lines[0] != about:
            raise ValueError(
                f"Expected retrainings on these sentences in {self.file}, got others; choose another directory, or "
                "delete that file."
            )
        if whole != text:
            self.file.write_text(whole)
        return dict(lines[1:])


def forward(model: torch.nn.Module | TransformerLensModel) -> Forward:
    """Logits of a Hugging Face model, or of a Bridge to one, for tokens that need no mask: padding comes last."""

    def logits(tokens: Tensor) -> Tensor:
        said: Any = cast(Callable[..., object], model)(tokens, attention_mask=torch.ones_like(tokens))
        return said if isinstance(said, Tensor) else said.logits

    return logits
