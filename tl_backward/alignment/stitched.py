"""StitchedModel: the first layers of one model, a map, and the last layers of another, run and hooked like a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_backward._support.checks import nearest
from tl_backward._support.types import HookFn, NamesFilter, Prompts, Tokenizer, TransformerLensModel
from tl_backward.model.partial import end_of, logits_after, streams_after
from tl_backward.text.prompts import Batch, encode_prompts

HookList: TypeAlias = Sequence[tuple[str | Callable[[str], bool], HookFn]]

HEAD, TAIL = "head.", "tail."


class StitchedModel(nn.Module):
    """A runs up to the end of `layer_a`, the map carries its residual stream over, B runs from block `layer_b` + 1 on.

    A layer is the index of its block and stands for the stream at its end, -1 for the embedding: `layer_a` = n - 1
    where n blocks of A run (`cut_a`), and the first block of B that runs is number `layer_b` + 1 (`cut_b`). So
    `zero_shot_stitch(a, 2, b, 2)`, which counts blocks, joins what `stitch(a, 1, b, 1)`, which names layers, joins.

    Call it as a model: prompts or tokens of A's vocabulary -> logits over B's. Hook points are those of the parts that
    count, "head.blocks.0.hook_resid_post", "tail.ln_final.hook_normalized", and the map's own "hook_stitch_in" and
    "hook_stitch_out"; `hooks`, `run_with_hooks` and `run_with_cache` take them as TransformerLens's do, and hooks that
    were put on A's or B's layers that take part work too. Gradients flow through both. The map alone is a submodule:
    `parameters()` are the map's, and `.train()` or `.to()` leave A and B as they are.
    """

    def __init__(
        self,
        model_a: TransformerLensModel,
        layer_a: int,
        model_b: TransformerLensModel,
        layer_b: int,
        map: nn.Module,
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
        n_layers = self.model_b.cfg.n_layers
        first = f"blocks 0-{self.layer_a} of A" if self.cut_a else "A's embedding"
        last = f"blocks {self.cut_b}-{n_layers - 1} of B" if self.cut_b < n_layers else "B's unembedding"
        return f"StitchedModel({first}, {self.map}, {last})"

    @property
    def model_a(self) -> TransformerLensModel:
        """Embedding and first layers."""
        return self._models[0]

    @property
    def model_b(self) -> TransformerLensModel:
        """Last layers and unembedding."""
        return self._models[1]

    @property
    def cut_a(self) -> int:
        """How many blocks of A run."""
        return self.layer_a + 1

    @property
    def cut_b(self) -> int:
        """The first block of B that runs."""
        return self.layer_b + 1

    @property
    def kernel(self) -> Float[Tensor, "d_model_a d_model_b"] | None:
        """W of the map xW from A's residual stream to B's; None for the identity."""
        return cast(Tensor | None, self.map.weight)

    @property
    def cfg(self) -> object:
        """Model B's configuration."""
        return self.model_b.cfg

    @property
    def tokenizer(self) -> object:
        """Model B's tokenizer."""
        return self.model_b.tokenizer

    def to_tokens(self, input: str | list[str], prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Token ids of text, by model A's tokenizer."""
        return self.encode(input, prepend_bos=prepend_bos).tokens

    def encode(self, prompts: Prompts, *, prepend_bos: bool | None = None) -> Batch:
        """Prompts as tokens of A, which B must have room for; several texts are padded, and the padding masked.

        Raises:
            ValueError: more tokens than either model takes.
        """
        batch = encode_prompts(self.model_a, prompts, prepend_bos=prepend_bos)
        if batch.tokens.shape[1] > self.model_b.cfg.n_ctx:
            raise ValueError(
                f"Expected at most n_ctx={self.model_b.cfg.n_ctx} tokens (model B's), got {batch.tokens.shape[1]}; "
                "shorten the prompt."
            )
        return batch

    @property
    def hook_dict(self) -> Mapping[str, nn.Module]:
        """Every hook point whose activation the output depends on."""
        a, b = self._models
        last = end_of(self.layer_a)
        head = {HEAD + n: p for n, p in a.hook_dict.items() if n == last or not _after(n, self.layer_a) and _runs(a, n)}
        tail = {TAIL + n: p for n, p in b.hook_dict.items() if _after(n, self.layer_b) and _runs(b, n)}
        return head | {"hook_stitch_in": self.hook_stitch_in, "hook_stitch_out": self.hook_stitch_out} | tail

    def forward(
        self, input: Prompts, *, prepend_bos: bool | None = None, return_type: str | None = "logits"
    ) -> Tensor | None:
        """Logits [batch, pos, d_vocab], or with return_type="loss" the mean next-token cross-entropy in nats."""
        if return_type not in ("logits", "loss", None):
            raise ValueError(f"Expected return_type 'logits', 'loss' or None, got {return_type!r}; choose one of them.")
        batch = self.encode(input, prepend_bos=prepend_bos)
        logits = self.tail(batch.tokens, self.head(batch.tokens, batch.mask), batch.mask)
        if return_type == "loss":
            real = (batch.real[:, 1:] & batch.real[:, :-1]).to(logits.device)
            return nn.functional.cross_entropy(logits[:, :-1][real], batch.tokens[:, 1:].to(logits.device)[real])
        return logits if return_type == "logits" else None

    def head(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_in"]:
        """A's residual stream after `layer_a`."""
        layer = self.layer_a
        return streams_after(self.model_a, tokens, [layer], mask=mask, hooks=self._hooked[HEAD])[layer]

    def translated(self, batch: Batch) -> Float[Tensor, "batch pos d_out"]:
        """A's residual stream after `layer_a`, mapped into B's."""
        return self._mapped(self.head(batch.tokens, batch.mask))

    def _mapped(self, residual: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_out"]:
        """The map applied to A's residual stream, on B's device and in B's dtype."""
        like = next(self.map.parameters(), residual)
        return self.hook_stitch_out(self.map(self.hook_stitch_in(residual.to(like)))).to(self.model_b.W_U)

    def tail(
        self,
        tokens: Int[Tensor, "batch pos"],
        residual: Float[Tensor, "batch pos d_in"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """B's logits when the map of `residual` stands in its stream after `layer_b`."""
        stream, hooks = self._mapped(residual), self._hooked[TAIL]
        return logits_after(self.model_b, tokens, self.layer_b, stream, mask=mask, hooks=hooks)

    @contextmanager
    def hooks(self, fwd_hooks: HookList = (), bwd_hooks: HookList = ()) -> Iterator["StitchedModel"]:
        """Hooks on any of `hook_dict`'s points within the context, as TransformerLens's `model.hooks`.

        Raises:
            ValueError: an unknown name; the nearest are named.
        """
        forward, backward = self._sorted(fwd_hooks), self._sorted(bwd_hooks)
        # The stream leaves A's last hook point before torch's backward hooks see it: hook_stitch_in is the same tensor.
        last = self.model_a.hook_dict[end_of(self.layer_a)]
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
        self, input: Prompts, *, fwd_hooks: HookList = (), bwd_hooks: HookList = (), return_type: str | None = "logits"
    ) -> Tensor | None:
        """One pass with hooks, which are gone after it (backward ones too: use `hooks` around a backward pass)."""
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(input, return_type=return_type)

    def run_with_cache(
        self, input: Prompts, *, names_filter: NamesFilter = None, return_type: str | None = "logits"
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(output, activations by name) of one pass, detached."""
        cache: dict[str, Tensor] = {}

        def keep(name: str) -> HookFn:
            def hook(value: Tensor, hook: object) -> None:
                cache[name] = value.detach()

            return hook

        chosen = [names_filter] if isinstance(names_filter, str) else names_filter
        if chosen is None or callable(chosen):
            chosen = [name for name in self.hook_dict if chosen is None or chosen(name)]
        with self.hooks([(name, keep(name)) for name in chosen]):
            return self(input, return_type=return_type), cache

    @torch.no_grad()
    def generate(
        self, input: Prompts, *, max_new_tokens: int = 20, temperature: float = 0.0, seed: int = 0
    ) -> str | list[str] | Int[Tensor, "batch longer"]:
        """Continue text or tokens, greedily, or with a temperature above 0 by draws from a generator of their own.

        Gives back what it was given, continued: text, a list of texts (of one length in tokens), or tokens. A row that
        said the end-of-text token is filled with it.

        Raises:
            ValueError: texts of different lengths.
        """
        batch = self.encode(input)
        if batch.mask is not None and len(lengths := {len(row) for row in batch.rows()}) > 1:
            raise ValueError(
                f"Expected texts of one length in tokens, got {sorted(lengths)}; continue them one at a time."
            )
        tokens = batch.tokens
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
        texts = [input] if isinstance(input, str) else input
        if not isinstance(texts, list | tuple) or not isinstance(texts[0], str):
            return tokens
        decode = cast(Tokenizer, self.tokenizer).decode
        # Of the whole row, as some tokenizers drop the space that a text starts with.
        said = [decode(row.tolist()).removeprefix(decode(row[:start].tolist())) for row in tokens]
        if isinstance(input, str):
            return input + said[0]
        return [str(text) + more for text, more in zip(texts, said, strict=True)]

    def _sorted(self, hooks: HookList) -> dict[str, list[tuple[str, HookFn]]]:
        """Part (HEAD, TAIL or "" for the map) -> its hooks, each with the part's own name of the hook point."""
        by_part: dict[str, list[tuple[str, HookFn]]] = {HEAD: [], TAIL: [], "": []}
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
                by_part[side].append((name.removeprefix(side), hook))
        return by_part


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
