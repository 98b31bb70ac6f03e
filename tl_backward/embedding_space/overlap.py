"""Whether vectors that should name the same tokens do (Dar et al. 2022, sec. 4).

The two vectors of a neuron, or of a head's component; the parameters that a text activates most, and its hidden state.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_backward._support.checks import check_head, check_layers, short
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import table, visible_token
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import DRAWS_NEEDED, count_text, differs, percent
from tl_backward._support.types import DataFrame, Prompts, TransformerLensModel, typed
from tl_backward.embedding_space.options import OLD_KEYWORDS, VectorOptions
from tl_backward.embedding_space.projection import check_choice, top_tokens
from tl_backward.embedding_space.vectors import (
    PAIRED_WEIGHTS,
    Embedding,
    PairKind,
    ParameterVectors,
    pair_name,
    parameter_vectors,
    per_query_head,
    query_heads,
)
from tl_backward.model.checks import model_kind
from tl_backward.model.head import Head
from tl_backward.model.torch_hooks import register_last
from tl_backward.text.prompts import Batch, encode_prompts, forward
from tl_backward.text.token_strings import text_column, token_strings
from tl_backward.vocabulary.extremes import extremes
from tl_backward.weights import weight_sites
from tl_backward.weights.rows import weight_inputs

_READ_BY = {"W_in": "mlp.W_out", "W_gate": "mlp.W_out", "W_out": "mlp.W_out", "W_V": "attn.W_O", "W_O": "attn.W_O"}
"""The weight whose input holds the activations of each weight's vectors."""


@dataclass(frozen=True, repr=False, eq=False)
class RelatedPairs(Saved):
    """Jaccard indices |A & B| / |A | B| of the top-k token sets of pairs of vectors, beside two controls."""

    weights: tuple[str, str]
    """Full names of the two weights."""
    k: int
    heads: Int[Tensor, " pair"] | None
    """The head of each pair; None for neurons."""
    index: Int[Tensor, " pair"]
    """The neuron, or the component of d_head."""
    aligned: Float[Tensor, " pair"]
    """Of the two vectors that belong together; 0 where one is exactly zero."""
    shuffled: Float[Tensor, " pair"]
    """Of the first vector and the second one of another pair, drawn at random."""
    gaussian: Float[Tensor, " pair"]
    """Of two independent Gaussian vectors through the same embedding: W_U alone makes tokens go together."""

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {float(getattr(self, name).mean()):.4f}" for name in _CONDITIONS)
        what = "neurons of an MLP" if self.heads is None else "pairs of an attention's heads"
        return f"RelatedPairs({len(self.index)} {what}, {self.weights[0]} and {self.weights[1]}, k={self.k}: {means})"

    def summary(self) -> str:
        """In one sentence: how many top tokens the pairs share, beside pairs drawn at random."""
        own, drawn = self.aligned.double(), self.shuffled.double()
        shares = [f"{100 * float(getattr(self, name).mean()):.2g} %" for name in _CONDITIONS]
        first = (
            f"{count_text(len(own), 'pair')} of vectors of {' and '.join(self.weights)} share {shares[0]} of their top "
            f"{self.k} tokens, pairs drawn at random {shares[1]}, Gaussian vectors {shares[2]}"
        )
        if len(own) < DRAWS_NEEDED:
            return f"{first}; so few pairs cannot tell them apart."
        clear = differs((own - drawn).tolist())  # each pair beside its own random one
        return f"{first}{'' if clear else ': no clear difference'}."

    def means(self) -> DataFrame:
        """For aligned, shuffled and gaussian: mean, its standard error, median and largest."""
        import pandas

        rows = {}
        for name in _CONDITIONS:
            values = getattr(self, name)
            rows[name] = {
                "mean": float(values.mean()),
                "standard error": float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"),
                "median": float(values.quantile(0.5)),
                "largest": float(values.max()),
            }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_frame(self) -> DataFrame:
        """One row a pair: head (where there are), index, aligned, shuffled, gaussian."""
        import pandas

        columns = {} if self.heads is None else {"head": self.heads.tolist()}
        columns["index"] = self.index.tolist()
        return pandas.DataFrame(columns | {name: getattr(self, name).tolist() for name in _CONDITIONS})

    def _repr_html_(self) -> str:
        """A static table of the means."""
        summary = self.means()
        caption = f"{' and '.join(self.weights)}: Jaccard index of the top {self.k} tokens, {len(self.index)} pairs"
        return table(list(summary), summary.to_numpy().tolist(), row_names=list(summary.index), caption=caption)


