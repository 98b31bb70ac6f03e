"""A store of gradients: its scores against dense gradients of autograd in float64, its bits, and what it refuses."""

import copy
import importlib
import shutil
from dataclasses import replace
from functools import partial

import plain
import pytest
import torch
from launched import launched, launchers
from models import D_VOCAB, build, worlds

import tl_backward as tlb
from tl_backward._support.storage import load_json, save_json
from tl_backward.text.options import TextOptions
from tl_backward.training import GradientStore, store_building, who_wrote

store_module = importlib.import_module("tl_backward.training.store")
every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
BATCHED = {"text_options": TextOptions(batch_size=4), **QUIET}
WEIGHTS = ["W_out", "W_in", "W_O"]


def mixed(n, seed=0):
    """Texts of one to eight words, and every third a prompt with a target of one or two tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        words = [f"w{j}" for j in torch.randint(3, D_VOCAB, (1 + i % 8 + 2,), generator=generator).tolist()]
        cut = -1 - i % 2
        found.append((" ".join(words[:cut]), " ".join(words[cut:])) if i % 3 == 0 else " ".join(words))
    return found


def loss_of(model, example):
    """The mean over a text's predictions; of a pair, over its target's tokens."""
    text = example if isinstance(example, str) else " ".join(example)
    tokens = model.to_tokens(text)
    each = -model(tokens, return_type="logits")[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    n = len(each) if isinstance(example, str) else len(example[1].split())
    return each[-n:].mean()


def dense(model, examples, names):
    """{name: [example, d_in, d_out]} by autograd."""
    sites = [tlb.weight_sites(model)[name] for name in names]
    rows = [torch.autograd.grad(loss_of(model, each), [site.parameter for site in sites]) for each in examples]
    found = {}
    for site, column in zip(sites, zip(*rows, strict=True), strict=True):
        matrices = torch.stack([site.layout.from_stored(each) for each in column]).double()
        found[site.name] = matrices.reshape(len(rows), *site.layout.matrix_shape)
    return found


def expected(store, gradients, query, damping=None):
    """Scores by definition: [example] inner products and cosines, of factors as they are, of the others projected."""
    inner = squares = own = 0
    for name, projection, kept in zip(store.weights, store._projections, kept_of(store), strict=True):
        grads, asked = gradients[name], query[name][0]
        p, q = projection.inputs.double(), projection.deltas.double()
        mask = torch.zeros(p.shape[1] * q.shape[1], dtype=torch.float64)
        mask[projection.entries] = 1
        mask = mask.reshape(p.shape[1], q.shape[1])
        small, small_asked = p.T @ grads @ q * mask, p.T @ asked @ q * mask
        if damping is not None:
            a, b = projection.input_moments, projection.delta_moments
            left, right = (m + damping * m.trace() / len(m) * torch.eye(len(m)) for m in (a, b))
            small_asked = left.inverse() @ small_asked @ right.inverse() * mask
            kept = torch.zeros_like(kept)
        inner = inner + torch.where(kept, (grads * asked).sum((1, 2)), (small * small_asked).sum((1, 2)))
        squares = squares + grads.square().sum((1, 2))
        own = own + (asked if damping is None else small_asked).square().sum()
    return inner, inner / (squares * own).sqrt()


def kept_of(store):
    """Of each weight, whether an example's factors are kept: [example]."""
    for number in range(len(store.weights)):
        found = torch.zeros(len(store), dtype=torch.bool)
        for shard in store._shards:
            found[shard.indices] = shard.kept[number].is_exact
        yield found


