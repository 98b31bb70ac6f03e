"""GradientCache: what one backward pass said, addressed the way TransformerLens addresses activations."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.checks import nearest
from tl_backward.gradients.losses import Loss
from tl_backward.weights.account import Row, account_frame, left_out
from tl_backward.weights.factors import GradientFactors

if TYPE_CHECKING:
    import pandas

Key = str | tuple[str, int]


class FactorMap(Mapping[Key, GradientFactors]):
    """GradientFactors by weight: `["blocks.3.mlp.W_out"]`, `["W_out", 3]`, `["W_out", -1]`, `["unembed.W_U"]`.

    Iterating gives full names in the model's order.
    """

    def __init__(self, factors: dict[str, GradientFactors], short_names: dict[Key, str], n_layers: int) -> None:
        self._factors = factors
        self._short_names = short_names
        self._n_layers = n_layers

    def __getitem__(self, key: Key) -> GradientFactors:
        name = _full_name(key, self._short_names, self._n_layers)
        if name not in self._factors:
            raise KeyError(f"Expected a captured weight, got {key!r}; {self._why(key, name)}.")
        return self._factors[str(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    def __repr__(self) -> str:
        return f"FactorMap({len(self)} weights: {', '.join(list(self._factors)[:3])}{', ...' if len(self) > 3 else ''})"

    def _why(self, key: Key, name: object) -> str:
        """What to do about a key that names nothing captured."""
        if name in self._short_names.values():
            return f"it was not asked for (weights=[{name!r}]) or did not run (cache.missing)"
        short = key if isinstance(key, str) else key[0]
        in_layers = [other for other in self._short_names if isinstance(other, tuple)]
        layers = [layer for each, layer in in_layers if each == short]
        if layers and isinstance(key, str):
            return f"several layers have one, say which: [{short!r}, {layers[-1]}]"
        if layers:
            return f"layers {min(layers)} to {max(layers)} have one, not all need be captured (weights=...)"
        captured = dict.fromkeys(other[0] for other in in_layers if self._short_names[other] in self._factors)
        return f"captured nearest to it: {nearest(str(short), [*captured, *self._factors])} (choose with weights=...)"


class GradientMap(Mapping[Key, Tensor]):
    """Gradients of whole parameters by weight, addressed as a FactorMap is; each in its parameter's own shape."""

    def __init__(
        self, gradients: Mapping[str, Tensor | Callable[[], Tensor]], short_names: dict[Key, str], n_layers: int
    ) -> None:
        self._gradients = dict(gradients)
        self._short_names = short_names
        self._n_layers = n_layers

    def __getitem__(self, key: Key) -> Tensor:
        name = _full_name(key, self._short_names, self._n_layers)
        if name not in self._gradients:
            raise KeyError(
                f"Expected a captured vector, scalar or kernel, got {key!r}; captured nearest to it: "
                f"{nearest(str(key if isinstance(key, str) else key[0]), self._gradients)} (matrices are in `factors`)."
            )
        value = self._gradients[str(name)]
        return value if isinstance(value, Tensor) else value()

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)

    def __repr__(self) -> str:
        names = list(self._gradients)
        return f"GradientMap({len(self)} weights: {', '.join(names[:3])}{', ...' if len(self) > 3 else ''})"


def _full_name(key: Key, short_names: dict[Key, str], n_layers: int) -> Key:
    """A weight's full name, from itself or (short name, layer); negative layers count from the model's end."""
    if isinstance(key, tuple) and len(key) == 2 and key[1] < 0:
        key = (key[0], key[1] + n_layers)
    return short_names.get(key, key)


class GradientCache(Mapping[Key, Tensor]):
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

    def __init__(
        self,
        loss: Float[Tensor, ""],
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None,
        logits: Float[Tensor, "batch *said d_vocab"],
        factors: FactorMap,
        gradients: dict[str, Tensor],
        n_layers: int,
        *,
        prompt_tokens: Int[Tensor, "batch prompt_pos"] | None = None,
        prompt_mask: Bool[Tensor, "batch prompt_pos"] | None = None,
        parameter_gradients: GradientMap | None = None,
        missing: dict[str, str] | None = None,
        account: Callable[[], list[Row]] = list,
        bound: Loss | None = None,
    ) -> None:
        self.loss, self.tokens, self.mask, self.logits, self.factors = loss, tokens, mask, logits, factors
        self.prompt_tokens = tokens if prompt_tokens is None else prompt_tokens
        self.prompt_mask = mask if prompt_tokens is None else prompt_mask
        self.parameter_gradients = parameter_gradients or GradientMap({}, {}, n_layers)
        self.missing = missing or {}
        self._account, self.bound = account, bound
        self._gradients = gradients
        self._n_layers = n_layers

    def account(self) -> "pandas.DataFrame":
        """What this pass captured of each parameter, and why the rest is not here: as `WeightSites.account`."""
        return account_frame(self._account())

    def left_out(self) -> str:
        """What ran in the pass and could not be captured, in one line with the reasons; "" where there is nothing."""
        return left_out(self._account())

    def __getitem__(self, key: Key) -> Tensor:
        from transformer_lens.utilities.components_utils import get_act_name

        if isinstance(key, tuple):
            if len(key) < 2:
                raise KeyError(f"Expected a name or (name, layer), got {key!r}; for example ('resid_post', 3).")
            name, layer, *rest = key
            name = get_act_name(name, layer + self._n_layers if layer < 0 else layer, *rest)
        else:
            name = key if key in self._gradients else get_act_name(key)
        if name not in self._gradients:
            raise KeyError(
                f"Expected a hook point whose gradient was kept, got {key!r}; kept nearest to it: "
                f"{nearest(name, self._gradients)} (choose with names_filter=...)."
            )
        return self._gradients[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)

    def __repr__(self) -> str:
        return (
            f"GradientCache(loss={self.loss.item():.4g}, tokens={list(self.tokens.shape)}, "
            f"factors of {len(self.factors)} weights, gradients at {len(self)} hook points"
            + (f"; {short})" if (short := self.left_out()) else ")")
        )

    def to_frame(self) -> "pandas.DataFrame":
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
                for name, factors in self.factors._factors.items()
            ]
        )
