"""What other libraries say while they load a model: cut to its gist, or kept quiet."""

from collections.abc import Iterator
from contextlib import contextmanager


class LoadingWarning(UserWarning):
    """Something of a folder that the loaded model does without."""


def first_line(error: BaseException) -> str:
    """Cut another library's error to its gist: some list every model they know."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > 200:
        text = text.split(". ")[0]
    return text if len(text) <= 200 else f"{text[:199]}\u2026"


@contextmanager
def quiet_transformers(*, reports: bool = True) -> Iterator[None]:
    """Without transformers' progress bars and the hub's accounts of its retries, which are turned on again after.

    `reports=False` also silences its report of weights, where the loader reads and refuses them itself.
    """
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    enabled, verbosity, spoken = logging.is_progress_bar_enabled(), hub.get_verbosity(), logging.get_verbosity()
    logging.disable_progress_bar()
    hub.set_verbosity_error()
    if not reports:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(verbosity)
        logging.set_verbosity(spoken)
        if enabled:
            logging.enable_progress_bar()
