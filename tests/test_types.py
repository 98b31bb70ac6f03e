"""What a type checker says of a user's script: every TransformerLens model goes wherever a model goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models import HAS_HOOKED_TRANSFORMER

ROOT = Path(__file__).parents[1]
IMPORTS = """
from typing import assert_type

import torch

import tl_backward as tlb
from tl_backward import alignment, dissimilarity, editing, embedding_space, inversion
from tl_backward.embedding_space import VectorOptions
from tl_backward.lens import RandomInit
from tl_backward.text.options import TextOptions
from tl_backward.vocabulary.readout import TargetReadout
from transformer_lens.model_bridge import TransformerBridge
"""
MADE = {
    "TransformerBridge": 'model = TransformerBridge.boot_transformers("gpt2")\n',
    "HookedTransformer": (
        'from transformer_lens import HookedTransformer\nmodel = HookedTransformer.from_pretrained("gpt2")\n'
    ),
}
SCRIPT = """
assert_type(tlb.readout(model, model.W_E[:3], k=3, target=" c"), TargetReadout)
assert_type(tlb.readout(model, model.W_E[:3], target=" c").target_rank, torch.Tensor)
assert_type(tlb.readout(model, model.W_E[:3], target=" c", answer=3).answer_rank, torch.Tensor)
assert_type(tlb.readout(model, model.W_E[:3], answer=" c"), tlb.Readout)
assert_type(tlb.readout(model, model.W_E[:3], basis=tlb.Basis(model.W_E)), tlb.LatentReadout)
assert_type(tlb.backward_lens(model, "a b", " c").shift[1].target_rank, torch.Tensor)
assert_type(tlb.backward_lens(model, "a b", " c").shift[1][0].target_rank_from_bottom, torch.Tensor)
assert_type(tlb.backward_lens(model, "a b", " c"), tlb.BackwardLens)
assert_type(tlb.backward_lens(model, "a b", " c", control="random_init").control.loss, torch.Tensor)
assert_type(tlb.backward_lens(model, "a b", " c", control=RandomInit(seed=1)).control, tlb.BackwardLens)
logits, cache = tlb.run_with_gradient_cache(model, ["a", "b"], tlb.next_token_loss)
assert_type(logits, torch.Tensor)
assert_type(cache, tlb.GradientCache)
tlb.weight_sites(model).account()
tlb.sweep(model, ["a"], [" b"])
tlb.gradient_similarity(model, [("a", " b")], ["c"])
tlb.shift_edit(model, "a", " b", 1).apply()
editing.compare_edits(model, [], {})
assert_type(tlb.project_parameter(model, "W_in", layer=0, k=3).top_tokens, list[list[str]])
tlb.head_pairs(model, "VO", layer=0, head=0, k=5, vector_options=VectorOptions(fold_ln=True))
tlb.head_pairs(model, "KV", layer=0, head=0)  # pyright: ignore[reportArgumentType]
tlb.run_with_gradient_cache(model, "a", tlb.next_token_loss, weights=3)  # pyright: ignore[reportArgumentType]
VectorOptions(inverse="inverse")  # pyright: ignore[reportArgumentType]
tlb.sweep(model, ["a"], [" b"], control=RandomInit(n_draws=2), text_options=TextOptions(batch_size=2))
embedding_space.related_pairs(model, "KV", 0)
alignment.token_map(model, model)
dissimilarity.compare(model, model, ["a", "b"])
inversion.read_query(model, "a b", ("resid_post", 1), -1)
"""


@pytest.mark.parametrize("kind", MADE)
def test_every_model_is_taken(kind, tmp_path):
    if kind == "HookedTransformer" and not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    pytest.importorskip("pyright")
    (tmp_path / "script.py").write_text(IMPORTS + MADE[kind] + SCRIPT)
    options = {
        "include": ["."],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": True,
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(options))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert said["summary"]["filesAnalyzed"] == 1
    found = [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in said["generalDiagnostics"]]
    assert not found, "\n".join(found)
