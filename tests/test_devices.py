"""Several devices, low precision and quantised layers: the numbers of the plain model on the CPU, or one clear sentence."""

import pytest
import torch
from models import TOKENS, bridge, build, worlds
from torch import nn
from two_devices import PACKAGE, two_devices

import tl_backward as tlb
from tl_backward.dissimilarity import RunOptions
from tl_backward.editing import edit_effect
from tl_backward.embedding_space import parameter_activation_overlap, parameter_coherence, related_pairs
from tl_backward.gradients.losses import next_token_loss
from tl_backward.text.options import TextOptions

QUIET = {"show_progress": False}
WORLDS = worlds()
MEASURES = ("cka", "procrustes", "mutual_knn", "cca", "rsa")
every_world = pytest.mark.parametrize("world", WORLDS)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED on a GPU: there is none here")


def captured(model, tokens=TOKENS, **options):
    return tlb.run_with_gradient_cache(model, tokens, next_token_loss, **options)


def words(n, start=3):
    return " ".join(f"w{start + i}" for i in range(n))


def compared(model, n=4):
    texts = [words(n, start) for start in range(3, 11)]
    return tlb.dissimilarity.compare(
        model,
        model,
        texts,
        text_options=TextOptions(batch_size=2),
        measures=MEASURES,
        run_options=RunOptions(permutations=2, jackknife=2),
        **QUIET,
    )


# ---- two devices, simulated: what the package makes on the host never meets what the model has on its device

TASKS = {
    "capture": captured,
    "factors": lambda model: [
        use(f)
        for f in captured(model, names_filter=[])[1].factors.values()
        for use in (
            lambda f: f.norm(),
            lambda f: f.token_norms(),
            lambda f: f.svd(2),
            lambda f: f.rank(),
            lambda f: f.inner(f),
        )
    ],
    "readout": lambda model: tlb.readout(
        model, torch.ones(3, model.cfg.d_model, dtype=model.W_U.dtype, device="cpu"), target=4
    ),
    "lens": lambda model: tlb.backward_lens(
        model, ["w5 w6 w7", "w8"], ["w9", "w10"], subject=["w6", "w8"], attention=True, control="random_init"
    ),
    "sweep": lambda model: tlb.sweep(model, ["w5 w6", "w7"], ["w8", "w9"], **QUIET),
    "similarity": lambda model: tlb.gradient_similarity(model, ["w5 w6", "w7"], **QUIET),
    "edit": lambda model: edit_effect(model, tlb.shift_edit(model, "w5 w6", "w7", 1, 1.0), "w5 w6"),
    "head_pairs": lambda model: tlb.head_pairs(model, "VO", 0, 0, k=5, **QUIET),
    "project": lambda model: tlb.project_parameter(model, "W_out", 0, k=4),
    "coherence": lambda model: parameter_coherence(model, "W_out", 0, k=4, **QUIET),
    "related": lambda model: related_pairs(model, "KV", 0, k=4, **QUIET),
    "overlap": lambda model: parameter_activation_overlap(model, TOKENS, "W_out", 1, k=5, **QUIET),
    "compare": compared,
}


@every_world
@pytest.mark.parametrize("task", TASKS)
def test_nothing_of_the_host_meets_the_models_device(world, task):
    model = build(world)
    with two_devices():
        TASKS[task](model)


def test_the_simulation_notices():
    """Without this, the test above could pass because nothing was watched."""
    spaces = {}
    code = "def bad(x): return x + torch.zeros(3)\ndef back(x): return x * x.cpu()\ndef good(x): return x + torch.zeros(3).to(x.device)"
    exec(compile(code, f"{PACKAGE}/made_up.py", "exec"), {"torch": torch}, spaces)
    x = torch.ones(3)
    with two_devices() as devices:
        for name in ("bad", "back"):
            with pytest.raises(RuntimeError, match="Expected all tensors on one device"):
                spaces[name](x)
        assert torch.equal(spaces["good"](x), x) and devices.reads == {"cpu": 1}


@every_world
@pytest.mark.parametrize(
    "task",
    {
        "capture": lambda model, n: captured(model, TOKENS[:, :n]),
        "text": lambda model, n: tlb.run_with_gradient_cache(model, words(n), tlb.target_loss(words(2))),
        "lens": lambda model, n: tlb.backward_lens(model, words(n), "w9", control="random_init"),
        "readout": lambda model, n: tlb.readout(
            model, torch.ones(n, model.cfg.d_model, dtype=model.W_U.dtype), target=4
        ),
        "sweep": lambda model, n: tlb.sweep(model, [words(n), words(n, 9)], ["w8", "w9"], **QUIET),
        "compare": compared,
        "overlap": lambda model, n: parameter_activation_overlap(model, TOKENS[:, :n], "W_out", 1, k=5, **QUIET),
    }.items(),
    ids=lambda task: task[0],
)
def test_reads_from_the_device_do_not_grow_with_the_tokens(world, task):
    """Each read waits for the GPU: none is made a token. What is learnt of a model is learnt once, before."""
    model, reads = build(world), []
    task[1](model, 3)
    for n in (3, 6):
        with two_devices() as devices:
            task[1](model, n)
        reads.append(devices.reads)
    assert reads[0] == reads[1]


