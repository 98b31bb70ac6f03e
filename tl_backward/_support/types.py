"""The model Protocol and the run-time checks of public tensor functions."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, jaxtyped
from torch import Tensor, nn

from tl_backward._support.literals import check_types

F = TypeVar("F", bound=Callable)


def typed(function: F) -> F:
    """Check a public function's tensor shapes and dtypes on every call (jaxtyping + beartype)."""
    return jaxtyped(typechecker=_checked)(function)


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
Prompts: TypeAlias = (
    str
    | list[str]
    | tuple[str, ...]
    | Integer[Tensor, "batch pos"]
    | Integer[Tensor, "pos"]
    | Integer[np.ndarray, "batch pos"]
    | Integer[np.ndarray, "pos"]
)
DataFrame: TypeAlias = "pandas.DataFrame"
Series: TypeAlias = "pandas.Series"
"""pandas is imported where a frame is made, not before."""
HookFn: TypeAlias = Callable[..., Tensor | None]
Weights: TypeAlias = Callable[[str], bool] | str | Collection[str] | None
"""Which weights: None for the usual ones, a name, a list of names, or a predicate on the full name."""
NamesFilter: TypeAlias = Callable[[str], bool] | str | list[str] | tuple[str, ...] | None
