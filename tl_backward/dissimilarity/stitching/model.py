"""StitchedModel: the head of one model, a map, and the tail of another, run and hooked like one of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_backward._support.checks import nearest
from tl_backward._support.types import HookFn, NamesFilter, Tokenizer, TransformerLensModel
from tl_backward.dissimilarity.stitching.maps import StitchMap
from tl_backward.model.checks import model_kind
from tl_backward.model.guard import visiting
from tl_backward.model.inputs import without_cache

HookList: TypeAlias = Sequence[tuple[str | Callable[[str], bool], HookFn]]
Input: TypeAlias = str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"]

HEAD, TAIL = "head.", "tail."


class StitchedModel(nn.Module):
    """A runs up to `layer_a`, the map carries its residual stream over, B runs from `layer_b` + 1 on.

    Hook points are those of the parts that count, "head.blocks.0.hook_resid_post", "tail.ln_final.hook_normalized", and
    the map's own "hook_stitch_in" and "hook_stitch_out"; `hooks`, `run_with_hooks` and `run_with_cache` take them as
    TransformerLens's do, and hooks that were put on A or B themselves work too. The map alone is a submodule:
    `parameters()` are the map's, and `.train()` or `.to()` leave A and B as they are.
    """

    def __init__(
        self,
        model_a: TransformerLensModel,
        layer_a: int,
        model_b: TransformerLensModel,
        layer_b: int,
        map: StitchMap,
    ) -> None:
        from transformer_lens.hook_points import HookPoint

        super().__init__()
        self.map = map
        self._models = (model_a, model_b)  # in a tuple, so that they are no submodules
        self.layer_a, self.layer_b = layer_a, layer_b
        self.hook_stitch_in, self.hook_stitch_out = HookPoint(), HookPoint()
        self.hook_stitch_in.name, self.hook_stitch_out.name = "hook_stitch_in", "hook_stitch_out"
        self._hooked: dict[str, list[tuple[str, HookFn]]] = {HEAD: [], TAIL: []}

    def __repr__(self) -> str:
        a, b = (type(model).__name__ for model in self._models)
        return f"StitchedModel({a} up to layer {self.layer_a}, {self.map}, {b} after layer {self.layer_b})"

    @property
    def model_a(self) -> TransformerLensModel:
        """Whose head runs."""
        return self._models[0]

    @property
    def model_b(self) -> TransformerLensModel:
        """Whose tail runs."""
        return self._models[1]

    @property
    def cfg(self) -> object:
        """The tail's configuration."""
        return self.model_b.cfg

    @property
    def tokenizer(self) -> object:
        """Both models'."""
        return self.model_b.tokenizer

    def to_tokens(self, input: str | list[str], prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Token ids, as the tail's model makes them."""
        options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
        return cast(Callable[..., Tensor], self.model_b.to_tokens)(input, **options)

    @property
    def hook_dict(self) -> Mapping[str, nn.Module]:
        """Every hook point whose activation the output depends on."""
        found = {}
        for name, point in self.model_a.hook_dict.items():
            if not _after(name, self.layer_a) and _runs(self.model_a, name):
                found[HEAD + name] = point
        found |= {"hook_stitch_in": self.hook_stitch_in, "hook_stitch_out": self.hook_stitch_out}
        for name, point in self.model_b.hook_dict.items():
            if _after(name, self.layer_b) and _runs(self.model_b, name):
                found[TAIL + name] = point
        return found

    def forward(self, input: Input, *, return_type: str | None = "logits") -> Tensor | None:
        """Logits [batch, pos, d_vocab], or with return_type="loss" the mean next-token cross-entropy in nats."""
        if return_type not in ("logits", "loss", None):
            raise ValueError(f"Expected return_type 'logits', 'loss' or None, got {return_type!r}; choose one of them.")
        tokens = self.to_tokens(input) if isinstance(input, str | list) else input
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        logits = self.tail(tokens, self.head(tokens))
        if return_type == "loss":
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(logits.device))
        return logits if return_type == "logits" else None

    def head(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        """A's residual stream after `layer_a`."""
        return run_head(self.model_a, tokens, [self.layer_a], self._hooked[HEAD])[self.layer_a]

    def tail(
        self, tokens: Int[Tensor, "batch pos"], residual: Float[Tensor, "batch pos d_in"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """B's logits when the map of `residual` stands in its stream after `layer_b`."""
        weight = self.model_b.W_U
        mapped = self.map(self.hook_stitch_in(residual.to(_place(self.map, residual))))
        stream = self.hook_stitch_out(mapped).to(weight)
        return run_tail(self.model_b, tokens.to(weight.device), self.layer_b, stream, self._hooked[TAIL])

    @contextmanager
    def hooks(self, fwd_hooks: HookList = (), bwd_hooks: HookList = ()) -> Iterator["StitchedModel"]:
        """Hooks on any of `hook_dict`'s points within the context, as TransformerLens's `model.hooks`.

        Raises:
            ValueError: an unknown name; the nearest are named.
        """
        forward, backward = self._sorted(fwd_hooks), self._sorted(bwd_hooks)
        # The stream leaves A's last hook point before torch's backward hooks see it: hook_stitch_in is the same tensor.
        last = self.model_a.hook_dict[f"blocks.{self.layer_a}.hook_resid_post"]
        same = [pair for pair in backward[HEAD] if self.model_a.hook_dict[pair[0]] is last]
        backward[HEAD] = [pair for pair in backward[HEAD] if pair not in same]
        backward[""] += [("hook_stitch_in", hook) for _, hook in same]
        before = {side: list(hooked) for side, hooked in self._hooked.items()}
        own = {"hook_stitch_in": self.hook_stitch_in, "hook_stitch_out": self.hook_stitch_out}
        with ExitStack() as stack:
            stack.callback(self._hooked.update, before)
            for side in (HEAD, TAIL):
                self._hooked[side] = before[side] + forward[side]
            for side, model in zip((HEAD, TAIL), self._models, strict=True):
                stack.enter_context(model.hooks(fwd_hooks=[], bwd_hooks=backward[side]))
            sides: tuple[Literal["fwd"], Literal["bwd"]] = ("fwd", "bwd")
            for direction, hooked in zip(sides, (forward[""], backward[""]), strict=True):
                for name, hook in hooked:
                    stack.callback(own[name].remove_hooks, direction, including_permanent=False, level=1)
                    own[name].add_hook(hook, dir=direction, level=1)
            yield self

    def run_with_hooks(
        self, input: Input, *, fwd_hooks: HookList = (), bwd_hooks: HookList = (), return_type: str | None = "logits"
    ) -> Tensor | None:
        """One pass with hooks, which are gone after it (backward ones too: use `hooks` around a backward pass)."""
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(input, return_type=return_type)

    def run_with_cache(
        self, input: Input, *, names_filter: NamesFilter = None, return_type: str | None = "logits"
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(output, activations by name) of one pass, detached."""
        cache: dict[str, Tensor] = {}

        def keep(name: str) -> HookFn:
            def hook(value: Tensor, hook: object) -> None:
                cache[name] = value.detach()

            return hook

        names = list(self.hook_dict)
        if callable(names_filter):
            chosen = [name for name in names if names_filter(name)]
        else:
            chosen = (
                names if names_filter is None else [names_filter] if isinstance(names_filter, str) else names_filter
            )
        with self.hooks([(name, keep(name)) for name in chosen]):
            return self(input, return_type=return_type), cache

    @torch.no_grad()
    def generate(
        self, input: Input, *, max_new_tokens: int = 20, temperature: float = 0.0, seed: int = 0
    ) -> str | list[str] | Int[Tensor, "batch longer"]:
        """Continue text or tokens, greedily, or with a temperature above 0 by draws from a generator of their own.

        Gives back what it was given, continued: text, a list of texts (of one length in tokens), or tokens. A row that
        said the end-of-text token is filled with it.

        Raises:
            ValueError: texts of different lengths.
        """
        if isinstance(input, list) and len(lengths := {self.to_tokens(text).shape[1] for text in input}) > 1:
            raise ValueError(
                f"Expected texts of one length in tokens, got {sorted(lengths)}; continue them one at a time."
            )
        tokens = self.to_tokens(input) if isinstance(input, str | list) else input
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        generator = torch.Generator(device=tokens.device).manual_seed(seed)
        end = getattr(self.tokenizer, "eos_token_id", None)
        n_ctx = min(model.cfg.n_ctx for model in self._models)
        start, ended = tokens.shape[1], torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for _ in range(min(max_new_tokens, n_ctx - start)):
            logits = cast(Tensor, self(tokens))[:, -1].float().to(tokens.device)
            if temperature > 0:
                following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                following = logits.argmax(-1)
            if end is not None:
                following = torch.where(ended, torch.full_like(following, end), following)
                ended |= following == end
            tokens = torch.cat([tokens, following[:, None]], 1)
            if bool(ended.all()):
                break
        if isinstance(input, Tensor):
            return tokens
        decode = cast(Tokenizer, self.tokenizer).decode
        # Of the whole row, as some tokenizers drop the space that a text starts with.
        said = [decode(row.tolist()).removeprefix(decode(row[:start].tolist())) for row in tokens]
        texts = [input] if isinstance(input, str) else input
        continued = [text + more for text, more in zip(texts, said, strict=True)]
        return continued[0] if isinstance(input, str) else continued

    def _sorted(self, hooks: HookList) -> dict[str, list[tuple[str, HookFn]]]:
        """Hooks by the part they are on, by that part's own names."""
        found: dict[str, list[tuple[str, HookFn]]] = {HEAD: [], TAIL: [], "": []}
        known = list(self.hook_dict)
        for where, hook in hooks:
            names = [where] if isinstance(where, str) else [name for name in known if where(name)]
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"Expected a hook point of the stitched model, got {name!r}; the nearest are "
                        f"{nearest(name, known)}."
                    )
                side = HEAD if name.startswith(HEAD) else TAIL if name.startswith(TAIL) else ""
                found[side].append((name.removeprefix(side), hook))
        return found


def _after(name: str, layer: int) -> bool:
    """Whether a hook point lies after the stream at the end of a layer."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) > layer
    return name.startswith(("ln_final", "unembed"))


_SWITCHED = {
    "hook_mlp_in": "use_hook_mlp_in", "hook_attn_in": "use_attn_in", "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input", "hook_k_input": "use_split_qkv_input", "hook_v_input": "use_split_qkv_input",
}  # fmt: skip


def _runs(model: TransformerLensModel, name: str) -> bool:
    """Whether the model's flags have a hook point on."""
    flag = _SWITCHED.get(name.rsplit(".", 1)[-1])
    return flag is None or bool(getattr(model.cfg, flag, False))


def _place(map: StitchMap, like: Tensor) -> Tensor:
    return next(map.parameters(), like)


def run_head(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    hooked: Sequence[tuple[str, HookFn]] = (),
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """A model's residual stream after each of some layers, as it leaves the user's hooks."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> HookFn:
        def hook(value: Tensor, hook: object) -> None:
            found[layer] = value

        return hook

    ours = [(f"blocks.{layer}.hook_resid_post", keep(layer)) for layer in layers]
    options = without_cache(model)
    if max(layers) + 1 < model.cfg.n_layers:
        options["stop_at_layer"] = max(layers) + 1
    with visiting(model), model.hooks(fwd_hooks=[*hooked, *ours], bwd_hooks=[]):
        model(tokens.to(model.W_U.device), return_type="logits", **options)
    return found


def run_tail(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layer: int,
    stream: Float[Tensor, "batch pos d_model"],
    hooked: Sequence[tuple[str, HookFn]] = (),
) -> Float[Tensor, "batch pos d_vocab"]:
    """A model's logits with `stream` in place of its own residual stream after a layer.

    A HookedTransformer starts there; a TransformerBridge cannot, so that its first layers run to no effect.
    """
    if model_kind(model) == "HookedTransformer" and _kind_of_positions(model) != "shortformer":
        with visiting(model), model.hooks(fwd_hooks=list(hooked), bwd_hooks=[]):
            return model(stream, start_at_layer=layer + 1, return_type="logits")
    replace = (f"blocks.{layer}.hook_resid_post", lambda value, hook: stream)
    with visiting(model), model.hooks(fwd_hooks=[*hooked, replace], bwd_hooks=[]):
        return model(tokens, return_type="logits", **without_cache(model))


def _kind_of_positions(model: TransformerLensModel) -> str:
    return str(getattr(model.cfg, "positional_embedding_type", ""))
