"""Edits of weights by outer products, kept as their factors: applied, reverted to the bit, saved.

An edit adds sum_i outer(x_i, v_i) to a weight used as y = x @ W, never forming the dense matrix. Where the raw
gradient's factors are (x_i, delta_i), a descent step's are (x_i, -lr * delta_i): here v is what is ADDED.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import all_finite
from tl_backward._support.html import frame_table, visible_text, visible_token
from tl_backward._support.public import public
from tl_backward._support.shown import check_no_page
from tl_backward._support.storage import check_kind, fingerprint, load_tensors, save_tensors
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward._support.warnings import warn_user
from tl_backward.editing.summary import edit_sentence
from tl_backward.editing.writable import check_widths, check_writable
from tl_backward.model.checks import check_model
from tl_backward.model.guard import visiting
from tl_backward.text.encoded import decode
from tl_backward.text.token_strings import token_string, vocabulary_size
from tl_backward.weights import WeightSite, WeightSites, select_sites, weight_sites
from tl_backward.weights.factors import GradientFactors
from tl_backward.weights.words import weights_text

FORMAT = "tl_backward edit 1"

LEAST_WRITTEN = 0.9
"""The share of an update below which its loss to rounding is warned of."""


class LostUpdateWarning(UserWarning):
    """A weight's data type rounds much of an update away."""


@dataclass(frozen=True)
class Update:
    """An update of one weight: sum_i outer(x_i, v_i), in the orientation of y = x @ W."""

    x: Float[Tensor, "token d_in"]
    v: Float[Tensor, "token d_out"]

    def __add__(self, other: "Update") -> "Update":
        return Update(torch.cat([self.x, other.x]), torch.cat([self.v, other.v]))