# ---- parameters that are elsewhere


def offloaded(how, folder):
    """A bridge whose parameters accelerate keeps on the meta device until they are used."""
    import accelerate

    model = bridge("llama", torch.float32)
    if how == "memory":
        accelerate.cpu_offload(model.original_model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model.original_model, folder, execution_device=torch.device("cpu"))
    return model


@pytest.mark.parametrize("how", ["memory", "disk"])
def test_an_offloaded_model_is_refused(how, tmp_path):
    """Its W_U is on the meta device: reading it would give any numbers at all."""
    model, plain = offloaded(how, tmp_path), bridge("llama", torch.float32)
    assert any(parameter.is_meta for parameter in model.parameters())
    texts = ["w5 w6 w7", "w8 w9 w10"]
    for run in (
        captured,
        lambda model: tlb.readout(model, torch.ones(2, model.cfg.d_model)),
        lambda model: tlb.backward_lens(model, "w5 w6", "w7"),
        lambda model: tlb.sweep(model, ["w5"], ["w7"], **QUIET),
        lambda model: tlb.gradient_similarity(model, texts, **QUIET),
        lambda model: tlb.shift_edit(model, "w5 w6", "w7", 1, 1.0),
        lambda model: tlb.project_parameter(model, "W_out", 1, k=3),
        lambda model: tlb.head_pairs(model, "VO", 0, 0, k=3, **QUIET),
        lambda model: tlb.dissimilarity.compare(model, plain, texts, **QUIET),
        lambda model: tlb.inversion.pool_preimage(model, texts[0], ("resid_mid", 1), -1, texts, **QUIET),
    ):
        with pytest.raises(
            ValueError, match="Expected a model whose parameters are in memory, got '.*' on the meta device"
        ):
            run(model)


# ---- low precision


def gradients(model):
    """Autograd's own gradients of the default weights, by name."""
    sites = {name: site for name, site in tlb.weight_sites(model).items() if site.is_default}
    loss = next_token_loss(model(TOKENS, return_type="logits"), TOKENS)
    return dict(zip(sites, torch.autograd.grad(loss, [site.parameter for site in sites.values()]), strict=True))


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@every_world
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_models(world, dtype):
    model, exact = build(world, dtype=dtype), build(world)
    factors = captured(model, names_filter=[])[1].factors
    true = captured(exact, names_filter=[])[1].factors
    for name, gradient in gradients(model).items():
        assert factors[name].deltas.dtype == dtype
        assert error(factors[name].gradient("parameter"), gradient) < 4 * torch.finfo(dtype).eps
        assert error(factors[name].gradient(), true[name].gradient()) < 40 * torch.finfo(dtype).eps
    vectors = torch.randn(5, model.cfg.d_model, generator=torch.Generator().manual_seed(0)).double()
    low, high = tlb.readout(model, vectors.to(dtype), k=1), tlb.readout(exact, vectors, k=1)
    assert error(low.top_values, high.top_values) < 20 * torch.finfo(dtype).eps
    assert compared(model).values.sub(compared(exact).values).abs().max() < 0.1


@every_world
def test_under_autocast(world):
    model = build(world, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        factors = captured(model, names_filter=[])[1].factors
        expected = gradients(model)
        read = tlb.backward_lens(model, "w5 w6", "w7", control="random_init")
    true = captured(model, names_filter=[])[1].factors
    for name, gradient in expected.items():
        assert factors[name].inputs.dtype == factors[name].deltas.dtype
        assert error(factors[name].gradient("parameter"), gradient) < 0.01
        assert error(factors[name].gradient(), true[name].gradient()) < 0.1
        for use in (
            lambda f: f.norm(),
            lambda f: f.token_norms(),
            lambda f: f.svd(2),
            lambda f: f.inner(f),
            lambda f: f.rank(),
        ):
            use(factors[name])
    plain = tlb.backward_lens(model, "w5 w6", "w7")
    assert float(read.loss) == pytest.approx(float(plain.loss), rel=0.05)


# ---- 8-bit layers


class Int8Linear(nn.Linear):
    """Stored in 8 bits with a scale a row, as quantising libraries do; multiplies by what that stands for."""

    @classmethod
    def of(cls, linear):
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=linear.weight.dtype)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        layer.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        layer.register_buffer("scale", scale)
        layer.bias = linear.bias
        return layer

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(self.scale.dtype) * self.scale, self.bias)


