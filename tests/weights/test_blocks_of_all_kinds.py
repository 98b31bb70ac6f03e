"""What is taken where nobody chose a weight, over blocks that write with other matrices than W_out; and its gradients."""

import pytest
import torch
from architectures import ROWS
from architectures.build import bridge as of_row
from architectures.double import InDouble
from architectures.table import row
from models import HAS_HOOKED_TRANSFORMER, bridge, hooked

import tl_backward as tlb
from tl_backward.editing import compare_edits, find_layer, gradient_edit, shift_edit
from tl_backward.editing.comparison import gradient_method, shift_method
from tl_backward.text.cases import EditCase

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
TEXTS = ["w5 w6 w7 w8", "w9 w4 w11", "w6 w6 w13 w11 w12"]
TARGETS = ["w9", "w8", "w10"]
PROMPT, TARGET = "w5 w6 w7", "w9"
BUILD = {
    "opt": lambda: of_row(row("OPTForCausalLM")),
    "qwen3": lambda: of_row(row("Qwen3ForCausalLM")),
    "mixtral": lambda: bridge("mixtral"),
    "mamba": lambda: of_row(row("MambaForCausalLM", use_mambapy=False)),
    "rwkv": lambda: of_row(row("RwkvForCausalLM")),
    "attention only": lambda: hooked("attn_only"),
}
WRITERS = {
    "opt": "mlp.W_out",
    "qwen3": "mlp.W_out",
    "mixtral": "mlp.experts.down_proj",
    "mamba": "mixer.W_out_proj",
    "rwkv": "channel_mix.W_out",
    "attention only": "attn.W_O",
}
ALL = [pytest.param(name, marks=needs_hooked if name == "attention only" else ()) for name in BUILD]
DENSE = [
    pytest.param(name, marks=needs_hooked if name == "attention only" else ()) for name in BUILD if name != "mixtral"
]
PRECISE = {"mamba": dict(rtol=1e-4, atol=1e-6)}
"""transformers scans a Mamba's states in float32, whatever the model's data type."""
EXACT = dict(rtol=1e-8, atol=1e-11)


def gradients(model, texts, targets, names):
    """Each text's own gradient, by autograd, one text at a time: [text][weight] as the parameter stores it."""
    parameters = [tlb.weight_sites(model)[name].parameter for name in names]
    found = []
    for text, target in zip(texts, targets, strict=True):
        tokens = model.to_tokens(text)
        logits = model(tokens, return_type="logits")[0]
        if target is None:
            loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
        else:
            loss = torch.nn.functional.cross_entropy(logits[-1:], model.to_tokens(target, prepend_bos=False)[0])
        found.append([g.double() for g in torch.autograd.grad(loss, parameters)])
    return found


@pytest.mark.parametrize("name", ALL)
def test_similarities_are_those_of_each_texts_own_gradient(name):
    model = BUILD[name]()
    found = tlb.gradient_similarity(model, TEXTS, batch_size=3, show_progress=False)
    assert set(found.weights) == {f"blocks.{layer}.{WRITERS[name]}" for layer in range(model.cfg.n_layers)}
    each = gradients(model, TEXTS, [None] * 3, found.weights)
    for w, weight in enumerate(found.weights):
        expected = torch.tensor([[float((a[w] * b[w]).sum()) for b in each] for a in each], dtype=torch.float64)
        torch.testing.assert_close(
            found.inner[w], expected, **PRECISE.get(name, EXACT), msg=lambda m, w=weight: f"{w}: {m}"
        )
        torch.testing.assert_close(found.norms_a[w] ** 2, expected.diag(), **PRECISE.get(name, EXACT))


@pytest.mark.parametrize("name", ALL)
def test_sweeps_are_those_of_each_texts_own_gradient(name):
    model = BUILD[name]()
    swept = tlb.sweep(model, TEXTS, TARGETS, batch_size=3, control=None, show_progress=False)
    each = gradients(model, TEXTS, TARGETS, swept.weights)
    expected = torch.tensor([[float(g.norm()) for g in own] for own in each], dtype=torch.float64)
    torch.testing.assert_close(swept.values["gradient_norm"], expected, **PRECISE.get(name, EXACT))
    share = swept.values["share"].nansum(-1)
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-6, atol=1e-6)
    assert swept.values["target_rank"].isfinite().all()


