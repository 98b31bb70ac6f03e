"""Other packages at the same job on the same model, their results equal to ours in the same run (`make bench-peers`).

Per-example inner products against kronfluence's pairwise scores, per-example norms against opacus's ghost norms and
against `torch.func.vmap(grad)`, forwards and backwards included. A target holds within 15 % at the shapes drawn too.
A store of gradients of `facts` against TRAK's features of as many bytes, which are no equal results: the recall of both
stands beside.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import tl_backward as tlb
from tests.benchmarks.measure import interleaved, row, word_tokenizer
from tests.benchmarks.similarity import SHAPE, _drawn, _small
from tests.benchmarks.store import texts
from tests.benchmarks.sweeps import one_thread
from tl_backward.gradients.similarity import gradient_similarity
from tl_backward.text.options import TextOptions
from tl_backward.training import GradientStore

D_VOCAB, N_LAYERS = 512, 4
BATCHES = (64, 256)
"""Examples at once: each side has the one that is fastest for it."""


def main() -> None:
    """Print the rows of the packages that are here."""
    with one_thread():
        shapes = (SHAPE, *_drawn())
        for package, compared, target in (
            ("kronfluence", _kronfluence, 5.0),
            ("opacus", _opacus, 1.5),
            ("torch", _vmap, 1.15),
        ):
            if importlib.util.find_spec(package) is None:
                print(f"NOT MEASURED: {package} (make bench-peers)")
                continue
            for shape in shapes:
                compared(*shape, target if shape == SHAPE else 0.85 * target)
        if importlib.util.find_spec("trak") is None:
            print("NOT MEASURED: traker (make bench-peers)")
        else:
            _trak()


def _llama(d_model: int):
    """4 layers whose W_out are nn.Linear without a bias, the modules that all of the packages know."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=d_model, intermediate_size=4 * d_model, num_hidden_layers=N_LAYERS, num_attention_heads=4)
    return LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=D_VOCAB, max_position_embeddings=128, use_cache=False)
    ).eval()


def _bridge(d_model: int):
    """The same model for us."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = word_tokenizer(D_VOCAB)
    return TransformerBridge.boot_transformers("llama", hf_model=_llama(d_model), tokenizer=tokenizer, device="cpu")


def _tokens(n: int, n_tokens: int) -> Tensor:
    return torch.randint(0, D_VOCAB - 1, (n, n_tokens), generator=torch.Generator().manual_seed(1))


def _summed(logits: Tensor, tokens: Tensor) -> Tensor:
    """The sum of each example's own mean loss of its next tokens."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / (tokens.shape[1] - 1)


def _fastest(job: Callable[[int], Tensor]) -> Callable[[], Tensor]:
    """A job at the batch size that suits it best."""
    times = interleaved({str(size): partial(job, size) for size in BATCHES}, rounds=1)
    return partial(job, int(min(times, key=times.get)))


def _compared(what: str, peer: Callable[[int], Tensor], ours: Callable[[int], Tensor], target: float) -> None:
    """Both jobs, in turns; their results equal to 1e-5."""
    jobs = {"peer": _fastest(peer), "ours": _fastest(ours)}
    expected = jobs["peer"]()
    worst = float((jobs["ours"]() - expected).abs().max() / expected.abs().max())
    assert worst < 1e-5, worst
    times = interleaved(jobs, rounds=3)
    sizes = ", ".join(f"{times[name]:.2f} s in batches of {job.args[-1]}" for name, job in jobs.items())
    row(f"{what} / ours", times["peer"] / times["ours"], f">= {target:.2f}", f"{sizes}; values differ by {worst:.0e}")


def _kronfluence(n: int, n_tokens: int, d_model: int, target: float) -> None:
    """The Gram of all W_out."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class NextToken(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return _summed(model(batch).logits, batch)

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return [f"model.layers.{layer}.mlp.down_proj" for layer in range(N_LAYERS)]

    bridge, tokens = _bridge(d_model), _tokens(n, n_tokens)
    texts = [" ".join(f"w{token}" for token in example) for example in tokens.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        task, examples = NextToken(), list(tokens)
        analyzer = Analyzer("bench", prepare_model(_llama(d_model), task), task, cpu=True, output_dir=folder,
                            disable_tqdm=True, disable_model_save=True)  # fmt: skip
        analyzer.fit_all_factors(
            "identity", examples, per_device_batch_size=64, factor_args=FactorArguments("identity")
        )

        def peer(size: int) -> Tensor:
            analyzer.compute_pairwise_scores(
                "scores", "identity", examples, examples, per_device_query_batch_size=size,
                per_device_train_batch_size=size, overwrite_output_dir=True,
            )  # fmt: skip
            return analyzer.load_pairwise_scores("scores")["all_modules"].double()

        def ours(size: int) -> Tensor:
            options = TextOptions(batch_size=size, prepend_bos=False)
            return gradient_similarity(bridge, texts, weights="W_out", text_options=options, show_progress=False).matrix

        with contextlib.redirect_stderr(io.StringIO()):
            _compared(_label("Gram", n, n_tokens, d_model, "kronfluence's pairwise scores"), peer, ours, target)


def _opacus(n: int, n_tokens: int, d_model: int, target: float) -> None:
    """The norm of each example's gradient of all W_out."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    model, bridge, tokens = _llama(d_model), _bridge(d_model), _tokens(n, n_tokens)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("down_proj.weight"))
    watched = GradSampleModuleFastGradientClipping(model.train(), loss_reduction="sum", strict=False)

    def peer(size: int) -> Tensor:
        found = []
        for batch in tokens.split(size):
            _summed(watched(batch).logits, batch).backward()
            found.append(watched.get_norm_sample().double())
            watched.zero_grad(set_to_none=True)
        return torch.cat(found)

    _compared(
        _label("norms", n, n_tokens, d_model, "opacus's ghost norms"), peer, partial(_norms, bridge, tokens), target
    )