def quantised(only=""):
    """A Llama of 8-bit layers, and the plain one of the same numbers."""
    made = []
    for keep in (True, False):
        model = bridge("llama")
        for name, module in list(model.named_modules()):
            layer = module._modules.get("_original_component")
            if type(layer) is nn.Linear and "unembed" not in name and only in name:
                low = Int8Linear.of(layer)
                layer.weight.data = low.weight.to(low.scale.dtype) * low.scale
                module._modules["_original_component"] = low if keep else layer
        made.append(model)
    return made


def test_8_bit_layers_have_right_gradients_at_hook_points_and_say_that_they_have_no_factors():
    model, plain = quantised()
    assert any(parameter.dtype == torch.int8 for parameter in model.parameters())
    found, expected = captured(model, weights=[])[1], captured(plain)[1]
    for name in ("mlp_out", "attn_out", "resid_post"):
        for layer in (0, 1):
            torch.testing.assert_close(found[name, layer], expected[name, layer], rtol=1e-12, atol=1e-14)
    assert len(found.factors) == 0
    match = "a quantised weight|not a floating-point parameter"
    for run in (
        lambda: captured(model),
        lambda: captured(model, names_filter=[]),
        lambda: captured(model, weights="W_out"),
        lambda: tlb.backward_lens(model, "w5 w6", "w7"),
        lambda: tlb.sweep(model, ["w5 w6"], ["w7"], **QUIET),
        lambda: tlb.shift_edit(model, "w5 w6", "w7", 1, 1.0),
        lambda: tlb.project_parameter(model, "W_out", 0, k=3),
        lambda: tlb.head_pairs(model, "VO", 0, 0, k=3, **QUIET),
    ):
        with pytest.raises(ValueError, match=match):
            run()
    vectors = torch.ones(2, model.cfg.d_model, dtype=torch.float64)
    assert torch.equal(tlb.readout(model, vectors).top_ids, tlb.readout(plain, vectors).top_ids)


def test_the_other_layers_of_a_partly_8_bit_model_are_exact():
    model, plain = quantised(only="mlp")
    found, expected = captured(model)[1].factors, captured(plain)[1].factors
    assert set(found) == {name for name in expected if ".attn." in name}
    for name, factors in found.items():
        torch.testing.assert_close(factors.gradient(), expected[name].gradient(), rtol=1e-12, atol=1e-14)


# ---- a real GPU


@needs_gpu
@every_world
def test_capture_readout_and_dissimilarity_on_a_gpu_give_the_cpus_numbers(world):
    on_cpu, on_gpu = build(world, dtype=torch.float32), build(world, dtype=torch.float32).to("cuda")
    expected, found = captured(on_cpu)[1], captured(on_gpu, TOKENS.cuda())[1]
    for name, factors in expected.factors.items():
        assert found.factors[name].deltas.is_cuda and found.factors[name].inputs.is_cuda
        assert error(found.factors[name].gradient().cpu(), factors.gradient()) < 1e-4
    vectors = torch.randn(20, on_cpu.cfg.d_model, generator=torch.Generator().manual_seed(0))
    one, other = tlb.readout(on_cpu, vectors, target=4), tlb.readout(on_gpu, vectors.cuda(), target=4)
    assert other.top_values.is_cuda and error(other.top_values.cpu(), one.top_values) < 1e-4
    assert torch.equal(one.top_ids, other.top_ids.cpu()) and torch.equal(one.target_rank, other.target_rank.cpu())
    torch.testing.assert_close(compared(on_gpu).values.cpu(), compared(on_cpu).values, rtol=1e-4, atol=1e-4)
    lens, read = (tlb.backward_lens(model, "w5 w6", "w7", control="random_init") for model in (on_cpu, on_gpu))
    assert read.shift[0].norm.is_cuda and error(read.stacked("norm").cpu(), lens.stacked("norm")) < 1e-4
    pairs, same = (tlb.head_pairs(model, "VO", 0, 0, k=9, **QUIET).pairs.values.cpu() for model in (on_cpu, on_gpu))
    torch.testing.assert_close(pairs, same, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_a_decoder_trained_in_fp16_on_a_gpu():
    from inversion.small import options, trained

    half = trained(
        WORLDS[0],
        budget=16 * 12,
        model=build(WORLDS[0], dtype=torch.float32).to("cuda"),
        options=options(mixed_precision="fp16"),
    )
    full = trained(WORLDS[0], budget=16 * 12, model=build(WORLDS[0], dtype=torch.float32).to("cuda"))
    assert half.network.mean.dtype == torch.float32
    assert half.description["final_loss"] == pytest.approx(full.description["final_loss"], rel=0.1)
