"""Alignment measured on siblings of the zoo: ``python -m tl_backward.studies.alignment --model-b DIR``.

Train the siblings first, with other seeds or widths: ``python -m tl_backward.zoo.train facts --seed 1 --out DIR``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_backward._support.bootstrap import bootstrap
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.alignment.classifiers import Classifier, fine_tune, transfer_head
from tl_backward.alignment.kernels import random_kernel, translation
from tl_backward.alignment.matching import match_parameters
from tl_backward.alignment.stitching import zero_shot_stitch
from tl_backward.text.token_strings import text_frame
from tl_backward.zoo import facts, loading
from tl_backward.zoo.classification import LabelledPrompts, relation_task
from tl_backward.zoo.facts_task import answered
from tl_backward.zoo.tokenizer import facts_tokenizer

WEIGHTS = ("W_in", "W_out", "W_Q", "W_K", "W_V", "W_O")


def matching_table(
    model_a: TransformerLensModel,
    model_b: TransformerLensModel,
    *,
    weights: Sequence[str] = WEIGHTS,
    n_chance: int = 20,
    show_progress: bool = True,
) -> DataFrame:
    """Scores of matching each layer of A with the same layer of B: one row a weight and space, means over layers.

    Columns: score, its chance with the 95 % interval of chance's draws, p (score against those draws), the score of
    other layers, and the pairs of layers that the assignment of whole layers gets right.
    """
    rows = []
    for weight in weights:
        match = match_parameters(model_a, model_b, weight, n_chance=n_chance, show_progress=show_progress)
        for name, space in match.spaces().items():
            same = space.score.diagonal().mean()
            drawn = space.chance.diagonal(dim1=1, dim2=2).mean(1)
            low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
            n = min(space.score.shape)
            others = (space.score[:n, :n].sum() - space.score.diagonal().sum()) / max(1, n * n - n)
            right = sum(a == b for a, b in space.layer_assignment())
            rows.append(
                {"weight": weight, "space": name, "score": float(same), "chance": float(drawn.mean()),
                 "chance_low": low, "chance_high": high, "p": float((1 + (drawn >= same).sum()) / (1 + len(drawn))),
                 "other_layers": float(others), "layers_right": f"{right}/{n}"}
            )  # fmt: skip
    return text_frame(rows)


def transfer_table(
    classifier: Classifier,
    model_b: TransformerLensModel,
    test: LabelledPrompts,
    *,
    n_random: int = 10,
    show_progress: bool = True,
) -> DataFrame:
    """Accuracy of a classifier translated to B at every cut, beside random kernels and chance.

    The interval of the accuracy resamples templates and prompts within them; that of the random kernels resamples
    kernels and prompts within them. Chance is the share of the most frequent label.
    """
    kernel = translation(model_b, classifier.model)
    controls = [random_kernel(kernel, seed=seed) for seed in range(n_random)]
    rows = []
    for cut in tqdm(range(model_b.cfg.n_layers + 1), disable=not show_progress, delay=1, leave=False, desc="cuts"):
        right = _right(transfer_head(classifier, model_b, cut=cut, kernel=kernel), test)
        here = bootstrap(right, groups=test.templates)
        drawn = torch.cat([_right(transfer_head(classifier, model_b, cut=cut, kernel=each), test) for each in controls])
        control = bootstrap(drawn, groups=torch.arange(n_random).repeat_interleave(len(test)))
        rows.append(
            {"cut": cut, "accuracy": float(here.mean), "low": float(here.low), "high": float(here.high),
             "random_kernel": float(control.mean), "random_low": float(control.low), "random_high": float(control.high),
             "chance": int(test.labels.bincount().max()) / len(test)}
        )  # fmt: skip
    return text_frame(rows)


def stitching_table(
    model_a: TransformerLensModel, model_b: TransformerLensModel, *, n_random: int = 3, show_progress: bool = True
) -> DataFrame:
    """Recall of facts by A's first layers and B's last ones, at every cut, beside random kernels.

    The share of held-out prompts of the facts world whose answer comes out first, resampled by relation.
    """
    examples = _held_out()
    kernel = translation(model_a, model_b)
    controls = [random_kernel(kernel, seed=seed) for seed in range(n_random)]
    groups = torch.tensor([facts.RELATIONS.index(example.relation) for example in examples])
    rows = []
    for cut in tqdm(range(model_a.cfg.n_layers + 1), disable=not show_progress, delay=1, leave=False, desc="cuts"):
        later = max(0, model_b.cfg.n_layers - (model_a.cfg.n_layers - cut))
        stitched = (zero_shot_stitch(model_a, cut, model_b, later, kernel=each) for each in (kernel, *controls))
        answers = (answered(each, facts_tokenizer(), examples) for each in stitched)
        right, *drawn = (torch.tensor([float(right[example]) for example in examples]) for right in answers)
        here = bootstrap(right, groups=groups)
        rows.append(
            {"cut": cut, "recall": float(here.mean), "low": float(here.low), "high": float(here.high),
             "random_kernel": float(torch.stack(drawn).mean())}
        )  # fmt: skip
    return text_frame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every table for each sibling; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.studies.alignment", description="Alignment on siblings of the zoo."
    )
    parser.add_argument("--model-a", default="facts", help="a model of the zoo, or a directory (default: facts)")
    parser.add_argument("--model-b", action="append", required=True, metavar="DIR", help="a sibling; may be repeated")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), help="to match (default: all matrices)")
    parser.add_argument("--relations", nargs="+", default=["city", "profession"], help="the labels of the classifier")
    parser.add_argument("--n-chance", type=int, default=20, help="draws of chance in matching (default: 20)")
    parser.add_argument("--n-random", type=int, default=10, help="random kernels (default: 10)")
    options = parser.parse_args(arguments)
    model_a = loading.load(options.model_a)
    train, test = relation_task(options.relations)
    classifier = fine_tune(model_a, train.prompts, train.labels)
    own = classifier.accuracy(test.prompts, test.labels, groups=test.templates)
    print(f"{train!r}; tested on {test!r}")
    low, mean, high = (float(each) for each in (own.low, own.mean, own.high))
    print(f"accuracy of the fine-tuned {options.model_a}: {mean:.3f} [{low:.3f}, {high:.3f}]")
    for name in options.model_b:
        model_b = loading.load(name)
        print(f"\n{options.model_a} (A) and {Path(name).name} (B, d_model {model_b.cfg.d_model})")
        tables = {
            "same-layer matching": matching_table(model_a, model_b, weights=options.weights, n_chance=options.n_chance),
            "A's classifier, behind B's first layers": transfer_table(
                classifier, model_b, test, n_random=options.n_random
            ),
            "recall of A's first layers and B's last ones": stitching_table(model_a, model_b),
        }
        for title, frame in tables.items():
            print(f"\n{title}\n{frame.to_string(index=False, float_format=lambda value: f'{value:.3f}')}")
    return 0


def _right(classifier: Classifier, test: LabelledPrompts) -> Tensor:
    return (classifier.predict(test.prompts).cpu() == test.labels).double()


def _held_out() -> tuple[facts.Example, ...]:
    return facts.world().examples(split="held_out")


if __name__ == "__main__":
    sys.exit(main())
