"""Headings and explanations of the Backward Lens report's sections: quantity, weights, unit and sign."""

from collections.abc import Iterable
from itertools import groupby

from tl_backward.lens.lens_result import BackwardLens
from tl_backward.render.key_figures import Asks

UNIT = "nats per unit of output"

INTRO = (
    "What would one step of training on a new answer write into this model, and where? The gradient of each "
    "weight matrix is a sum of outer products, one per token: the token's input x_i times its VJP delta_i, "
    "the gradient of the loss with respect to what the matrix writes there. Both are vectors that can be "
    "read in words."
)

FOOTER = (
    "Method: Shahar Katz, Yonatan Belinkov, Mor Geva, Lior Wolf, Backward Lens: Projecting Language Model "
    "Gradients into the Vocabulary Space, EMNLP 2024. Hover over any cell or point for its exact value; the "
    "Data boxes hold everything as CSV. This page is one file and asks no network for anything."
)


def method(d_vocab: int, advice: str) -> tuple[str, str]:
    """Heading and text of how all this is computed, and of what counts as evidence."""
    return (
        "Method, and what counts as evidence",
        f"{INTRO}\n\n"
        "The loss is -log p(target | prompt), in nats. Its gradient is read as it is, and a training step "
        f"SUBTRACTS it. Ranks go from 0, the word with the largest logit, to {d_vocab - 1}, the one with the "
        "smallest: the step pushes down the top of a shift and writes its bottom. The lowest and the highest are one "
        "word in a hundred. In the sentence on top a word counts as written in a layer where it alone has the smallest "
        "logit, and as pushed down where it alone has the largest; that untrained networks do not do so is said where "
        f"none of at least five does and its rank lies outside of where a further one would put it.\n\n{advice}",
    )


def advice(*, has_control: bool, has_subject: bool, has_answer: bool, asks: Asks) -> str:
    """Text on what to look at, and what counts as evidence."""
    if not has_answer:
        return SAME
    if has_control and asks == "mask":
        look = "are the VJPs large on the subject, and " if has_subject else ""
        return f"What to look at: {look}what differs from the untrained control? {MASKED} {CONTROL}"
    if not has_control:
        return (
            "Some of what follows holds in an untrained model too: make the lens with "
            "control='random_init' to see which."
        )
    subject = ", and are the VJPs large on the subject" if has_subject else ""
    return (
        f"What to look at: in which layers does the old answer reach the very top of the shift{subject}? That "
        "comes with training (in the last layer from the model's confidence alone). The target at the very bottom "
        "does not: the same architecture with random weights, the untrained control, shows it too, because a "
        f"cross-entropy loss puts it there. {CONTROL}"
    )


CONTROL = "Trust what differs from the control in all of its draws."

MASKED = (
    "The old answer need not be at the top of a shift: a head with an activation, as most masked models have, reads a "
    "VJP as it would read any vector."
)


FORCED = (
    "The target has several tokens: '{}', which is all of it but the last one, is appended to {}, the "
    "loss is the mean over its tokens, and ranks are those of the first, read where that ends."
)

ENCODER = "The decoder's blocks are read here, not the encoder's."

SAME = (
    "The target is what the model says already, so that there is no old answer to push down: the step makes it surer "
    "of what it says."
)


EXPERTS = (
    "Which experts would learn in layer",
    "The experts of the block, the one whose matrices have the largest gradient first: how many of the prompt's tokens "
    "reached it, the mean factor with which its output enters the block's (over tokens with a gradient), its share of "
    "the experts' squared gradient norm, that norm, and the norm of the router's own gradient for it. An expert that "
    "no token reached has no gradient.",
)

ASKED: dict[Asks, str] = {
    "last": "the token after which the answer is expected",
    "mask": "the mask, where the answer belongs",
    "place": "the token at which the answer is asked for",
}


