"""Heads are those of the layer: latent attention whose values are wider than its queries, queries that carry a gate."""

from dataclasses import replace

import pytest
import torch
from architectures import ROWS
from architectures.build import bridge

import tl_backward as tlb


def latent():
    """A DeepSeek-V3 whose values have 10 numbers and whose heads elsewhere have 6 + 4."""
    row = ROWS["DeepseekV3ForCausalLM"]

    def config(cls):
        made = row.config(cls)
        made.v_head_dim = 10
        return made

    return bridge(replace(row, config=config, eager_experts=True))


@pytest.fixture(scope="module")
def model():
    return latent()


def test_w_o_of_latent_attention_has_rows_by_value(model):
    site = tlb.weight_sites(model)["blocks.0.attn.W_O"]
    inner = model.blocks[0].attn.o.original_component
    heads = model.blocks[0].attn.original_component.num_heads
    assert site.layout.shape == (heads, 10, inner.weight.shape[0])
    assert inner.weight.shape[1] == heads * 10
    head = heads - 1
    whole = tlb.project_parameter(model, "W_O", layer=0, k=3)
    one = tlb.project_parameter(model, "W_O", layer=0, head=head, k=3)
    assert one.top_ids.shape[0] == 10 and torch.equal(one.top_ids, whole.top_ids[10 * head :])
    with pytest.raises(IndexError, match="^Expected head in"):
        tlb.project_parameter(model, "W_O", layer=0, head=heads)


def test_circuits_of_latent_attention_are_refused(model):
    with pytest.raises(ValueError, match="^Expected "):
        tlb.head_pairs(model, "VO", 0, 0)


def test_queries_and_gates_are_apart():
    row = replace(ROWS["Qwen3NextForCausalLM"], eager_experts=True)
    model = bridge(row)
    try:
        sites = tlb.weight_sites(model)
    except AttributeError as error:
        pytest.skip(f"TransformerLens cannot run it: {error}")
    name = next(name for name in sites if name.endswith("attn.W_Q"))
    layer = sites[name].layer
    query, gate = sites[name], sites[f"{name}_gate"]
    stored = query.parameter.detach()
    heads, _, width = query.layout.shape
    parts = stored.T.unflatten(1, (heads, 2, width))
    for site, which in ((query, 0), (gate, 1)):
        torch.testing.assert_close(site.layout.from_stored(stored), parts[:, :, which].transpose(0, 1))
    for weight in ("W_Q", "W_Q_gate"):
        found = tlb.project_parameter(model, weight, layer=layer, head=1, k=3)
        assert found.top_ids.shape[0] == width
    pairs = tlb.head_pairs(model, "QK", layer, 1, k=3, show_progress=False)
    assert len(pairs.pairs.rows) == 3
