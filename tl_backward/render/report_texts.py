"""What the Backward Lens report says about each of its parts: what is shown, the unit, the sign."""

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


def advice(*, has_control: bool, has_subject: bool, has_answer: bool) -> str:
    """Say what to look at, and what of it is a finding."""
    if not has_answer:
        return SAME
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
        "cross-entropy loss puts it there. Trust what differs from the control, which is one random draw: other "
        "seeds give other ranks."
    )


FORCED = (
    "The target has several tokens: '{}', which is all of it but the last one, is appended to the prompt, the "
    "loss is the mean over its tokens, and ranks are those of the first, read where the prompt ends."
)

SAME = (
    "The target is what the model says already, so that there is no old answer to push down: the step makes it surer "
    "of what it says."
)

TOKEN_NORMS = (
    "Where the gradient arrives",
    "The prompt's tokens, coloured by the norms of their VJPs, summed over the layers: how much the loss "
    "depends, to first order, on what is written at that token.",
)

OTHER_BLOCKS = (
    "Where a block has experts or a mixer instead of an MLP, imprint is what it reads of the stream and shift the VJP "
    "of what it writes to it."
)

EXPERTS = (
    "Which experts would learn in layer",
    "The experts of the block, the one whose matrices have the largest gradient first: how many of the prompt's tokens "
    "reached it, the mean factor with which its output enters the block's (over tokens with a gradient), its share of "
    "the experts' squared gradient norm, that norm, and the norm of the router's own gradient for it. An expert that "
    "no token reached has no gradient.",
)

WORDS = {
    "imprint": (
        "Imprint: what W_in would take in",
        "A training step adds to W_in (the paper's FF1) a multiple of each token's own input x_i, so that "
        "the neurons answer more, or less, to inputs like it. A cell holds the input of that layer and "
        "token, read through the final norm and the unembedding: its top word, and below it the bottom one. "
        "Hover for the lists. (Sections 4 and 5 of the paper.)",
    ),
    "shift": (
        "Shift: what W_out would write",
        "A training step SUBTRACTS from what W_out (FF2) writes a multiple of the VJP delta_i: it moves "
        "away from the top words of the raw delta_i and toward its bottom ones. So a cell holds the BOTTOM "
        "word, where the target belongs, and below it the top one, where the old answer belongs. Hover for "
        "the lists. (Sections 4 and 5 of the paper.)",
    ),
    "attn_imprint": (
        "Imprint in attention: what W_V would take in",
        "The same for attention: the inputs x_i of W_V in words, the top one and below it the bottom one.",
    ),
    "attn_shift": (
        "Shift in attention: what W_O would write",
        "The VJPs of W_O, the raw gradient with respect to what attention writes at that token. A training "
        "step SUBTRACTS it, so a cell holds the BOTTOM word, and below it the top one.",
    ),
}


def ranks(*, has_control: bool) -> tuple[str, str]:
    """Heading and text of the rank curves."""
    text = (
        "Where both words stand in the raw VJP at the token after which the answer is expected. On top is "
        "the largest logit: what a training step pushes down. At the bottom is the smallest: what the step, "
        "which subtracts the VJP, writes. The axis spreads out both ends."
    )
    return "The target and the old answer, layer by layer", text + (
        " Dashed: the untrained control." if has_control else ""
    )


NORMS = (
    "VJP norms by layer and token",
    "How much the loss would change, to first order, per unit of change in what the layer writes at the "
    "token (a norm has no sign). In the last layer only tokens after which an answer is expected can "
    "matter: all others are exactly zero.",
)

SEGMENTS = (
    "Parts of the prompt",
    f"The mean VJP norm, in {UNIT}, over the tokens of each part.",
)

ATTENTION = (
    "Attention and its gradient",
    "Left, how much each token (a row) attends to each token up to it (a column). Right, the raw gradient "
    "of the loss with respect to that attention: more attention would raise the loss where it is positive "
    "(blue), and make the target more likely where it is negative (orange). Point at a head to see it in "
    "full, click to keep it.",
)

ATTENTION_ALONE = (
    "Attention",
    "How much each token (a row) attends to each token up to it (a column). For the gradients beside it, "
    "make the lens with names_filter=tl_backward.render.pattern_names(model).",
)
