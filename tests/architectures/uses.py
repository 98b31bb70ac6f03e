"""A row's further columns: what the rest of the package does with it, held against what is known of it otherwise.

Each returns "works" or raises: a refusal of ours in one sentence, or an AssertionError with what is wrong. The captures
that they are held against are held against autograd in `measure`.
"""

import torch
from torch import Tensor

import tl_backward as tlb
from tl_backward.alignment import match_parameters
from tl_backward.inversion import collect, preimage_of, resolve_place
from tl_backward.weights.blocks import written_by

from .table import Row, tokens

TARGETS = ["w20", "w23"]
CLOSE = dict(rtol=1e-5, atol=1e-9)
"""As far apart as a batch and its examples alone may be where transformers rounds to float32."""


def prompts(row: Row) -> list[str]:
    """Two of different lengths; a masked model is asked at its mask."""
    return ["w10 w11 <mask> w12", "w13 <mask>"] if row.masked else ["w10 w11 w12", "w13 w14"]


def each_alone(model, row: Row, names: tuple[str, ...]) -> list[list[Tensor]]:
    """The gradient of each weight [prompt][weight], each prompt in a pass of its own."""
    found = []
    for prompt, target in zip(prompts(row), TARGETS, strict=True):
        _, cache = tlb.run_with_gradient_cache(
            model, prompt, tlb.target_loss(target), weights=list(names), names_filter=[]
        )
        found.append([cache.factors[name].gradient("parameter").double() for name in names])
    return found


def check_sweep(model, row: Row) -> str:
    """The norms of two prompts' gradients, in one padded batch."""
    swept = tlb.sweep(
        model,
        prompts(row),
        TARGETS,
        collect=["norm", "gradient_norm", "share"],
        batch_size=2,
        control=None,
        show_progress=False,
    )
    expected = torch.stack([torch.stack([g.norm() for g in own]) for own in each_alone(model, row, swept.weights)])
    torch.testing.assert_close(swept.values["gradient_norm"].double(), expected, **CLOSE)
    return "works"


def check_similarity(model, row: Row) -> str:
    """Inner products of two prompts' gradients."""
    pairs = list(zip(prompts(row), TARGETS, strict=True))
    found = tlb.gradient_similarity(model, pairs, batch_size=2, show_progress=False)
    each = each_alone(model, row, tuple(found.weights))
    for w in range(len(found.weights)):
        expected = torch.stack([torch.stack([(a[w] * b[w]).sum() for b in each]) for a in each])
        torch.testing.assert_close(found.inner[w].double(), expected, **CLOSE)
    return "works"


def other_target(model, prompt: str) -> str:
    """A target that is not the model's answer already."""
    swept = tlb.sweep(model, [prompt], TARGETS[:1], collect=["answer_rank"], control=None, show_progress=False)
    return TARGETS[int(int(swept.answers[0]) == int(swept.targets[0]))]


def check_edits(model, row: Row) -> str:
    """A shift of the last block, or where there is none a gradient step: what is written is what is said, and comes off."""
    prompt = prompts(row)[0]
    try:
        edit, what = tlb.shift_edit(model, prompt, other_target(model, prompt), -1), "works"
    except ValueError as refusal:
        what = f"gradient edits; shifts refused: {refusal}"
        edit = tlb.gradient_edit(model, prompt, TARGETS[0], lr=0.05)
    sites = tlb.weight_sites(model)
    owners = {name: sites[name].parameter for name in edit.updates}
    before = {name: owner.detach().clone() for name, owner in owners.items()}
    with edit:
        for name, update in edit.updates.items():
            moved = (owners[name].detach() - before[name]).double()
            said = sites[name].layout.to_stored(update.x.double().T @ update.v.double())
            torch.testing.assert_close(moved, said, rtol=1e-4, atol=1e-6)
            assert moved.abs().max() > 0, f"{name} has not moved"
    assert all(torch.equal(owners[name].detach(), kept) for name, kept in before.items()), "the edit has not come off"
    return what


def check_alignment(model, row: Row) -> str:
    """A model's own vectors are each other's likest, in every layer."""
    sites = tlb.weight_sites(model)
    names = list(written_by(model, sites).values())
    weight = sites[names[0]].short_name if names else "W_out"
    layers = [layer for layer, name in written_by(model, sites).items() if sites[name].short_name == weight]
    which = dict(layers_a=layers, layers_b=layers) if layers else {}
    found = match_parameters(model, model, weight, **which, n_chance=1, show_progress=False)
    score = found.embedding.score.diag()
    torch.testing.assert_close(score, torch.ones_like(score), rtol=0, atol=1e-6)
    return "works"


def check_inversion(model, row: Row) -> str:
    """Activations at the last block are the pass's own, and the preimage of a prompt among three is that prompt."""
    last = model.cfg.n_layers - 1
    decoder = f"decoder_blocks.{last}.hook_resid_post"
    site = resolve_place(model, decoder if decoder in model.hook_dict else ("resid_post", last))
    ids = tokens()
    seen = []
    with torch.no_grad(), model.hooks(fwd_hooks=[(site.read_at, lambda x, hook: seen.append(x.detach()))]):
        model(ids, return_type="logits")
    found = collect(model, ids, site, show_progress=False)[site]
    torch.testing.assert_close(found.double(), seen[-1].flatten(2).double(), rtol=1e-5, atol=1e-6)
    texts = [*prompts(row), "w30 w31 w32"]
    inside = preimage_of(model, texts[0], site, -1, texts, epsilon=1e-4, show_progress=False).inside.tolist()
    assert inside == [True, False, False], f"of three prompts {inside} have the first one's activation"
    return "works"


USES = {
    "sweep": check_sweep,
    "similarity": check_similarity,
    "edits": check_edits,
    "alignment": check_alignment,
    "inversion": check_inversion,
}