_CONDITIONS = ("aligned", "shuffled", "gaussian")


@public
@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
@typed
def related_pairs(
    model: TransformerLensModel,
    kind: PairKind | Literal["OV"],
    layer: int,
    *,
    head: int | None = None,
    k: int = 100,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> RelatedPairs:
    """Compare the top-k tokens of vectors that belong together by construction.

    Of an MLP, "KV": a neuron's key (W_in) and value (W_out); "GV": its gate (W_gate) and value. Of an attention, "VO"
    (or "OV") and "QK": the same component of a head's W_V and W_O, or W_Q and W_K, whose keys are not those of "KV". A
    shuffled pairing alone misleads as a control: W_U is clustered, so that any two vectors share tokens. Gaussian
    vectors show how many.

    Args:
        model: a HookedTransformer or TransformerBridge.
        kind: see above.
        layer: the block; negative counts from the end.
        head: one attention head; None for all. In grouped-query attention the shared W_K and W_V pair with every head.
        k: size of the token sets.
        vector_options: how vectors are read in words.
        seed: of the shuffle and the Gaussian vectors; the global RNG is left alone.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: an unknown kind, a layer without these weights, k larger than the number of tokens left.
        IndexError: a layer or head out of range.

    Examples:
        >>> r = tlb.embedding_space.related_pairs(model, "KV", 2, seed=0)
        >>> bool(r.to_frame()["aligned"].mean() > r.to_frame()["shuffled"].mean())
        True
    """
    kind = pair_name(kind)
    if kind not in get_args(PairKind):
        raise ValueError(
            "Expected kind to be KV or GV (what a neuron of an MLP reads and writes), VO or QK (of an attention head), "
            f"got {short(kind)}."
        )
    sides = [per_query_head(model, parameter_vectors(model, weight, layer)) for weight in PAIRED_WEIGHTS[kind]]
    if head is not None:
        sides = [_of_head(model, side, head) for side in sides]
    with torch.no_grad():
        embedding = Embedding.of(model, vector_options.inverse, vector_options.fold_ln)
        mask = vector_options.mask(model)
        vectors = [embedding.prepared(side) for side in sides]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(vectors[0]), generator=generator)
        noise = embedding.folded(torch.randn(2, *vectors[0].shape, generator=generator).to(vectors[0]))
        first, second, *controls = (
            top_tokens(embedding, side, k, mask, show_progress=show_progress).top[1] for side in (*vectors, *noise)
        )
        return RelatedPairs(
            weights=(sides[0].name, sides[1].name),
            k=k,
            heads=sides[0].heads,
            index=sides[0].index,
            aligned=jaccard(first, second),
            shuffled=jaccard(first, second[order.to(second.device)]),
            gaussian=jaccard(*controls),
        )


def _of_head(model: TransformerLensModel, side: ParameterVectors, head: int) -> ParameterVectors:
    """The vectors of one head."""
    if side.heads is None:
        raise ValueError(
            f"Expected no head for {side.name!r} of an MLP, whose pairs are neurons, got head={head}; leave it out, or "
            "ask for a head's VO or QK."
        )
    chosen = side.heads == check_head(head, query_heads(model, side.name))
    vectors = side.vectors[chosen.to(side.vectors.device)]
    return replace(side, vectors=vectors, heads=side.heads[chosen], index=side.index[chosen])


