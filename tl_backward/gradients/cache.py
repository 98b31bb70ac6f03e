"""GradientCache: the results of one backward pass, addressed the way TransformerLens addresses activations."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import is_integer, nearest
from tl_backward._support.html import table, visible_token
from tl_backward._support.saved import Saved, load_saved
from tl_backward._support.sentences import count_text
from tl_backward._support.types import DataFrame
from tl_backward.gradients.losses import Loss
from tl_backward.gradients.summary import cache_sentence
from tl_backward.weights.account import Row, account_frame, left_out
from tl_backward.weights.factors import GradientFactors

Key = str | tuple[str, int]
V = TypeVar("V")


class _WeightMap(Mapping[Key, V]):
    """A mapping from weight names to values; iterating gives full names in the model's order."""

    def __init__(self, values: Mapping[str, V | partial[V]], short_names: dict[Key, str], n_layers: int) -> None:
        self._values, self._short_names, self._n_layers = dict(values), short_names, n_layers

    def __getitem__(self, key: Key) -> V:
        _check_key(key, ("W_out", 3))
        full = (key[0], key[1] + self._n_layers) if isinstance(key, tuple) and len(key) == 2 and key[1] < 0 else key
        name = self._short_names.get(full, full)
        if name not in self._values:
            raise KeyError(self._refusal(key, name))
        value = self._values[str(name)]
        return cast(V, value() if isinstance(value, partial) else value)

    def short_names(self) -> set[str]:
        """The names that are asked for with a layer: "W_out"."""
        return {name[0] for name in self._short_names if isinstance(name, tuple)}

    def _refusal(self, key: Key, name: Key) -> str:
        """The error message for a key that was not captured; `name` is its full name if it has one."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        first = ", ".join(list(self._values)[:3])
        return f"{type(self).__name__}({len(self)} weights: {first}{', ...' if len(self) > 3 else ''})"


def _check_key(key: object, example: Key) -> None:
    """Refuse what is no name, nor a name with a layer.

    Raises:
        KeyError: it is something else.
    """
    if not isinstance(key, str) and not (isinstance(key, tuple) and len(key) > 1 and isinstance(key[0], str)):
        raise KeyError(f"Expected a name or (name, layer), got {key!r:.80}; for example {example}.")
    if isinstance(key, tuple) and not is_integer(key[1]):
        raise KeyError(f"Expected a layer as an integer, got {key[1]!r:.60}; for example {(key[0], example[1])}.")


class FactorMap(_WeightMap[GradientFactors]):
    """GradientFactors by weight: `["blocks.3.mlp.W_out"]`, `["W_out", 3]`, `["W_out", -1]`, `["unembed.W_U"]`.

    Iterating gives full names in the model's order.
    """

    def _refusal(self, key: Key, name: Key) -> str:
        return f"Expected a captured weight, got {key!r}; {self._why(key, name)}."

    def _why(self, key: Key, name: Key) -> str:
        if name in self._short_names.values():
            return f"it was not asked for (weights=[{name!r}]) or did not run (cache.missing)"
        short = key if isinstance(key, str) else key[0]
        in_layers = [other for other in self._short_names if isinstance(other, tuple)]
        layers = [layer for each, layer in in_layers if each == short]
        if layers and isinstance(key, str):
            return f"several layers have one, add the layer: [{short!r}, {layers[-1]}]"
        if layers:
            return f"layers {min(layers)} to {max(layers)} have one, not all need be captured (weights=...)"
        captured = dict.fromkeys(other[0] for other in in_layers if self._short_names[other] in self._values)
        close = nearest(str(short), [*captured, *self._values])
        if isinstance(key, tuple):  # as it is asked for
            close = nearest(str(short), captured, form=lambda other: repr((other, *key[1:])))
        return f"captured nearest to it: {close} (choose with weights=...)"


class GradientMap(_WeightMap[Tensor]):
    """Gradients of whole parameters by weight, addressed as a FactorMap is; each in its parameter's own shape."""

    def _refusal(self, key: Key, name: Key) -> str:
        close = nearest(str(key if isinstance(key, str) else key[0]), self._values)
        return (
            f"Expected a captured vector, scalar or kernel, got {key!r}; captured nearest to it: {close} (matrices are "
            "in `factors`)."
        )


