"""Jobs that several versions of the package are given, each in a process of its own; `earlier` times them.

    python tests/benchmarks/served.py JOB FOLDER

does the job with the package in the folder each time a line comes, and prints the CPU seconds that it took.
"""

import atexit
import contextlib
import importlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2].parent / "shared"


def serve(task: str, package: str) -> None:
    """In a process of its own: do the task each time a line comes."""
    sys.path[0] = package  # this file's own folder otherwise
    import torch

    import tl_backward as tlb

    assert Path(tlb.__file__).is_relative_to(package), tlb.__file__
    torch.set_num_threads(1)
    run = JOBS[task](task)
    for _ in sys.stdin:
        start = time.process_time()
        times = run()
        print("seconds", (time.process_time() - start) / times, flush=True)


def captures(kind: str) -> Callable[[], int]:
    """Ten captures of eight tokens."""
    import torch

    import tl_backward as tlb

    model = tlb.zoo.load("facts", kind=kind)
    tokens = torch.arange(20, 28)[None]

    def run() -> int:
        for _ in range(10):
            tlb.run_with_gradient_cache(model, tokens, tlb.next_token_loss, names_filter=[])
        return 10

    return run


def all_pairs(task: str) -> Callable[[], int]:
    """Measures of 13 x 13 layers from sums over 10,000 samples: CKA of float32 products, or all of float64 ones."""
    import inspect

    import torch

    from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics
    from tl_backward.dissimilarity.grouped import SumsView

    n, n_layers, d = 10_000, 13, 768 if task == "cka" else 64
    names = ["cka_debiased"] if task == "cka" else BOTH
    dtype = torch.float32 if task == "cka" else torch.float64
    generator = torch.Generator().manual_seed(0)
    x, y = ([torch.randn(n, d, generator=generator) for _ in range(n_layers)] for _ in range(2))
    y[3] = x[2] + 0.5 * y[3]
    says_products = "products" in inspect.signature(CovarianceStatistics.__init__).parameters  # 0.1.0 goes by the rows

    def run() -> int:
        options: dict[str, Any] = {"products": dtype} if says_products else {}
        stats = CovarianceStatistics([d] * n_layers, [d] * n_layers, **options)
        for start in range(0, n, 2000):
            sides = ([rows[start : start + 2000] for rows in side] for side in (x, y))
            stats.update(*([rows if says_products else rows.to(dtype) for rows in side] for side in sides))
        stats.flush()
        view = SumsView(stats)
        for i in range(n_layers):
            for j in range(n_layers):
                pair = view.pair(i, j)
                for name in names:
                    ADDITIVE[name](pair)
        return 1

    return run


BOTH = (
    "cka_debiased cka_biased cka_angular cca cca_squared svcca pwcca pwcca_y procrustes procrustes_normalised "
    "procrustes_squared procrustes_disparity bures_similarity shape_angular linear_regression linear_regression_y_to_x "
    "gulp gulp_squared eigenspace_overlap"
).split()
"""The measures that 0.1.0 made of sums."""


def rsa(task: str) -> Callable[[], int]:
    """Spearman's RSA, by Euclidean distances."""
    import torch

    from tl_backward.dissimilarity import measures

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 768, generator=generator)
    y = x + torch.randn(3000, 768, generator=generator)

    def run() -> int:
        measures.rsa(x, y)
        return 1

    return run