@pytest.mark.parametrize(
    "name", ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM", "JambaForCausalLM"]
)
def test_ranks_of_experts_are_those_of_what_they_write_together(name):
    """A token's rows are shares of the VJP at the mixture's output, which a lens reads at its hook point."""
    with InDouble():
        model = of_row(ROWS[name])
        swept = tlb.sweep(
            model,
            TEXTS,
            TARGETS,
            collect=["target_rank", "answer_rank"],
            batch_size=3,
            control=None,
            show_progress=False,
        )
        for i, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
            lens = tlb.backward_lens(model, text, target, k=3)
            shifts = [lens.shift[layer] for layer in swept.layers]
            for quantity in ("target_rank", "answer_rank"):
                expected = [float(getattr(each, quantity)[lens.answer_position]) for each in shifts]
                assert swept.values[quantity][i].tolist() == expected, quantity


def test_a_mixers_ranks_are_those_of_its_output():
    """The VJP at the hook point at which the mixer writes, by autograd, read with W_U."""
    model = BUILD["mamba"]()
    swept = tlb.sweep(model, TEXTS, TARGETS, batch_size=2, control=None, show_progress=False)
    for i, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        kept = []

        def keep(x, hook, kept=kept):
            x.retain_grad()
            kept.append(x)

        hooks = [(f"blocks.{layer}.mixer.hook_out", keep) for layer in (0, 1)]
        with model.hooks(fwd_hooks=hooks):
            logits = model(model.to_tokens(text), return_type="logits")[0]
        id_ = model.to_tokens(target, prepend_bos=False)[0]
        torch.nn.functional.cross_entropy(logits[-1:], id_).backward()
        for w, x in enumerate(kept):
            scores = tlb.readout(model, x.grad[0, -1][None], target=id_).target_rank
            assert float(swept.values["target_rank"][i, w]) == float(scores)


@pytest.mark.parametrize("name", DENSE)
def test_a_shift_of_what_the_block_writes_with(name):
    """W += 2 outer(x / |x|, W_U[:, t] / |W_U[:, t]|) at the last token, x being what W is multiplied by there."""
    model = BUILD[name]()
    target = TARGET if name != "attention only" else "w10"
    edit = shift_edit(model, PROMPT, target, 1)
    weight = f"blocks.1.{WRITERS[name]}"
    assert list(edit.updates) == [weight]
    parameter, layout = tlb.weight_sites(model)[weight].parameter, tlb.weight_sites(model)[weight].layout
    before, tokens = parameter.detach().clone(), model.to_tokens(PROMPT)
    read = tlb.run_with_gradient_cache(model, PROMPT, tlb.target_loss(target), weights=weight)[1].factors[weight].inputs
    x, v = (
        read[0, -1].flatten().to(before),
        model.W_U[:, model.to_tokens(target, prepend_bos=False)[0, 0]].detach().to(before),
    )
    plain = model(tokens).detach()
    with edit:
        moved = layout.from_stored(parameter.detach() - before).reshape(len(x), len(v))
        assert not torch.equal(model(tokens), plain)
    torch.testing.assert_close(moved, 2 * torch.outer(x / x.norm(), v / v.norm()), rtol=1e-4, atol=1e-6)
    assert torch.equal(parameter, before) and torch.equal(model(tokens), plain)


@pytest.mark.parametrize("name", DENSE)
def test_gradient_edits_are_descents(name):
    model = BUILD[name]()
    target = TARGET if name != "attention only" else "w10"
    edit = gradient_edit(model, PROMPT, target, lr=0.05)
    (own,) = gradients(model, [PROMPT], [target], tuple(edit.updates))
    with edit:
        now = [tlb.weight_sites(model)[weight].parameter.detach().clone() for weight in edit.updates]
    for weight, after, gradient in zip(edit.updates, now, own, strict=True):
        expected = tlb.weight_sites(model)[weight].parameter.detach().double() - 0.05 * gradient
        torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["opt", "qwen3", "mamba"])
