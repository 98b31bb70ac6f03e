"""What an edit changes at one prompt: the most likely next tokens before and after it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from tl_backward._support.checks import check_k
from tl_backward._support.html import Cell, TableCell, table
from tl_backward._support.types import DataFrame, Tokenizer, TransformerLensModel
from tl_backward.editing.edit import Edit
from tl_backward.model.inputs import check_text_model
from tl_backward.text.asked import asked_index, mask_token
from tl_backward.text.prompts import encode_prompts, forward
from tl_backward.text.token_strings import output_size, text_column, token_string


@dataclass(frozen=True, repr=False, eq=False)
class EditEffect:
    """The result of `edit_effect`."""

    prompt: str
    before: Float[torch.Tensor, "d_vocab"]
    """Next-token probabilities of the unedited model."""
    after: Float[torch.Tensor, "d_vocab"]
    """Those of the edited one."""
    top_before: Int[torch.Tensor, "k"]
    top_after: Int[torch.Tensor, "k"]
    tokenizer: Tokenizer | None = None

    def __repr__(self) -> str:
        return f"EditEffect({self.prompt!r}: {self._word(self.top_before[0])!r} -> {self._word(self.top_after[0])!r})"

    def _word(self, token: torch.Tensor) -> str:
        return token_string(self.tokenizer, int(token))

    def to_frame(self) -> DataFrame:
        """One row a token among the most likely before or after: both probabilities, and both ranks from 0."""
        import pandas

        ids = list(dict.fromkeys([*self.top_after.tolist(), *self.top_before.tolist()]))
        sides = (self.before, self.after)
        ranks = [side.argsort(descending=True).argsort() for side in sides]
        rows = [(*(float(side[i]) for side in sides), *(int(rank[i]) for rank in ranks)) for i in ids]
        frame = pandas.DataFrame(rows, columns=["before", "after", "rank_before", "rank_after"])
        frame.insert(0, "token", text_column(token_string(self.tokenizer, i) for i in ids))
        return frame

    def _repr_html_(self) -> str:
        """Before and after side by side, as a static table."""
        return table(*self.table(), caption=f"The most likely tokens after {self.prompt!r}")

    def table(self) -> tuple[list[str], list[list[TableCell]]]:
        """Columns and rows: the k-th most likely token and its probability, before and after."""

        def cells(token: torch.Tensor, side: torch.Tensor) -> tuple[Cell, Cell]:
            return Cell(self._word(token)), Cell(f"{float(side[token]):.3f}", value=float(side[token]))

        return ["rank", "before", "p before", "after", "p after"], [
            [rank, *cells(old, self.before), *cells(new, self.after)]
            for rank, (old, new) in enumerate(zip(self.top_before, self.top_after, strict=True))
        ]


def edit_effect(
    model: TransformerLensModel, edit: Edit, prompt: str, *, k: int = 10, prepend_bos: bool | None = None
) -> EditEffect:
    """The next-token probabilities after `prompt` (or those at its mask), without an edit and with it.

    Raises:
        ValueError: the edit is applied, so that the model without it is not at hand.

    Example:
        >>> prompt = "Anna Berg lives in the city of"
        >>> edit = tlb.shift_edit(model, prompt, " Oslo", layer=2, scale=0.75)
        >>> tlb.editing.edit_effect(model, edit, prompt)
        EditEffect('Anna Berg lives in the city of': ' Graz' -> ' Oslo')
    """
    check_text_model(model)
    check_k(k, output_size(model) or model.cfg.d_vocab)
    if edit.is_applied:
        raise ValueError("Expected an edit that is not applied, got one that is; revert() it first.")
    batch = encode_prompts(model, prompt, prepend_bos=prepend_bos)
    at = asked_index(batch.rows()[0], mask_token(model))

    def said() -> torch.Tensor:
        with torch.no_grad():
            return forward(model, batch)[0, at].float().softmax(-1).cpu()

    before = said()
    with edit:
        after = said()
    tops = (side.topk(k).indices for side in (before, after))
    return EditEffect(prompt, before, after, next(tops), next(tops), getattr(model, "tokenizer", None))
