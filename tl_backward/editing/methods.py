"""Ways to edit: the forward-pass shift of Katz et al. 2024, plain gradient steps, and one rank-one update."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import check_choice, check_finite, check_layers, short
from tl_backward._support.lengths import units
from tl_backward._support.public import public
from tl_backward._support.types import Prompt, TransformerLensModel, typed
from tl_backward.editing.edit import Edit, Update, editable, put_on
from tl_backward.editing.writable import check_writable
from tl_backward.gradients.capture import run_with_gradient_cache
from tl_backward.gradients.losses import Target, target_loss
from tl_backward.model.checks import check_model, model_kind
from tl_backward.model.head import Head
from tl_backward.model.inputs import check_text_model
from tl_backward.model.stamp import unchanged
from tl_backward.text.ids import one_id
from tl_backward.text.prompts import Batch, encode_prompt, extend
from tl_backward.weights import WeightSite, select_sites, weight_sites
from tl_backward.weights.blocks import USUAL, chosen_weights, written_by
from tl_backward.weights.rows import weight_inputs

Scaling: TypeAlias = Literal["unit", "raw"]


@public
@typed
def rank_one_edit(
    model: TransformerLensModel,
    weight: str,
    x: Float[Tensor, "d_in"],
    v: Float[Tensor, "d_out"],
    *,
    scale: float = 1.0,
) -> Edit:
    """The primitive: W += scale * outer(x, v) for a weight used as y = x @ W, by its full name.

    Lists and NumPy arrays are taken for vectors.

    Raises:
        ValueError: no such weight, vectors of the wrong width, or a tied weight.

    Examples:
        >>> x, delta = torch.ones(512), torch.ones(128)
        >>> edit = tlb.rank_one_edit(model, "blocks.2.mlp.W_out", x, delta, scale=0.01)
        >>> with edit:
        ...     edit.is_applied
        True
    """
    check_model(model)
    scale = check_scale(scale)
    if not isinstance(weight, str):
        raise TypeError(f"Expected a weight by its full name, got {short(weight)}; for example 'blocks.2.mlp.W_out'.")
    updates = {weight: Update(x[None].detach(), scale * v[None].detach())}
    editable(model, updates)
    return Edit(model, updates, {"method": "rank_one", "scale": scale})


@public
def shift_edit(
    model: TransformerLensModel,
    prompt: Prompt,
    target: Target,
    layer: int,
    scale: float = 2.0,
    *,
    scaling: Scaling = "unit",
    prepend_bos: bool | None = None,
) -> Edit:
    """The forward-pass shift (Katz et al. 2024, sec. 7): W_out[layer] += scale * outer(x_last, W_U[:, target]).

    One forward pass gives x_last, W_out's input at the prompt's last token (or at its mask); the gradient's VJP there
    is replaced by what it mostly is, the target's unembedding direction: W_U as the model uses it, with a projection
    before it or an adapter on it. A target of several tokens adds one product a token.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: what the edit answers, as text or as token ids.
        target: the new answer.
        layer: whose W_out; negative counts from the end. A block without one is shifted where it writes to the stream:
            by its mixer's out projection (Mamba) or, with nothing but an attention, its W_O.
        scale: how much of it.
        scaling: "unit" for both factors of unit norm, so that a scale means the same in every layer; "raw" for the
            paper's own form.
        prepend_bos: as in `model.to_tokens`.

    Returns:
        An Edit, not applied: use it as a context, or `apply()` it.

    Raises:
        ValueError: a layer that writes with experts, a weight that an edit cannot write (see `Edit.apply`), a bad
            prompt or target, a target that the model says already, or a head that is not linear after its final norm
            (BERT's transform): no direction stands for a token there.
        IndexError: a layer out of range.

    Examples:
        >>> prompt = "Anna Berg lives in the city of"
        >>> with tlb.shift_edit(model, prompt, " Oslo", layer=2, scale=0.75):
        ...     model.generate(prompt, max_new_tokens=1, do_sample=False, use_past_kv_cache=False, verbose=False)
        'Anna Berg lives in the city of Oslo'
    """
    scale = check_scale(scale)
    return shift(model, prompt, target, layer, scaling=scaling, prepend_bos=prepend_bos).by(scale)


def check_scale(scale: float) -> float:
    """How much of an edit, as a finite number.

    Raises:
        TypeError: no number, or True or False.
        ValueError: NaN or infinite.
    """
    return check_finite("scale", scale, "how much of the edit to add, such as 0.75")


@dataclass(frozen=True)
class Shift:
    """What one forward pass gives for `shift_edit`: edits of any scale."""

    model: TransformerLensModel
    weight: str
    x: Float[Tensor, "token d_in"]
    v: Float[Tensor, "token d_out"]
    how: dict[str, object]

    def by(self, scale: float) -> Edit:
        """The edit of that scale.

        Raises:
            TypeError, ValueError: no finite number.
        """
        scale = check_scale(scale)
        return Edit(self.model, {self.weight: Update(self.x.clone(), scale * self.v)}, {**self.how, "scale": scale})


def shift(
    model: TransformerLensModel,
    prompt: Prompt,
    target: Target,
    layer: int,
    *,
    scaling: Scaling,
    prepend_bos: bool | None = None,
) -> Shift:
    """Read x_last and the target's directions, as `shift_edit` says."""
    model_kind(model)  # refuses what is of none
    with unchanged(model):
        check_text_model(model)
        check_choice("scaling", scaling, get_args(Scaling))
        (index,) = check_layers(layer, model.cfg.n_layers)
        loss = target_loss(target).bind(model, 1)
        given = encode_prompt(model, prompt, prepend_bos=prepend_bos)
        batch = extend(model, given, loss.continuation)
        (ids,) = loss.ids or ((),)
        site = _shifted(model, index)
    n_tokens = (batch.tokens.shape[0], batch.tokens.shape[1])
    inputs, logits = weight_inputs(model, site, lambda: model(batch.tokens, return_type="logits"), n_tokens)
    (at,) = loss.places(batch.tokens)
    _check_news(logits[0, at], ids, target)
    x = inputs[0, at]
    v = Head.of(model).matrix(list(ids)).T
    if scaling == "unit":
        x, v = (units(side) for side in (x, v))
    how = {
        "method": "shift",
        "prompt": _as_given(prompt, given),
        "target": list(ids),
        "layer": index,
        "scaling": scaling,
    }
    return Shift(model, site.name, x, v, how)


def _shifted(model: TransformerLensModel, layer: int) -> WeightSite:
    """The site of the matrix with which a block writes to the residual stream, checked to be writable."""
    sites = weight_sites(model)
    usual = f"blocks.{layer}.mlp.{USUAL}"
    name = usual if usual in sites or usual in sites.missing else written_by(model, sites).get(layer, usual)
    (site,) = select_sites(sites, name).values()
    check_writable(model, [name])
    return site


@public
def gradient_edit(
    model: TransformerLensModel,
    prompt: Prompt,
    target: Target,
    *,
    weights: str | Sequence[str] | None = None,
    lr: float = 1e-2,
    steps: int = 1,
    prepend_bos: bool | None = None,
) -> Edit:
    """Plain SGD from the captured factors: in each step W += sum_i outer(x_i, -lr * delta_i), never a dense gradient.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompt: what the edit answers, as text or as token ids.
        target: the new answer; the loss is `target_loss(target)`.
        weights: which to change, as in `run_with_gradient_cache`; None for the matrix that each block writes with:
            W_out, and where a block has none its mixer's out projection.
        lr: the learning rate.
        steps: how many; the gradient is taken anew after each.
        prepend_bos: as in `model.to_tokens`.

    Returns:
        An Edit, not applied.

    Raises:
        ValueError: a bad prompt, weight or target, or a target that the model says already.

    Examples:
        >>> edit = tlb.gradient_edit(model, "Anna Berg lives in the city of", " Oslo", lr=0.001, steps=5)
        >>> edit.is_applied
        False
    """
    check_text_model(model)
    lr = check_finite("lr", lr, "a descent step subtracts lr times the gradient, such as 0.01")
    steps = one_id(steps, "steps, how many,")
    if steps < 1:
        raise ValueError(f"Expected at least one step, got {steps}; a step is one descent of the loss.")
    names = list(chosen_weights(model, weight_sites(model), weights))
    check_writable(model, names)
    loss, given = target_loss(target).bind(model, 1), encode_prompt(model, prompt, prepend_bos=prepend_bos)
    total: dict[str, Update] = {}
    for step in range(steps):
        with put_on(Edit(model, total)) if total else nullcontext():
            _, cache = run_with_gradient_cache(
                model, given.tokens, loss, weights=names, names_filter=[], attention_mask=given.mask
            )
        if not step:
            (at,) = loss.places(cache.tokens)
            _check_news(cache.logits[0, at], (loss.ids or ((),))[0], target)
        for name in names:
            x, delta = cache.factors[name].rows()
            moved = Update(x.clone(), -lr * delta)
            total[name] = total[name] + moved if step else moved
    editable(model, total)
    (ids,) = loss.ids or ((),)
    how = {"method": "gradient", "prompt": _as_given(prompt, given), "target": list(ids), "lr": lr, "steps": steps}
    return Edit(model, total, how)


def _as_given(prompt: Prompt, batch: Batch) -> str | list[int]:
    """A prompt as it is kept with an edit: its text, or its ids."""
    return prompt if isinstance(prompt, str) else batch.rows()[0]


def _check_news(logits: Float[Tensor, "token d_vocab"], ids: Sequence[int], target: Target) -> None:
    """Refuse a target that the model already predicts at the positions of its tokens."""
    if logits.argmax(-1).tolist() == list(ids):
        raise ValueError(
            f"Expected a target other than the model's answer, got {target!r}, which it says already; there is nothing "
            "to edit."
        )
