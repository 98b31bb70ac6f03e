"""What an attention head does to tokens: its strongest pairs, over all V x V of them (Dar et al. 2022, sec. 3)."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from tl_backward._support.checks import check_head, check_layers, short
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.html import Cell, table, visible_token
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import listed
from tl_backward._support.types import DataFrame, Tokenizer, TransformerLensModel, typed
from tl_backward.embedding_space.options import OLD_KEYWORDS, PairOptions, VectorOptions
from tl_backward.embedding_space.vectors import PAIRED_WEIGHTS, Embedding, pair_name, parameter_vectors, query_heads
from tl_backward.model.checks import check_model
from tl_backward.text.token_strings import text_column, token_strings
from tl_backward.vocabulary.top_pairs import TopPairs, top_pairs
from tl_backward.weights import rotation, weight_sites

Circuit: TypeAlias = Literal["VO", "QK"]

_LEFT_OUT = {"VO": ("b_V", "b_O"), "QK": ("b_Q", "b_K", "q_norm.w", "k_norm.w")}
_OLD_PAIRS = {name: f"pair_options.{name}" for name in ("largest", "exclude_same", "offset", "source")}
_SIDES: dict[str, tuple[str, str]] = {"VO": ("attended", "written"), "QK": ("query", "key")}


@dataclass(frozen=True, repr=False, eq=False)
class HeadPairs(Saved):
    """The strongest pairs of tokens of a head's VO or QK matrix, best first."""

    circuit: Circuit
    """"VO": attended token and what is written for it (shown by its usual name, OV). "QK": the token that looks and the
    token looked at."""
    layer: int
    head: int
    offset: int | None
    """Positions from key to query that the QK scores hold for; None without rotary embeddings taken in."""
    pairs: TopPairs
    """Scores; `rows` are ids of the first token of each pair, `cols` of the second."""
    left_out: tuple[str, ...]
    """The head's biases (those that are not zero) and norms, which no score contains."""
    tokenizer: Tokenizer | None = field(default=None)
    """Decodes ids; None shows them as [id]."""

    @property
    def sides(self) -> tuple[str, str]:
        """What the two tokens of a pair are: ("attended", "written") or ("query", "key")."""
        return _SIDES[self.circuit]

    @property
    def circuit_name(self) -> str:
        """What the circuit is usually called: "OV" or "QK"."""
        return "OV" if self.circuit == "VO" else self.circuit

    @property
    def first_tokens(self) -> list[str]:
        """The attended token (VO) or the query's (QK)."""
        return token_strings(self.tokenizer, self.pairs.rows)

    @property
    def second_tokens(self) -> list[str]:
        """The written token (VO) or the key's (QK)."""
        return token_strings(self.tokenizer, self.pairs.cols)

    def __repr__(self) -> str:
        what = "largest" if self.pairs.largest else "smallest"
        return (
            f"HeadPairs({self.circuit_name}, layer {self.layer}, head {self.head}, {len(self.pairs.rows)} {what} pairs)"
        )

    def summary(self) -> str:
        """In one sentence: the first pairs. They are read from the weights alone, with nothing beside them."""
        pairs = zip(self.first_tokens[:3], self.second_tokens[:3], strict=True)
        named = [f"{visible_token(first, 24)} -> {visible_token(second, 24)}" for first, second in pairs]
        which = "strongest" if self.pairs.largest else "most negative"
        where = f"of head {self.head} in layer {self.layer}"
        return f"The {which} {self.circuit_name} pairs {where} are {listed(named)}, with no control beside them."

    def to_frame(self) -> DataFrame:
        """One row a pair, best first: both tokens, the score, both ids."""
        import pandas

        first, second = self.sides
        columns = {first: text_column(self.first_tokens), second: text_column(self.second_tokens)}
        ids = {f"{first}_id": self.pairs.rows.tolist(), f"{second}_id": self.pairs.cols.tolist()}
        return pandas.DataFrame(columns | {"score": self.pairs.values.tolist()} | ids)

    def _repr_html_(self) -> str:
        """A static table of the first 30 pairs."""
        scores = self.pairs.values.tolist()
        rows = [
            [Cell(first), Cell(second), Cell(f"{score:.4g}", value=score)]
            for first, second, score in zip(self.first_tokens[:30], self.second_tokens[:30], scores[:30], strict=True)
        ]
        caption = repr(self) if self.offset is None else f"{self!r}, key {self.offset} positions back"
        caption += f"; without {', '.join(self.left_out)}" if self.left_out else ""
        return table([*self.sides, "score"], rows, row_names=list(map(str, range(len(rows)))), caption=caption)