def test_edits_are_compared_and_their_layer_found(name):
    model = BUILD[name]()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    cases = [EditCase(prompt="w5 w6", target="w8"), EditCase(prompt="w7 w6 w5", target="w10")]
    methods = {"shift": shift_method(1, 1.0), "gradient": gradient_method(0.01)}
    found = compare_edits(model, cases, methods, n_tokens=0, show_progress=False)
    assert found.scores.shape[:2] == (2, 2)
    grid = find_layer(model, PROMPT, TARGET, validation=cases, scales=[1.0, 3.0], show_progress=False)
    assert grid.probability.shape == (model.cfg.n_layers, 2) and grid.probability.isfinite().all()
    for i in range(model.cfg.n_layers):
        with shift_edit(model, PROMPT, TARGET, i, 3.0):
            said = model(model.to_tokens(PROMPT), return_type="logits")[0, -1].double().softmax(-1)
        at = model.to_tokens(TARGET, prepend_bos=False)[0, 0]
        torch.testing.assert_close(grid.probability[i, 1], said[at].detach(), rtol=1e-4, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mixtral", "mamba"])
def test_a_name_that_the_model_has_not_is_told_what_its_blocks_write_with(name):
    model = BUILD[name]()
    short = WRITERS[name].removeprefix("mlp.")
    said = (
        rf"^Expected the name of a weight, got 'W_out', which this model has not: its blocks write with {short}; pass "
    )
    for attempt in (
        lambda: tlb.sweep(model, TEXTS, TARGETS, weights="W_out", show_progress=False),
        lambda: tlb.gradient_similarity(model, TEXTS, weights="W_out", show_progress=False),
        lambda: gradient_edit(model, PROMPT, TARGET, weights="W_out"),
    ):
        with pytest.raises(ValueError, match=said):
            attempt()


def test_experts_in_one_parameter_are_not_edited():
    model = BUILD["mixtral"]()
    for attempt in (lambda: gradient_edit(model, PROMPT, TARGET), lambda: shift_edit(model, PROMPT, TARGET, 0)):
        with pytest.raises(
            ValueError, match="^Expected a weight that an edit can write, got blocks.0.mlp.experts.down_proj, "
        ):
            attempt()


@needs_hooked
def test_experts_that_are_matrices_of_their_own_are_to_be_named():
    model = hooked("moe")
    with pytest.raises(
        ValueError, match=r"^Expected one matrix that each block writes with, got blocks.0.mlp with 3 \(.*name"
    ):
        tlb.gradient_similarity(model, TEXTS, show_progress=False)
    found = tlb.gradient_similarity(model, TEXTS, weights=["experts.0.W_out"], show_progress=False)
    assert len(found.weights) == 2


def test_rows_that_are_not_told_apart_are_refused_by_name(monkeypatch):
    model = BUILD["opt"]()

    def refuse(self):
        raise ValueError("Expected rows that are told apart by example, got rows that are not; capture one at a time.")

    monkeypatch.setattr(tlb.GradientFactors, "example_norms", refuse)
    with pytest.raises(ValueError, match=r"^blocks\.\d\.mlp\.W_out: Expected rows that are told apart"):
        tlb.gradient_similarity(model, TEXTS, show_progress=False)


# ---- in words


@pytest.mark.parametrize("short, side", [("mixer.W_out_proj", "write"), ("mixer.W_in_proj", "read")])
def test_a_mixers_matrices_in_words(short, side):
    model = BUILD["mamba"]()
    module = model.blocks[1].get_submodule("mixer").get_parameter(_path(model, f"blocks.1.{short}"))
    vectors = module.detach() if side == "read" else module.detach().T  # nn.Linear stores [d_out, d_in]
    found = tlb.project_parameter(model, short, 1, k=3, show_progress=False)
    assert found.side == side and len(found.top_ids) == len(vectors)
    expected = (vectors.double() @ model.W_U.detach().double()).topk(3, -1)
    torch.testing.assert_close(found.top_scores.double(), expected.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.top_ids, expected.indices)


def _path(model, name):
    """A parameter's path below its mixer."""
    mixer, wanted = model.blocks[1].get_submodule("mixer"), tlb.weight_sites(model)[name].parameter
    return next(path for path, parameter in mixer.named_parameters() if parameter is wanted)


@pytest.mark.parametrize("short", ["mixer.W_x_proj", "mixer.W_dt_proj"])
def test_a_matrix_inside_a_mixer_is_no_words(short):
    with pytest.raises(ValueError, match=r"^Expected a weight with a d_model side, got 'blocks.*, none of it in"):
        tlb.project_parameter(BUILD["mamba"](), short, 0, show_progress=False)


def test_as_wide_inside_as_the_stream_only_the_ends_are_read():
    model = of_row(row("MambaForCausalLM", use_mambapy=False, expand=1))
    assert tlb.project_parameter(model, "mixer.W_out_proj", 0, k=3, show_progress=False).side == "write"
    assert tlb.project_parameter(model, "mixer.W_in_proj", 0, k=3, show_progress=False).side == "read"
    with pytest.raises(
        ValueError, match="'blocks.0.mixer.W_x_proj' of shape .*, whose d_model may not be the stream's; "
    ):
        tlb.project_parameter(model, "mixer.W_x_proj", 0, show_progress=False)


def test_one_expert_of_several_in_words():
    model = BUILD["mixtral"]()
    with pytest.raises(
        ValueError, match=r"^Expected one matrix, got 'blocks.0.mlp.experts.down_proj' .*; pass one as a tensor: "
    ):
        tlb.project_parameter(model, "experts.down_proj", 0, show_progress=False)
    own = tlb.weight_sites(model)["blocks.0.mlp.experts.down_proj"].parameter[1].detach().T
    found = tlb.project_parameter(model, own, side="write", k=3, show_progress=False)
    expected = (own @ model.W_U.detach()).topk(3, -1).indices
    assert torch.equal(found.top_ids, expected)
