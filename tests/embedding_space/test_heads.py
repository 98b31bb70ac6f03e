"""Head pairs against the whole V x V matrix in float64."""

import pytest
import torch
from models import HAS_HOOKED_TRANSFORMER, bridge, hooked, worlds
from shared import stories

import tl_backward as tlb
from tl_backward.embedding_space import PairOptions, VectorOptions

from .oracle import rotate, unembedding, vectors

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")


def matrix(model, circuit, layer, head, offset=None, width=None, base=10000.0, source="W_U"):
    """The head's V x V matrix."""
    n_heads, embedding = model.cfg.n_heads, unembedding(model)
    inputs = embedding.T if source == "W_U" else vectors(model, "W_E")

    def of(weight):
        stored = vectors(model, weight, layer)
        return stored[head * len(stored) // n_heads]  # [d_head, d_model]

    if circuit == "VO":
        return inputs @ of("W_V").T @ of("W_O") @ embedding
    queries, keys = inputs @ of("W_Q").T, inputs @ of("W_K").T
    if offset is not None:
        queries = rotate(queries, offset, base, width)
    return queries @ keys.T


def check(model, circuit, layer, head, k=40, largest=True, exclude_same=False, allowed=None, **options):
    scores = matrix(model, circuit, layer, head, **options)
    scores = scores if largest else -scores
    if exclude_same:
        scores.fill_diagonal_(-torch.inf)
    if allowed is not None:
        refused = [i for i in range(len(scores)) if i not in allowed]
        scores[refused] = scores[:, refused] = -torch.inf
    best = scores.flatten().topk(k)
    given = {name: value for name, value in options.items() if name in ("offset", "source")}
    found = tlb.head_pairs(
        model,
        circuit,
        layer,
        head,
        k=k,
        pair_options=PairOptions(largest=largest, exclude_same=exclude_same, **given),
        vector_options=VectorOptions(tokens=allowed),
        show_progress=False,
    )
    exact = model.W_U.dtype == torch.float64
    values = best.values if largest else -best.values
    torch.testing.assert_close(
        found.pairs.values.double(),
        values,
        **({"rtol": 1e-9, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-5}),
    )
    if exact:
        assert torch.equal(found.pairs.rows * len(scores) + found.pairs.cols, best.indices)
    return found


@needs_hooked
@pytest.mark.parametrize("family", ["ln", "rms_gated", "gqa_grouped", "gqa_ungrouped", "ln_folded", "attn_only"])
@pytest.mark.parametrize("circuit", ["VO", "QK"])
def test_hooked_transformer(family, circuit):
    model = hooked(family)
    for head in range(4):
        check(model, circuit, 1, head)
    check(model, circuit, 0, 2, largest=False)
    check(model, circuit, 0, 2, exclude_same=True, allowed=[3, 4, 9, 17, 20, 31, 49])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("circuit", ["VO", "QK"])
def test_bridge(family, circuit):
    model = bridge(family)
    for head in range(model.cfg.n_heads):
        check(model, circuit, 1, head)
    check(model, circuit, 0, 2, largest=False, exclude_same=True)
    check(model, circuit, 0, 1, source="W_E")


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize("circuit", ["VO", "QK"])
def test_stories(kind, circuit):
    model = stories(kind)
    for head in (0, 3, 7):
        check(model, circuit, 2, head)
    if circuit == "QK":
        check(model, circuit, 2, 5, offset=3)


@needs_hooked
@pytest.mark.parametrize("family, width", [("gqa_grouped", 4), ("rotary", 4), ("gqa_ungrouped", 4)])
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_rotary_in_hooked_transformer(family, width, offset):
    """Partial rotation: the first 4 of 5 dimensions turn."""
    check(hooked(family), "QK", 1, 3, offset=offset, width=width)


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2", "qwen2"])
@pytest.mark.parametrize("offset", [0, 5])
def test_rotary_in_bridge(family, offset):
    """Hugging Face computes the angles in float32, hence the tolerance. NeoX turns 2 of 8 dimensions."""
    model = bridge(family, hidden_size=32) if family == "neox" else bridge(family)
    layer, head, d_head = 1, 2, model.cfg.d_head
    embedding = unembedding(model)
    own = []
    for weight in ("W_Q", "W_K"):
        site = tlb.weight_sites(model)[f"blocks.{layer}.attn.{weight}"]
        stored = site.parameter.detach().double()
        stored = stored.reshape(-1, d_head, stored.shape[-1])
        own.append(embedding.T @ stored[head * len(stored) // 4].T)
    rotary = model.original_model.config.rope_parameters
    turned = int(d_head * rotary.get("partial_rotary_factor", 1.0))
    scores = rotate(own[0], offset, rotary["rope_theta"], turned) @ own[1].T
    found = tlb.head_pairs(model, "QK", layer, head, k=30, pair_options=PairOptions(offset=offset), show_progress=False)
    torch.testing.assert_close(found.pairs.values, scores.flatten().topk(30).values, rtol=1e-5, atol=1e-6)
    assert found.offset == offset


@pytest.mark.parametrize("world", worlds())
def test_the_offset_is_the_models_own(world):
    """The score of a pair at its offset is what the model's attention computes, where nothing precedes the head."""
    model = (
        hooked("rotary", n_layers=1, normalization_type=None)
        if world == "hooked"
        else bridge("llama", num_hidden_layers=1)
    )
    sites = tlb.weight_sites(model)
    for name in ("b_Q", "b_K"):
        if f"blocks.0.attn.{name}" in sites:
            torch.nn.init.zeros_(sites[f"blocks.0.attn.{name}"].parameter)
    tokens = torch.tensor([[0, 7, 9, 11, 30, 41]])
    seen = {}
    name = "blocks.0.attn.hook_attn_scores"
    with (
        torch.no_grad(),
        model.hooks(fwd_hooks=[(name, lambda x, hook: seen.update(scores=x.detach().clone()))], bwd_hooks=[]),
    ):
        model(tokens)
        if world == "bridge":  # the norm before the head scales each token: undo it by hand
            stream = sites["embed.W_E"].parameter.double()[tokens[0]]
            scale = (stream.pow(2).mean(-1) + model.original_model.config.rms_norm_eps).sqrt()
        else:
            scale = torch.ones(tokens.shape[1], dtype=torch.float64)
    offset, query = 3, 5
    pairs = tlb.head_pairs(
        model,
        "QK",
        0,
        1,
        k=2500,
        pair_options=PairOptions(offset=offset, source="W_E"),
        vector_options=VectorOptions(fold_ln=world == "bridge"),
        show_progress=False,
    ).pairs
    rows, cols = tokens[0, query], tokens[0, query - offset]
    own = pairs.values[(pairs.rows == rows) & (pairs.cols == cols)]
    expected = (
        seen["scores"][0, 1, query, query - offset].double()
        * model.cfg.d_head**0.5
        * scale[query]
        * scale[query - offset]
    )
    torch.testing.assert_close(own[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", worlds())
def test_low_precision(world):
    """Half-precision weights are multiplied in float32."""
    model = hooked(dtype=torch.bfloat16) if world == "hooked" else bridge(dtype=torch.bfloat16)
    scores = matrix(model, "VO", 1, 2)
    found = tlb.head_pairs(model, "VO", 1, 2, k=20, show_progress=False)
    assert found.pairs.values.dtype == torch.float32
    torch.testing.assert_close(found.pairs.values.double(), scores.flatten().topk(20).values, rtol=1e-5, atol=1e-5)


@needs_hooked
def test_folding_and_inverse():
    raw, folded = hooked(), hooked()
    folded.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    for circuit, source in (("VO", "W_U"), ("QK", "W_U"), ("VO", "W_E"), ("QK", "W_E")):
        options = {"pair_options": PairOptions(source=source), "show_progress": False}
        one = tlb.head_pairs(raw, circuit, 1, 2, vector_options=VectorOptions(fold_ln=True), **options).pairs
        two = tlb.head_pairs(folded, circuit, 1, 2, **options).pairs
        assert torch.equal(one.rows, two.rows) and torch.equal(one.cols, two.cols)
    inverse = torch.linalg.pinv(unembedding(raw))
    stored = [vectors(raw, weight, 1)[2] for weight in ("W_V", "W_O")]
    scores = inverse @ stored[0].T @ stored[1] @ unembedding(raw)
    best = scores.flatten().topk(50)
    found = tlb.head_pairs(raw, "VO", 1, 2, vector_options=VectorOptions("pinv"), show_progress=False).pairs
    assert torch.equal(found.rows * 50 + found.cols, best.indices)
    torch.testing.assert_close(found.values, best.values, rtol=1e-7, atol=1e-10)


@needs_hooked
def test_both_worlds_say_the_same():
    for one, other in [
        (tlb.zoo.load("facts", kind="hooked"), tlb.zoo.load("facts", kind="bridge")),
        (stories("hooked"), stories("bridge")),
    ]:
        every = [
            {"vector_options": each} for each in (VectorOptions(), VectorOptions(fold_ln=True), VectorOptions("pinv"))
        ]
        for options in [*every, {"pair_options": PairOptions(source="W_E", exclude_same=True)}]:
            for circuit in ("VO", "QK"):
                left, right = (tlb.head_pairs(m, circuit, 1, 3, show_progress=False, **options) for m in (one, other))
                torch.testing.assert_close(left.pairs.values, right.pairs.values, rtol=1e-4, atol=1e-5)
                assert left.left_out == right.left_out


@pytest.mark.parametrize("world", worlds())
def test_what_is_left_out_is_named(world):
    model = hooked() if world == "hooked" else bridge()
    assert tlb.head_pairs(model, "VO", 0, 0, show_progress=False).left_out == ("b_V", "b_O")
    torch.nn.init.zeros_(tlb.weight_sites(model)["blocks.0.attn.b_O"].parameter)
    found = tlb.head_pairs(model, "VO", 0, 0, show_progress=False)
    assert found.left_out == ("b_V",) and "without b_V" in found._repr_html_()
    assert tlb.head_pairs(model, "QK", 0, 0, show_progress=False).left_out == ("b_Q", "b_K")
    frame = found.to_frame()
    assert list(frame.columns) == ["attended", "written", "score", "attended_id", "written_id"] and len(frame) == 50
    assert frame["attended"][0] == model.tokenizer.decode([frame["attended_id"][0]])
    assert found._repr_html_().count("<tr>") == 31 and "layer 0, head 0" in repr(found)


@pytest.mark.parametrize("world", worlds())
def test_bad_input(world):
    model = hooked() if world == "hooked" else bridge()
    n_heads = model.cfg.n_heads
    with pytest.raises(
        ValueError,
        match="Expected circuit to be 'OV' .also 'VO'. or 'QK', a head's two matrices, got 'KV'; those are an MLP's",
    ):
        tlb.head_pairs(model, "KV", 0, 0)
    with pytest.raises(ValueError, match="Expected source to be 'W_U' or 'W_E', got 'W_pos'"):
        tlb.head_pairs(model, "VO", 0, 0, pair_options=PairOptions(source="W_pos"))
    with pytest.raises(IndexError, match=rf"Expected head in \[-{n_heads}, {n_heads}\), got -{n_heads + 1}"):
        tlb.head_pairs(model, "VO", 0, -n_heads - 1)
    with pytest.raises(IndexError, match=r"Expected layers in \[-2, 2\), got 5"):
        tlb.head_pairs(model, "VO", 5, 0)
    with pytest.raises(ValueError, match="Expected no offset for 'VO', which knows no positions, got 1"):
        tlb.head_pairs(model, "VO", 0, 0, pair_options=PairOptions(offset=1))
    with pytest.raises(ValueError, match="Expected no offset for a model without rotary embeddings, got one"):
        tlb.head_pairs(model, "QK", 0, 0, pair_options=PairOptions(offset=1))
    with pytest.raises(ValueError, match="Expected rotary embeddings that one module computes"):
        tlb.head_pairs(bridge("gptj"), "QK", 0, 0, pair_options=PairOptions(offset=1))
    with pytest.raises(IndexError, match=r"Expected offset in \[0, 16\), got 16"):
        tlb.head_pairs(model, "QK", 0, 0, pair_options=PairOptions(offset=16))
    with pytest.raises(ValueError, match=r"Expected 1 <= k <= 2500 \(the pairs to choose from\), got k=2501"):
        tlb.head_pairs(model, "QK", 0, 0, k=2501)
    with pytest.raises(ValueError, match="got k=10; choose a smaller k, or keep more"):
        tlb.head_pairs(model, "QK", 0, 0, k=10, vector_options=VectorOptions(tokens=[3, 4, 5]))
    with pytest.raises(TypeError, match="Expected a TransformerLens model"):
        tlb.head_pairs(torch.nn.Linear(2, 2), "VO", 0, 0)