@every_world
@pytest.mark.parametrize(("projection", "n_bytes"), [("pca", 16), ("pca", 500), ("pca", 1000), ("random", 500)])
def test_scores_are_those_of_dense_gradients(world, projection, n_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(store_building, "SHARD_EXAMPLES", 10)
    model, data, query = build(world), mixed(37), ("w7 w8 w9", "w30 w4")
    how = {"weights": WEIGHTS, "bytes_per_weight": n_bytes, "projection": projection, "n_sample": 20, **BATCHED}
    store = GradientStore.build(model, data, out=tmp_path / "store", **how)
    gradients, asked = (dense(model, each, store.weights) for each in (data, [query]))
    kept = torch.stack(list(kept_of(store)))
    assert kept.any() == (n_bytes >= 500) and not kept.all() and len(store._shards) > 2
    inner, cosine = expected(store, gradients, asked)
    scale = float(inner.abs().max() / cosine.abs().max())
    torch.testing.assert_close(store.scores(*query), cosine, rtol=2e-3, atol=5e-4)
    torch.testing.assert_close(store.scores(*query, metric="inner"), inner, rtol=2e-3, atol=5e-4 * scale)
    damped, damped_cosine = expected(store, gradients, asked, damping=0.1)
    scale = float(damped.abs().max() / damped_cosine.abs().max())
    torch.testing.assert_close(store.scores(*query, damping=0.1), damped_cosine, rtol=2e-3, atol=5e-4)
    torch.testing.assert_close(store.scores(*query, metric="inner", damping=0.1), damped, rtol=2e-3, atol=5e-4 * scale)
    for name, projected, gradient in zip(store.weights, store._projections, gradients.values(), strict=True):
        assert projected.n_entries <= n_bytes // 2
        for kept_now in (shard.kept[store.weights.index(name)] for shard in store._shards):
            sizes = kept_now.exact.counts * 4 * sum(gradient.shape[1:])
            assert (sizes <= n_bytes).all() and kept_now.leading.shape[1] == projected.n_leading
            assert kept_now.leading.shape[1] + kept_now.rest.shape[1] == projected.n_entries
        small = projected.inputs.double().T @ gradient @ projected.deltas.double()
        assert projection == "random" or (small.norm(dim=(1, 2)) <= gradient.norm(dim=(1, 2)) * (1 + 1e-6)).all()


@every_world
def test_all_that_fits_is_exact(world, tmp_path):
    """With bytes for whole gradients, scores, top and words are those of `who_wrote`."""
    model, data, query = build(world), mixed(24), ("w7 w8 w9", "w30")
    store = GradientStore.build(model, data, out=tmp_path / "store", bytes_per_weight=1 << 13, **QUIET)
    found, whole = store.query(*query, n=4, k=3), who_wrote(model, *query, data, n=4, k=3, **QUIET)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-3, atol=1e-4)
    assert found.top.tolist() == whole.top.tolist() and found.names == whole.names and found.weights == whole.weights
    assert found.written.top_ids.equal(whole.written.top_ids)
    ids = model.to_tokens(query[0])[0]
    for prompt in (ids, ids.numpy(), ids.tolist()):
        by_ids = store.query(prompt, query[1], n=4, k=3, exact=True)
        assert by_ids.prompt == query[0] and by_ids.top.tolist() == found.top.tolist()
        assert torch.equal(store.scores(prompt), store.scores(query[0]))
    some = store.query(*query, weights="W_out", n=4, k=0)
    assert some.written is None and found.written is not None


@every_world
def test_exact_scores_of_the_first(world, tmp_path, monkeypatch):
    model, data = build(world), mixed(70)
    store = GradientStore.build(model, data, out=tmp_path / "store", bytes_per_weight=32, n_random=25, **QUIET)
    rough, found = store.query(*data[9], n=5), store.query(*data[9], n=5, exact=True)
    whole = who_wrote(model, *data[9], data, n=5, random_queries=[data[9]], **QUIET)
    first = rough.scores.topk(50).indices
    torch.testing.assert_close(found.scores[first], whole.scores[first], rtol=1e-9, atol=1e-12)
    rest = torch.ones(70, dtype=torch.bool)
    rest[first] = False
    assert found.scores[rest].equal(rough.scores[rest]) and (rough.scores - whole.scores).abs().max() > 1e-2
    assert (
        int(found.top[0]) == 9
        and abs(float(found.scores[9]) - 1) < 1e-9
        and set(found.top.tolist()) <= {*first.tolist()}
    )
    # The intervals: of the rough one from what is kept, of the exact one from exact scores.
    drawn = torch.randperm(70, generator=torch.Generator().manual_seed(1))[:25].tolist()
    options = {"metric": "cosine", **QUIET}
    exact = tlb.gradient_similarity(
        model,
        [data[i] if isinstance(data[i], tuple) else (data[i], tlb.next_token_loss) for i in drawn],
        [each if isinstance(each, tuple) else (each, tlb.next_token_loss) for each in data],
        **options,
    ).matrix.clone()
    kept = torch.stack([_as_query(store, data[i]) for i in drawn])
    for others in (exact, kept):
        others[torch.arange(25), drawn] = float("nan")
    torch.testing.assert_close(found.high[first], exact.nanquantile(0.975, dim=0)[first])
    torch.testing.assert_close(found.low[first], exact.nanquantile(0.025, dim=0)[first])
    torch.testing.assert_close(rough.high - 2**-10, kept.nanquantile(0.975, dim=0), rtol=2e-3, atol=5e-4)
    torch.testing.assert_close(rough.low + 2**-10, kept.nanquantile(0.025, dim=0), rtol=2e-3, atol=5e-4)
    assert found.n_random == rough.n_random == 25 and found.stands_out[0]


