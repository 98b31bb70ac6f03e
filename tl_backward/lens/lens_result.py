"""The result of a Backward Lens: a Readout for each layer and side, the prompt's segments, and the control."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_backward._support.absent import Absent
from tl_backward._support.checks import short
from tl_backward._support.html import Cell, lens_table, visible_token
from tl_backward._support.public import public
from tl_backward._support.saved import Saved, load_saved
from tl_backward._support.shown import Shown
from tl_backward._support.types import DataFrame, Tokenizer
from tl_backward.gradients.cache import GradientCache
from tl_backward.lens.control import NO_CONTROL
from tl_backward.lens.expert_learning import ExpertLearning
from tl_backward.lens.segments import Segments
from tl_backward.lens.summary import Places, alone_at_top, batch_sentence, lens_sentence
from tl_backward.text.token_strings import text_column, token_string, token_strings
from tl_backward.vocabulary.latents import LatentReadout
from tl_backward.vocabulary.readout import RankedReadout

if TYPE_CHECKING:
    import plotly.graph_objects

Quantity: TypeAlias = Literal["norm", "target_rank", "answer_rank"]


Read = TypeVar("Read", bound=Saved)
Key = TypeVar("Key")
Item = TypeVar("Item")


class OfLayers(Saved, dict[int, Read]):
    """Something of each layer that was read; negative layers count from the model's end."""

    def __init__(self, readouts: dict[int, Read], n_layers: int) -> None:
        super().__init__(readouts)
        self._n_layers = n_layers

    def packed(self) -> dict[str, Any]:
        """What to save."""
        return {"readouts": dict(self), "n_layers": self._n_layers}

    def __missing__(self, layer: int) -> Read:
        if isinstance(layer, int) and layer < 0 and layer + self._n_layers in self:
            return self[layer + self._n_layers]
        raise KeyError(f"Expected one of the layers that were read, {list(self)}, got {layer!r}.")


# Each by its own class, since completion at a prompt knows what an item has from the class alone.
class LayerReadouts(OfLayers[RankedReadout]):
    """A readout in words for each layer."""


class LayerLatents(OfLayers[LatentReadout]):
    """A readout in latents for each layer."""


class Held(dict[Key, Item]):
    """Parts of a lens by layer or by name; asked for one that is not there, it says which are, or why none is."""

    def __init__(self, items: Mapping[Key, Item], what: str, none: str) -> None:
        super().__init__(items)
        self._what, self._none = what, none

    def __missing__(self, key: object) -> NoReturn:
        if not self:
            raise KeyError(f"Expected {self._what}, got {key!r} of a lens without any; {self._none}.")
        raise KeyError(f"Expected {self._what} among {', '.join(map(repr, self))}, got {key!r}.")


_NO_MLP, _NO_ATTENTION = "its blocks have no MLP that is read", "pass attention=True to backward_lens"
_PARTS = {
    "imprint": ("a layer that was read", _NO_MLP),
    "shift": ("a layer that was read", _NO_MLP),
    "attn_imprint": ("a layer whose attention was read", _NO_ATTENTION),
    "attn_shift": ("a layer whose attention was read", _NO_ATTENTION),
    "kinds": ("a layer that was read", "read one"),
    "sources": ("a readout", "read a layer"),
    "experts": ("a layer with experts that was read", "its layers have none"),
    "patterns": (
        "a layer whose attention pattern was kept",
        "pass names_filter=tl_backward.render.pattern_names(model) to backward_lens",
    ),
    "latents": ("a readout in latents", "pass basis=... to backward_lens"),
}
"""Fields that hold several things: what each is, and what to do where there is none."""


