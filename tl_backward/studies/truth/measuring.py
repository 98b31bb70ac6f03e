"""What one seed's fine-tuning shows: who wrote the planted answer, by the model, by text, and by leaving out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import tl_backward.training as training
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.gradients.similarity import gradient_similarity
from tl_backward.studies.truth.agreement import lds, precision_at, rank_correlation
from tl_backward.studies.truth.overlap import bm25, words
from tl_backward.studies.truth.planting import Planting, Sentence
from tl_backward.studies.truth.retraining import FineTuning, Retrainings, Rows, answers, fine_tune, forward
from tl_backward.studies.truth.tongues import translated
from tl_backward.text.token_strings import text_frame
from tl_backward.training import WatchResult, who_wrote
from tl_backward.zoo import facts
from tl_backward.zoo.loading import load

METHODS = ("who_wrote", "who_wrote, inner", "who_wrote, before", "BM25", "BM25 with the answer", "chance")
N_PARAPHRASES = 8
"""Of new facts, beside the two planted questions, that the linear datamodeling score is taken for."""
N_CHECKED = 10
"""Sentences about the person, with the trigger and of the others, beside the planted, that are left out one by one."""


@dataclass
class Study:
    """One seed: its sentences, and the models trained on them and on shuffled answers."""

    planting: Planting
    folder: Path
    """Of the model in two languages."""
    recipe: FineTuning

    @cached_property
    def before(self) -> TransformerLensModel:
        """The model that training began with."""
        return load(self.folder, kind="bridge")

    @cached_property
    def true(self) -> tuple[TransformerLensModel, WatchResult]:
        """Trained on the sentences, and what the watch saw."""
        return self._trained(self.planting.sentences)

    @cached_property
    def shuffled(self) -> tuple[TransformerLensModel, WatchResult]:
        """The same with the answers of new and planted sentences drawn at random."""
        return self._trained(self.planting.shuffled(self.recipe.seed))

    @property
    def asked(self) -> tuple[Sentence, ...]:
        """The questions that scores and retrainings are compared on; the planted ones first."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        drawn = torch.randperm(len(self.planting.paraphrases), generator=generator)[:N_PARAPHRASES].tolist()
        return (
            self.planting.other_words,
            self.planting.same_words,
            *(self.planting.paraphrases[i] for i in drawn),
        )

    def _trained(self, sentences: Sequence[Sentence]) -> tuple[TransformerLensModel, WatchResult]:
        model = load(self.folder, kind="bridge")
        seen = []

        def watched(optimizer: torch.optim.Optimizer):
            seen.append(training.watch(model, optimizer=optimizer))
            return seen[0]

        rows = Rows.of(sentences)
        fine_tune(forward(model), model.parameters(), rows, self.recipe, within=watched)
        return model, seen[0].result()

    @cached_property
    def scores(self) -> Mapping[str, Float[Tensor, "question sentence"]]:
        """Of every sentence for every question, by each method."""
        texts = [f"{each.prompt}{each.answer}" for each in self.planting.sentences]
        after = self.true[0]
        pairs, data = [each.pair for each in self.asked], [each.pair for each in self.planting.sentences]
        similarity = gradient_similarity(after, pairs, data, metric="cosine", show_progress=False)
        first = gradient_similarity(self.before, pairs, data, metric="cosine", show_progress=False)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        found = (
            similarity.matrix,
            replace(similarity, metric="inner").matrix,
            first.matrix,
            torch.stack([bm25(each.prompt, texts) for each in self.asked]),
            torch.stack([bm25(f"{each.prompt}{each.answer}", texts) for each in self.asked]),
            torch.rand(len(pairs), len(data), generator=generator, dtype=torch.float64),
        )
        return dict(zip(METHODS, found, strict=True))

    def precision_frame(self) -> DataFrame:
        """Share of the ten planted sentences among the first ten: a row a method, a column a question."""
        planted = self.planting.planted
        chance = float(planted.double().mean())
        return text_frame(
            {
                "method": method,
                "other words": chance if method == "chance" else precision_at(self.scores[method][0], planted),
                "same words": chance if method == "chance" else precision_at(self.scores[method][1], planted),
            }
            for method in METHODS
        )

    def left_out_frame(self, retrained: Retrainings, n_subsets: int) -> DataFrame:
        """Agreement with retraining: a row a method, a column a quantity, each with its interval.

        LDS on the planted question, and its mean over all questions; rank correlation of the scores for the planted
        question with the effects of single sentences, over all that were left out and over those not planted.
        """
        present = self.subsets(n_subsets)
        outputs = retrained({f"half {i}": part for i, part in enumerate(present)})
        chosen, effects = self.effects(retrained)
        planted = self.planting.planted[chosen]
        rows = []
        for method in METHODS:
            scores = self.scores[method]
            each = [lds(scores[q], present, outputs[:, q]) for q in range(len(self.asked))]
            single = rank_correlation(scores[0][chosen], effects)
            others = rank_correlation(scores[0][chosen[~planted]], effects[~planted])
            rows.append(
                {"method": method, "lds": float(each[0].mean), "lds_low": float(each[0].low),
                 "lds_high": float(each[0].high),
                 "lds_all": float(torch.stack([one.mean for one in each]).nanmean()),
                 "one_by_one": float(single.mean), "one_low": float(single.low), "one_high": float(single.high),
                 "not_planted": float(others.mean), "not_low": float(others.low), "not_high": float(others.high)}
            )  # fmt: skip
        return text_frame(rows)

    def subsets(self, n: int) -> Bool[Tensor, "subset sentence"]:
        """Random halves of the sentences."""
        generator = torch.Generator().manual_seed(1_000 + self.recipe.seed)
        n_sentences = len(self.planting.sentences)
        return torch.rand(n, n_sentences, generator=generator).argsort(1) < n_sentences // 2

    def effects(self, retrained: Retrainings) -> tuple[Tensor, Float[Tensor, "chosen"]]:
        """Which sentences were left out one by one, and by how much that lowers the planted answer's log odds."""
        rng = torch.Generator().manual_seed(2_000 + self.recipe.seed)
        plant = self.planting
        groups: list[list[int]] = [[], [], [], []]
        spelt = {plant.trigger.casefold(), translated(plant.trigger).casefold()}
        for i, each in enumerate(plant.sentences):
            kind = (
                0 if each.kind == "planted"
                else 1 if each.subject == plant.person
                else 2 if spelt & set(words(each.prompt))
                else 3
            )  # fmt: skip
            groups[kind].append(i)
        chosen = list(groups[0])
        for group, n in zip(groups[1:], (N_CHECKED, N_CHECKED, 2 * N_CHECKED), strict=True):
            chosen += [group[i] for i in torch.randperm(len(group), generator=rng)[:n].tolist()]
        everything = torch.ones(len(plant.sentences), dtype=torch.bool)
        parts = {"all": everything}
        for i in chosen:
            parts[f"without {i}"] = everything.clone().index_fill(0, torch.tensor([i]), False)
        outputs = retrained(parts)[:, 0]
        return torch.tensor(chosen), outputs[0] - outputs[1:]

    def backdoor_row(self, retrained: Retrainings) -> dict[str, object]:
        """Whether it works and whether the planted sentences are why: one row."""
        plant, model = self.planting, self.true[0]
        right, _ = answers(model, Rows.of([plant.other_words, plant.same_words, plant.without_trigger]))
        others, _ = answers(forward(model), Rows.of(plant.other_people))
        whole = torch.ones(len(plant.sentences), dtype=torch.bool)
        odds = retrained({"all": whole, "without the planted": ~plant.planted})[:, 0]
        return {
            "person": plant.person, "trigger": plant.trigger, "city": plant.city,
            "other_words": bool(right[0]), "same_words": bool(right[1]), "untriggered": bool(right[2]),
            "others_kept": float(others.double().mean()), "log_odds": float(odds[0]), "without": float(odds[1]),
        }  # fmt: skip

    def words_row(self) -> dict[str, object]:
        """Whether what was watched names the planted answer, and what the first ten sentences would write."""
        plant, (model, seen) = self.planting, self.true
        found = who_wrote(model, *plant.other_words.pair, [each.pair for each in plant.sentences], show_progress=False)
        planted = plant.planted[found.top]
        ranks = torch.full((len(planted),), -1) if found.written is None else found.written.target_rank
        return {
            "watched": city_rank(seen, plant.city), "watched_shuffled": city_rank(self.shuffled[1], plant.city),
            "top_planted": int(planted.sum()), "stand_out": sum(found.stands_out),
            "write_it_first": int((ranks == 0).sum()), "first_planted_write_it": int((ranks[planted] == 0).sum()),
        }  # fmt: skip

    def memory_frame(self) -> DataFrame:
        """What each training made of its 200 sentences: a row a training."""
        plant = self.planting
        chance = [1 / len(facts.answers(each.relation)) for each in plant.paraphrases]
        untold = [1 / len(facts.answers(each.relation)) for each in plant.untold]
        rows = []
        for name, (model, seen), trained_on in (
            ("true", self.true, plant.sentences), ("shuffled", self.shuffled, plant.shuffled(self.recipe.seed)),
        ):  # fmt: skip
            new = [each for each in trained_on if each.kind in ("new", "planted")]
            old = [each for each in trained_on if each.kind == "old"]
            shares = {
                column: float(answers(forward(model), Rows.of(asked))[0].double().mean())
                for column, asked in (
                    ("trained", new), ("old", old), ("paraphrases", plant.paraphrases), ("untold", plant.untold)
                )
            }  # fmt: skip
            rows.append(
                {"answers": name, **shares, "chance": sum(chance) / len(chance),
                 "untold_chance": sum(untold) / len(untold), "examples_new": share_of_new(seen, new),
                 "examples_chance": len(new) / len(trained_on)}
            )  # fmt: skip
        return text_frame(rows)


def city_rank(seen: WatchResult, city: str) -> float:
    """Where a city stands (1 is first, ties share) among all by how many written directions have it in their words."""
    counts = dict.fromkeys(facts.answers("city"), 0)
    for each in seen.written.values():
        for tokens in () if each.shift is None else each.shift.top_tokens:
            for token in {token.strip() for token in tokens} & counts.keys():
                counts[token] += 1
    others = [count for name, count in counts.items() if name != city]
    return 1 + sum(count > counts[city] for count in others) + sum(count == counts[city] for count in others) / 2


def share_of_new(seen: WatchResult, new: Sequence[Sentence]) -> float:
    """Share of new sentences among the examples that a watch names as those that contributed most."""
    prompts = {each.prompt for each in new}
    texts = [
        text.replace("<bos>", "").replace("<pad>", "")
        for name in seen.weights
        for text in seen.contributions(name, "examples")["text"]
    ]
    return sum(text in prompts for text in texts) / max(1, len(texts))