def _as_query(store, example):
    """The scores of an example of a store as a query."""
    from tl_backward.gradients.similarity import captured, encoded
    from tl_backward.training.shards import Query

    given = [example if isinstance(example, tuple) else (example, tlb.next_token_loss)]
    part = captured(store._model, encoded(store._model, given, None)[0], store.weights)
    query, found = Query.of(part, store._projections), torch.empty(len(store), dtype=torch.float64)
    for shard in store._shards:
        found[shard.indices] = shard.scores(query, store._projections)[1][0]
    return found


@every_world
@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("metric", ["cosine", "inner"])
def test_a_quick_query_reads_the_first_whole(world, metric, damping, tmp_path, monkeypatch):
    """Beside the scores by all entries: equal of what is read whole, no farther than they say of the others."""
    for name, value in (("SHARD_EXAMPLES", 10), ("_FEW", 2), ("_AGAIN", 12), ("_BEYOND", 1)):
        monkeypatch.setattr(store_building if name == "SHARD_EXAMPLES" else store_module, name, value)
    model, data = build(world), mixed(70)
    store = GradientStore.build(
        model, data, out=tmp_path / "store", weights=WEIGHTS, bytes_per_weight=500, n_random=25, n_sample=20, **BATCHED
    )
    assert any(kept.exact.counts.numel() and kept.rest.numel() for kept in store._shards[0].kept)
    for query in (data[9], ("w7 w8 w9", "w30 w4")):
        whole = store.scores(*query, metric=metric, damping=damping)
        found = store.query(*query, n=3, k=0, metric=metric, damping=damping, quick=True)
        again = store.leading_scores(*store._captured(*query, None), 12, metric=metric, damping=damping)
        scores, errors = again
        assert (
            found.scores.equal(scores)
            and found.errors.equal(errors)
            and int((errors == 0).sum()) >= 12
            and bool((errors > 0).any())
        )
        size = float((whole / store.scores(*query, damping=damping)).nan_to_num(0.0).max())
        off = (scores - whole).abs()
        assert bool((off <= errors + 1e-3 * size).all()) and float(off.max()) > 2e-3 * size
        first = _by_leading_entries(store, query, metric, damping).topk(12).indices
        assert set(first.tolist()) <= set((errors == 0).nonzero().flatten().tolist())
        assert not errors[found.top].any()
        best = whole.masked_fill(errors > 0, -float("inf")).topk(3).values
        torch.testing.assert_close(found.scores[found.top], best, rtol=2e-3, atol=1e-3 * size)
    if damping is not None:
        return
    narrow = store.query(*query, k=0, metric=metric)
    assert narrow.errors is None and narrow.scores.equal(whole)
    torch.testing.assert_close(narrow.high + errors, found.high)
    torch.testing.assert_close(narrow.low - errors, found.low)
    monkeypatch.setattr(store_module, "_FEW", 99)  # of few weights a quick query reads all too
    assert store.query(*query, k=0, metric=metric, quick=True).scores.equal(whole)
    assert store.query(*query, k=0, metric=metric, quick=True).errors.eq(0).all()


@every_world
def test_a_quick_query_of_equal_examples(world, tmp_path, monkeypatch):
    """All that are equal to the last that is read are read too, so that equal examples have equal scores."""
    for name, value in (("_FEW", 2), ("_AGAIN", 5), ("_BEYOND", 1)):
        monkeypatch.setattr(store_module, name, value)
    model, data = build(world), mixed(30)
    data = data[:9] + [data[9]] * 12 + data[10:]
    store = GradientStore.build(
        model, data, out=tmp_path / "store", weights=WEIGHTS, bytes_per_weight=64, n_sample=20, n_random=0, **BATCHED
    )
    found = store.query(*data[9], n=3, k=0, quick=True)
    assert found.top.tolist() == [9, 10, 11] and found.scores[9:21].unique().numel() == 1
    assert found.errors[9:21].eq(0).all() and found.errors.gt(0).any()
    with pytest.raises(ValueError, match="exact scores or quick"):
        store.query(*data[9], quick=True, exact=True)
    page = tlb.render.authors_report(found).to_html()
    assert "off by at most" in page and "was quick" in page


