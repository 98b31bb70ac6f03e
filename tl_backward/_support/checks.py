"""Validation at the public boundary, and the wording of every error.

An error is one sentence: what was expected, what came, what to do.
"""

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from operator import index
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex, TypeGuard, cast

import torch


class UnknownWordsWarning(UserWarning):
    """A text has words that the model's tokenizer reads as unknown: what follows is about them too."""


class TrailingSpaceWarning(UserWarning):
    """A prompt ends in a space, which most tokenizers make the beginning of the next word's token."""


class LargeCaptureWarning(UserWarning):
    """A capture whose factors will take much memory (from 4 GiB on)."""


class NonFiniteError(ValueError):
    """A loss or gradient that is NaN or infinite: of many examples, that of `index`, which may be left out for it."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class UnknownInputError(TypeError):
    """A keyword that a function hands to the model, which takes no input of that `name`; `known` are those it takes."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        takes = f"the nearest are {nearest(name, known)}" if known else "a HookedTransformer reads tokens alone"
        super().__init__(f"Expected an input that the model takes, got {name!r}; {takes}.")
        self.name, self.known = name, known


def is_integer(value: object) -> TypeGuard[SupportsIndex]:
    """Whether something is one integer, of whatever type; True and False are none."""
    try:
        return not isinstance(value, bool) and index(cast(SupportsIndex, value)) is not None
    except (TypeError, ValueError):  # no number at all; of a tensor, several or no integer
        return False


def check_integers(options: object, *names: str) -> None:
    """Refuse fields of an option dataclass that are no integers; None passes where that is the default.

    Raises:
        TypeError: one is none, or True or False.
        ValueError: a seed of more than 64 bits, which no generator takes.
    """
    defaults = {field.name: field.default for field in fields(cast(Any, options))}
    for name in names:
        value, default, of = getattr(options, name), defaults[name], type(options).__name__
        if value is None and default is None:
            continue
        if not is_integer(value):
            hint = "leave it out for all" if default is None else f"the default is {default}"
            raise TypeError(f"Expected {name} of {of} as an integer, got {short(value)}; {hint}.")
        if name == "seed" and not -(2**63) <= index(value) < 2**63:
            raise ValueError(f"Expected seed of {of} as an integer of 64 bits, got {value}; the default is {default}.")


def short(value: object) -> str:
    """What a value is, for the end of an error message: itself if that is short, else its type and shape."""
    shape = getattr(value, "shape", None)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(shape, tuple):
        return (
            f"{type(value).__name__} of {f'{dtype} ' if (dtype := getattr(value, 'dtype', None)) else ''}{list(shape)}"
        )
    if not isinstance(value, str | int | float | bool | list | tuple | dict | type(None)):
        return type(value).__name__
    text = repr(value)
    return (
        text if len(text) <= 60 and "HookPoint" not in text else f"{type(value).__name__} {text[:56]}…".splitlines()[0]
    )


def as_path(path: object) -> Path:
    """The path of a file or folder that was named.

    Raises:
        TypeError: None, a number, or something else that is no path.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"Expected a path as text or a Path, got {short(path)}; name the file or folder.")
    return Path(path)


def check_finite(name: str, value: object, hint: str) -> float:
    """One finite number, of whatever type.

    Raises:
        TypeError: no number, or True or False.
        ValueError: NaN or infinite.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(cast(SupportsFloat, value))
    except (TypeError, ValueError, RuntimeError):  # no number; a tensor of several
        number = None
    if number is None or isinstance(value, bool | str):
        raise TypeError(f"Expected {name} as a number, got {short(value)}; {hint}.")
    if not math.isfinite(number):
        raise ValueError(f"Expected {name} as a finite number, got {number}; {hint}.")
    return number


