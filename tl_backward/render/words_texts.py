"""What the lens tables of a page say: which weights a readout is of, by what each block is made of."""

from collections.abc import Iterable

from tl_backward.lens.lens_result import BackwardLens

_HEADINGS = {
    "imprint": "Imprint: what {} would take in",
    "shift": "Shift: what {} would write",
    "attn_imprint": "Imprint in attention: what {} would take in",
    "attn_shift": "Shift in attention: what {} would write",
}
_IMPRINT = (
    "A training step adds to {} a multiple of each token's own input x_i, so that {} more, or less, to inputs like it. "
    "A cell holds the input of that layer and token, read as the model reads its last stream, mostly through a final "
    "norm and the unembedding: its top word, and below it the bottom one. Hover for the lists. (Sections 4 and 5 of "
    "the paper.)"
)
_SHIFT = (
    "A training step SUBTRACTS from what {} a multiple of the VJP delta_i: it moves away from the top words of the "
    "raw delta_i and toward its bottom ones. So a cell holds the BOTTOM word, where the target belongs, and below it "
    "the top one{}. Hover for the lists. (Sections 4 and 5 of the paper.)"
)
_ATTN_IMPRINT = "The same for {}: the inputs x_i of {} in words, the top one and below it the bottom one."
_ATTN_SHIFT = (
    "The VJPs of {}, the raw gradient with respect to what {} writes at that token. A training step SUBTRACTS it, so a "
    "cell holds the BOTTOM word, and below it the top one."
)
_GATED = "{} MLPs are gated: W_gate reads the same inputs."
_EXPERTS = {
    "imprint": "An expert takes in the inputs of the tokens that reach it; its router reads them all.",
    "shift": "Where a block has experts, delta_i is the VJP where the experts' sum enters the stream.",
}


def words_texts(lens: BackwardLens, of: str, *, old_answer: bool) -> tuple[str, str]:
    """Heading and text of one readout's table.

    Args:
        lens: whose readout.
        of: "imprint", "shift", "attn_imprint" or "attn_shift".
        old_answer: whether the old answer belongs at the top of a shift.
    """
    named = {layer: _named(lens, of, layer) for layer in lens.readouts()[of]}
    names = list(dict.fromkeys(named.values()))
    kinds = {_kind(lens, of, layer) for layer in named}
    several = "each block" if of in ("imprint", "shift") else "each mixing part"
    subject = names[0] if len(names) == 1 else several
    text = " ".join(
        [
            _text(of, subject, kinds, old_answer),
            *([_listed(named)] if len(names) > 1 else []),
            *([_EXPERTS[of]] if "experts" in kinds and of in _EXPERTS else []),
            *([_GATED.format("This model's" if kinds == {"MLP"} else "The")] if _gated(lens, of) else []),
        ]
    )
    heading = _HEADINGS[of].format(subject)
    return heading if "mixer" not in kinds else heading.replace("in attention", "between tokens"), text


def _text(of: str, subject: str, kinds: set[str], old_answer: bool) -> str:
    paper = kinds == {"MLP"}
    if of == "imprint":
        if paper:
            return _IMPRINT.format(f"{subject} (the paper's FF1)", "the neurons answer")
        reader = "what reads the stream in each block" if subject == "each block" else subject
        return _IMPRINT.format(reader, "they answer" if subject.startswith("the experts") else "it answers")
    if of == "shift":
        belongs = ", where the old answer belongs" if old_answer else ""
        verb = "write" if subject == "the experts" else "writes"
        return _SHIFT.format(f"{subject} (FF2) writes" if paper else f"{subject} {verb}", belongs)
    part = " and ".join(sorted({"attention": "attention", "mixer": "mixers"}[kind] for kind in kinds))
    if of == "attn_imprint":
        return _ATTN_IMPRINT.format(part, subject)
    return _ATTN_SHIFT.format(subject, "attention" if kinds == {"attention"} else "the part")


def _kind(lens: BackwardLens, of: str, layer: int) -> str:
    """What the part of a layer is that is read: its parts are named in the order attention or mixer, then the rest."""
    parts = lens.kinds[layer].split(", ")
    return parts[-1] if of in ("imprint", "shift") else parts[0]


def _named(lens: BackwardLens, of: str, layer: int) -> str:
    """What is read in a layer, in words."""
    kind, source = _kind(lens, of, layer), lens.sources[of][layer]
    short = source.rsplit(".", 1)[-1]
    if source not in lens.cache.factors:  # the gradient where several weights write together
        return "the experts" if kind == "experts" else f"the {kind}"
    if kind == "experts":
        return f"the experts and their router {short}"
    return f"the mixer's {short}" if kind == "mixer" else short


def _listed(named: dict[int, str]) -> str:
    groups: dict[str, list[int]] = {}
    for layer, name in named.items():
        groups.setdefault(name, []).append(layer)
    plural = {name: "s" if len(layers) > 1 else "" for name, layers in groups.items()}
    listed = (f"{name} in layer{plural[name]} {_ranges(layers)}" for name, layers in groups.items())
    return f"Here: {'; '.join(listed)}."


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as runs: "0-3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _gated(lens: BackwardLens, of: str) -> bool:
    """Whether an MLP whose imprint is shown has a gate beside W_in."""
    return of == "imprint" and any(
        _kind(lens, of, layer) == "MLP" and f"{source.rsplit('.', 1)[0]}.W_gate" in lens.cache.factors
        for layer, source in lens.sources[of].items()
    )
