"""The loader: folders whose weights are not the model's, models of every class, and nothing installed on the way."""

import json
import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import plain
import pytest
import torch
import transformers
from models import D_VOCAB, HAS_HOOKED_TRANSFORMER, randomise, tokenizer, worlds
from safetensors.torch import load_file, save_file

import tl_backward as tlb
from tl_backward._support.closeness import difference
from tl_backward.cli import main
from tl_backward.model.loading import LoadingWarning
from tl_backward.model.loading._others import no_installs

needs_hooked = pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="HookedTransformer left with TransformerLens 4")
SMALL = dict(vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
             max_position_embeddings=32)  # fmt: skip
GPT2 = dict(vocab_size=D_VOCAB, n_positions=32, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
GROUPED = dict(**SMALL, num_key_value_heads=2)
PARTS = "transformer.h.1.mlp.c_fc.weight"


def saved(folder, name="GPT2LMHeadModel", *, shard="5GB", **options):
    """A folder that `save_pretrained` wrote of a tiny random model, and that model."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**(options or GPT2))).eval()
    randomise(model, scale=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return model


def rewrite(folder, change):
    """Change the tensors of a folder in place."""
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, kind="bridge"):
    """The one sentence that a folder is refused with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="^Expected ") as caught:
            tlb.load(str(folder), kind=kind)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


# ---- agreement


@needs_hooked
def test_a_conversion_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    saved(tmp_path)
    from tl_backward.model.loading import _wrapped

    convert = _wrapped._convert

    def wrong(*args):
        model = convert(*args)
        with torch.no_grad():
            model.W_U.mul_(1.5)
        return model

    monkeypatch.setattr(_wrapped, "_convert", wrong)
    assert re.search(
        r"its logits differ from Hugging Face's by .* of the largest; use kind 'bridge'", refused(tmp_path, "hooked")
    )


# ---- weights


@pytest.mark.parametrize("kind", worlds())
def test_missing_weights_are_named(tmp_path, kind):
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(PARTS))
    said = refused(tmp_path, kind)
    assert f"files that lack {PARTS};" in said and "GPT2LMHeadModel" in said and "again, whole" in said
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".ln_" in name])
    assert "and 8 more" in refused(tmp_path, kind) and PARTS not in refused(tmp_path, kind)


def test_the_command_line_writes_no_report_of_random_numbers(capsys, tmp_path):
    saved(tmp_path / "model")
    rewrite(tmp_path / "model", lambda tensors: tensors.pop(PARTS))
    out = tmp_path / "params.html"
    capsys.readouterr()  # transformers' progress
    for command in (
        ["params", "--model", tmp_path / "model"],
        ["lens", "--model", tmp_path / "model", "--prompt", "w4 w5", "--target", "w6"],
    ):
        assert main([str(part) for part in (*command, "--out", out, "--no-open")]) == 1
        complained = capsys.readouterr().err
        assert complained.count("\n") == 1 and f"lack {PARTS}" in complained
    assert not out.exists()


def test_weights_of_another_shape_are_named(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({PARTS: torch.zeros(24, 90)}))
    assert f"have in another shape {PARTS} [24, 90] instead of [24, 96];" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["transformer.h.2.mlp.c_fc.weight", "transformer.ln_f.gain", "transformer.h.1.attn.q_norm"]
)
def test_weights_that_a_part_of_the_model_has_not_are_named(tmp_path, name):
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(24, 96)}))
    assert f"have unasked {name};" in refused(tmp_path)


def test_further_layers_of_a_bare_model_are_named(tmp_path):
    saved(tmp_path / "gpt2", "GPT2Model")
    rewrite(tmp_path / "gpt2", lambda tensors: tensors.update({"h.2.mlp.c_fc.weight": torch.zeros(24, 96)}))
    assert "have unasked" in refused(tmp_path / "gpt2")


def test_experts(tmp_path):
    options = dict(**GROUPED, num_local_experts=3, num_experts_per_tok=2)
    saved(tmp_path / "whole", "MixtralForCausalLM", **options)
    expert = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    further = expert.replace("layers.1", "layers.2")
    changes = [
        (lambda tensors: tensors.pop(expert), "joins, such as a layer's experts, do not fit"),
        (
            lambda tensors: tensors.update({expert: tensors[expert][:-1].clone()}),
            "joins, such as a layer's experts, do not fit",
        ),
        (lambda tensors: tensors.update({further: tensors[expert].clone()}), "have unasked model.layers.2."),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name and ".w2." in name],
            "lack model.layers.1.",
        ),
    ]
    for number, (change, sentence) in enumerate(changes):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{number}")
        rewrite(tmp_path / f"{number}", change)
        assert sentence in refused(tmp_path / f"{number}")