@dataclass(frozen=True, repr=False, eq=False)
class GradientCache(Saved, Mapping[Key, Tensor]):
    """The result of a capture: gradients at hook points, and the factors of every chosen weight's gradient.

    `cache["resid_post", 3]` or `cache["blocks.3.hook_resid_post"]` is dL/d(activation) at that hook point, raw sign,
    in the activation's shape, through all that reads the tensor there (a Bridge's own backward hooks give the one
    reader's share at `q.hook_in` or `ln2.hook_in`); `cache.factors["W_out", 3]` the rank-1 factors of a weight's
    gradient. Everything is detached; activations are references, not copies.
    """

    loss: Float[Tensor, ""]
    """The loss that was differentiated."""
    tokens: Int[Tensor, "batch pos"]
    """The tokens that the logits belong to, BOS and teacher-forced target tokens included: a decoder's where there is
    an encoder too; [batch, 0] where the model reads no text."""
    mask: Bool[Tensor, "batch pos"] | None
    """True at real tokens; None where nothing was padded."""
    logits: Float[Tensor, "batch *said d_vocab"]
    """What the model said: logits, or another main output where it reads no text."""
    prompt_tokens: Int[Tensor, "batch prompt_pos"]
    """The prompts' tokens: an encoder's where there is one, else the same as `tokens`."""
    prompt_mask: Bool[Tensor, "batch prompt_pos"] | None
    """True at real ones; None where nothing was padded."""
    factors: FactorMap
    """GradientFactors by weight name."""
    parameter_gradients: GradientMap
    """Gradients of vectors, scalars and kernels by weight name, raw sign, in the parameter's own shape."""
    missing: dict[str, str]
    """Weights and hook points without a gradient here, by name, and why."""
    bound: Loss | None
    """The loss function that was differentiated, bound to the model and its prompts where it is a loss of words."""

    _gradients: dict[str, Tensor]
    """Gradients by hook point."""
    _account: Callable[[], list[Row]]

    def packed(self) -> dict[str, Any]:
        """What to save: all but the loss, unless it is one of words."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if not each.name.startswith("_")}
        return own | {
            "factors": dict(self.factors),
            "parameter_gradients": dict(self.parameter_gradients),
            "bound": self.bound if isinstance(self.bound, Saved) else None,
            "gradients": self._gradients,
            "account": self._account(),
            "short_names": self.factors._short_names,
            "n_layers": self.factors._n_layers,
        }

    @classmethod
    def unpacked(cls, saved: dict[str, Any]) -> "GradientCache":
        """The same again."""
        short_names, n_layers, rows = (saved.pop(name) for name in ("short_names", "n_layers", "account"))
        maps = {"factors": FactorMap, "parameter_gradients": GradientMap}
        named = {name: kind(saved.pop(name), short_names, n_layers) for name, kind in maps.items()}
        gradients = saved.pop("gradients")
        return cls(**saved, **named, _gradients=gradients, _account=lambda: rows)

    def account(self) -> DataFrame:
        """What this pass captured of each parameter, and why the rest is not here: as `WeightSites.account`."""
        return account_frame(self._account())

    def left_out(self) -> str:
        """What ran in the pass and could not be captured, in one line with the reasons; "" where there is nothing."""
        return left_out(self._account())

    def __getitem__(self, key: Key) -> Tensor:
        from transformer_lens.utilities.components_utils import get_act_name

        _check_key(key, ("resid_post", 3))
        if isinstance(key, tuple):
            name, layer, *rest = key
            name = get_act_name(name, layer + self.factors._n_layers if layer < 0 else layer, *rest)
        else:
            name = key if key in self._gradients else get_act_name(key)
        if name not in self._gradients:
            if key in self.factors or (isinstance(key, tuple) and key[0] in self.factors.short_names()):
                raise KeyError(
                    f"Expected a hook point, got the weight {key!r}, whose factors are cache.factors[{key!r}]."
                )
            layers = self._layers_of(key) if isinstance(key, str) else []
            near = f"several layers have one, add the layer: cache[{key!r}, {layers[-1]}]" if layers else ""
            near = near or self._near(key, name)
            raise KeyError(f"Expected a hook point whose gradient was kept, got {key!r}; {near}.")
        return self._gradients[name]

    def _layers_of(self, key: str) -> list[int]:
        """The layers in which a short name stands for a hook point whose gradient was kept."""
        from transformer_lens.utilities.components_utils import get_act_name

        return [layer for layer in range(self.factors._n_layers) if get_act_name(key, layer) in self._gradients]

    def _near(self, key: Key, name: str) -> str:
        """What was kept like a key that was not: the same in other layers, or other names in that layer."""
        layer = re.compile(r"(?<=\.)-?\d+(?=\.)")
        same = [layer.search(other) for other in self._gradients if layer.sub("", other) == layer.sub("", name)]
        layers = sorted(int(match[0]) for match in same if match is not None)
        if isinstance(key, tuple) and layers:
            return f"kept in layers {', '.join(map(str, layers))} (choose with names_filter=...)"
        own = [other for other in self._gradients if layer.findall(other)[:1] == layer.findall(name)[:1]]
        return f"kept nearest to it: {nearest(name, own or self._gradients)} (choose with names_filter=...)"

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)

    def __repr__(self) -> str:
        target = getattr(self.bound, "target", None)
        of = f" of {target!r:.60}" if isinstance(target, str | int) else ""
        return (
            f"GradientCache(loss={self.loss.item():.4g}{of}, tokens={list(self.tokens.shape)}, "
            f"factors of {len(self.factors)} weights, gradients at {len(self)} hook points"
            + (f"; {short})" if (short := self.left_out()) else ")")
        )

    def summary(self) -> str:
        """In one sentence: the loss, the tokens, which weights' gradients were captured, and the largest of them."""
        target = getattr(self.bound, "target", None)
        if self.prompt_tokens.numel():
            n = int(self.prompt_tokens.numel() if self.prompt_mask is None else self.prompt_mask.sum())
            prompts = len(self.prompt_tokens)
            tokens = count_text(n, "token") + (f" of {count_text(prompts, 'prompt')}" if prompts > 1 else "")
        else:
            tokens = count_text(len(self.logits), "input")
        norms = {str(name): float(factors.norm()) for name, factors in self.factors.items()}
        words = visible_token(target) if isinstance(target, str) else ""
        return cache_sentence(self.loss.item(), words, tokens, norms)

    def _repr_html_(self) -> str:
        """Norms, tokens and shapes as a static table under the sentence; ranks, which take longer, are in the frame."""
        rows = [
            [name, float(factors.norm()), factors.n_tokens, str(list(factors.layout.shape))]
            for name, factors in self.factors.items()
        ]
        return table(["weight", "gradient_norm", "n_tokens", "shape"], rows, caption=self.summary(), limit=60)

    def to_frame(self) -> DataFrame:
        """One row a captured weight: its gradient's norm, numerical rank, tokens and shape."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "weight": name,
                    "gradient_norm": factors.norm().item(),
                    "rank": factors.rank(),
                    "n_tokens": factors.n_tokens,
                    "shape": factors.layout.shape,
                }
                for name, factors in self.factors.items()
            ]
        )


def load_cache(path: str | Path) -> GradientCache:
    """Read what `GradientCache.save` wrote: everything but a loss of your own, on the CPU.

    Raises:
        ValueError: no such file, a damaged one, or another result's.

    Examples:
        >>> cache = tlb.run_with_gradient_cache(model, "Anna Berg lives in", tlb.target_loss(" Oslo"))[1]
        >>> _ = cache.save("anna.safetensors")
        >>> tlb.load_cache("anna.safetensors").factors["W_out", 2].inputs.shape
        torch.Size([1, 5, 512])
    """
    return load_saved(path, GradientCache)
