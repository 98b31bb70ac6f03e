"""How texts become batches: one set of options, wherever a model is run over data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextOptions:
    """How data become batches of tokens.

    Attributes:
        batch_size: texts a batch; token batches are taken as they come.
        n_batches: stop after so many; None for all.
        max_tokens: where texts are cut; None for the model's context.
        prepend_bos: put the beginning-of-sequence token before each text; None for the model's own habit.
        exclude_first: leave position 0 out, which often holds one massive activation.
        text_key: where a text is in rows of a dataset or a file.

    Raises:
        TypeError: what is no integer.
        ValueError: a number below 1.
    """

    batch_size: int = 8
    n_batches: int | None = None
    max_tokens: int | None = None
    prepend_bos: bool | None = None
    exclude_first: bool = False
    text_key: str = "text"

    def __post_init__(self) -> None:
        from tl_backward._support.checks import check_integers  # here: commands' help reads the fields without PyTorch

        check_integers(self, "batch_size", "n_batches", "max_tokens")
        for name in ("batch_size", "n_batches", "max_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"Expected {name} of at least 1, got {number}; give a larger one.")