def _by_leading_entries(store, query, metric, damping):
    """The scores of a store whose other entries are zeros."""
    bare = copy.copy(store)
    bare._shards = [
        replace(shard, kept=[replace(each, rest=torch.zeros_like(each.rest)) for each in shard.kept])
        for shard in store._shards
    ]
    return bare.scores(*query, metric=metric, damping=damping)


@every_world
@pytest.mark.parametrize("metric", ["cosine", "inner"])
def test_what_float16_rounds_does_not_stand_out(world, metric, tmp_path):
    """Of examples that are all alike, none has a score above what it has for random queries: they are itself."""
    data = [("w6", "w7")] * 30
    store = GradientStore.build(build(world), data, out=tmp_path / "store", bytes_per_weight=500, **QUIET)
    assert not any(store.query(*data[0], k=0, metric=metric, n=30).stands_out)


# ---- bits


def bits(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupted(Exception):
    pass


@every_world
def test_an_interrupted_build_goes_on_to_the_same_bits(world, tmp_path, monkeypatch):
    monkeypatch.setattr(store_building, "SHARD_EXAMPLES", 6)
    model, data = build(world), mixed(40)
    GradientStore.build(model, data, out=tmp_path / "whole", **BATCHED)
    save, written = store_building.StoreFolder.save_shard, []

    def only_two(folder, number, shard):
        if len(written) == 2:
            raise Interrupted
        save(folder, number, shard)
        written.append(number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(store_building.StoreFolder, "save_shard", only_two)
        GradientStore.build(model, data, out=tmp_path / "broken", **BATCHED)
    with pytest.raises(
        ValueError, match="Expected a finished store, got .*interrupted; call GradientStore.build again"
    ):
        GradientStore.open(tmp_path / "broken", model)
    monkeypatch.setattr(store_building.StoreFolder, "save_shard", lambda *a: written.append(a[1]) or save(*a))
    GradientStore.build(model, data, out=tmp_path / "broken", **BATCHED)
    assert sorted(written) == [*range(len(written))] and len(written) > 4  # each once
    GradientStore.build(model, data, out=tmp_path / "broken", **BATCHED)  # nothing is left to do
    assert bits(tmp_path / "whole") == bits(tmp_path / "broken") and sorted(written) == [*range(len(written))]


PROCESS = """
import sys, torch
from accelerate import Accelerator
from models import build
from training.test_store import BATCHED, mixed
from tl_backward.training import GradientStore, store_building
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
store_building.SHARD_EXAMPLES = 6
store = GradientStore.build(build(sys.argv[2]), mixed(40), out=f"{sys.argv[1]}/two", **BATCHED)
assert len(store) == 40
try:
    GradientStore.build(build(sys.argv[2]), mixed(41), out=f"{sys.argv[1]}/two", **BATCHED)
except ValueError as error:
    assert "differs in data" in str(error), error
else:
    raise AssertionError("another data set was taken")
"""


@launchers("accelerate")
def test_two_processes_write_the_bits_of_one(launcher, tmp_path, monkeypatch):
    done = launched(launcher, PROCESS, tmp_path, tmp_path, worlds()[0])
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(store_building, "SHARD_EXAMPLES", 6)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        GradientStore.build(build(worlds()[0]), mixed(40), out=tmp_path / "one", **BATCHED)
    finally:
        torch.set_num_threads(n_threads)
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


def test_it_opens_where_it_was_moved_and_reads_by_map(tmp_path):
    model, data = build(worlds()[0]), mixed(30)
    store = GradientStore.build(model, data, out=tmp_path / "store", **QUIET)
    said = store.query(*data[3])
    shutil.move(tmp_path / "store", tmp_path / "moved")
    again = GradientStore.open(tmp_path / "moved", model, dataset=iter(data))
    assert again.query(*data[3]).to_frame().equals(said.to_frame()) and len(again) == 30
    assert again.n_bytes == sum(
        path.stat().st_size
        for path in (tmp_path / "moved").iterdir()
        if path.name not in ("plan.json", "manifest.json")
    )
    assert "30 examples, 2 weights" in repr(again) and again.verify() is None


# ---- bad input


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "store"
    GradientStore.build(build(worlds()[0]), mixed(30), out=path, **QUIET)
    return path


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert str(error.value).count(". ") == 0


def test_another_model_or_data_set(kept):
    model, other = build(worlds()[0]), build(worlds()[0])
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    refused("Expected the model that the store .* was built with, got another", lambda: GradientStore.open(kept, other))
    refused("differs in model", lambda: GradientStore.build(other, mixed(30), out=kept, **QUIET))
    changed = mixed(30)
    changed[4] += " w9"
    refused(
        "30 examples that the store .* is of, got one whose example 4 is another",
        lambda: GradientStore.open(kept, model, dataset=changed),
    )
    refused("is of, got one of 29", lambda: GradientStore.open(kept, model, dataset=mixed(29)))
    refused("differs in data", lambda: GradientStore.build(model, changed, out=kept, **QUIET))
    refused(
        "differs in bytes_per_weight",
        lambda: GradientStore.build(model, mixed(30), out=kept, bytes_per_weight=64, **QUIET),
    )
    refused("differs in weights", lambda: GradientStore.build(model, mixed(30), out=kept, weights="W_O", **QUIET))


def test_another_data_type(kept):
    refused("other weights or another data type", lambda: GradientStore.open(kept, build(worlds()[0]).float()))


def test_a_build_that_failed_is_begun_anew(tmp_path):
    """A plan from which nothing was built stands in no one's way; one from which something was does."""
    model, out = build(worlds()[0]), tmp_path / "store"
    refused(
        "Expected weights that read vectors",
        lambda: GradientStore.build(model, mixed(9), out=out, weights="W_E", **QUIET),
    )
    assert {path.name for path in out.iterdir()} == {"plan.json", "data.json"}
    store = GradientStore.build(model, mixed(30), out=out, weights="W_out", **QUIET)
    again = GradientStore.open(out, model, dataset=mixed(30))
    assert len(again) == 30 and again.weights == store.weights
    (out / "manifest.json").unlink()
    refused("differs in weights", lambda: GradientStore.build(model, mixed(30), out=out, weights="W_O", **QUIET))


@every_world
def test_without_random_queries(world, tmp_path):
    """There is no interval then, and all else is as it is with them."""
    model, data = build(world), mixed(8)
    bare = GradientStore.build(model, data, out=tmp_path / "bare", n_random=0, **QUIET)
    whole = GradientStore.build(model, data, out=tmp_path / "whole", n_random=20, **QUIET)
    assert torch.equal(bare.scores("w5 w6", "w7"), whole.scores("w5 w6", "w7"))
    found = bare.query("w5 w6", "w7", k=0)
    assert found.low.isnan().all() and found.high.isnan().all() and found.n_random == 0


def test_a_finished_store_without_its_bases_is_not_begun_anew(tmp_path):
    model, out = build(worlds()[0]), tmp_path / "store"
    GradientStore.build(model, mixed(8), out=out, **QUIET)
    for name in ("projection.safetensors", "shard-00000.safetensors"):
        (out / name).unlink()
    refused("differs in seed", lambda: GradientStore.build(model, mixed(8), out=out, seed=1, **QUIET))


def test_damaged_and_other_files(kept, tmp_path):
    model = build(worlds()[0])
    for broken in ("truncated", "flipped", "missing", "version"):
        shutil.copytree(kept, tmp_path / broken)
    shard = tmp_path / "truncated" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(
        "Expected a file that tl_backward saved, got .*shard-00000.*bytes, not",
        lambda: GradientStore.open(shard.parent, model),
    )
    shard = tmp_path / "flipped" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    refused("its checksum is missing or another", GradientStore.open(shard.parent, model).verify)
    (tmp_path / "missing" / "shard-00000.safetensors").unlink()
    refused("there is no such file", lambda: GradientStore.open(tmp_path / "missing", model))
    plan = tmp_path / "version" / "plan.json"
    save_json(plan, load_json(plan) | {"format": "tl_backward gradient store 2"})
    for call in (
        lambda: GradientStore.open(plan.parent, model),
        lambda: GradientStore.build(model, mixed(30), out=plan.parent, **QUIET),
    ):
        refused("Expected a store of the format .* of another format; build it anew with GradientStore.build", call)
    refused("Expected the folder of a gradient store", lambda: GradientStore.open(tmp_path, model))
    refused(
        "Expected out as a new or empty folder, got .*with other files",
        lambda: GradientStore.build(model, mixed(5), out=tmp_path, **QUIET),
    )
    refused(
        "Expected out as a new or empty folder, got .*a file",
        lambda: GradientStore.build(model, mixed(5), out=plan, **QUIET),
    )


def test_bad_queries(kept):
    store = GradientStore.open(kept, build(worlds()[0]))
    refused("Expected a query's prompt and its target, got ''", lambda: store.query("", "w5"))
    refused("Expected a query's prompt and its target", lambda: store.query("w5", ""))
    refused("Expected n of at least 1, got 0", lambda: store.query("w5", "w6", n=0))
    refused(
        "Expected weights that the store keeps .*got blocks.0.attn.W_O", lambda: store.query("w5", "w6", weights="W_O")
    )
    for damping in (0.0, float("inf"), float("nan")):
        refused(f"Expected damping above 0, got {damping}", partial(store.query, "w5", "w6", damping=damping))
    refused("metric among 'inner', 'cosine', got 'l2'", lambda: store.scores("w5", "w6", metric="l2"))
    refused("Expected exact scores or damped ones, got both", lambda: store.query("w5", "w6", damping=1.0, exact=True))
    refused("1 <= k <= 50", lambda: store.query("w5", "w6", k=51))
    unknown = store.query("w5", "w6", weights=["blocks.0.mlp.W_out"])
    assert unknown.n_random == 0 and unknown.high.isnan().all() and "not known" in unknown.summary()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bytes_per_weight": 8}, "Expected bytes_per_weight of at least 16, got 8"),
        ({"n_sample": 0}, "Expected n_sample of at least 1, got 0"),
        ({"n_random": -1}, "Expected n_random of at least 0, got -1"),
        ({"weights": "W_E"}, "Expected weights that read vectors, got embed.W_E"),
    ],
)
def test_bad_builds(options, words, tmp_path):
    refused(
        words,
        lambda: GradientStore.build(
            build("bridge" if worlds() == ["bridge"] else "hooked"), mixed(9), out=tmp_path / "s", **options, **QUIET
        ),
    )


