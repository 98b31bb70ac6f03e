"""Every public function called as its example calls it, with one argument of another type: what is said.

`python tests/wrong_types.py` prints a line for each call that was answered in no sentence of ours: of the package's own
functions and those that draw, with an object that none takes; with `every`, of all rooms and with many other values.
"""

import contextlib
import doctest
import importlib
import inspect
import io
import os
import signal
import sys
import tempfile
import warnings

import torch
from models import worlds

import tl_backward as tlb
from tl_backward._support.hints import fits
from tl_backward._support.public import _hints

ROOMS = "alignment dissimilarity editing embedding_space inversion render training zoo lens".split()
EVERY = (None, 5, -1, "nonsense", object(), [], {}, float("nan"), b"x", torch.zeros(0), [None])
FEW = (object(),)
LONGEST = 450


class _Endless(BaseException):
    """A call that was taken after all."""


def functions(rooms):
    """Each public function of some rooms and its name; the package's own are those of none."""
    found = {}
    for room in rooms:
        module = importlib.import_module("tl_backward" + ("." + room if room else ""))
        for name in getattr(module, "__all__", ()):
            if inspect.isfunction(function := getattr(module, name)):
                found.setdefault(function, f"{module.__name__}.{name}")
    return found


def recorded(function, name):
    """The arguments that the function's example gives it first; None where it has none."""
    calls, modules = [], [tlb, *(importlib.import_module(f"tl_backward.{room}") for room in ROOMS)]

    def recording(*args, **kwargs):
        calls.append(inspect.signature(function).bind(*args, **kwargs))
        return function(*args, **kwargs)

    short = name.rpartition(".")[2]
    homes = [module for module in modules if getattr(module, short, None) is function]
    given = {"tlb": tlb, "torch": torch, "model": tlb.zoo.load("facts", kind=worlds()[0])}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", given, name, None, None)
    for home in homes:
        setattr(home, short, recording)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=lambda said: None)
    finally:
        for home in homes:
            setattr(home, short, function)
    return calls[0] if calls else None


def unanswered(function, name, values):
    """Each call with an argument of a type that it does not take, and what was said that is no sentence."""
    bound = recorded(function, name)
    if bound is None:
        return
    hints = dict(_hints(function))
    kinds = inspect.signature(function).parameters
    for parameter in [each for each in kinds if kinds[each].kind not in (2, 4) and each in hints]:
        for wrong in values:
            if fits(wrong, hints[parameter]):
                continue
            arguments = {**bound.arguments, parameter: wrong}
            call = inspect.BoundArguments(
                bound.signature, {each: arguments[each] for each in kinds if each in arguments}
            )
            said = _said(function, call)
            if said is not None and not _is_sentence(said):
                text = f"{type(said).__name__}: {' '.join(str(said).split())[:160]}"
                yield f"{name}({parameter}={type(wrong).__name__}): {text}"


def _said(function, call):
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function(*call.args, **call.kwargs)
    except _Endless:
        return None
    except Exception as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None  # it is taken: whatever works is


def _is_sentence(error):
    words = str(error.args[0]) if error.args else ""
    return isinstance(error, ValueError | TypeError | KeyError | IndexError | OSError | RuntimeError) and (
        "Expected " in words and len(words) <= LONGEST and "\n" not in words
    )


def main():
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    def ring(*_):
        raise _Endless

    signal.signal(signal.SIGALRM, ring)
    os.chdir(tempfile.mkdtemp())
    every = "every" in sys.argv
    for function, name in functions(["", *ROOMS] if every else ["", "render"]).items():
        for line in unanswered(function, name, EVERY if every else FEW):
            print(line, flush=True)


if __name__ == "__main__":
    main()