@public
@old_keywords(OLD_KEYWORDS | _OLD_PAIRS, vector_options=VectorOptions, pair_options=PairOptions)
@typed
def head_pairs(
    model: TransformerLensModel,
    circuit: Circuit | Literal["OV"],
    layer: int,
    head: int,
    *,
    k: int = 50,
    pair_options: PairOptions = PairOptions(),
    vector_options: VectorOptions = VectorOptions(),
    show_progress: bool = True,
) -> HeadPairs:
    """Find the k strongest token pairs of a head's matrix in embedding space, exactly, from its rank-d_head factors.

    "VO": score(s, t) = e_s W_V W_O E_t, how much attending to s writes t. "QK": score(q, k) = (e_q W_Q) . (e_k W_K),
    how much q looks at k, before the division by sqrt(d_head). E = W_U, and e are the rows of E', its right inverse
    (E^T or the pseudo-inverse), as in `project_parameter`. In grouped-query attention W_K and W_V are those of the
    head's group. Biases do not take part; the result names those there are.

    Args:
        model: a HookedTransformer or TransformerBridge.
        circuit: "VO" (in the order of its factors; "OV", its usual name, by which results show it, is the same) or
            "QK".
        layer: the block; negative counts from the end.
        head: the (query) head; negative counts from the end.
        k: how many pairs.
        pair_options: which pairs.
        vector_options: how vectors are read in words; its tokens and filters count for both sides.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: an unknown circuit or source, an offset that does not apply, k larger than the number of pairs left.
        IndexError: a layer, head or offset out of range.

    Examples:
        >>> pairs = tlb.head_pairs(model, "VO", 3, 1, k=20, show_progress=False)
        >>> pairs
        HeadPairs(OV, layer 3, head 1, 20 largest pairs)
    """
    check_model(model)
    circuit = cast(Circuit, pair_name(circuit))  # checked next
    offset, source = pair_options.offset, pair_options.source
    _check_options(circuit, offset, model.cfg.n_ctx)
    layer = check_layers(layer, model.cfg.n_layers)[0]
    sides = [parameter_vectors(model, weight, layer, head) for weight in PAIRED_WEIGHTS[circuit]]
    with torch.no_grad():
        mask = vector_options.mask(model)
        written = source == "W_U" or any(side.role != "read" for side in sides)
        inverse = vector_options.inverse if source == "W_U" else "transpose"
        embedding = Embedding.of(model, inverse, vector_options.fold_ln) if written else None
        inputs = Embedding.of_inputs(model, vector_options.fold_ln) if source == "W_E" else None
        through = [inputs if side.role == "read" and inputs is not None else embedding for side in sides]
        factors = [each.factor(side) for each, side in zip(through, sides, strict=True) if each is not None]
        if offset is not None:
            factors = [part @ _turn(model, layer, at, part) for part, at in zip(factors, (offset, 0), strict=True)]
        pairs = top_pairs(
            *factors,
            k=k,
            largest=pair_options.largest,
            exclude_same=pair_options.exclude_same,
            mask=None if mask is None else (mask, mask),
            show_progress=show_progress,
        )
    return HeadPairs(
        circuit=circuit,
        layer=layer,
        head=check_head(head, query_heads(model, sides[0].name)),
        offset=offset,
        pairs=pairs,
        left_out=_left_out(model, circuit, layer),
        tokenizer=getattr(model, "tokenizer", None),
    )


def _check_options(circuit: Circuit, offset: int | None, n_ctx: int) -> None:
    if circuit not in get_args(Circuit):
        neurons = "; those are an MLP's, which related_pairs takes" if circuit in PAIRED_WEIGHTS else ""
        raise ValueError(
            f"Expected circuit to be 'OV' (also 'VO') or 'QK', a head's two matrices, got {short(circuit)}{neurons}."
        )
    if offset is not None and circuit != "QK":
        raise ValueError(f"Expected no offset for {circuit!r}, which knows no positions, got {offset}; leave it out.")
    if offset is not None and not 0 <= offset < n_ctx:
        raise IndexError(f"Expected offset in [0, {n_ctx}), got {offset}; a key stands at or before its query.")


def _turn(model: TransformerLensModel, layer: int, position: int, factor: Tensor) -> Tensor:
    turn = rotation(model, layer, position)
    if turn is None:
        raise ValueError("Expected no offset for a model without rotary embeddings, got one; leave it out.")
    return turn.to(factor)


def _left_out(model: TransformerLensModel, circuit: str, layer: int) -> tuple[str, ...]:
    """Short names of the biases (not zero) and norms that the scores of a circuit leave out."""
    named = (weight_sites(model).get(f"blocks.{layer}.attn.{name}") for name in _LEFT_OUT[circuit])
    return tuple(site.short_name for site in named if site is not None and bool((site.parameter != 0).any()))