@pytest.mark.parametrize("kind", worlds())
def test_another_task_s_head_is_left_with_a_warning(capsys, tmp_path, kind):
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"score.weight": torch.zeros(3, 24)}))
    with pytest.warns(LoadingWarning, match="GPT2LMHeadModel has no use for score.weight in"):
        assert tlb.load(str(tmp_path), kind=kind).cfg.n_layers == 2
    capsys.readouterr()
    main(
        [
            "lens",
            "--model",
            str(tmp_path),
            "--kind",
            kind,
            "--prompt",
            "w4 w5",
            "--target",
            "w6",
            "--no-control",
            "--json",
        ]
    )
    assert "note: GPT2LMHeadModel has no use for score.weight" in capsys.readouterr().err


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize("tied", [True, False])
def test_what_a_class_may_lack_is_not_missed(tmp_path, tied, kind):
    model = saved(tmp_path, **GPT2, tie_word_embeddings=tied)
    tensors = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not tied
    # Buffers that older transformers saved with GPT-2.
    rewrite(tmp_path, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}))
    ids = torch.tensor([[3, 9, 4, 20, 7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LoadingWarning)
        loaded = tlb.load(str(tmp_path), kind=kind)
    torch.testing.assert_close(loaded(ids), model(ids).logits, atol=1e-4, rtol=1e-4)
    if not tied:
        rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
        assert "lack lm_head.weight;" in refused(tmp_path, kind)


def test_a_base_model_without_its_head(tmp_path):
    saved(tmp_path / "tied", "GPT2Model")
    assert tlb.load(str(tmp_path / "tied"), kind="bridge").cfg.d_vocab == D_VOCAB
    saved(tmp_path / "untied", "LlamaModel", **GROUPED)
    assert "lack lm_head.weight;" in refused(tmp_path / "untied")


def test_damaged_files(tmp_path):
    saved(tmp_path / "whole")
    data = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for number, bad in enumerate([data[:-100], data[: len(data) // 2], data[:5], b"", b"\xff" * 64, b"{" + data[1:]]):
        folder = tmp_path / f"cut{number}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "model.safetensors").write_bytes(bad)
        assert "transformers cannot load it" in refused(folder)


def test_weights_that_are_no_file(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "transformers cannot load it" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"\x00" * 40)
    assert "transformers cannot load it" in refused(tmp_path)


@pytest.mark.parametrize("kind", worlds())
def test_sharded_folders(tmp_path, kind):
    saved(tmp_path, shard="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    assert len(shards) >= 3 and tlb.load(str(tmp_path), kind=kind).cfg.n_layers == 2
    held, whole = shards[1].read_bytes(), index.read_text()
    shards[1].unlink()
    assert shards[1].name in refused(tmp_path, kind)
    shards[1].write_bytes(held[:-10])
    assert "transformers cannot load it" in refused(tmp_path, kind)
    shards[1].write_bytes(held)
    named = json.loads(whole)
    lost = {name for name, file in named["weight_map"].items() if file == shards[1].name}
    index.write_text(
        json.dumps(named | {"weight_map": {n: f for n, f in named["weight_map"].items() if n not in lost}})
    )
    assert sorted(lost)[0] in refused(tmp_path, kind)
    index.write_text(whole.replace(shards[1].name, "another.safetensors"))
    assert "another.safetensors" in refused(tmp_path, kind)
    index.write_text(whole[: len(whole) // 2])
    assert "transformers cannot load it" in refused(tmp_path, kind)
    index.write_text(whole)
    assert tlb.load(str(tmp_path), kind=kind).cfg.n_layers == 2


def test_loading_leaves_no_trace(tmp_path):
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    verbosity, start = transformers.logging.get_verbosity(), subprocess.Popen.__init__
    state = torch.get_rng_state()
    for kind in worlds():
        tlb.load(str(tmp_path), kind=kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert transformers.logging.get_verbosity() == verbosity and subprocess.Popen.__init__ is start


# ---- HookedTransformer

HOOKED = {
    "GPT2LMHeadModel": GPT2,
    "GPTNeoForCausalLM": dict(vocab_size=D_VOCAB, max_position_embeddings=32, hidden_size=24, num_layers=2, num_heads=4,
                              attention_types=[[["global", "local"], 1]], window_size=8),
    "GPTJForCausalLM": dict(**GPT2, rotary_dim=4),
    "GPTNeoXForCausalLM": SMALL,
    "OPTForCausalLM": dict(vocab_size=D_VOCAB, hidden_size=24, num_hidden_layers=2, ffn_dim=40, num_attention_heads=4,
                           max_position_embeddings=32, word_embed_proj_dim=24),
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": dict(**GROUPED, head_dim=8),
    "PhiForCausalLM": SMALL | dict(hidden_size=32),
    "Phi3ForCausalLM": dict(**GROUPED, pad_token_id=1),
    "BloomForCausalLM": dict(vocab_size=D_VOCAB, hidden_size=24, n_layer=2, n_head=4),
}  # fmt: skip


@needs_hooked
@pytest.mark.parametrize("name", HOOKED)
def test_hooked_transformers_of_folders_that_transformers_5_wrote(tmp_path, name):
    model = saved(tmp_path, name, **HOOKED[name])
    ids = torch.tensor([[3, 9, 4, 20, 7, 7, 33, 49, 5, 6, 11]])
    hooked = tlb.load(str(tmp_path), kind="hooked")
    torch.testing.assert_close(hooked(ids), model(ids).logits, atol=1e-4, rtol=1e-3)
    assert hooked.cfg.model_name == tmp_path.name and hooked.cfg.d_vocab == D_VOCAB


@needs_hooked
def test_a_gpt2_without_n_ctx_and_with_an_mlp_of_its_own_width(tmp_path):
    saved(tmp_path, **GPT2, n_inner=40)
    assert "n_ctx" not in json.loads((tmp_path / "config.json").read_text())
    hooked = tlb.load(str(tmp_path), kind="hooked")
    assert hooked.cfg.n_ctx == 32 and hooked.cfg.d_mlp == 40 and hooked.W_in.shape == (2, 24, 40)


@needs_hooked
def test_what_a_folder_is_called_says_nothing(tmp_path):
    saved(tmp_path / "my-llama", "LlamaForCausalLM", **GROUPED)
    saved(tmp_path / "gemma" / "x", "Qwen2ForCausalLM", **GROUPED)
    for folder in (tmp_path / "my-llama", tmp_path / "gemma" / "x"):
        hooked = tlb.load(str(folder), kind="hooked")
        assert type(hooked).__name__ == "HookedTransformer" and hooked.cfg.model_name == folder.name


@needs_hooked
@pytest.mark.parametrize("name", ["BertForMaskedLM", "GemmaForCausalLM"])
def test_architectures_that_are_no_hooked_transformer(tmp_path, name):
    saved(tmp_path, name, **(SMALL if "Bert" in name else dict(**GROUPED, head_dim=6)))
    assert refused(tmp_path, "hooked").endswith("; use kind 'bridge'.")


# ---- agreement with Hugging Face


@pytest.mark.parametrize("kind", worlds())
def test_a_model_that_computes_something_else_is_refused(tmp_path, kind, monkeypatch):
    saved(tmp_path)
    from tl_backward.model.loading import _wrapped

    monkeypatch.setattr(_wrapped, "own_logits", lambda model, tokens: model(tokens).logits * 1.01)
    assert "logits" in refused(tmp_path, kind) and "0.0099 of the largest" in refused(tmp_path, kind)


@pytest.mark.parametrize("name", ["CohereForCausalLM", "T5ForConditionalGeneration"])
def test_what_transformer_lens_3_computes_otherwise(tmp_path, name):
    t5 = dict(vocab_size=D_VOCAB, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = saved(tmp_path, name, **(t5 if name[:2] == "T5" else GROUPED))
    if HAS_HOOKED_TRANSFORMER:
        assert "install 'transformer-lens>=4.3'." in refused(tmp_path)
        return
    loaded = tlb.load(str(tmp_path))
    ids = torch.tensor([[3, 9, 4]])
    inputs = {"decoder_input_ids": ids} if name[:2] == "T5" else {}
    torch.testing.assert_close(loaded(ids, **inputs), model(ids, **inputs).logits)
    assert type(loaded.original_model).__name__ == name


def test_difference():
    right = torch.tensor([[[1.0, -4.0], [2.0, 0.0], [1.0, 1.0]]])
    wrong = right.clone()
    wrong[0, 1, 1] = 1
    assert difference(wrong, right) == 0.25 and difference(right, right) == 0
    assert difference(wrong.bfloat16(), right.bfloat16()) == 0  # one of three positions: another expert
    wrong[0, 1, 1] = float("nan")
    assert difference(wrong, right) == float("inf") and difference(right[:, 1:], right) == float("inf")
    assert difference(wrong, wrong) == 0


# ---- classes


def test_a_masked_model_keeps_its_class(tmp_path):
    model = saved(tmp_path, "BertForMaskedLM", **SMALL)
    loaded = tlb.load(str(tmp_path))
    assert type(loaded.original_model).__name__ == "BertForMaskedLM"
    ids = torch.tensor([[0, 9, 2, 20]])
    torch.testing.assert_close(loaded(ids), model(ids).logits)


def test_a_masked_model_without_its_head(tmp_path):
    saved(tmp_path, "BertForSequenceClassification", **SMALL)
    said = refused(tmp_path)
    assert "BertForMaskedLM" in said and "lack cls.predictions" in said


def test_an_architecture_that_transformer_lens_does_not_know(tmp_path):
    saved(tmp_path, "ElectraForSequenceClassification", **SMALL)
    refused(tmp_path)


# ---- nothing is installed


@pytest.fixture
def processes(monkeypatch):
    """Every process that would be started; none is."""
    started = []

    class Process:
        returncode = 0

        def __init__(self, args, *more, **options):
            started.append(args)

        def __enter__(self):
            return self

        def __exit__(self, *about):
            pass

        def wait(self, timeout=None):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    return started


def llava(folder):
    """A multimodal folder whose processor does not load."""
    vision = transformers.SiglipVisionConfig(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
                                             image_size=8, patch_size=4)  # fmt: skip
    text = transformers.Gemma3TextConfig(**GROUPED, head_dim=6, layer_types=["sliding_attention", "full_attention"])
    saved(folder, "Gemma3ForConditionalGeneration", text_config=text, vision_config=vision, mm_tokens_per_image=4,
          image_token_index=48, boi_token_index=46, eoi_token_index=47)  # fmt: skip


def test_loading_installs_nothing(tmp_path, processes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    llava(tmp_path)
    with pytest.warns(
        LoadingWarning, match="processor of .* did not load .*needs torchvision, install the one that fits"
    ):
        model = tlb.load(str(tmp_path))
    assert processes == [] and type(model.original_model).__name__ == "Gemma3ForConditionalGeneration"
    # What the guard keeps from happening: where it fails, TransformerLens no longer installs, and the guard can go.
    from transformer_lens.model_bridge import TransformerBridge

    TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path),
        tokenizer=tokenizer(), device="cpu",
    )  # fmt: skip
    assert len(processes) == 1 and {"pip", "install", "torchvision"} <= set(processes[0])


@pytest.mark.parametrize(
    "command", [["uv", "pip", "install", "x"], ("python", "-m", "pip", "install", "x"), "pip install x"]
)
def test_the_guard_refuses_installs_alone(processes, command):
    start = subprocess.Popen.__init__
    with no_installs() as refusals:
        for run in (subprocess.check_call, subprocess.run, subprocess.call):
            with pytest.raises(ImportError, match="installs nothing"):
                run(command)
        subprocess.check_call(["pip", "list"])
        with no_installs(), pytest.raises(ImportError):  # a load inside a load
            subprocess.check_call(command)
        other = threading.Thread(target=subprocess.check_call, args=(command,))
        other.start()
        other.join()
        with pytest.raises(ImportError):
            subprocess.check_call(command)
    assert processes == [["pip", "list"], command] and len(refusals) == 5
    subprocess.check_call(command)
    assert processes[-1] == command and subprocess.Popen.__init__ is start


def test_the_guard_ends_with_the_last_load(processes):
    start = subprocess.Popen.__init__
    entered, leave = threading.Event(), threading.Event()

    def load():
        with no_installs():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=load)
    with no_installs():
        other.start()
        entered.wait(10)
    assert subprocess.Popen.__init__ is not start
    subprocess.check_call(["pip", "install", "x"])  # this thread no longer loads
    leave.set()
    other.join()
    assert subprocess.Popen.__init__ is start and processes == [["pip", "install", "x"]]


def test_a_model_of_the_zoo_loads_by_name_and_by_folder():
    ids = torch.arange(5)[None]
    by_name, by_folder = tlb.load("facts", kind="bridge"), tlb.load(str(tlb.model.shipped.WEIGHTS / "facts"))
    assert torch.equal(by_name(ids), by_folder(ids))


# ---- what is no name, and what is no number of a weight


def test_what_is_no_name_gets_a_sentence_without_type_checks():
    calls = {
        "None": "a model's name or folder as text, got NoneType;",
        "3": "a model's name or folder as text, got int;",
        "'fact'": "a shipped model (addition, counting, facts), a folder, or a name that TransformerLens can load, got "
        "'fact'; did you mean 'facts'?",
        "b'facts'": "a model's name or folder as text, got bytes;",
        "'facts', kind='both'": "kind 'hooked' or 'bridge', got 'both'; choose one of them.",
        "'facts', dtype='int4'": "a dtype among float32, ",
        "'facts', device='cuda:99'": "a device that PyTorch can use here, got 'cuda:99':",
        "'facts', processing={'fold': True}": "processing to say True or False of some of fold_ln, ",
        "'facts', processing={'fold_ln': 1}": "processing to say True or False of some of fold_ln, ",
    }
    code = "import tl_backward as tlb\n"
    code += "".join(f"try: tlb.load({call})\nexcept (TypeError, ValueError) as e: print(e)\n" for call in calls)
    done = plain.run(code)
    assert done.returncode == 0, done.stderr
    for line, said in zip(done.stdout.splitlines(), calls.values(), strict=True):
        assert line.startswith(f"Expected {said}")


def test_a_path_is_a_folder(tmp_path):
    saved(tmp_path)
    assert tlb.load(tmp_path).cfg.n_layers == 2


@pytest.mark.parametrize("shard", ["5GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_codes_without_a_scale_are_no_weights(tmp_path, dtype, shard):
    saved(tmp_path, shard=shard)
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        if PARTS in tensors:
            tensors[PARTS] = (100 * tensors[PARTS]).to(dtype)
            save_file(tensors, path, metadata={"format": "pt"})
    said = refused(tmp_path)
    assert (
        f"got {PARTS} as {'U8' if dtype == torch.uint8 else 'I8' if dtype == torch.int8 else 'I32'} whole numbers"
        in said
    )


def test_whole_numbers_that_are_no_weights_stay(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"position_ids": torch.arange(32)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoadingWarning)
        tlb.load(str(tmp_path))


# ---- one loader, and weights that TransformerLens processes


def test_there_is_one_loader():
    assert tlb.load is tlb.model.loading.load
    defined = {
        f"{path.parent.name}/{path.name}"
        for path in Path(tlb.__file__).parent.rglob("*.py")
        if re.search(r"boot_transformers\)\(|HookedTransformer\(cfg|load_and_process", path.read_text())
    }
    assert defined == {"loading/_wrapped.py"}
    with pytest.warns(DeprecationWarning, match="load_model is now tl_backward.load;"):
        assert tlb.model.loading.load_model("counting").cfg.n_layers == 2


@pytest.mark.parametrize("kind", worlds())
@pytest.mark.parametrize("source", ["facts", "folder"])
def test_processed_weights_compute_the_same(tmp_path, kind, source):
    saved(tmp_path)
    name, ids = "facts" if source == "facts" else str(tmp_path), torch.arange(5)[None]
    plain = tlb.load(name, kind=kind)
    options = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}
    processed = tlb.load(name, kind=kind, processing=options)
    torch.testing.assert_close(processed(ids).log_softmax(-1), plain(ids).log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert processed.W_U.mean(-1).abs().max() < 1e-5 < plain.W_U.mean(-1).abs().max()
    assert processed.W_out.mean(-1).abs().max() < 1e-5 < plain.W_out.mean(-1).abs().max()
    folded = tlb.load(name, kind=kind, processing={"fold_ln": True})
    torch.testing.assert_close(folded(ids), plain(ids), atol=1e-4, rtol=1e-4)
    assert not torch.equal(folded.W_in, plain.W_in) and torch.equal(folded.W_out, plain.W_out)


def test_no_processing_is_compatibility_mode_alone():
    model, plain = (tlb.load("counting", kind="bridge", processing=options) for options in ({}, None))
    assert model.compatibility_mode and not plain.compatibility_mode
    assert torch.equal(model.W_in, plain.W_in)


@pytest.mark.parametrize("kind", worlds())
def test_processing_that_computes_something_else_is_refused(tmp_path, kind, monkeypatch):
    saved(tmp_path)
    from transformer_lens.weight_processing import ProcessWeights

    process = ProcessWeights.process_weights

    def wrong(state, *args, **options):
        return {
            name: 1.1 * weight if "mlp" in name else weight for name, weight in process(state, *args, **options).items()
        }

    monkeypatch.setattr(ProcessWeights, "process_weights", wrong)
    with pytest.raises(ValueError, match="of the largest"):
        tlb.load(str(tmp_path), kind=kind, processing={"fold_ln": True, "center_unembed": True})
