"""Every public entry that runs a model, and faults to strike it with: at hooks, in losses, in the backward pass."""

import functools
from contextlib import contextmanager
from dataclasses import replace

import torch
from inversion.small import CONFIG, options, trained
from models import TOKENS, build

import tl_backward as tlb
from tl_backward.embedding_space import parameter_activation_overlap
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
ERRORS = {
    "error": lambda: RuntimeError("struck"),
    "interrupt": lambda: KeyboardInterrupt("struck"),
    "out of memory": lambda: torch.OutOfMemoryError("struck: out of memory"),
}
TEXTS = ["w5 w6 w7 w8", "w9 w3 w41", "w10 w12 w13 w20 w22", "w30 w31 w32", "w11 w8", "w21 w22 w23 w24 w25 w26"]
SITE, DOMAIN = ("resid_post", 1), ["w5 w6", "w6 w5", "w7 w8", "w5 w8"]
CASE = tlb.EditCase("w5 w6", "w9", paraphrases=("w6",))


class Fault:
    """Called armed for the `at`-th time, raises; before and after that it does nothing."""

    def __init__(self, make, at=1):
        self.make, self.at, self.calls, self.armed = make, at, 0, False

    def __call__(self, *args, **options):
        if self.armed:
            self.calls += 1
            if self.calls == self.at:
                raise self.make()

    @property
    def struck(self):
        return self.calls >= self.at


def next_token(fault=None):
    """The next-token loss, with a fault in it."""

    def loss(logits, tokens):
        if fault is not None:
            fault()
        return tlb.next_token_loss(logits, tokens)

    return loss


def in_backward(fault):
    """A loss whose own gradient strikes."""

    def loss(logits, tokens):
        value = tlb.next_token_loss(logits, tokens)
        value.register_hook(lambda gradient: fault())
        return value

    return loss


def _edited(model):
    edit = tlb.rank_one_edit(model, "blocks.1.mlp.W_out", *_vectors(model), scale=0.1)
    with edit:
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, weights="W_out", names_filter=[])


def _vectors(model):
    site = tlb.weight_sites(model)["blocks.1.mlp.W_out"]
    return (torch.ones(n, dtype=model.W_U.dtype) for n in site.layout.shape)


@functools.cache
def _decoder(world):
    return trained(world)


def _decoded(model):
    world = "hooked" if type(model).__name__ == "HookedTransformer" else "bridge"
    decoder = replace(_decoder(world), model=model)
    return decoder.preimage("w5 w6 w7", site=decoder.sites[0], position=-1, n=4, **QUIET)


def _patched(model):
    found = tlb.inversion.preimage_of(model, "w5 w6", SITE, -1, DOMAIN, epsilon=10.0, **QUIET)
    return tlb.inversion.verify_by_patching(model, found, n=2)


def _stitch(model, **options):
    descent = tlb.dissimilarity.FitOptions(steps=2, warmup_steps=1)
    return tlb.dissimilarity.stitch(
        model,
        0,
        model,
        1,
        TEXTS,
        text_options=TextOptions(batch_size=3),
        held_out=0.5,
        fit_options=descent,
        **options,
        **QUIET,
    )


def _searched(model):
    return tlb.inversion.search_preimage(
        model,
        "w5 w6",
        SITE,
        -1,
        proposals=DOMAIN,
        search_options=tlb.inversion.SearchOptions(chains=2, steps=3),
        **QUIET,
    )


def _train(model):
    few = options(n_kept=6, n_queries=1, n_samples=1, n_evaluations=1)
    return tlb.inversion.train(model, [SITE], TEXTS * 3, budget=32, positions=[-1], config=CONFIG, options=few, **QUIET)


def _report(model):
    lens = tlb.backward_lens(model, "w5 w6", "w9")
    return tlb.render.lens_report(lens, model).to_html()


def _zero_shot(model):
    return tlb.alignment.zero_shot_stitch(model, 1, model, 1)(TOKENS)


