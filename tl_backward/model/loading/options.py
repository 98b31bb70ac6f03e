"""Options of loading a model: TransformerLens class, device, precision, and processing of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, cast, get_args

import torch

from tl_backward._support.checks import short
from tl_backward.model.loading._others import first_line

Kind: TypeAlias = Literal["hooked", "bridge"]
Dtype: TypeAlias = Literal["float32", "float64", "bfloat16", "float16"]
KINDS: tuple[str, ...] = get_args(Kind)
DTYPES: tuple[str, ...] = get_args(Dtype)


class Processing(TypedDict, total=False):
    """How TransformerLens rewrites a model's weights, its probabilities unchanged; each is off unless given.

    What HookedTransformer and TransformerBridge's `enable_compatibility_mode` take, under their names.

    Attributes:
        fold_ln: LayerNorm's weights move into the matrices that read from it.
        center_writing_weights: what is written into the residual stream has mean 0.
        center_unembed: the logits of each position have mean 0.
        fold_value_biases: attention's value biases move into its output bias.
        refactor_factored_attn_matrices: each head's QK and OV matrices are factored evenly, by SVD.
    """

    fold_ln: bool
    center_writing_weights: bool
    center_unembed: bool
    fold_value_biases: bool
    refactor_factored_attn_matrices: bool


_OFF = dict.fromkeys(Processing.__annotations__, False)


@dataclass(frozen=True)
class Wanted:
    """How to wrap a Hugging Face model: class, device, precision and processing.

    Attributes:
        kind: "hooked" or "bridge".
        device: as PyTorch names it.
        dtype: of the weights.
        processing: None for the weights as they were trained.

    Raises:
        TypeError: processing that is no dictionary.
        ValueError: a kind, device or option that there is not.
    """

    kind: str
    device: str
    dtype: torch.dtype
    processing: Processing | None

    def __post_init__(self) -> None:
        """Refuse what PyTorch or TransformerLens does not know."""
        if self.kind not in KINDS:
            raise ValueError(f"Expected kind 'hooked' or 'bridge', got {self.kind!r}; choose one of them.")
        if self.processing is not None and not isinstance(self.processing, Mapping):
            raise TypeError(
                f"Expected processing to be None (the weights as they were trained) or a dictionary that says True of "
                f"some of {', '.join(_OFF)}, got {short(self.processing)}; for example {{'fold_ln': True}}."
            )
        for option, on in (self.processing or {}).items():
            if option not in _OFF or not isinstance(on, bool):
                raise ValueError(
                    f"Expected processing to say True or False of some of {', '.join(_OFF)}, got {option!r}: {on!r}; "
                    "for example {'fold_ln': True}."
                )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"Expected a device that PyTorch can use here, got {self.device!r}: {first_line(error)}"
            ) from error

    @property
    def options(self) -> dict[str, bool]:
        """Every option of `Processing`, on or off."""
        return cast("dict[str, bool]", {**_OFF, **(self.processing or {})})
