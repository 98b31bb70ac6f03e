"""Restraints on other libraries while they load a model: short errors, no progress bars, no installs."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps


class LoadingWarning(UserWarning):
    """A part of a model's folder that was not loaded."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, shortened: some list every model they know."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 200 else text.split(". ")[0]
    return text if len(text) <= 200 else f"{text[:199]}\u2026"


@contextmanager
def quiet_transformers(*, reports: bool = True) -> Iterator[None]:
    """Context without transformers' progress bars and the hub's retry messages.

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


_LOCK = threading.Lock()
_LOADS: dict[int, list[str]] = {}
"""What each thread that loads was refused. Other threads' processes are none of our business."""
_restore: list[Callable[[], None]] = []


@contextmanager
def no_installs() -> Iterator[list[str]]:
    """Context in which this thread cannot start a process that installs a package; yields the refused commands.

    TransformerLens (3.9 and 4.3) boots multimodal models with `pip install torchvision`: it takes every processor that
    does not load for a missing torchvision and installs one, unpinned, in the running environment, which may replace
    torch. Where that fails it goes on without a processor.
    """
    thread = threading.get_ident()
    with _LOCK:
        outermost = thread not in _LOADS
        refused = _LOADS.setdefault(thread, [])
        if outermost and len(_LOADS) == 1:
            _restore.append(_guard())
    try:
        yield refused
    finally:
        if outermost:
            with _LOCK:
                del _LOADS[thread]
                if not _LOADS:
                    _restore.pop()()


def _guard() -> Callable[[], None]:
    """Check every process before it starts; returns a function that undoes that."""
    process, name = subprocess.Popen, "__init__"  # check_call, run and the others start theirs through it
    start: Callable[..., None] = getattr(process, name)

    @wraps(start)
    def guarded(self: object, args: object, *more: object, **options: object) -> None:
        refused = _LOADS.get(threading.get_ident())
        if refused is not None and _installs(args):
            refused.append(str(args))
            raise ImportError(f"Expected a load that installs nothing, got the command {args!r}; run it yourself.")
        start(self, args, *more, **options)

    def restore() -> None:
        if getattr(process, name) is guarded:  # else another has wrapped ours, which lets everything pass from now on
            setattr(process, name, start)

    setattr(process, name, guarded)
    return restore


def _installs(command: object) -> bool:
    words = command.split() if isinstance(command, str) else command
    return isinstance(words, list | tuple) and {"pip", "install"} <= {str(word) for word in words}