def _vmap(n: int, n_tokens: int, d_model: int, target: float) -> None:
    """The same from whole gradients."""
    model, tokens = _small(d_model), _tokens(n, n_tokens)
    own = {name: value.detach() for name, value in model.named_parameters() if name.endswith("mlp.W_out")}

    def loss(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
        return _summed(
            torch.func.functional_call(model, parameters, (ids[None],), {"return_type": "logits"}), ids[None]
        )

    def peer(size: int) -> Tensor:
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), chunk_size=size)(own, tokens)
        return sum(value.flatten(1).square().sum(1) for value in each.values()).sqrt().double()

    _compared(_label("norms", n, n_tokens, d_model, "vmap(grad)"), peer, partial(_norms, model, tokens), target)


def _trak(n: int = 1000, n_queries: int = 100, size: int = 500, bytes_per_weight: int = 4096) -> None:
    """Features of W_out by its projector for CPUs, in float32: half as many numbers as in float16, and much faster.

    Its random matrix is drawn anew for each batch: the larger the better for it. Its covariance and inverse, and the
    second copy that it keeps of all features, are not counted. A build of each is timed once.
    """
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class NextToken(AbstractModelOutput):
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model, weights, buffers, tokens):
            logits = torch.func.functional_call(model, (weights, buffers), (tokens[None],), {"return_type": "logits"})
            return _summed(logits, tokens[None])

        def get_out_to_loss_grad(self, model, weights, buffers, batch):
            return torch.ones(len(batch[0]), 1)

    model = tlb.zoo.load("facts", kind="hooked")
    data, queries = texts(model, n, 0), texts(model, n_queries, 100)
    names = [f"blocks.{layer}.mlp.W_out" for layer in range(model.cfg.n_layers)]
    n_entries = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> GradientStore:
            return GradientStore.build(
                model, data, out=Path(folder) / "store", weights=names, bytes_per_weight=bytes_per_weight, n_random=0,
                text_options=TextOptions(batch_size=32), show_progress=False,
            )  # fmt: skip

        def theirs() -> TRAKer:
            projector = BasicProjector(n_entries, n_dims, 0, ProjectionType.normal, "cpu")
            trak = TRAKer(
                model, NextToken(), n, save_dir=f"{folder}/trak", device="cpu", projector=projector,
                use_half_precision=False, grad_wrt=names, logging_level=logging.ERROR,
            )  # fmt: skip
            trak.load_checkpoint(model.state_dict(), model_id=0)
            for batch in model.to_tokens(data).split(size):
                trak.featurize([batch], num_samples=len(batch))
            return trak

        our_seconds, store = _timed(ours)
        n_dims = store.n_bytes // (4 * n)
        their_seconds, trak = _timed(theirs)
        exact = (
            tlb.gradient_similarity(model, queries, data, weights=names, metric="cosine", show_progress=False)
            .matrix.topk(5)
            .indices
        )
        asked = trak.projector.project(trak.gradient_computer.compute_per_sample_grad([model.to_tokens(queries)]), 0)
        kept = torch.as_tensor(trak.saver.current_store["grads"])
        found = {
            "ours": torch.stack([store.scores(query) for query in queries]),
            "TRAK's": torch.nn.functional.normalize(asked) @ torch.nn.functional.normalize(kept).T,
        }
    recall = {
        name: float((scores.topk(5).indices[:, :, None] == exact[:, None]).any(1).double().mean())
        for name, scores in found.items()
    }
    detail = (
        f"{their_seconds:.1f} s, {our_seconds:.1f} s; {4 * n_dims / 1024:.1f} KiB an example; recall of exact first 5 "
    )
    detail += ", ".join(f"{share:.2f} by {name}" for name, share in recall.items())
    row(
        f"store: {n:,} texts x 16 tokens, 4 W_out: TRAK's features / building",
        their_seconds / our_seconds,
        ">= 5",
        detail,
    )


def _timed(job: Callable):
    """CPU seconds, and what came of it."""
    start = time.process_time()
    result = job()
    return time.process_time() - start, result


def _norms(model, tokens: Tensor, size: int) -> Tensor:
    """Of each example's gradient of all W_out, from its factors."""
    found = []
    for batch in tokens.split(size):
        _, cache = tlb.run_with_gradient_cache(model, batch, _summed, weights="W_out", names_filter=[])
        found.append(sum(each.example_norms().square() for each in cache.factors.values()).sqrt())
    return torch.cat(found)


def _label(what: str, n: int, n_tokens: int, d_model: int, peer: str) -> str:
    return f"{what} of {n} texts x {n_tokens}, {N_LAYERS} layers of {d_model}: {peer}"
