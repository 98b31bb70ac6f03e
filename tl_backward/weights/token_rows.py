"""Tracks which token each row of a tensor came from, through indexing, repeating, splitting and row-wise operations.

Layers that choose among tokens (experts) see rows [n, d] that are no longer [batch, pos]. Tokens are counted through
the batch, and through all sequences that a pass reads.
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor

Shapes: TypeAlias = tuple[tuple[int, int], ...]
"""[batch, pos] of each sequence of tokens that a pass reads: one, or an encoder's and a decoder's."""

_SPLITTING = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")
_ROW_FREE = ("index_add", "index_add_", "scatter", "scatter_", "scatter_add", "scatter_add_")
"""Operations whose output has rows of its own, though it may have as many."""


class TokenRows:
    """The token of each row of the tensors that operations made of rows of tokens."""

    def __init__(self, shapes: Shapes) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        """Each such tensor, kept so that no other takes its identity, and its rows' tokens, by its identity."""
        self._first: dict[int | tuple[int, int], int] = {}
        """The number of the first token of the sequence that has so many, or this shape."""
        first = 0
        for batch, pos in shapes:
            self._first.setdefault(batch * pos, first)
            self._first.setdefault((batch, pos), first)
            first += batch * pos

    @property
    def some(self) -> bool:
        """Whether any tensor is tracked."""
        return bool(self._known)

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """The token of each row; None where rows were never gathered."""
        entry = None if tensor is None else self._known.get(id(tensor))
        return None if entry is None else entry[1]

    def follow(self, name: str, args: tuple, out: object) -> None:
        """Record the tokens of an operation's output rows."""
        source = args[0] if args else None
        if isinstance(source, list | tuple):
            if name == "cat" and isinstance(out, Tensor):
                self._joined(source, out)
        elif isinstance(source, Tensor) and isinstance(out, Tensor):
            tokens = self._made(name, source, args, out)
            if tokens is None and self._known and name not in _ROW_FREE:
                # Elementwise operations and products keep the rows of the first operand that has some.
                tokens = next((self._known[id(each)][1] for each in args if id(each) in self._known), None)
            if tokens is not None and out.ndim:
                rows = out.shape[1] if out.ndim == 3 and len(out) == 1 else len(out)
                if rows == len(tokens):
                    self._known[id(out)] = (out, tokens)
        elif isinstance(source, Tensor) and name in _SPLITTING and isinstance(out, list | tuple):
            self._split(source, cast("tuple[Tensor, ...]", out))

    def _made(self, name: str, source: Tensor, args: tuple, out: Tensor) -> Tensor | None:
        """The tokens of rows that an operation chose, repeated or spread over the first axis."""
        tokens, choose = self.of(source), _CHOOSING.get(name)
        if name in _RESHAPING and tokens is None:
            return self._of_several(source, out)
        if choose is None:
            return None
        if tokens is None:
            if source.ndim != 2 or len(source) not in self._first or not source.is_floating_point():
                return None
            first = self._first[len(source)]
            tokens = torch.arange(first, first + len(source), device=source.device)
        places = choose(source, args)
        return None if places is None else tokens[places]

    def _of_several(self, source: Tensor, out: Tensor) -> Tensor | None:
        """[batch, pos, k, d] as [batch * pos * k, d]: k rows a token, in the tokens' order."""
        if source.ndim < 3 or out.ndim != 2 or not source.is_floating_point():
            return None
        n, first = source.shape[0] * source.shape[1], self._first.get((source.shape[0], source.shape[1]))
        if first is None or len(out) == n or not n or len(out) % n:  # as many rows as tokens need no note
            return None
        return torch.arange(first, first + n, device=source.device).repeat_interleave(len(out) // n)

    def _joined(self, sources: "list[Tensor] | tuple[Tensor, ...]", out: Tensor) -> None:
        tokens = [each for each in map(self.of, sources) if each is not None]
        if len(tokens) == len(sources) and sum(map(len, tokens)) == len(out):
            self._known[id(out)] = (out, torch.cat(tokens))

    def _split(self, source: Tensor, parts: "tuple[Tensor, ...]") -> None:
        tokens = self.of(source)
        if tokens is not None:
            sizes = [len(part) for part in parts]
            shares = tokens.split(sizes) if sum(sizes) == len(tokens) else [tokens] * len(parts)
            both = zip(parts, shares, strict=True)
            self._known |= {id(part): (part, share) for part, share in both if len(part) == len(share)}


def _indexed(source: Tensor, args: tuple) -> Tensor | None:
    index = args[1] if len(args) > 1 else None
    if isinstance(index, tuple) and len(index) == 2 and index[0] is None:  # x[None, rows]
        index = index[1]
    index = index[0] if isinstance(index, tuple) and index else index
    whole = isinstance(index, Tensor) and index.ndim == 1 and index.dtype in (torch.int64, torch.int32)
    return cast(Tensor, index) if whole else None


def _selected(source: Tensor, args: tuple) -> Tensor | None:
    return args[2] if len(args) > 2 and args[1] == 0 else None


def _interleaved(source: Tensor, args: tuple) -> Tensor | None:
    if len(args) < 2 or not isinstance(args[1], int):
        return None
    return torch.arange(len(source), device=source.device).repeat_interleave(args[1])


def _repeated(source: Tensor, args: tuple) -> Tensor | None:
    if source.ndim != 2:
        return None
    times = args[1] if len(args) > 1 and isinstance(args[1], int) else args[1][0] if len(args) > 1 else 1
    return torch.arange(len(source), device=source.device).repeat(times)


_CHOOSING: dict[str, Callable[[Tensor, tuple], Tensor | None]] = {
    "__getitem__": _indexed,
    "index_select": _selected,
    "repeat_interleave": _interleaved,
    "repeat": _repeated,
}
"""Operations that choose rows, and which rows they take."""
_RESHAPING = ("reshape", "view", "flatten")
BEGINNING = frozenset({*_CHOOSING, *_RESHAPING})
"""Operations from which on rows may be others than the tokens in their order."""
