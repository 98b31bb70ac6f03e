"""What Tab offers at a notebook's prompt of what a lens holds by layer."""

from dataclasses import fields

import pytest
import torch

import tl_backward as tlb
from tl_backward.vocabulary.latents import LatentReadout
from tl_backward.vocabulary.readout import RankedReadout

PROMPT, TARGET = "Anna Berg lives in the city of", " Oslo"


@pytest.fixture(scope="module")
def offered():
    """Names that IPython's completer offers after a text, by jedi, as notebooks use it."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    completer = pytest.importorskip("IPython.core.completer")
    pytest.importorskip("jedi")
    model = tlb.zoo.load("facts")
    basis = tlb.Basis(torch.eye(model.cfg.d_model)[:4])
    lens = tlb.backward_lens(model, PROMPT, TARGET, layers=[3], basis=basis)
    shell = shell(user_ns={"lens": lens, "latents": lens.latents["shift"]})
    shell.Completer.use_jedi = True

    def names(text):
        with completer.provisionalcompleter():
            return {each.text for each in shell.Completer.completions(text, len(text))}

    return names


@pytest.mark.parametrize(
    ("text", "kind"),
    [("lens.shift[3].", RankedReadout), ("lens.imprint[-1].", RankedReadout), ("latents[3].", LatentReadout)],
)
def test_a_layer_offers_what_its_readout_has(offered, text, kind):
    public = {name for name in dir(kind) if name[0] != "_"} | {each.name for each in fields(kind)}
    assert offered(text) == public