@public
@dataclass(frozen=True, repr=False, eq=False)
class BackwardLens(Shown):
    """The result of `backward_lens`. For a list of prompts every [pos] below is [batch, pos].

    Read it at `answer_position`: a target of several tokens is appended to the prompt, and a batch is padded, so that
    [-1] need not be the prompt's last token.

    Attributes:
        loss: -log p(target | prompt) in nats.
        tokens: the tokens as strings; token_ids, mask: their ids, and which are real.
        target: the (first) target token. answer: the model's own before any edit.
        answer_position: index of the token at which the target is asked for: the prompt's last, or its mask.
        imprint: layer -> Readout of W_in's inputs. shift: layer -> Readout of W_out's VJPs, raw sign.
        attn_imprint, attn_shift: the same for W_V and W_O, with `attention=True`.
        segments: which tokens are first, subject, last, other, target.
        latents: with a basis, the same vectors in its latents: `latents["shift"][3]`.
        cache: the factors of the weights that were read (and of W_gate).
        control: the same lens on an untrained model, the first random draw. controls: of all draws.
    """

    _report = "lens_report"

    loss: Float[Tensor, ""]
    """-log p(target | prompt) in nats; summed over the examples of a batch, so that each has its own gradient."""
    tokens: list[str] | list[list[str]]
    """The tokens as strings, BOS and teacher-forced target tokens included; "" at padding."""
    token_ids: Int[Tensor, "*batch pos"]
    """Their ids."""
    mask: Bool[Tensor, "*batch pos"]
    """True at real tokens."""
    target: str | list[str]
    """The (first) target token."""
    answer: str | list[str]
    """The model's own answer before any edit: its most likely next token (or the one that was given)."""
    answer_position: Int[Tensor, "*batch"]
    """Index of the token at which the (first) target token is asked for: the prompt's last, or its mask."""
    imprint: dict[int, RankedReadout]
    """Per layer, the inputs x_i of W_in (and of W_gate, which reads the same) in words: [pos]; of experts or a mixer
    what the block reads of the stream."""
    shift: dict[int, RankedReadout]
    """Per layer, the VJPs delta_i of W_out in words, raw sign: [pos]; of experts or a mixer those of what it writes."""
    attn_imprint: dict[int, RankedReadout]
    """Per layer, the inputs of W_V: [pos]; empty unless `attention=True`. Averaged over heads that have their own."""
    attn_shift: dict[int, RankedReadout]
    """Per layer, the VJPs of W_O, raw sign: [pos]; empty unless `attention=True`. Averaged likewise."""
    segments: Segments
    """Which tokens are first, subject, last and other."""
    cache: GradientCache
    """The factors themselves (`cache.factors["W_gate", 3].token_norms()`), and gradients at hook points if kept."""
    kinds: dict[int, str] = field(default_factory=dict)
    """What each layer that was read is made of: "attention, MLP", "attention, experts", "mixer"."""
    sources: dict[str, dict[int, str]] = field(default_factory=dict)
    """Per readout and layer, what was read, by name: the weight whose inputs or VJPs they are ("blocks.3.mlp.W_in"), or
    the hook point of the gradient where several weights write together ("blocks.3.mlp.hook_out")."""
    experts: dict[int, ExpertLearning] = field(default_factory=dict)
    """Per layer with experts, which of them would learn: tokens, routing weights, shares of the gradient."""
    patterns: dict[int, Tensor] = field(default_factory=dict)
    """Per layer, attention [*batch, head, query, key], where `names_filter` keeps the gradients at `hook_pattern`."""
    latents: dict[str, dict[int, LatentReadout]] = field(default_factory=dict)
    """With a basis, per readout and layer, the same vectors in its latents, each [pos]: imprints along what latents
    read (left out where the basis has no encoder), shifts along what they write, raw sign."""
    control: "BackwardLens | Absent" = NO_CONTROL
    """The same lens on the same architecture with fresh weights, its answer rank being that of the trained answer;
    false where there is none."""
    controls: tuple["BackwardLens", ...] = ()
    """The same for each draw of fresh weights, `control` being the first."""

    def __post_init__(self) -> None:
        """Let what is asked for and not there be said in a sentence."""
        for name, words in _PARTS.items():
            held = getattr(self, name)
            if name in ("sources", "latents"):
                held = {
                    of: each if isinstance(each, OfLayers) else Held(each, "a layer that was read", "read one")
                    for of, each in held.items()
                }
            if not isinstance(held, OfLayers):
                object.__setattr__(self, name, Held(held, *words))

    @property
    def layers(self) -> list[int]:
        """The layers that were read."""
        return list(self.shift or self.attn_shift)

    @property
    def is_batch(self) -> bool:
        """Whether a list of prompts was given."""
        return self.token_ids.ndim == 2

    def __repr__(self) -> str:
        prompts = f"{self.token_ids.shape[0]} prompts" if self.is_batch else f"{self.token_ids.shape[0]} tokens"
        return (
            f"BackwardLens({prompts}, layers={self.layers}, target={self.whole_target!r}, answer={self.answer!r}, "
            f"loss={self.loss.item():.4g}" + (f"; {short})" if (short := self.cache.left_out()) else ")")
        )

    @property
    def whole_target(self) -> str | list[str]:
        """The target, or targets, with all their tokens."""
        tokenizer = next(iter(next(iter(self.readouts().values())).values())).tokenizer
        rows = getattr(self.cache.bound, "ids", None)
        if not rows or max(map(len, rows)) == 1:
            return self.target
        whole = ["".join(token_string(tokenizer, token) for token in row) for row in rows]
        return whole if self.is_batch else whole[0]

    @property
    def of(self) -> str:
        """Name of the main readout: the MLPs' shift, or attention's where there are no MLPs."""
        return "shift" if self.shift else "attn_shift"

    def summary(self, example: int | None = None) -> str:
        """In one sentence: where a step writes the target and pushes the old answer down, and what the control does.

        A word counts as written where it is alone at the very bottom of the raw shift at `answer_position`, as pushed
        down most where it is alone at the very top. Untrained networks are compared with from five draws on.

        Args:
            example: which prompt of a batch; None for all of them in numbers.

        Raises:
            IndexError: a batch without that example.
        """
        n = len(self.token_ids) if self.is_batch else 1
        if example is not None and not 0 <= example < n:
            raise IndexError(f"Expected an example in [0, {n}), got {example}; the lens has {n} prompts.")
        layers = list(self.readouts()[self.of])
        own, draws = self._places(), [each._places() for each in self.controls]
        targets, answers = ([each] if isinstance(each, str) else each for each in (self.target, self.answer))
        if self.is_batch and example is None:
            differs = torch.tensor([new != old for new, old in zip(targets, answers, strict=True)])
            return batch_sentence(layers, own, draws, differs)
        row = example or 0
        whole = self.whole_target if isinstance(self.whole_target, str) else self.whole_target[row]
        return lens_sentence(targets[row], answers[row], layers, own[row], [each[row] for each in draws], whole=whole)

    def _places(self) -> Places:
        """Where the target and the old answer stand at the token asked at, in the main readout."""
        asked = self.answer_position.reshape(-1)
        prompts = torch.arange(len(asked), device=asked.device)
        reads = list(self.readouts()[self.of].values())

        def at(values: Tensor) -> Tensor:  # [layer, *batch, pos, ...] -> [prompt, layer, ...]
            rows = values if self.is_batch else values[:, None]
            return rows[:, prompts, asked].transpose(0, 1).cpu()

        target, answer = at(self.stacked("target_rank", self.of)), at(self.stacked("answer_rank", self.of))
        alone = alone_at_top(
            *(torch.stack([getattr(r, name) for r in reads]) for name in ("top_values", "bottom_values"))
        )
        return Places(target, answer, at(alone), reads[0].d_vocab)

    def readouts(self) -> dict[str, dict[int, RankedReadout]]:
        """The readouts by name: "imprint", "shift", "attn_imprint", "attn_shift", where present."""
        names = ("imprint", "shift", "attn_imprint", "attn_shift")
        return Held({name: getattr(self, name) for name in names if getattr(self, name)}, "a readout", "read a layer")

    def stacked(self, quantity: Quantity, of: str = "shift") -> Float[Tensor, "layer *batch pos"]:
        """One quantity of one readout for all layers, as a tensor; ranks of zero vectors are NaN."""
        if quantity not in get_args(Quantity) or of not in self.readouts():
            raise ValueError(
                f"Expected one of {get_args(Quantity)} of one of {tuple(self.readouts())}, got {quantity!r} of {of!r}."
            )
        values = torch.stack([getattr(read, quantity) for read in self.readouts()[of].values()]).float()
        return values if quantity == "norm" else values.masked_fill(values < 0, float("nan"))

    def to_frame(self) -> DataFrame:
        """One row a readout, layer, example and real token: segment, norm, ranks, top and bottom tokens.

        Where blocks have experts, one row more for each of them (`readout` "experts"), as `lens.experts[layer]` has it.
        """
        import pandas

        rows = [self.token_frame()]
        for layer, learning in self.experts.items():
            frame = learning.to_frame().assign(readout="experts", layer=layer)
            rows.append(frame.reindex(columns=["readout", "layer", *frame.columns[:-2]]))
        return rows[0] if len(rows) == 1 else pandas.concat(rows, ignore_index=True)

    def token_frame(self) -> DataFrame:
        """The rows of `to_frame` without padding."""
        import pandas

        rows, real = [], self.mask.flatten().tolist()
        places = list(
            product(range(self.token_ids.numel() // self.token_ids.shape[-1]), range(self.token_ids.shape[-1]))
        )
        for of, layers in self.readouts().items():
            for layer, read in layers.items():
                of_token = {
                    "readout": of,
                    "layer": layer,
                    "example": [example for example, _ in places],
                    "pos": [pos for _, pos in places],
                    "token": text_column(token_strings(read.tokenizer, self.token_ids.flatten())),
                    "segment": [name for row in self.segments.labels() for name in row],
                }
                rows.append(pandas.DataFrame(of_token).join(read.to_frame().reset_index(drop=True))[real])
        return pandas.concat(rows, ignore_index=True)

    def segment_means(self, quantity: Quantity = "norm", of: str = "shift") -> DataFrame:
        """Mean over prompts and tokens of each segment: one row a layer and segment, with the number of tokens.

        Ranks of zero vectors are left out. With a control, its means over the draws stand beside
        in the column `control`.
        """
        import pandas

        rows = []
        values = self.stacked(quantity, of)
        draws = [each.stacked(quantity, of) for each in self.controls or ([self.control] if self.control else [])]
        for index, layer in enumerate(self.readouts()[of]):
            for segment, where in self.segments.masks().items():
                where = where.reshape(values.shape[1:])
                known = values[index][where & ~values[index].isnan()]
                row = {"layer": layer, "segment": segment, "n": len(known), "mean": known.mean().item()}
                means = [float(draw[index][where].nanmean()) for draw in draws]
                beside = {"control": sum(means) / len(means)} if means else {}
                rows.append(row | beside)
        return pandas.DataFrame(rows)

    def plot(self, of: str = "shift", *, example: int = 0) -> "plotly.graph_objects.Figure":
        """The ranks of the target and of the old answer by layer, where the answer is asked for, as a plotly figure.

        A control's curves are drawn beside. In a shift, rank 0 is what a descent step moves away from, and the last
        rank what it moves toward.
        """
        return rank_figure(self, of, example)

    def _repr_html_(self) -> str:
        """Static tables of the first prompt: imprint and shift, layers x tokens."""
        dense = all(not kind or kind.endswith("MLP") for kind in self.kinds.values())
        reads, writes = (
            ("inputs of W_in", "VJPs of W_out")
            if dense
            else ("what each block reads of the stream", "VJPs of what each block writes to it")
        )
        titles = {
            "imprint": f"Imprint: {reads}, top token (below it the bottom one)",
            "shift": f"Shift: {writes}, raw gradient, BOTTOM token (below it the top one); a step subtracts it",
            "attn_imprint": "Imprint: inputs of W_V, top token (below it the bottom one)",
            "attn_shift": "Shift: VJPs of W_O, raw gradient, BOTTOM token (below it the top one)",
        }
        tables = [self.table(of, caption=title) for of, title in titles.items() if of in self.readouts()]
        return "".join([*tables, *(learning._repr_html_() for learning in self.experts.values())])

    def check_shown(self, of: str, example: int) -> None:
        """Refuse a readout or an example that there is not.

        Raises:
            ValueError: no such readout.
            IndexError: no such example.
        """
        n = self.token_ids.shape[0] if self.is_batch else 1
        if of not in self.readouts():
            raise ValueError(f"Expected a readout among {', '.join(self.readouts())}, got {short(of)}.")
        if not -n <= example < n:
            raise IndexError(f"Expected an example in [-{n}, {n}), got {example}.")

    def table(self, of: str = "shift", *, example: int = 0, caption: str = "") -> str:
        """A static HTML table of one readout, layers x tokens; the full lists on hover.

        An imprint's cell shows its top token, a shift's its BOTTOM one (what a descent step moves toward), with the
        other end below. VJPs are coloured by their norm; the token asked at and the two words have frames.
        """
        towards = of.endswith("shift")
        self.check_shown(of, example)
        layers, real = self.readouts()[of], self.mask.reshape(-1, self.mask.shape[-1])[example]
        places, tokens = real.nonzero().flatten().tolist(), self.tokens[example] if self.is_batch else self.tokens
        reads = (read[example] if self.is_batch else read for read in layers.values())
        targets, answers = ([each] if isinstance(each, str) else each for each in (self.target, self.answer))
        words = {targets[example], answers[example]}
        cells = [[_cell(read[place], towards, words) for place in places] for read in reads]
        asked = places.index(int(self.answer_position.reshape(-1)[example]))
        label = "|\u03b4\u1d62|, VJP norm (loss in nats per unit of output)" if towards else ""
        differ = len(set(self.kinds.values())) > 1
        rows = [f"layer {layer}" + (f" ({self.kinds[layer]})" if differ else "") for layer in layers]
        columns = [str(tokens[place]) for place in places]
        return lens_table(rows, columns, cells, value_label=label, caption=caption, marked=asked)


@dataclass(frozen=True, repr=False, eq=False)
class ControlledLens(BackwardLens):
    """A Backward Lens with its control, the same lens of an untrained model."""

    control: BackwardLens = field(kw_only=True)


def rank_figure(lens: BackwardLens, of: str, example: int) -> "plotly.graph_objects.Figure":
    """See `BackwardLens.plot`."""
    render = import_module("tl_backward.render")  # a room above
    lens.check_shown(of, example)
    target, answer = (words if isinstance(words, str) else words[example] for words in (lens.target, lens.answer))
    words: dict[Quantity, str] = {
        "target_rank": f"target {visible_token(target)}",
        "answer_rank": f"old answer {visible_token(answer)}",
    }
    layers, at = list(lens.readouts()[of]), lens.answer_position.reshape(-1)[example]
    lines = []
    sides = {"": lens} | ({", untrained control": lens.control} if lens.control else {})
    for beside, side in sides.items():
        for quantity, word in words.items():
            ranks = side.stacked(quantity, of).reshape(len(layers), -1, side.token_ids.shape[-1])[:, example, at]
            lines.append(render.Curve(f"{word}{beside}", ranks.tolist(), control_of=word if beside else None))
    names = {"x_title": "layer", "y_title": "rank (0 = largest logit)"}
    return render.curves(lines, title=f"Ranks in the {of}, by layer", **names, x=layers, reverse_y=True)


def _cell(read: RankedReadout, towards_target: bool, words: Container[str]) -> Cell:
    """The table cell of one layer and token: its tokens, ranks and norm; one of `words` in it is marked."""
    if bool(read.is_zero):
        return Cell("—", title=("exactly zero: the loss does not depend on it",))
    top, bottom = read.top_tokens, read.bottom_tokens
    text, sub = (bottom[0], top[0]) if towards_target else (top[0], bottom[0])
    ranks = [("target", read.target_rank), ("answer", read.answer_rank)]
    title = (
        f"norm {read.norm.item():.4g}",
        *(f"{name} rank {int(rank)} of {read.d_vocab}" for name, rank in ranks),
        "top: " + ", ".join(map(visible_token, top)),
        "bottom: " + ", ".join(map(visible_token, bottom)),
    )
    # Inputs are what a norm let through, all of one length: colour would say nothing.
    value = read.norm.item() if towards_target else None
    return Cell(text, sub=sub, title=title, value=value, marked=text in words)


def load_lens(path: str | Path, *, tokenizer: Tokenizer | None = None) -> BackwardLens:
    """Read what `BackwardLens.save` wrote, on the CPU; `tokenizer` (`model.tokenizer`) puts its tokens in words.

    Raises:
        ValueError: no such file, a damaged one, or another result's.

    Examples:
        >>> _ = tlb.backward_lens(model, "Anna Berg lives in the city of", " Oslo").save("anna.safetensors")
        >>> lens = tlb.load_lens("anna.safetensors", tokenizer=model.tokenizer)
        >>> lens.shift[3].bottom_tokens[-1][0]
        ' Oslo'
    """
    return load_saved(path, BackwardLens, tokenizer=tokenizer)