WITH_LOSS = {
    "capture": lambda model, loss: tlb.run_with_gradient_cache(model, TOKENS, loss),
    "capture one weight": lambda model, loss: tlb.run_with_gradient_cache(
        model, TOKENS, loss, weights="W_out", names_filter=[]
    ),
    "sweep": lambda model, loss: tlb.sweep(model, TEXTS[:2], loss, n_draws=1, batch_size=1, control=None, **QUIET),
    "similarity": lambda model, loss: tlb.gradient_similarity(
        model, [(text, loss) for text in TEXTS[:2]], batch_size=1, **QUIET
    ),
}
ENTRIES = {
    **{name: lambda model, run=run: run(model, next_token()) for name, run in WITH_LOSS.items()},
    # A head's own input has no place in a lens, which says so.
    "lens": lambda model: tlb.backward_lens(model, "w5 w6 w7", "w9", attention=not model.cfg.use_split_qkv_input),
    "sweep with control": lambda model: tlb.sweep(model, [CASE], n_draws=1, **QUIET),
    "shift_edit": lambda model: tlb.shift_edit(model, "w5 w6", "w9", 1, 3.0),
    "gradient_edit": lambda model: tlb.gradient_edit(model, "w5 w6", "w9", steps=2),
    "in an edit": _edited,
    "evaluate_edit": lambda model: tlb.evaluate_edit(
        model, tlb.rank_one_edit(model, "blocks.1.mlp.W_out", *_vectors(model)), CASE, n_tokens=2
    ),
    "compare_edits": lambda model: tlb.compare_edits(
        model, [CASE], tlb.editing.edit_methods(1, 3.0, 0.1), n_tokens=2, **QUIET
    ),
    "find_layer": lambda model: tlb.find_layer(
        model, "w5 w6", "w9", validation=[tlb.EditCase("w7", "w8")], scales=(1.0,), **QUIET
    ),
    "overlap": lambda model: parameter_activation_overlap(
        model, TEXTS[:2], "W_out", 1, k=3, k_state=3, n_vectors=2, **QUIET
    ),
    "compare": lambda model: tlb.dissimilarity.compare(
        model, model, TEXTS, text_options=TextOptions(batch_size=3), **QUIET
    ),
    "stitch": _stitch,
    "stitch by descent": lambda model: _stitch(model, fit="sgd"),
    "stitching_grid": lambda model: tlb.dissimilarity.stitching_grid(
        model, model, TEXTS, text_options=TextOptions(batch_size=3), held_out=0.5, layers_a=[0], layers_b=[1], **QUIET
    ),
    "zero_shot_stitch": _zero_shot,
    "collect": lambda model: tlb.inversion.collect(model, TOKENS, SITE, **QUIET),
    "enumerate_preimage": lambda model: tlb.inversion.enumerate_preimage(model, "w5 w6", SITE, -1, DOMAIN, **QUIET),
    "search_preimage": _searched,
    "preimage_of": lambda model: tlb.inversion.preimage_of(model, "w5 w6", SITE, -1, DOMAIN, **QUIET),
    "decoder.preimage": _decoded,
    "verify_by_patching": _patched,
    "train": _train,
    "report": _report,
}
"""Name -> what runs a model of tests/models.py."""
EDITING = {"gradient_edit", "in an edit", "evaluate_edit", "compare_edits", "find_layer"}
"""Of these, what writes weights and writes them back."""


@contextmanager
def hooked_by(model, name, fault, direction="fwd"):
    """A fault at a hook point, as a user's own hook."""
    point = model.hook_dict[name]
    point.add_hook(lambda value, hook: fault(), dir=direction)
    try:
        yield
    finally:
        point.remove_hooks(direction, including_permanent=False)


def model_of(world, family):
    """A model of a family; the plainest for None."""
    from models import bridge, hooked

    if family is None:
        return build(world)
    return hooked(family) if world == "hooked" else bridge(family)
