"""The model Protocol and the run-time checks of public tensor functions."""

import inspect
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, TypeCheckError, jaxtyped
from torch import Tensor, nn

from tl_backward._support.arrays import tensor_of, tensor_parameters
from tl_backward._support.checks import no_model
from tl_backward._support.hints import in_words, order_of, say_as, short_signature, show_as
from tl_backward._support.literals import check_types

F = TypeVar("F", bound=Callable)


def typed(function: F) -> F:
    """Check a public function's tensor shapes and dtypes on every call (jaxtyping + beartype).

    Where it takes a tensor, lists of numbers, NumPy arrays and pandas columns are made one.
    """
    check, tensors = jaxtyped(typechecker=_checked)(function), tensor_parameters(function)
    names = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: object, **kwargs: object) -> object:
        args = (
            tuple(
                tensor_of(value, floats=tensors[name]) if name in tensors else value
                for name, value in zip(names, args, strict=False)
            )
            + args[len(names) :]
        )
        kwargs |= {name: tensor_of(kwargs[name], floats=tensors[name]) for name in tensors if name in kwargs}
        try:
            return check(*args, **kwargs)
        except TypeCheckError as error:
            said = _SAID.search(str(error))
            if said is None:  # of another function that this one calls, in a sentence already
                raise
            given = inspect.signature(function).bind(*args, **kwargs).arguments.get(said["name"] or "")
        raise TypeCheckError(_sentence(function, said, given)) from None

    if (short := short_signature(function)) is not None:
        vars(checked)["__signature__"] = short
    return cast(F, checked)


_SAID = re.compile(
    r"Type-check error .*?typechecking (?:parameter '(?P<name>\w+)'|.*?)\.\s"
    r"Actual value: (?P<got>.*?)\sExpected type: (?P<hint>.*?)\.\n-{5,}"
    r"(?:.*?each jaxtyping axis annotation are as follows\.\s(?P<axes>.*))?",
    re.DOTALL,
)
"""jaxtyping's own message, which goes on with all arguments, a whole model among them."""


def _sentence(function: Callable, said: re.Match[str], given: object) -> str:
    """What was expected of an argument, or of what is returned, and what came."""
    if said["hint"] == repr(nn.Module):
        return no_model(given)
    signature = inspect.signature(inspect.unwrap(function))
    hint = signature.parameters[said["name"]].annotation if said["name"] else signature.return_annotation
    got = said["got"] if len(said["got"]) <= 80 and "\n" not in said["got"] else f"{type(given).__name__}"
    known = dict(line.split("=", 1) for line in (said["axes"] or "").splitlines() if "=" in line)
    sizes = [
        f"{name} = {size.removeprefix('torch.Size')}"
        for name, size in known.items()
        if re.search(rf"\b{name}\b", said["hint"])
    ]
    axes = f" where {', '.join(sizes)}" if sizes else ""
    what = f"{said['name']} of {function.__name__}" if said["name"] else f"what {function.__name__} returns"
    if function.__name__.endswith("_report") and hasattr(type(given), "show"):
        got += ", whose own page is .show()"
    order = order_of(function, said["name"] or "", given)
    return (
        f"Expected {what} to be {in_words(hint)}{axes}, got {got}; {order}see "
        f"help({function.__module__}.{function.__qualname__})."
    )


def _checked(signature: F) -> F:
    """Check with beartype, and restore Python's global random state, which it draws from to sample list items."""
    check = check_types(signature)

    @wraps(signature)
    def checked(*args: object, **kwargs: object) -> object:
        before = random.getstate()
        try:
            return check(*args, **kwargs)
        finally:
            random.setstate(before)

    return cast(F, checked)


class Config(Protocol):
    """The part of TransformerLens's model configuration that both kinds of model share."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_head(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def device(self) -> str | torch.device | None: ...


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here.

    transformers' base class says `str | list[str]` of both.
    """

    def decode(self, token_ids: list[int], /) -> Any: ...  # str
    def convert_ids_to_tokens(self, ids: int, /) -> Any: ...  # str | None


if TYPE_CHECKING:
    import pandas

    class TransformerLensModel(Protocol):
        """What HookedTransformer and TransformerBridge have in common; properties, since neither is to be set."""

        @property
        def cfg(self) -> Config: ...
        @property
        def tokenizer(self) -> Tokenizer | None: ...
        @property
        def training(self) -> bool: ...
        @property
        def W_E(self) -> Float[Tensor, "d_vocab d_model"]: ...
        @property
        def W_U(self) -> Float[Tensor, "d_model d_vocab"]: ...
        @property
        def b_U(self) -> Float[Tensor, "d_vocab"]: ...
        @property
        def hook_dict(self) -> Mapping[str, nn.Module]: ...
        def __call__(self, *args: object, **kwargs: object) -> Tensor: ...
        def to_tokens(self, input: str, prepend_bos: bool | None = ..., *, truncate: bool = ...) -> Tensor: ...
        def modules(self) -> Iterator[nn.Module]: ...
        def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
        def parameters(self) -> Iterator[nn.Parameter]: ...
        def hooks(self, fwd_hooks: list, bwd_hooks: list) -> AbstractContextManager: ...
        def reset_hooks(self, *, including_permanent: bool) -> None: ...

else:
    # At run time a TransformerLens model is a torch module; `check_model` says more when it is not.
    TransformerLensModel: TypeAlias = nn.Module

Tokens: TypeAlias = Int[Tensor, "batch pos"]
Prompt: TypeAlias = (
    str
    | list[int]
    | tuple[int, ...]
    | list[np.integer]
    | Integer[Tensor, "_"]
    | Integer[Tensor, "1 _"]
    | Integer[np.ndarray, "_"]
    | Integer[np.ndarray, "1 _"]
)
"""One prompt: text, or its token ids; each of several has its own length."""
Prompts: TypeAlias = (
    Prompt
    | list[str]
    | tuple[str, ...]
    | list[list[int]]
    | list[tuple[int, ...]]
    | list[Integer[Tensor, "_"]]
    | list[Integer[np.ndarray, "_"]]
    | Integer[Tensor, "batch pos"]
    | Integer[np.ndarray, "batch pos"]
)
"""One or several: a list of texts, or of rows of ids, is a batch; a list of ids is one prompt."""
say_as(Prompt, "text | token ids")
say_as(Prompts, "text | token ids | list of either")
show_as(Prompt, "Prompt")
show_as(Prompts, "Prompts")
DataFrame: TypeAlias = "pandas.DataFrame"
Series: TypeAlias = "pandas.Series"
"""pandas is imported where a frame is made, not before."""
HookFn: TypeAlias = Callable[..., Tensor | None]
Weights: TypeAlias = Callable[[str], bool] | str | Collection[str] | None
"""Which weights: None for the usual ones, a name, a list of names, or a predicate on the full name."""
NamesFilter: TypeAlias = Callable[[str], bool] | str | list[str] | tuple[str, ...] | None
show_as(TransformerLensModel, "TransformerLensModel")
show_as(HookFn, "HookFn")
show_as(Weights, "Weights")
show_as(NamesFilter, "NamesFilter")