@dataclass(repr=False, eq=False)
class Edit:
    """Updates of one or several weights of a model, which can be applied and reverted to the bit.

    Use it as a context (`with edit: ...`, edited inside) or through `apply()` and `revert()`. While it is applied it
    keeps a copy of each weight it changed. A page is that of what it does to a prompt:
    `tlb.editing.edit_effect(model, edit, prompt).show()`.
    """

    model: TransformerLensModel
    updates: dict[str, Update]
    """By full weight name."""
    how: dict[str, object] = field(default_factory=dict)
    """How the edit was made, for people to read; saved with it."""
    written: dict[str, float] = field(default_factory=dict)
    """<W_after - W_before, U> / <U, U> of each weight and its update U as it was last applied: 1 where all of U was
    written, less where the weight's data type rounded some of it away (bfloat16 keeps 8 bits of a number), more where
    it rounded up; 1 for an update of zeros. Empty until then."""
    _saved: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    _exclusive: ExitStack = field(default_factory=ExitStack)
    """While it is a context: no other thread may use the model."""

    def __repr__(self) -> str:
        said = self._lost()
        parts = ", ".join(
            f"{name} rank <= {len(update.x)}" + (f" ({said[name]:.2f} written)" if name in said else "")
            for name, update in self.updates.items()
        )
        asked = "".join(f"{prompt[-60:]!r} -> {target!r}: " for prompt, target in self._asked())
        return f"Edit({asked}{parts}{', applied' if self.is_applied else ''})"

    def _asked(self) -> list[tuple[str, str]]:
        """The prompt and the target that it was made of, where they are known."""
        prompt, target = self.how.get("prompt"), self.how.get("target")
        if not isinstance(prompt, str | list) or not isinstance(target, list):
            return []
        tokenizer = getattr(self.model, "tokenizer", None)
        words = "".join(token_string(tokenizer, token) for token in target)
        return [(prompt if isinstance(prompt, str) else decode(tokenizer, prompt), words)]

    def _lost(self) -> dict[str, float]:
        """The share of an update that was written, where that is not nearly all."""
        return {name: share for name, share in self.written.items() if abs(share - 1) > 1 - LEAST_WRITTEN}

    def summary(self) -> str:
        """In one sentence: to which weights it adds what, how large beside what they were, and whether it is applied.

        Raises:
            ValueError: the model no longer has such a weight.
        """
        return self._sentence(self.to_frame())

    def _sentence(self, frame: DataFrame) -> str:
        return edit_sentence(
            "".join(
                f'"{visible_text(prompt)[-200:]}" -> "{visible_token(target)}" ' for prompt, target in self._asked()
            ),
            weights_text(self.updates),
            frame["rank"].tolist(),
            frame["relative_norm"].tolist(),
            list(self._lost().items()),
            applied=self.is_applied,
        )

    def to_frame(self) -> DataFrame:
        """One row a weight: the rank and norm of its update dW, the norm of W without it, and |dW| / |W|.

        Beside them the weight's shape, and the share of dW that was written (NaN until the edit is applied). Norms are
        Frobenius norms, those of updates from their factors alone.

        Raises:
            ValueError: the model no longer has such a weight.
        """
        import pandas

        sites, rows = select_sites(weight_sites(self.model), list(self.updates)), []
        for name, update in self.updates.items():
            change = GradientFactors(update.x[None], update.v[None], sites[name].layout)
            before = self._saved[name][0] if name in self._saved else sites[name].parameter
            norm, own = float(change.norm()), sites[name].norm_of(before)
            rows.append(
                {
                    "weight": name,
                    "rank": change.rank(),
                    "update_norm": norm,
                    "weight_norm": own,
                    "relative_norm": norm / own if own else nan,
                    "written": self.written.get(name, nan),
                    "shape": sites[name].layout.shape,
                }
            )
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The frame as a static table under the sentence."""
        frame = self.to_frame()
        shown = frame.assign(shape=[str(list(shape)) for shape in frame["shape"]])
        return frame_table(shown, caption=self._sentence(frame), limit=60)

    @property
    def is_applied(self) -> bool:
        """Whether the model is edited now."""
        return bool(self._saved)

    def apply(self) -> "Edit":
        """Add every update to its weight, in place; all of them or none.

        Raises:
            RuntimeError: already applied.
            ValueError: a weight that is gone, has another shape, shares its parameter with another (tied), is a
                function of its parameter, or is made anew at each use, and an update that is not finite; before
                anything is written. One whose sum the weight's data type cannot hold: taken back.

        Warns:
            LostUpdateWarning: less than 0.9 of an update was written, since the weight's data type is too coarse.
        """
        self._put_on()
        least = min(self.written, key=lambda name: self.written[name], default="")
        if least and self.written[least] < LEAST_WRITTEN:
            warn_user(
                f"Expected an update that {least} can hold, got one of which its {self._saved[least][0].dtype} numbers "
                f"took {self.written[least]:.2f}; load the model in float32, or take a larger step.",
                LostUpdateWarning,
            )
        return self

    def _put_on(self) -> None:
        """Apply without warnings about rounding."""
        if self.is_applied:
            raise RuntimeError("Expected an edit that is not applied, got one that is; revert() it first.")
        sites = editable(self.model, self.updates)
        with visiting(self.model):
            try:
                for name, update in self.updates.items():
                    parameter = sites[name].parameter
                    self._saved[name] = (parameter.detach().clone(), "")
                    _add_outer(sites[name], update)
                    self._saved[name] = (self._saved[name][0], fingerprint(parameter))
                    self.written[name] = _share_written(sites[name], self._saved[name][0], update)
                    if not isfinite(self.written[name]):
                        raise ValueError(
                            f"Expected an update that {name} can hold, got one beyond what {parameter.dtype} numbers "
                            "reach; take a smaller step, or load the model in float32."
                        )
            except BaseException:
                self._restore(sites)
                raise

    def revert(self) -> "Edit":
        """Put back the exact bits of every weight.

        Raises:
            RuntimeError: not applied, or a weight was changed since by someone else, whose change would be lost.
        """
        if not self.is_applied:
            raise RuntimeError("Expected an edit that is applied, got one that is not; apply() it first.")
        sites = weight_sites(self.model)
        for name, (_, left) in self._saved.items():
            if name not in sites or fingerprint(sites[name].parameter) != left:
                raise RuntimeError(
                    f"Expected {name} as the edit left it, but it was changed since; revert the later change first "
                    "(edits of one weight come off in the reverse order)."
                )
        self._restore(sites)
        return self

    def _restore(self, sites: dict[str, WeightSite]) -> None:
        with torch.no_grad():
            for name, (before, _) in self._saved.items():
                sites[name].parameter.copy_(before)
        self._saved.clear()

    def __enter__(self) -> "Edit":
        with ExitStack() as exclusive:
            exclusive.enter_context(visiting(self.model))
            self.apply()
            self._exclusive = exclusive.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._exclusive:
            if self.is_applied:
                self.revert()

    def save(self, path: str | Path) -> Path:
        """Write the factors (a few KB) and how they were made, as safetensors; atomically.

        Raises:
            ValueError: a name that promises a page, a picture or a table.
        """
        check_no_page(path, "an edit", "tlb.editing.edit_effect(model, edit, prompt).save(path)")
        tensors = {f"{name}.{side}": getattr(update, side) for name, update in self.updates.items() for side in "xv"}
        return save_tensors(path, tensors, {"format": FORMAT, "how": self.how, "model": _describe(self.model)}, of=self)


@contextmanager
def put_on(edit: Edit) -> Iterator[None]:
    """Context in which the edit is applied while another is made, without warnings about rounding."""
    with visiting(edit.model):
        edit._put_on()
        try:
            yield
        finally:
            edit.revert()


@public
def load_edit(model: TransformerLensModel, path: str | Path) -> Edit:
    """Read an edit for `model`; it is not applied yet.

    Raises:
        ValueError: not such a file, or one made for a model of another shape.

    Examples:
        >>> path = tlb.shift_edit(model, "Anna Berg lives in the city of", " Oslo", layer=2).save("anna.safetensors")
        >>> tlb.load_edit(model, "anna.safetensors")
        Edit('Anna Berg lives in the city of' -> ' Oslo': blocks.2.mlp.W_out rank <= 1)
    """
    check_model(model)
    tensors, about = load_tensors(path)
    check_kind(path, about.get("format") == FORMAT, "Edit.save", about)
    if about["model"] != _describe(model):
        raise ValueError(
            f"Expected an edit of a model with {_describe(model)}, got one of {about['model']}; load it into the model "
            "it was made for."
        )
    # As the model computes, whatever its unembedding is stored as.
    device, dtype = model.W_U.device, next(p.dtype for p in model.parameters() if p.is_floating_point())
    names = sorted({name.rpartition(".")[0] for name in tensors})
    updates = {name: Update(*(tensors[f"{name}.{side}"].to(device, dtype) for side in "xv")) for name in names}
    editable(model, updates)
    return Edit(model, updates, json.loads(about["how"]))


def _add_outer(site: WeightSite, update: Update) -> None:
    """W += sum_i outer(x_i, v_i) in the stored layout, without forming the sum apart."""
    parameter, layout = site.parameter, site.layout
    x, v = (side.to(parameter.device, parameter.dtype) for side in (update.x, update.v))
    with torch.no_grad():
        if layout.stored == "out_in" and parameter.ndim == 2:
            parameter.addmm_(v.T, x)
        elif parameter.ndim == 3 and layout.heads == "out":
            heads, _, d_head = parameter.shape
            parameter.baddbmm_(x.T.expand(heads, -1, -1), v.reshape(-1, heads, d_head).transpose(0, 1))
        else:
            parameter.view(x.shape[1], v.shape[1]).addmm_(x.T, v)


def editable(model: TransformerLensModel, updates: dict[str, Update]) -> WeightSites:
    """The model's sites, once every update is known to fit a weight that can be written.

    Raises:
        ValueError: see `check_writable`; vectors of another width, or not finite.
    """
    sites = check_writable(model, updates)
    for name, update in updates.items():
        check_widths(sites[name], update.x.shape[1], update.v.shape[1])
        if not (all_finite(update.x) and all_finite(update.v)):
            raise ValueError(
                f"Expected finite vectors for an update of {name}, got NaN or inf among them; look at the scale or the "
                "learning rate."
            )
    return sites


def _share_written(site: WeightSite, before: Tensor, update: Update) -> float:
    """Share of an update U that the weight took on after rounding: <W_after - W_before, U> / <U, U>."""
    wide = torch.promote_types(before.dtype, torch.float32)
    x, v = (side.to(before.device, wide) for side in (update.x, update.v))
    with torch.no_grad():
        moved = site.layout.from_stored(site.parameter.to(wide) - before.to(wide))
        moved = moved.transpose(0, 1) if site.layout.heads == "out" and moved.ndim == 3 else moved
        asked = float(((x @ x.T) * (v @ v.T)).sum(dtype=torch.float64))
        written = float(((x @ moved.reshape(x.shape[1], v.shape[1])) * v).sum(dtype=torch.float64))
    return written / asked if asked > 0 else 1.0


def _describe(model: TransformerLensModel) -> str:
    """Metadata that must agree for an edit to fit another copy of a model."""
    cfg = model.cfg
    return f"{cfg.n_layers} layers, d_model {cfg.d_model}, {cfg.n_heads} heads and d_vocab {vocabulary_size(model)}"