def test_data_that_cannot_be_kept(tmp_path):
    model = build(worlds()[0])
    with pytest.raises(TypeError, match="texts, which a store can keep, got .* as number 1; leave losses"):
        GradientStore.build(
            model, ["w5 w6", ("w5 w6", lambda logits, tokens: logits.mean())], out=tmp_path / "s", **QUIET
        )
    refused(
        "Expected a list of examples, got none", lambda: GradientStore.build(model, [], out=tmp_path / "s", **QUIET)
    )
    assert not (tmp_path / "s").exists()


WRONG = """
import sys
from models import build, worlds
from tl_backward.training import GradientStore
model, out = build(worlds()[0]), sys.argv[1]
store = GradientStore.build(model, ["w5 w6", "w6 w7"], out=out, show_progress=False)
for call in (
    lambda: GradientStore.build(model, ["w5 w6"], out=out + "2", bytes_per_weight=4096.0, show_progress=False),
    lambda: GradientStore.open(None, model),
    lambda: store.query("w5", None),
    lambda: GradientStore.build(model, [("w5", "w6", "w7")], out=out + "2", show_progress=False),
    lambda: GradientStore.build(model, {"prompt": ["w5"], "target": ["w6"]}, out=out + "2", show_progress=False),
):
    try:
        call()
    except (TypeError, ValueError) as error:
        print(error)
"""