def model_of(n_layers: int, d_model: int, d_vocab: int) -> Any:
    """Random weights, one word a token: w1, w2, ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(d_vocab)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, name_or_path="bench/words", add_bos_token=True, **special
    )
    torch.manual_seed(0)
    sizes = dict(n_layers=n_layers, d_model=d_model, n_ctx=128, d_head=64, n_heads=d_model // 64, d_vocab=d_vocab)
    config = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN")
    return HookedTransformer(config, tokenizer=tokenizer).eval()


def of_facts(task: str) -> Callable[[], int]:
    """What is done with the shipped model of facts."""
    import tl_backward as tlb

    model, cases = tlb.zoo.load("facts"), tlb.zoo.edit_cases("test")
    one, quiet = cases[0], {"show_progress": False}
    few = {name: [getattr(case, name) for case in cases[:64]] for name in ("prompt", "target")}
    call, times = {
        "lens": (lambda: tlb.backward_lens(model, one.prompt, one.target), 10),
        "sweep": (lambda: tlb.sweep(model, few["prompt"], few["target"], **quiet), 1),
        "sweep alone": (lambda: tlb.sweep(model, few["prompt"], few["target"], control=None, **quiet), 1),
        "shift edit": (lambda: tlb.shift_edit(model, one.prompt, one.target, layer=2, scale=0.4), 10),
        "words": (lambda: tlb.project_parameter(model, "W_out", 0, **quiet), 1),
    }[task]

    def run() -> int:
        for _ in range(times):
            call()
        return times

    return run


def of_words(task: str) -> Callable[[], int]:
    """What is done with random weights."""
    import torch

    import tl_backward as tlb

    generator = torch.Generator().manual_seed(0)
    quiet = {"show_progress": False}

    def prompt(n: int) -> str:
        return " ".join(f"w{i}" for i in range(1, n))

    if task == "lens with a control":
        model = model_of(4, 256, 8000)
        try:
            from tl_backward.lens.control import RandomInit

            control: Any = RandomInit(n_draws=1)  # as before
        except ImportError:
            control = "random_init"
        return _once(lambda: tlb.backward_lens(model, prompt(5), " w5", control=control))
    if task == "wide lens":
        model = model_of(6, 512, 20_000)
        return _once(lambda: tlb.backward_lens(model, prompt(30), " w5"))
    if task == "readout":
        model, vectors = model_of(1, 768, 50_257), torch.randn(300, 768, generator=generator)
        return _once(lambda: tlb.readout(model, vectors, target=7))
    if task == "pairs":
        sides = [torch.randn(6000, 64, generator=generator) for _ in range(2)]
        return _once(lambda: tlb.top_pairs(*sides, 50, **quiet))
    if task == "similarity":
        model = model_of(4, 128, 512)
        rows = torch.randint(1, 511, (64, 63), generator=generator).tolist()
        texts = [" ".join(f"w{i}" for i in row) for row in rows]
        return _once(lambda: tlb.gradient_similarity(model, texts, weights="W_out", **quiet))
    raise ValueError(f"no job is called {task!r}")


def of_stories(task: str) -> Callable[[], int]:
    """A model of 260,000 parameters and its texts: two of it compared, and what the command line's `invert` does."""
    import json

    import tl_backward as tlb
    from tl_backward.cli import main

    stories = json.loads((SHARED / "data" / "tinystories-1000.json").read_text())[:100]
    path = str(SHARED / "models" / "stories260K")
    if task == "compare":
        from tl_backward.dissimilarity import compare

        if hasattr(tlb, "load"):
            load = tlb.load
        else:  # its name before
            load = importlib.import_module("tl_backward.loading").load_model
        models = [load(path, kind="bridge") for _ in range(2)]
        return _once(lambda: compare(*models, stories, show_progress=False))
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    (folder / "texts.json").write_text(json.dumps(stories))
    ask = ["invert", "--model", path, "--prompt", "Once upon a time", "--data", str(folder / "texts.json")]
    ask += ["--out", str(folder / "page.html")]

    def run() -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if main(ask):
                raise RuntimeError("invert has failed")
        return 1

    return run


def _once(call: Callable[[], object]) -> Callable[[], int]:
    def run() -> int:
        call()
        return 1

    return run


JOBS: dict[str, Callable[[str], Callable[[], int]]] = {
    **dict.fromkeys(("hooked", "bridge"), captures),
    **dict.fromkeys(("cka", "additive"), all_pairs),
    "rsa": rsa,
    **dict.fromkeys(("lens", "sweep", "sweep alone", "shift edit", "words"), of_facts),
    **dict.fromkeys(("lens with a control", "wide lens", "readout", "pairs", "similarity"), of_words),
    **dict.fromkeys(("compare", "invert"), of_stories),
}
"""Name -> what makes a function that does the job and returns how many times it did it."""


if __name__ == "__main__":
    serve(*sys.argv[1:])
