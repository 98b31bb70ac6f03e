"""Results of a watch in files, and those of several processes as one."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from tl_backward._support.storage import check_kind, joined, load_tensors, part_of, save_tensors
from tl_backward._support.types import Tokenizer
from tl_backward.training.directions import Directions
from tl_backward.training.largest import Contribution
from tl_backward.training.result import WatchResult
from tl_backward.training.sketch import Sketch
from tl_backward.vocabulary.readout import Readout

FORMAT = "tl_backward watch result 1"
_SIDES = ("gradient", "written")


def save_result(result: WatchResult, path: str | Path) -> Path:
    """Write everything but the tokenizer as safetensors; atomically."""
    tensors: dict[str, Tensor] = joined(norms=result.norms)
    numbers: dict[str, object] = {}
    for name in result.weights:
        tensors |= joined(**{f"sum {name}": result.sums[name].tensors()})
        for of in _SIDES:
            each: Directions = getattr(result, of)[name]
            part = f"{of} {name}"
            tensors |= joined(**{part: {key: getattr(each, key).clone() for key in ("U", "S", "V", "spectrum")}})
            numbers[part] = [each.norm, each.error]
            for side in ("imprint", "shift"):
                words = getattr(each, side)
                if words is not None:
                    tensors |= joined(**{f"{side} {part}": _tensors(words)})
                    numbers[f"{side} {part}"] = words.d_vocab
    sketches = {name: [*each.shape, each.rank, each.seed] for name, each in result.sums.items()}
    about = {
        "weights": result.weights,
        "steps": result.steps,
        "missing": dict(result.missing),
        "about": dict(result.about),
        "tokens": dict(result.tokens),
        "examples": dict(result.examples),
        "sketches": sketches,
        "numbers": numbers,
    }
    return save_tensors(path, tensors, {"format": FORMAT, **about})


def load_watch(path: str | Path, *, tokenizer: Tokenizer | None = None) -> WatchResult:
    """Read what `WatchResult.save` wrote; `tokenizer` puts its tokens in words.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    tensors, texts = load_tensors(path)
    check_kind(path, texts.get("format") == FORMAT, "WatchResult.save")
    said = {key: json.loads(value) for key, value in texts.items() if key != "format" and value[:1] in '[{"0123456789'}
    numbers, sums = said["numbers"], {}
    for name, (m, n, rank, seed) in said["sketches"].items():
        sums[name] = Sketch((m, n), rank, seed)
        sums[name].load(part_of(tensors, f"sum {name}"))
    sides: dict[str, dict[str, Directions]] = {of: {} for of in _SIDES}
    for of, name in ((of, name) for of in _SIDES for name in said["weights"]):
        part = f"{of} {name}"
        words = {
            side: _readout(part_of(tensors, f"{side} {part}"), numbers[f"{side} {part}"], tokenizer)
            if f"{side} {part}" in numbers
            else None
            for side in ("imprint", "shift")
        }
        (norm, error), own = numbers[part], part_of(tensors, part)
        sides[of][name] = Directions(
            own["U"], own["S"], own["V"], norm, error, own["spectrum"], words["imprint"], words["shift"]
        )
    largest = {
        of: {
            name: tuple(Contribution(each[0], each[1], each[2], each[3], tuple(each[4])) for each in rows)
            for name, rows in said[of].items()
        }
        for of in ("tokens", "examples")
    }
    return WatchResult(
        weights=tuple(said["weights"]),
        gradient=sides["gradient"],
        written=sides["written"],
        norms=part_of(tensors, "norms"),
        tokens=largest["tokens"],
        examples=largest["examples"],
        sums=sums,
        steps=said["steps"],
        missing=said["missing"],
        about=said["about"],
        tokenizer=tokenizer,
    )


def merge(*results: WatchResult) -> WatchResult:
    """The results of the processes of one data-parallel training as one.

    Each process's optimizer reads the same gradient, the mean over all, so that sums are those of any of them; tokens
    and examples are those that contributed most of all processes', steps counted alike.

    Raises:
        ValueError: none; watches without `optimizer=`, whose sums are each process's own; of different weights,
            options, or sums.
    """
    if not results:
        raise ValueError("Expected the results of each process, got none.")
    first = results[0]
    for other in results:
        if (other.weights, other.about, other.steps) != (first.weights, first.about, first.steps):
            raise ValueError("Expected watches of one training, got some of other weights, options or lengths.")
        if "optimizer" not in str(other.about.get("summed")):
            raise ValueError(
                "Expected watches that were given the optimizer, whose sums are of the gradients that all processes "
                "share, got one without; watch(..., optimizer=...)."
            )
        for name in first.weights:
            one, two = first.sums[name].dense(), other.sums[name].dense()
            if float((one - two).norm()) > 1e-4 * float(one.norm()):
                raise ValueError(f"Expected one training, got processes that summed other gradients of {name}.")
    n = max(1, *(len(each) for each in first.tokens.values()), *(len(each) for each in first.examples.values()))
    largest = {
        of: {name: _largest([getattr(each, of)[name] for each in results], n) for name in first.weights}
        for of in ("tokens", "examples")
    }
    return replace(first, tokens=largest["tokens"], examples=largest["examples"])


def _largest(parts: list[tuple[Contribution, ...]], n: int) -> tuple[Contribution, ...]:
    return tuple(sorted((each for part in parts for each in part), reverse=True)[:n])


def _tensors(words: Readout) -> dict[str, Tensor]:
    return {each.name: value for each in fields(words) if isinstance(value := getattr(words, each.name), Tensor)}


def _readout(tensors: Mapping[str, Tensor], d_vocab: int, tokenizer: Tokenizer | None) -> Readout:
    return Readout(**tensors, d_vocab=d_vocab, tokenizer=tokenizer)