def jaccard(first: Int[Tensor, "n k"], second: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """|A & B| / |A | B| of sets of ids, row by row; ids of -1 are in no set."""
    both = torch.cat([first, second], dim=1).sort(dim=1).values
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(1) * (first >= 0).any(1) * (second >= 0).any(1)
    size = (first >= 0).sum(1) + (second >= 0).sum(1)
    return shared / (size - shared).clamp(min=1)


@dataclass(frozen=True, repr=False, eq=False)
class ActivationOverlap(Saved):
    """R_k of every token, aligned and shuffled; `place` runs over the real tokens of all prompts."""

    weight: str
    """The weight's full name."""
    k: int
    """Top tokens taken of each parameter vector."""
    k_state: int
    """Top tokens taken of each hidden state."""
    n_vectors: int
    """Parameter vectors taken at each token."""
    places: Int[Tensor, "place 2"]
    """Example and position of each token."""
    tokens: list[str]
    """The tokens."""
    aligned: Float[Tensor, " place"]
    """Share of the hidden state's top tokens that the token's own most activated vectors name too."""
    shuffled: Float[Tensor, " place"]
    """The same with the vectors activated at another token, drawn at random."""

    def __repr__(self) -> str:
        means = f"aligned {float(self.aligned.mean()):.4f}, shuffled {float(self.shuffled.mean()):.4f}"
        return f"ActivationOverlap({self.weight!r}, {len(self.tokens)} tokens, k={self.k}: {means})"

    def summary(self) -> str:
        """In one sentence: how many of a state's words its own vectors name, beside those of another token."""
        if not self.tokens:
            return "No token was asked about."
        own, drawn = self.aligned.double(), self.shuffled.double()
        first = (
            f"Of the top {self.k_state} tokens of a hidden state, {percent(float(own.mean()))} are named by its own "
            f"most activated vectors of {self.weight}, {percent(float(drawn.mean()))} by those of another token"
        )
        clear = differs((own - drawn).tolist())
        return f"{first} ({count_text(len(own), 'token')}{'' if clear else ': no clear difference'})."

    def to_frame(self) -> DataFrame:
        """One row a token: example, position, token, aligned, shuffled."""
        import pandas

        examples, positions = self.places.unbind(1)
        columns = {"example": examples.tolist(), "position": positions.tolist(), "token": text_column(self.tokens)}
        return pandas.DataFrame(columns | {"aligned": self.aligned.tolist(), "shuffled": self.shuffled.tolist()})

    def _repr_html_(self) -> str:
        """A static table: the means, then the first tokens."""
        rows = [
            [f"{example}, {position}", visible_token(token), *scores]
            for example, position, token, *scores in self.to_frame().head(20).itertuples(index=False)
        ]
        means = ["all", "", float(self.aligned.mean()), float(self.shuffled.mean())]
        caption = f"{self!r}: share of the hidden state's top {self.k_state} tokens"
        return table(["place", "token", "aligned", "shuffled"], [means, *rows], caption=caption)


@public
@old_keywords(OLD_KEYWORDS, vector_options=VectorOptions)
@typed
def parameter_activation_overlap(
    model: TransformerLensModel,
    prompts: Prompts,
    weight: str,
    layer: int,
    *,
    k: int = 15,
    k_state: int = 3,
    n_vectors: int = 5,
    vector_options: VectorOptions = VectorOptions(),
    seed: int = 0,
    show_progress: bool = True,
) -> ActivationOverlap:
    """Score how many of a hidden state's top tokens its most activated parameter vectors name.

    At each token, I is the union of the top-k tokens of the `n_vectors` vectors x_j of the weight with the largest
    activations there, and R_k = |top_{k_state}(h) & I| / k_state, where h is the hidden state after the layer, read
    through the model's final norm. The defaults are those of the paper's code. The control pairs each hidden state
    with the vectors activated at a random token of the same prompts.

    The activation of a neuron (W_in, W_gate, W_out) is what W_out multiplies; that of a head's component (W_V, W_O)
    what W_O multiplies. The model runs once, without gradients; the user's hooks take part, as in any forward pass.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: text, texts, or tokens [batch, pos].
        weight: "W_in", "W_gate", "W_out", "W_V" or "W_O".
        layer: the block; negative counts from the end.
        k: top tokens of each parameter vector.
        k_state: top tokens of each hidden state.
        n_vectors: vectors at each token.
        vector_options: how vectors are read in words; its tokens and filters count for the hidden state too.
        seed: of the shuffle; the global RNG is left alone.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: a weight without activations of this kind, k larger than the number of tokens left, more vectors
            than there are.
        IndexError: a layer out of range.

    Examples:
        >>> texts = ["Anna Berg lives in the city of", "The pet of Anna Berg is a"]
        >>> o = tlb.embedding_space.parameter_activation_overlap(model, texts, "W_out", 2)
        >>> bool(o.aligned.mean() > o.shuffled.mean())
        True
    """
    model_kind(model)  # refuses what is of none
    if weight not in _READ_BY:
        raise ValueError(
            f"Expected weight to be one of {', '.join(_READ_BY)}, got {weight!r}; the others have no activations."
        )
    layer = check_layers(layer, model.cfg.n_layers)[0]
    of = per_query_head(model, parameter_vectors(model, weight, layer))
    if not 1 <= n_vectors <= len(of.vectors):
        raise ValueError(f"Expected 1 <= n_vectors <= {len(of.vectors)} ({of.name}), got {n_vectors}; choose fewer.")
    batch = encode_prompts(model, prompts)
    with torch.no_grad():
        embedding = Embedding.of(model, vector_options.inverse, vector_options.fold_ln)
        mask = vector_options.mask(model)
        check_choice(k_state, embedding, mask)
        named = top_tokens(embedding, embedding.prepared(of), k, mask, show_progress=show_progress).top[1]
        activations, hidden = _activations(model, batch, f"blocks.{layer}.{_READ_BY[weight]}", layer)
        activations, hidden = activations[batch.real], Head.of(model).normed(hidden[batch.real])
        columns = None if mask is None else mask.nonzero().flatten()
        said = extremes(hidden, embedding.matrix, k_state, columns=columns).top[1]
        active = named[activations.topk(n_vectors, dim=-1).indices].flatten(1)
        order = torch.randperm(len(active), generator=torch.Generator().manual_seed(seed)).to(active.device)
        return ActivationOverlap(
            weight=of.name,
            k=k,
            k_state=k_state,
            n_vectors=n_vectors,
            places=batch.real.nonzero(),
            tokens=token_strings(getattr(model, "tokenizer", None), batch.tokens[batch.real]),
            aligned=_recall(said, active),
            shuffled=_recall(said, active[order]),
        )


def _activations(model: TransformerLensModel, batch: Batch, read_by: str, layer: int) -> tuple[Tensor, Tensor]:
    """What a weight multiplies [batch, pos, d_in], and the stream after the layer [batch, pos, d_model]."""
    seen: list[Tensor] = []

    def keep_stream(module: nn.Module, args: tuple, out: Tensor) -> None:
        seen.append(out.detach())

    with ExitStack() as stack:
        for handle in register_last(model.hook_dict[f"blocks.{layer}.hook_resid_post"], keep_stream):
            stack.callback(handle.remove)
        n_tokens = (batch.tokens.shape[0], batch.tokens.shape[1])
        x, _ = weight_inputs(model, weight_sites(model)[read_by], lambda: forward(model, batch), n_tokens)
    return x, seen[0]


def _recall(said: Tensor, named: Tensor) -> Tensor:
    """Share of each row of `said` [n, k] that is in the same row of `named` [n, m]."""
    return torch.stack([(named == ids[:, None]).any(1) for ids in said.unbind(1)], dim=1).float().mean(1)
