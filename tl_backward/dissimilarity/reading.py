"""How data become samples, and a fingerprint of the data read so far."""

from dataclasses import dataclass

from tl_backward._support.storage import fingerprint
from tl_backward.dissimilarity.options import Align, Mask, Sample, SampleOptions
from tl_backward.text.options import TextOptions
from tl_backward.text.prompts import Batch


@dataclass(frozen=True)
class Reading:
    """How data become samples."""

    batching: int = 8
    """Texts a batch; token batches come as they are."""
    sample: Sample = "token"
    """Every token, each text's last one, or each text's mean."""
    exclude_first: bool = False
    """Whether position 0 is left out."""
    mask: Mask | None = None
    """Which of A's tokens count, beside padding, which never does."""
    align: Align = "auto"
    text_key: str = "text"
    """The column of a dataset's rows."""
    prepend_bos: bool | None = None
    max_tokens: int | None = None
    """Where texts are cut; None for the model's n_ctx."""


def reading_of(text: TextOptions, sample: SampleOptions = SampleOptions()) -> Reading:
    """Both options together."""
    return Reading(
        text.batch_size, sample.sample, text.exclude_first, sample.mask, sample.align, text.text_key,
        text.prepend_bos, text.max_tokens,
    )  # fmt: skip


def data_digest(before: str, item: list[str] | Batch) -> str:
    """The fingerprint of the data read so far and one more batch, to notice that a resumed run is given others."""
    return fingerprint(before, *([item.tokens] if isinstance(item, Batch) else (f"{text}\0" for text in item)))