def ranks(*, n_draws: int, asks: Asks) -> tuple[str, str]:
    """Heading and text of the rank curves."""
    text = (
        f"Where both words stand in the raw VJP at {ASKED[asks]}. On top is "
        "the largest logit: what a training step pushes down. At the bottom is the smallest: what the step, "
        "which subtracts the VJP, writes. The axis spreads out both ends."
    )
    return "The target and the old answer, layer by layer", text + (
        ""
        if n_draws == 0
        else " Dashed: the untrained control."
        if n_draws == 1
        else f" Dashed: the median of {n_draws} untrained networks, the band from their lowest to their highest."
    )


_LATENT_SIDES = {
    True: "What a step would write, along what each latent writes (W_dec): the raw gradient with respect to the "
    "latents of a dictionary that decodes to this place. A step SUBTRACTS it: it raises what stands at the BOTTOM.",
    False: "What a step would take in, along what each latent reads (W_enc).",
}


def latents(of: str, n_latents: int, n_control: int, *, asks: Asks) -> tuple[str, str]:
    """Heading and text of a readout's latents."""
    part = " in attention" if of.startswith("attn_") else ""
    side = of.removeprefix("attn_")
    return (
        f"{side.capitalize()}{part} in features",
        f"{_LATENT_SIDES[side == 'shift']} Read at {ASKED[asks]}, by cosine among {n_latents:,} latents, the nearest "
        "first; below each the first word of its own direction. A frame: nearer than as many random directions come, "
        f"in {n_control} draws. Hover for scores and words.",
    )


def norms(asks: Asks) -> tuple[str, str]:
    """Heading and text of the heat map."""
    only = {
        "last": "only tokens after which an answer is expected",
        "mask": "only the mask",
        "place": "only the token at which the answer is asked for",
    }
    return (
        "Where the gradient arrives",
        "VJP norms by layer and token: how much the loss would change, to first order, per unit of change in what "
        f"the layer writes at the token (a norm has no sign). In the last layer {only[asks]} can matter: "
        "all others are exactly zero.",
    )


def segments(asks: Asks, *, has_encoder: bool) -> str:
    """Text on the means over parts."""
    last = {"last": "", "mask": ' "last" is the mask.', "place": ' "last" is the token asked at.'}
    reads = "what the decoder reads" if has_encoder else "the prompt"
    return f"The mean VJP norm, in {UNIT}, over the tokens of each part of {reads}.{last[asks]}"


def attention(*, has_gradients: bool, causal: bool) -> tuple[str, str]:
    """Heading and text of the attention charts."""
    attends = f"ow much each token (a row) attends to each token{' up to it' if causal else ''} (a column)."
    if not has_gradients:
        return (
            "Attention",
            f"H{attends} For the gradients beside it, make the lens with "
            "names_filter=tl_backward.render.pattern_names(model).",
        )
    return (
        "Attention and its gradient",
        f"H{attends} Beside it, the raw gradient of the loss with respect to that attention: more attention would "
        "raise the loss where it is positive (blue), and make the target more likely where it is negative (orange). "
        "Point at a head to see it in full, click to keep it.",
    )


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
    """Kind of the component that a readout is of ("MLP", "experts", "attention", "mixer")."""
    parts = lens.kinds[layer].split(", ")
    return parts[-1] if of in ("imprint", "shift") else parts[0]


def _named(lens: BackwardLens, of: str, layer: int) -> str:
    """Description of the component that a readout is of."""
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
    """Numbers as ranges: "0-3, 5"."""
    by_run = groupby(enumerate(numbers), key=lambda each: each[1] - each[0])  # along a run, the difference stays
    runs = [[number for _, number in run] for _, run in by_run]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _gated(lens: BackwardLens, of: str) -> bool:
    """Whether an MLP whose imprint is shown has a gate beside W_in."""
    return of == "imprint" and any(
        _kind(lens, of, layer) == "MLP" and f"{source.rsplit('.', 1)[0]}.W_gate" in lens.cache.factors
        for layer, source in lens.sources[of].items()
    )