def no_model(given: object) -> str:
    """The error raised where a TransformerLens model is expected, and something else came."""
    if isinstance(given, str) and given.endswith(".safetensors"):
        return f"Expected a TransformerLens model, got the file {given[-60:]!r}; give the model first, then the file."
    if isinstance(given, list | tuple) or (isinstance(given, str) and len(given.split()) > 1):
        return f"Expected a TransformerLens model, got {short(given)}; models come first, then texts or data."
    if isinstance(given, str):
        return f"Expected a TransformerLens model, got its name {given[:60]!r}; load it with tlb.load({given[:60]!r})."
    return (
        f"Expected a TransformerLens model (HookedTransformer or TransformerBridge), got {type(given).__name__}; wrap "
        "a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=...)."
    )


def nearest(word: str, names: Iterable[str], n: int = 3, *, form: Callable[[str], str] = repr) -> str:
    """The `n` names most like `word`, quoted or in another form, for "the nearest are ..." of an error message."""
    known = list(dict.fromkeys(names))
    close = close_names(word, known, n)
    return ", ".join(map(form, close)) if close else f"far from it, such as {', '.join(map(form, known[:n]))}"


def close_names(word: str, names: Iterable[str], n: int = 3) -> list[str]:
    """The `n` names most like `word`; none where none is."""
    known = list(dict.fromkeys(names))
    last = word.rpartition(".")[2].lower()
    same = [name for name in known if last and name.rpartition(".")[2].lower() == last]
    same += [name for name in known if last and name not in same and name.lower().startswith(f"{last}_")]
    close = [*same, *(name for name in difflib.get_close_matches(word, known, n=n, cutoff=0.4) if name not in same)][:n]
    if not close:  # a short name that is misspelt, among full ones
        ends = difflib.get_close_matches(last, [name.rpartition(".")[2].lower() for name in known], n=n)
        close = [name for name in known if name.rpartition(".")[2].lower() in ends][:n]
    return close


def check_callable_loss(loss: object) -> None:
    """Refuse a loss that cannot be called, most often a target that was meant to be one.

    Raises:
        TypeError: not a callable, or one that does not take logits and tokens.
    """
    if not callable(loss):
        hint = f"; use target_loss({loss!r})" if isinstance(loss, str | int) else ""
        raise TypeError(f"Expected a loss(logits, tokens) -> scalar, got {type(loss).__name__}{hint}.")
    if hasattr(loss, "bind"):  # what it binds to is called in its place
        return
    try:
        signature = inspect.signature(loss, follow_wrapped=False)
    except (TypeError, ValueError):  # of a function that is not Python's
        return
    mask = {name: None for name in signature.parameters if name == "attention_mask"}
    try:
        signature.bind(None, None, **mask)
    except TypeError:
        raise TypeError(
            f"Expected a loss(logits, tokens) -> scalar, got one of {signature}; let it take both, and a default for "
            "what else it takes."
        ) from None