def test_arguments_of_another_type(tmp_path):
    """As they are without the type checks of the tests."""
    done = plain.run(WRONG, tmp_path / "s")
    said = done.stdout.splitlines()
    assert len(said) == 5 and "Expected bytes_per_weight of build to be int, got 4096.0" in said[0], done.stderr
    assert "Expected a path as text or a Path, got None" in said[1] and "Expected a query's target" in said[2]
    assert "which a store can keep, got ('w5', 'w6', 'w7') as number 0" in said[3]
    assert "Expected a list of examples, got" in said[4]  # not its keys


@every_world
def test_nothing_to_learn(world, tmp_path):
    """Examples without a gradient score 0, with everything and for everything."""
    model, data = build(world), mixed(25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    store = GradientStore.build(model, data, out=tmp_path / "store", bytes_per_weight=64, **QUIET)
    found = store.query("w5", "w6", k=0)
    assert not found.scores.any() and not found.stands_out[0]


def test_of_equal_exact_scores_the_first_leads(tmp_path):
    case = tlb.zoo.edit_cases("test")[0]
    data, model = [(case.prompt, case.target)] * 25, tlb.zoo.load("facts")
    store = GradientStore.build(model, data, out=tmp_path / "store", **QUIET)
    found = store.query(*data[0], exact=True, n=5, k=0)
    assert len(found.scores.unique()) == 1 and found.top.tolist() == [0, 1, 2, 3, 4]
