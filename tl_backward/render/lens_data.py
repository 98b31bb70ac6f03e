"""One prompt of a Backward Lens as plain data, for JSON."""

import math
from collections.abc import Sequence

from tl_backward.render.key_figures import RANKS, PromptView


def lens_data(view: PromptView) -> dict[str, object]:
    """The lens of one prompt as numbers, strings, lists and dicts: nothing that JSON lacks.

    Per readout ("imprint", "shift", ...) one entry a layer, each with one value a token: `norm`, `target_rank`,
    `answer_rank` (0 the largest logit; None where the vector is zero), the same of the control with the prefix
    `control_`, and the top and bottom tokens. Raw gradients: a descent step subtracts.
    """
    ids = view.lens.token_ids[view.example] if view.lens.is_batch else view.lens.token_ids
    return {
        "target_token": view.target,
        "answer": view.answer,
        "loss": view.lens.loss.item(),
        "d_vocab": view.d_vocab,
        "tokens": view.tokens,
        "token_ids": ids[view.mask].tolist(),
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
                entry[prefix + quantity] = _ranks(source.stacked(quantity, of)[index].tolist())
        own = read[view.example] if view.lens.is_batch else read
        entry["top_tokens"] = [own.top_tokens[place] for place in view.places]
        entry["bottom_tokens"] = [own.bottom_tokens[place] for place in view.places]
        entries.append(entry)
    return entries


def _ranks(values: Sequence[float]) -> list[int | None]:
    return [None if math.isnan(value) else int(value) for value in values]