def check_grad_enabled() -> None:
    """Refuse to capture where autograd records nothing.

    Raises:
        RuntimeError: under `torch.inference_mode()` or `torch.no_grad()`.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Expected autograd to be on, got torch.inference_mode(); leave inference_mode before capturing gradients."
        )
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "Expected autograd to be on, got torch.no_grad(); call inside torch.enable_grad() or outside the "
            "no_grad block (a model whose parameters are frozen is fine)."
        )


def check_loss(loss: object) -> torch.Tensor:
    """The loss as a finite scalar tensor that depends on something differentiable.

    Raises:
        TypeError: not a tensor.
        ValueError: not a scalar, not finite (`NonFiniteError`), or without a graph.
    """
    if not isinstance(loss, torch.Tensor):
        raise TypeError(
            f"Expected the loss to return a scalar tensor, got {type(loss).__name__}; "
            "return a torch tensor computed from the logits."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"Expected the loss to return a scalar, got shape {tuple(loss.shape)}; reduce it with .mean() or .sum()."
        )
    if not torch.isfinite(loss).all():
        raise NonFiniteError(
            f"Expected a finite loss, got {loss.item()}; look for an overflow, masked targets, a division by 0, or "
            "tokens padded on the left (pad on the right)."
        )
    if not loss.requires_grad:
        raise ValueError(
            "Expected a loss that depends on the logits, got one without a gradient; compute it from the `logits` "
            "argument without .detach(), .item() or integer operations."
        )
    return loss.reshape(())


def check_gradient(name: str, deltas: torch.Tensor) -> None:
    """Refuse a weight's deltas [batch, pos, ...] that are not all finite.

    Raises:
        NonFiniteError: some are not; it carries the first row of the batch that has any.
    """
    if all_finite(deltas):
        return
    row = int(torch.isfinite(deltas.flatten(1)).all(1).int().argmin())
    raise NonFiniteError(
        f"Expected a finite gradient of {name}, got NaN or inf; look for an overflow, a division by 0 or, on a Bridge, "
        "tokens padded on the left (pad on the right).",
        row,
    )


def check_layers(layers: int | Sequence[int] | None, n_layers: int) -> list[int]:
    """Layers as a list of non-negative indices, in the order given; None means all, negative counts from the end.

    Raises:
        IndexError: a layer is out of range.
        TypeError: no integers; those of a list, a range, a NumPy array or a tensor are taken.
    """
    if layers is None:
        return list(range(n_layers))
    several = isinstance(layers, Iterable) and getattr(layers, "ndim", 1)
    given: list[object] = list(cast(Iterable, layers)) if several else [layers]
    wanted = [index(layer) for layer in given if is_integer(layer)]
    if len(wanted) < len(given):
        raise TypeError(
            f"Expected layers as an integer or a list of integers, got {short(layers)}; for example [0, -1]."
        )
    if not wanted:
        raise ValueError("Expected at least one layer, got an empty list; pass layers=None for all of them.")
    return [_check_index("layers", layer, n_layers, "layers") for layer in wanted]


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether nothing in a tensor is NaN or inf, without a copy of it.

    Both stay in a sum, which takes a third of the time of the extremes; one of finite numbers may overflow.
    """
    tensor = tensor.detach()
    return (
        math.isfinite(tensor.sum().item())
        or not tensor.numel()
        or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())
    )


def check_head(head: int, n_heads: int) -> int:
    """An attention head as a non-negative index; negative counts from the end.

    Raises:
        IndexError: it is out of range.
    """
    return _check_index("head", head, n_heads, "heads")


def _check_index(what: str, index: int, n: int, those: str) -> int:
    if not -n <= index < n:
        raise IndexError(f"Expected {what} in [-{n}, {n}), got {index}; the model has {n} {those}.")
    return index % n


def check_k(k: int, d_vocab: int) -> int:
    """A number of top tokens between 1 and the size of the vocabulary.

    Raises:
        TypeError: no integer.
        ValueError: too few, or more than there are.
    """
    if not is_integer(k):
        raise TypeError(f"Expected k, how many tokens, as an integer, got {short(k)}; for example k=10.")
    k = index(k)
    if not 1 <= k <= d_vocab:
        raise ValueError(f"Expected 1 <= k <= {d_vocab} (the vocabulary), got k={k}; choose a smaller k.")
    return k


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a word that is not one of a few.

    Raises:
        ValueError: they are named.
    """
    if value not in choices:
        raise ValueError(f"Expected {name} among {', '.join(map(repr, choices))}, got {value!r}; choose one of them.")


def check_at_least_one(name: str, number: int, hint: str) -> None:
    """Refuse a number below 1.

    Raises:
        ValueError: it is; the hint says what to do.
    """
    if number < 1:
        raise ValueError(f"Expected {name} of at least 1, got {number}; {hint}.")


def check_text(text: str) -> str:
    """The text itself, once a tokenizer can take it: no unpaired surrogates.

    Raises:
        ValueError: half of a surrogate pair in it, as bytes that are not UTF-8 become on a command line.
    """
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(
            f"Expected text that UTF-8 can write, got {text!r:.80}, half of a surrogate pair in it; mend its encoding."
        )
    return text
