"""What the Backward Lens report says about each of its parts: what is shown, the unit, the sign."""

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


def question(d_vocab: int) -> str:
    """Say how the key figures are meant."""
    return (
        "The loss is -log p(target | prompt), in nats. Its gradient is read as it is, and a training step "
        f"SUBTRACTS it. Ranks go from 0, the word with the largest logit, to {d_vocab - 1}, the one with the "
        "smallest: the step pushes down the top of a shift and writes its bottom. The lowest and the highest are one "
        "word in a hundred."
    )


def advice(*, has_control: bool, has_subject: bool, has_answer: bool, asks: Asks) -> str:
    """Say what to look at, and what of it is a finding."""
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


CONTROL = "Trust what differs from the control, which is one random draw: other seeds give other ranks."

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


def token_norms(*, has_encoder: bool) -> tuple[str, str]:
    """Heading and text of the coloured tokens."""
    tokens = "The tokens that the decoder reads" if has_encoder else "The prompt's tokens"
    return (
        "Where the gradient arrives",
        f"{tokens}, coloured by the norms of their VJPs, summed over the layers: how much the loss "
        "depends, to first order, on what is written at that token.",
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


def ranks(*, has_control: bool, asks: Asks) -> tuple[str, str]:
    """Heading and text of the rank curves."""
    text = (
        f"Where both words stand in the raw VJP at {ASKED[asks]}. On top is "
        "the largest logit: what a training step pushes down. At the bottom is the smallest: what the step, "
        "which subtracts the VJP, writes. The axis spreads out both ends."
    )
    return "The target and the old answer, layer by layer", text + (
        " Dashed: the untrained control." if has_control else ""
    )


def norms(asks: Asks) -> tuple[str, str]:
    """Heading and text of the heat map."""
    only = {
        "last": "only tokens after which an answer is expected",
        "mask": "only the mask",
        "place": "only the token at which the answer is asked for",
    }
    return (
        "VJP norms by layer and token",
        "How much the loss would change, to first order, per unit of change in what the layer writes at the "
        f"token (a norm has no sign). In the last layer {only[asks]} can matter: all others are exactly zero.",
    )


def segments(asks: Asks, *, has_encoder: bool) -> tuple[str, str]:
    """Heading and text of the means over parts."""
    last = {"last": "", "mask": ' "last" is the mask.', "place": ' "last" is the token asked at.'}
    return (
        "Parts of what the decoder reads" if has_encoder else "Parts of the prompt",
        f"The mean VJP norm, in {UNIT}, over the tokens of each part.{last[asks]}",
    )


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
        f"Left, h{attends} Right, the raw gradient of the loss with respect to that attention: more attention would "
        "raise the loss where it is positive (blue), and make the target more likely where it is negative (orange). "
        "Point at a head to see it in full, click to keep it.",
    )
