"""compare against brute force in float64 over activations that were materialised text by text."""

import json
import math
import warnings

import plain
import pytest
import torch
from launched import launched, launchers
from leaves_no_trace import assert_same, state
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked, worlds
from shared import shared, stories

import tl_backward as tlb
from dissimilarity.brute_force import brute_cka, reference, song
from dissimilarity.given import given
from tl_backward.dissimilarity import (
    ADDITIVE,
    CovarianceStatistics,
    RunOptions,
    SampleOptions,
    compare,
    get_measure,
    list_measures,
    measures,
)
from tl_backward.model.controls import random_init
from tl_backward.text.options import TextOptions

every_world = pytest.mark.parametrize("world", worlds())
QUIET = {"show_progress": False}
CLOSE = {"rtol": 1e-6, "atol": 1e-8}  # a Llama's norms are float32 inside, whatever the model is
TEXTS = [
    "w5 w6 w7 w8 w9", "w3 w3 w41 w10 w12 w13 w20 w22", "w9", "w30 w31 w32", "w11 w8 w7 w5 w5 w5 w40",
    "w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 w32", "w44 w43 w42", "w17 w18 w3 w4 w39 w38", "w35 w36 w37 w33",
]  # fmt: skip


def materialised(model, texts, names, keep=lambda tokens: slice(None), reduce=None):
    """{name: [sample, d]} one text at a time, without padding, and which text each sample is from."""
    rows, owners = {name: [] for name in names}, []
    for index, text in enumerate(texts):
        tokens = model.to_tokens(text)
        _, cache = model.run_with_cache(tokens)
        chosen = torch.arange(tokens.shape[1])[keep(tokens[0])]
        for name in names:
            value = cache[name][0].detach().double()[chosen].flatten(1)
            rows[name].append(value.mean(0, keepdim=True) if reduce == "mean" else value)
        owners += [index] * len(rows[names[0]][-1])
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.tensor(owners)


def resid(model):
    return [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]


def brute(function, a, b):
    return torch.tensor([[function(x, y) for y in b.values()] for x in a.values()], dtype=torch.float64)


def from_sums(name):
    def measure(x, y):
        stats = CovarianceStatistics([x.shape[1]], [y.shape[1]])
        stats.update([x], [y])
        return ADDITIVE[name](stats.pair(0, 0))

    return measure


@every_world
def test_cka_its_error_and_null_are_brute_force(world):
    a, b = build(world), bridge("llama")
    found = compare(a, b, TEXTS, text_options=TextOptions(batch_size=2), **QUIET)
    (x, owner), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))
    torch.testing.assert_close(found["cka"], brute(brute_cka, x, y), **CLOSE)
    left_out = []
    for batch in range(5):
        keep = owner // 2 != batch
        left_out.append(brute(brute_cka, {k: v[keep] for k, v in x.items()}, {k: v[keep] for k, v in y.items()}))
    left_out = torch.stack(left_out)
    error = ((left_out - left_out.mean(0)).square().sum(0) * 4 / 5).sqrt()
    torch.testing.assert_close(found.standard_errors[0], error, rtol=1e-7, atol=1e-10)
    assert found.n_samples == len(owner) and found.n_texts == 9 and found.n_batches == found.n_groups == 5
    assert found.coverage == (1.0, 1.0) and found.aligned == "tokens" and not found.first_excluded
    assert (found.null_means == 0).all() and found.permutation_means.abs().max() < 0.3
    frame = found.to_frame()
    assert len(frame) == 4 and frame["value"].tolist() == found.values.flatten().tolist()
    assert {"standard_error", "null_mean", "permutation_mean", "sample", "n_samples", "estimator"} <= set(frame.columns)


CHOICES = {
    "token": ({}, {}),
    "without the first": ({"exclude_first": True}, {"keep": lambda tokens: slice(1, None)}),
    "last": ({"sample": "last"}, {"keep": lambda tokens: slice(-1, None)}),
    "mean": ({"sample": "mean"}, {"reduce": "mean"}),
    "mean without the first": ({"sample": "mean", "exclude_first": True}, {"keep": lambda tokens: slice(1, None), "reduce": "mean"}),
    "masked": ({"mask": lambda tokens: tokens % 2 == 0}, {"keep": lambda tokens: tokens % 2 == 0}),
    "last of the masked": (
        {"mask": lambda tokens: tokens % 2 == 0, "sample": "last"},
        {"keep": lambda tokens: (tokens % 2 == 0).nonzero().flatten()[-1:]},
    ),
    "cut": ({"max_tokens": 4}, {"keep": lambda tokens: slice(0, 4)}),
}  # fmt: skip


@every_world
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_sample_is(world, choice, side):
    options, kept = CHOICES[choice]
    a, b = build(world), bridge("llama")
    a.tokenizer.padding_side = b.tokenizer.padding_side = side
    found = compare(
        a, b, TEXTS, measures=("cka", "cka_biased", "linear_regression"), **given(batch_size=4, **options), **QUIET
    )
    (x, owner), (y, _) = (materialised(model, TEXTS, resid(model), **kept) for model in (a, b))
    assert found.n_samples == len(owner)
    torch.testing.assert_close(found["cka"], brute(brute_cka, x, y), **CLOSE)
    for name in ("cka_biased", "linear_regression"):
        torch.testing.assert_close(found[name], brute(from_sums(name), x, y), rtol=1e-7, atol=1e-9)
    assert found.first_excluded == ("exclude_first" in options) and found.n_truncated == (6 if choice == "cut" else 0)
    for words in ("left out" if found.first_excluded else "included",):
        assert f"position 0 {words}" in repr(found) and f"position 0 {words}" in found._repr_html_()


# Each alone, which gathers the sums that it needs, in one world; all together in every one.
ALONE = [(worlds()[0], (measure,)) for measure in ADDITIVE] + [(world, tuple(ADDITIVE)) for world in worlds()]


@pytest.mark.parametrize(
    ("world", "measures"),
    ALONE,
    ids=lambda value: value if isinstance(value, str) else value[0] if len(value) == 1 else "all",
)
def test_streamed_measures_are_those_of_all_samples(world, measures):
    a, b = build(world), bridge("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare(
            a,
            b,
            TEXTS,
            text_options=TextOptions(batch_size=3),
            measures=measures,
            run_options=RunOptions(permutations=2),
            **QUIET,
        )
    (x, _), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))
    for measure in measures:
        torch.testing.assert_close(found[measure], brute(from_sums(measure), x, y), rtol=1e-7, atol=1e-7)
    assert found.standard_errors.isfinite().all() and found.permutation_means.isfinite().all()
    assert str(found.n_samples) in found.computed_from[0]


@pytest.mark.parametrize("estimator", ["minibatch_ratio_of_means", "minibatch_mean_of_ratios"])
def test_minibatch_estimators(estimator):
    a, b = build(worlds()[0]), bridge("llama")
    found = compare(
        a, b, TEXTS, text_options=TextOptions(batch_size=2), run_options=RunOptions(estimator=estimator), **QUIET
    )
    (x, owner), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))

    def over(batches):
        def estimate(p, q):
            terms = [
                [song(r[owner // 2 == k], s[owner // 2 == k]) for k in batches] for r, s in ((p, q), (p, p), (q, q))
            ]
            both, one, other = map(torch.tensor, terms)
            if estimator == "minibatch_mean_of_ratios":
                return float((both / (one * other).sqrt()).mean())
            return float(both.mean() / (one.mean() * other.mean()).sqrt())

        return brute(estimate, x, y)

    torch.testing.assert_close(found["cka"], over(range(5)), rtol=1e-6, atol=1e-9)
    left_out = torch.stack([over([k for k in range(5) if k != batch]) for batch in range(5)])
    error = ((left_out - left_out.mean(0)).square().sum(0) * 4 / 5).sqrt()
    torch.testing.assert_close(found.standard_errors[0], error, rtol=1e-5, atol=1e-9)
    assert found.estimator == estimator and found.plan.route == "batches"
    assert set(found.to_frame()["estimator"]) == {estimator}


def test_minibatch_estimators_reproduce_the_reference():
    from tl_backward.dissimilarity.minibatch import MinibatchCKA

    oracle, pairs = reference()
    for which, (x, y) in pairs.items():
        batches = MinibatchCKA(1, 1)
        for number, (a, b) in enumerate(zip(x.split(32), y.split(32), strict=True)):
            batches.update(number, [a], [b])
        for estimator, key in (
            ("minibatch_ratio_of_means", "cka_linear_minibatch32_nguyen(ratio of mean HSIC)"),
            ("minibatch_mean_of_ratios", "cka_linear_minibatch32_brown(mean of ratios)"),
        ):
            assert float(batches.values(estimator)[0]) == pytest.approx(oracle[key][which], rel=1e-7, abs=1e-9), which


HOOKS = {"heads": ("z", {}), "each head": ("z", {"heads": "each"}), "neurons": ("post", {}), "keys": ("k", {}), "names": (["hook_embed", "blocks.1.hook_mlp_out", "ln_final.hook_normalized"], {})}  # fmt: skip


@every_world
@pytest.mark.parametrize("which", HOOKS)
def test_any_hook_point(world, which):
    hook, options = HOOKS[which]
    model = build(world)
    found = compare(model, model, TEXTS, hook=hook, **given(batch_size=4, **options), **QUIET)
    names = (
        hook
        if isinstance(hook, list)
        else [
            {"z": "blocks.{}.attn.hook_z", "k": "blocks.{}.attn.hook_k", "post": "blocks.{}.mlp.hook_post"}[
                hook
            ].format(i)
            for i in (0, 1)
        ]
    )
    x, _ = materialised(model, TEXTS, names)
    if options:
        n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
        x = {f"{n}H{h}": v.view(-1, n_heads, d_head)[:, h] for n, v in x.items() for h in range(n_heads)}
        assert found.layers_a[:2] == ("L0H0", "L0H1")
    torch.testing.assert_close(found["cka"], brute(brute_cka, x, x), rtol=1e-8, atol=1e-10)
    assert found.layers_a == found.layers_b and torch.allclose(
        found["cka"].diag(), torch.ones(len(x), dtype=torch.float64)
    )


def test_some_layers_of_each_and_another_hook_of_b():
    a, b = build(worlds()[0]), bridge("llama")
    found = compare(a, b, TEXTS, layers_a=-1, layers_b=[1, 0], sample_options=SampleOptions(hook_b="mlp_out"), **QUIET)
    assert found.layers_a == ("L1",) and found.layers_b == ("L1", "L0")
    (x, _), (y, _) = (
        materialised(a, TEXTS, resid(a)[1:]),
        materialised(b, TEXTS, ["blocks.1.hook_mlp_out", "blocks.0.hook_mlp_out"]),
    )
    torch.testing.assert_close(found["cka"], brute(brute_cka, x, y), **CLOSE)


def test_a_users_hook_takes_part():
    a = build(worlds()[0])
    plain = compare(a, bridge("llama"), TEXTS, **QUIET)
    with a.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * torch.linspace(0, 3, x.shape[-1]))]):
        hooked_ = compare(a, bridge("llama"), TEXTS, **QUIET)
    assert (plain["cka"] - hooked_["cka"]).abs().min() > 1e-4


@every_world
def test_leaves_no_trace(world):
    for setting in ("plain", "hooked"):
        a, b = build(world), bridge("llama")
        if setting == "hooked":
            a.add_hook("blocks.0.hook_resid_pre", lambda x, hook: x * 1.1)
        before = state(a), state(b)
        compare(a, b, TEXTS, **QUIET)
        with pytest.raises(ZeroDivisionError):
            compare(a, b, TEXTS, sample_options=SampleOptions(mask=lambda tokens: 1 / 0), **QUIET)

        def interrupt(x, hook):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), b.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", interrupt)]):
            compare(a, b, TEXTS, **QUIET)
        assert_same(before[0], state(a))
        assert_same(before[1], state(b))


def data_kinds(model):
    from datasets import Dataset

    rows = [model.to_tokens(text)[0] for text in TEXTS]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    dataset = Dataset.from_dict({"story": TEXTS, "id": list(range(len(TEXTS)))})
    return {
        "generator": ((text for text in TEXTS), {}),
        "dataset": (dataset, {"text_key": "story"}),
        "streamed dataset": (dataset.to_iterable_dataset(), {"text_key": "story"}),
        "tokenised rows": ([{"input_ids": row.tolist()} for row in rows], {}),
        "tokens and masks": (list(zip(padded.split(2), mask.split(2), strict=True)), {}),
        "collated": (
            [{"input_ids": t, "attention_mask": m} for t, m in zip(padded.split(2), mask.split(2), strict=True)],
            {},
        ),
        "empty texts": ([*TEXTS[:3], "", *TEXTS[3:], ""], {}),
    }


KINDS = ["generator", "dataset", "streamed dataset", "tokenised rows", "tokens and masks", "collated", "empty texts"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_data(kind):
    a, b = build(worlds()[0]), bridge("llama")
    data, options = data_kinds(a)[kind]
    expected = compare(a, b, TEXTS, **QUIET)
    found = compare(a, b, data, **given(**options), **QUIET)
    torch.testing.assert_close(found.values, expected.values, **CLOSE)
    assert found.n_samples == expected.n_samples and found.n_empty == (2 if kind == "empty texts" else 0)


def test_a_token_tensor_is_split_into_batches():
    a, b = build(worlds()[0]), bridge("llama")
    tokens = torch.randint(3, 50, (7, 9), generator=torch.Generator().manual_seed(0))
    found = compare(a, b, tokens, text_options=TextOptions(batch_size=2), **QUIET)
    one = compare(a, b, [tokens], **QUIET)
    assert found.n_batches == 4 and one.n_batches == 1 and found.n_samples == one.n_samples == 63
    torch.testing.assert_close(found.values, one.values, **CLOSE)
    assert one.standard_errors.isnan().all() and one.n_groups == 0


def test_fewer_samples_than_dimensions_take_the_gram_route():
    a, b = build(worlds()[0]), bridge("llama")
    names = [name for name, measure in ADDITIVE.items() if measure.any_basis and not name.startswith(("cca", "svcca"))]
    options = given(sample="last", measures=("cka", *names), batch_size=1, hook="post", **QUIET)
    found = compare(a, b, TEXTS, **options)
    assert found.plan.route == "gram" and found.n_samples == 9
    streamed = compare(a, b, iter(TEXTS), **options)  # whose length is not known
    assert streamed.plan.route == "sums"
    torch.testing.assert_close(found.values, streamed.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.standard_errors, streamed.standard_errors, rtol=1e-5, atol=1e-6)
    post = [f"blocks.{i}.mlp.hook_post" for i in (0, 1)]
    if HAS_HOOKED_TRANSFORMER:
        (x, _), (y, _) = (materialised(m, TEXTS, post, lambda tokens: slice(-1, None)) for m in (a, b))
        torch.testing.assert_close(found["cka"], brute(brute_cka, x, y), rtol=1e-8, atol=1e-10)
    assert (
        compare(
            a, b, TEXTS, sample_options=SampleOptions(sample="last"), measures="eigenspace_overlap", **QUIET
        ).plan.route
        == "sums"
    )


def test_cca_warns_where_it_is_identically_one():
    a, b = build(worlds()[0]), bridge("llama")
    with pytest.warns(UserWarning, match="every canonical correlation is 1"):
        found = compare(a, b, TEXTS, sample_options=SampleOptions(sample="last"), measures="cca", **QUIET)
    torch.testing.assert_close(found["cca"], torch.ones(2, 2, dtype=torch.float64), rtol=1e-6, atol=1e-6)


# ---- alignment of different tokenizers


def letters():
    """A tokenizer of single letters and digits."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    pieces = {"<bos>": 0, "<pad>": 1, "<unk>": 2, "w": 3, " w": 4, **{str(d): 5 + d for d in range(10)}}
    core = Tokenizer(kinds.WordLevel(pieces, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" w|w|\d"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>", eos_token="<bos>",
        name_or_path="tests/letters", add_bos_token=True,
    )  # fmt: skip


@every_world
def test_different_tokenizers_are_aligned_by_characters(world):
    a, b = build(world), bridge("gpt2", n_positions=64)
    b.tokenizer = letters()
    found = compare(a, b, TEXTS, text_options=TextOptions(batch_size=2), **QUIET)
    assert found.aligned == "characters"
    # By hand: a word "w12" of A ends where B's digit "2" does, its third piece; BOS stands before both.
    x, owner = materialised(a, TEXTS, resid(a))
    rows, n_b = {name: [] for name in resid(b)}, 0
    for text in TEXTS:
        tokens = b.to_tokens(text)
        n_b += tokens.shape[1]
        _, cache = b.run_with_cache(tokens)
        ends, at = [0], 0
        for word in text.split(" "):
            at += len(word)
            ends.append(at)
        for name in rows:
            rows[name].append(cache[name][0, ends].double())
    y = {name: torch.cat(parts) for name, parts in rows.items()}
    assert len(y[resid(b)[0]]) == len(owner) == found.n_samples
    torch.testing.assert_close(found["cka"], brute(brute_cka, x, y), rtol=1e-8, atol=1e-10)
    assert found.coverage == (1.0, pytest.approx(len(owner) / n_b)) and found.unknown == (0.0, 0.0)
    turned = compare(
        b, a, TEXTS, text_options=TextOptions(batch_size=2), sample_options=SampleOptions(sample="last"), **QUIET
    )
    assert turned.n_samples == 9 and turned.aligned == "characters"


def test_byte_pieces_of_one_character_count_once():
    from tl_backward.dissimilarity.tokens import pair_batch

    model = stories("bridge")

    text = "Once upon \N{LATIN SMALL LETTER E WITH ACUTE} \N{GRINNING FACE} time."
    facts = tlb.zoo.load("facts", kind="bridge")
    pairs = pair_batch(model, facts, 0, [text], TextOptions(), SampleOptions())
    a, b = model.tokenizer, facts.tokenizer
    shown_a = [a.convert_ids_to_tokens(int(pairs.a.tokens[0, k])) for k in pairs.at_a]
    assert [b.decode([int(pairs.b.tokens[0, k])]) for k in pairs.at_b][0] == "<bos>" and shown_a[0] == "<s>"
    # BOS, Once, upon, the accented letter, the last byte of the emoji, time, the full stop
    assert len(pairs.text) == 7 and shown_a[4].startswith("<0x")


def test_the_same_tokenizer_by_characters_is_by_tokens():
    a, b = build(worlds()[0]), bridge("llama")
    by_tokens, by_characters = (
        compare(a, b, TEXTS, sample_options=SampleOptions(align=how), **QUIET) for how in ("tokens", "characters")
    )
    assert by_characters.aligned == "characters" and by_tokens.n_samples == by_characters.n_samples
    torch.testing.assert_close(by_tokens.values, by_characters.values, rtol=1e-9, atol=1e-11)


# ---- measures that need samples


def test_other_measures_take_a_bounded_seeded_sample():
    a, b = build(worlds()[0]), bridge("llama")
    (x, _), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))
    everything = compare(a, b, TEXTS, measures=("rsa", "cka"), text_options=TextOptions(batch_size=2), **QUIET)
    torch.testing.assert_close(
        everything["rsa"], brute(lambda p, q: float(measures.rsa(p, q)), x, y), rtol=1e-8, atol=1e-9
    )
    some = [
        compare(
            a,
            b,
            TEXTS,
            measures="rsa",
            run_options=RunOptions(sample_size=20, seed=seed),
            text_options=TextOptions(batch_size=2),
            **QUIET,
        )
        for seed in (0, 0, 1)
    ]
    assert some[0].n_sampled == 20 and "sample of 20 of 58" in some[0].computed_from[0]
    assert torch.equal(some[0].values, some[1].values) and not torch.equal(some[0].values, some[2].values)
    for found in (everything, some[0]):
        assert found.standard_errors.isfinite().all() and found.permutation_deviations.isfinite().all()
    assert everything.null_means[0].isnan().all()


def test_topology_is_taken_on_few_samples(monkeypatch):
    a, b = build(worlds()[0]), bridge("llama")
    found = compare(
        a, b, TEXTS, measures="rtd", run_options=RunOptions(sample_size=30, jackknife=0, permutations=2), **QUIET
    )
    (x, _), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))
    assert found.n_sampled == 30 and (found.values > 0).all() and (found.permutation_means > found.values).any()
    everything = compare(
        a, b, TEXTS, measures="rtd", run_options=RunOptions(sample_size=300, jackknife=0, permutations=0), **QUIET
    )
    from tl_backward.dissimilarity.measures import rtd

    torch.testing.assert_close(everything["rtd"], brute(lambda p, q: float(rtd(p, q)), x, y), rtol=1e-7, atol=1e-9)
    unread = iter(lambda: pytest.fail("the data were read"), None)
    with pytest.raises(ValueError, match="Expected sample_size of at most 300 for rtd, .* got 2048"):
        compare(a, b, unread, measures="rtd", **QUIET)
    monkeypatch.setattr("tl_backward.dissimilarity.plan.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="Expected the package gudhi for rtd, but it is not installed"):
        compare(a, b, unread, measures="rtd", run_options=RunOptions(sample_size=30), **QUIET)


def test_a_measure_that_is_named_twice_is_computed_once():
    found = compare(bridge(), bridge(), TEXTS, measures=("CKA", "rsa", "cka", "RSA"), **QUIET)
    assert found.measures == ("cka", "rsa") and len(found.values) == 2


def test_an_unknown_measure_names_the_registry_s_too():
    a = build(worlds()[0])
    with pytest.raises(ValueError, match="got 'rsaa'; the nearest are 'rsa'"):
        compare(a, a, TEXTS, measures="rsaa", **QUIET)


def test_streamed_measures_are_those_on_tensors():
    a, b = build(worlds()[0]), bridge("llama")
    names = [name for name in list_measures()["name"] if name in ADDITIVE]
    assert len(names) > 15
    found = compare(a, b, TEXTS, measures=names, run_options=RunOptions(permutations=0, jackknife=0), **QUIET)
    (x, _), (y, _) = (materialised(model, TEXTS, resid(model)) for model in (a, b))
    for name in names:
        expected = brute(lambda p, q, n=name: float(get_measure(n)(p, q)), x, y)
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)


def test_the_sample_is_uniform():
    from tl_backward.dissimilarity.gather import RowSample

    counts = torch.zeros(60)
    for seed in range(300):
        sample = RowSample([1], size=12, seed=seed, dtype=torch.float32, device="cpu")
        for number in range(6):
            sample.update(number, [torch.arange(10.0)[:, None] + 10 * number])
        assert len(sample) == 12 and len(sample.layers[0].unique()) == 12
        counts[sample.layers[0].flatten().long()] += 1
    # Each is drawn 60 times on average, with a deviation of 7.
    assert counts.sum() == 3600 and (counts - 60).abs().max() < 5 * 7


def test_permutation_null_of_cka_is_brute_force():
    from tl_backward.dissimilarity.minibatch import permutations, permuted_cka

    x, y = (torch.randn(30, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d)) for d in (5, 7))
    orders = permutations(30, 4, 0)
    found = permuted_cka([x], [y], orders).flatten()
    expected = [brute_cka(x - x.mean(0), (y - y.mean(0))[order]) for order in orders]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# ---- memory, interruption, processes


def test_memory_is_planned_and_refused_with_the_alternative(capsys):
    a, b = build(worlds()[0]), bridge("llama")
    found = compare(a, b, TEXTS, run_options=RunOptions(show_plan=True), **QUIET)
    printed = capsys.readouterr().out
    assert "sums over all samples" in printed and f"{found.plan.bytes / 1e6:.1f} MB" in printed
    needed = found.plan.bytes
    with pytest.raises(ValueError, match="within max_memory=.* GB, got one that needs .* GB; pass jackknife=0"):
        compare(
            a,
            b,
            TEXTS,
            run_options=RunOptions(max_memory=needed - 13 * found.plan.parts["sums over all samples"]),
            **QUIET,
        )
    with pytest.raises(ValueError, match="fewer layers at a time"):
        compare(a, b, TEXTS, run_options=RunOptions(max_memory=1000), **QUIET)
    fewer = compare(
        a,
        b,
        TEXTS,
        text_options=TextOptions(batch_size=1),
        run_options=RunOptions(max_memory=needed - 11 * found.plan.parts["sums over all samples"]),
        **QUIET,
    )
    assert fewer.plan.n_groups == 9 == fewer.n_groups


def test_the_plan_holds_what_is_held():
    from tl_backward.dissimilarity.statistics import planned_bytes

    stats = CovarianceStatistics([3, 5], [4])
    held = sum(tensor.numel() * tensor.element_size() for tensor in stats.tensors().values())
    assert held == planned_bytes([3, 5], [4]) == stats.nbytes


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "minibatch_ratio_of_means"}, {"sample": "last", "measures": "cka_biased"}]
)
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, options):
    from tl_backward.dissimilarity import gather

    monkeypatch.setattr(gather, "SAVE_EVERY", 2)
    a, b = build(worlds()[0]), bridge("llama")
    path = tmp_path / "run.safetensors"
    options = dict(batch_size=1, checkpoint=path, **options, **QUIET)
    changed, options = given(seed=1, **options), given(**options)
    forwards = []

    def failing():
        yield from TEXTS[:5]
        raise Interrupted

    with pytest.raises(Interrupted):
        compare(a, b, failing(), **options)
    with a.hooks(fwd_hooks=[("hook_embed", lambda x, hook: forwards.append(len(x)))]):
        resumed = compare(a, b, iter(TEXTS), **options)
    assert len(forwards) == 1 + 5  # the probe, and the batches after the fourth
    path.unlink()
    whole = compare(a, b, iter(TEXTS), **options)
    torch.testing.assert_close(resumed.values, whole.values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(resumed.standard_errors, whole.standard_errors, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(resumed.permutation_means, whole.permutation_means, rtol=1e-8, atol=1e-10)
    assert resumed.n_samples == whole.n_samples and resumed.n_batches == 9
    with pytest.raises(ValueError, match="got others within the first 9 batches"):
        compare(a, b, iter([*TEXTS[1:], "w3"]), **options)
    with pytest.raises(ValueError, match="had read 9 batches, got 3"):
        compare(a, b, iter(TEXTS[:3]), **options)
    with pytest.raises(ValueError, match=r"checkpoint of this run in .*differs in seed \(0, not 1\)"):
        compare(a, b, iter(TEXTS), **changed)


PROCESS = """
import sys, json, torch
from accelerate import Accelerator
from models import bridge
from dissimilarity.given import given
from dissimilarity.test_comparison import TEXTS
from tl_backward.dissimilarity import compare
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
for name, options in json.loads(sys.argv[2]).items():
    found = compare(bridge("gpt2"), bridge("llama"), TEXTS, show_progress=False, **given(batch_size=1, jackknife=8, **options))
    kept = [found.values.tolist(), found.standard_errors.tolist(), found.permutation_means.tolist(), found.n_samples]
    open(f"{sys.argv[1]}/{name}-{accelerator.process_index}.json", "w").write(json.dumps(kept))
"""
RUNS = {
    "full": {"measures": ["cka", "linear_regression"], "sample_size": 30},
    "batches": {"estimator": "minibatch_mean_of_ratios", "exclude_first": True},
    "last": {"sample": "last"},
}


@launchers("accelerate")
def test_two_processes_equal_one(launcher, tmp_path):
    done = launched(launcher, PROCESS, tmp_path, tmp_path, json.dumps(RUNS))
    assert done.returncode == 0, done.stderr[-3000:]
    for name, options in RUNS.items():
        # An iterator's length is not known, so that one process, too, takes the route of sums.
        alone = compare(
            bridge("gpt2"), bridge("llama"), iter(TEXTS), **given(batch_size=1, jackknife=8, **options), **QUIET
        )
        for process in (0, 1):
            values, errors, permuted, n = json.loads((tmp_path / f"{name}-{process}.json").read_text())
            assert n == alone.n_samples
            torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), alone.values, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(
                torch.tensor(errors, dtype=torch.float64), alone.standard_errors, rtol=1e-7, atol=1e-9
            )
            torch.testing.assert_close(
                torch.tensor(permuted, dtype=torch.float64), alone.permutation_means, rtol=1e-7, atol=1e-9
            )


def test_a_launcher_whose_processes_have_not_met(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    a = build(worlds()[0])
    with pytest.raises(RuntimeError, match="launcher of 2 processes"):
        compare(a, a, TEXTS, **QUIET)


# ---- bad input


def without_tokenizer(model):
    model.tokenizer = None
    return model


BAD = {
    "unknown measure": (dict(measures="ckka"), ValueError, "name of a measure, got 'ckka'; the nearest are 'cka'"),
    "no measure": (dict(measures=()), ValueError, "at least one measure"),
    "unknown estimator": (dict(estimator="mean"), ValueError, "estimator among 'full'"),
    "unknown hook": (dict(hook="resid_pst"), ValueError, "hook point of model A, got .*which it lacks; the nearest are"),
    "unknown name": (dict(hook="blocks.0.hook_reid_post"), ValueError, "which it lacks"),
    "hook b lacks": (dict(hook_b="blocks.9.hook_resid_post"), ValueError, "hook point of model B"),
    "no names": (dict(hook=[]), ValueError, "at least one place"),
    "names and layers": (dict(hook=["hook_embed"], layers_a=0), ValueError, "layers only with a short hook name"),
    "a pattern": (dict(hook="pattern"), ValueError, "one vector a token"),
    "a scale": (dict(hook="blocks.0.ln1.hook_scale"), ValueError, "one vector a token"),
    "no heads": (dict(heads="each"), ValueError, "to have heads"),
    "layer": (dict(layers_b=7), IndexError, "layers in"),
    "sample": (dict(sample="first"), ValueError, "sample among 'token', 'last', 'mean'"),
    "align": (dict(align="words"), ValueError, "align among"),
    "jackknife": (dict(jackknife=-1), ValueError, "jackknife of at least 0"),
    "batch_size": (dict(batch_size=0), ValueError, "batch_size of at least 1"),
    "max_tokens": (dict(max_tokens=0), ValueError, "max_tokens of at least 1"),
    "one text": (dict(data="w3 w4"), TypeError, "got one text; put the text into a list"),
    "all splits": (dict(data={"train": TEXTS}), TypeError, "choose a split"),
    "empty": (dict(data=[]), ValueError, "the iterator is empty"),
    "empty tensor": (dict(data=torch.zeros(0, 4, dtype=torch.long)), ValueError, "the iterator is empty"),
    "empty iterator": (dict(data=iter(())), ValueError, "the iterator is empty"),
    "rows of something": (dict(data=[{"words": "w3"}]), TypeError, "name the column with text_key"),
    "mixed": (dict(data=["w3", torch.tensor([[3]])]), TypeError, "got both in turn"),
    "long tokens": (dict(data=torch.zeros(2, 99, dtype=torch.long)), ValueError, "at most 16 positions"),
    "large ids": (dict(data=torch.full((2, 4), 50)), ValueError, r"token ids in \[0, 50\), got 50 to 50"),
    "mask of another shape": (dict(data=[(torch.ones(2, 4).long(), torch.ones(2, 3))]), ValueError, "attention_mask of the tokens' shape"),
    "mask function": (dict(mask=lambda tokens: tokens[0] > 0), ValueError, "one bool a token"),
    "two samples": (dict(data=["w3", "w4"], sample="last"), ValueError, "at least 4 samples, got 2"),
    "one sample": (dict(data=["w3"], sample="mean"), ValueError, "at least 4 samples, got 1"),
    "no sample": (dict(mask=lambda tokens: tokens < 0), ValueError, "at least 4 samples, got 0"),
    "constant": (dict(hook="hook_embed", mask=lambda tokens: tokens == 0), ValueError, "one and the same vector at all 9 samples at 'hook_embed' of model A"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, error, message = BAD[case]
    a, b = build(worlds()[0]), bridge("gpt2")
    with pytest.raises(error, match=message):
        compare(a, b, options.get("data", TEXTS), **given(**{k: v for k, v in options.items() if k != "data"}), **QUIET)


def test_data_of_another_type_is_refused_in_words():
    """As users without run-time type checks are told; these tests' own checks come first."""
    script = """
import torch
from models import bridge
from tl_backward.dissimilarity import compare
for data in (7, torch.rand(3, 4)):
    try:
        compare(bridge("gpt2"), bridge("gpt2"), data, show_progress=False)
    except TypeError as error:
        print(str(error))
"""
    no_iterable, floats = plain.run(script).stdout.splitlines()
    assert "got int; pass something" in no_iterable and "integer tokens" in floats


def test_tokens_for_models_of_different_vocabularies():
    a, b = build(worlds()[0]), bridge("llama")
    b.tokenizer = letters()
    with pytest.raises(ValueError, match="one vocabulary for data given as tokens.*pass texts"):
        compare(a, b, torch.randint(3, 14, (4, 5)), **QUIET)
    with pytest.raises(ValueError, match="one tokenization from both models under align='tokens'"):
        compare(a, b, TEXTS, sample_options=SampleOptions(align="tokens"), **QUIET)


def test_no_model_and_no_tokenizer():
    a = build(worlds()[0])
    with pytest.raises(TypeError, match="TransformerLens model"):
        compare(a, torch.nn.Linear(2, 2), TEXTS)
    bare = build(worlds()[0])
    bare.tokenizer = None
    with pytest.raises(ValueError, match="model with a tokenizer"):
        compare(a, bare, TEXTS, **QUIET)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_are_named(value):
    a, b = build(worlds()[0]), bridge("llama")
    seen = []

    def spoil(x, hook):
        seen.append(None)
        return x * value if len(seen) == 3 else x  # the probe, then batches 0 and 1

    with a.hooks(fwd_hooks=[("blocks.1.hook_resid_post", spoil)]):
        with pytest.raises(ValueError, match="NaN or inf at 'blocks.1.hook_resid_post' of model A in batch 1"):
            compare(a, b, TEXTS, text_options=TextOptions(batch_size=2), **QUIET)


def test_warnings():
    a, b = build(worlds()[0]), bridge("llama")
    with pytest.warns(UserWarning, match="ended after 3 batches of the 7 asked for"):
        found = compare(a, b, TEXTS[:6], text_options=TextOptions(batch_size=2, n_batches=7), **QUIET)
    assert found.n_batches == 3
    assert compare(a, b, TEXTS, text_options=TextOptions(batch_size=2, n_batches=2), **QUIET).n_texts == 4
    with pytest.warns(UserWarning, match="ends in padding tokens and comes without an attention mask"):
        compare(a, b, [torch.tensor([[0, 5, 6, 7], [0, 8, 1, 1], [0, 9, 10, 11]])], **QUIET)
    with a.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: torch.cat([x[:, :1] * 100, x[:, 1:]], 1))]):
        with pytest.warns(UserWarning, match="position 0 make up .* at 'blocks.1.hook_resid_post' of model A"):
            compare(a, b, TEXTS, **QUIET)
        compare(a, b, TEXTS, text_options=TextOptions(exclude_first=True), **QUIET)


def test_padding_brings_no_advice_to_pass_a_mask(caplog):
    """Texts are padded at their ends, after all that is compared: transformers cannot know."""
    from transformers.utils import logging

    model = bridge(pad_token_id=1)
    library, spoken = logging.get_logger("transformers"), logging.get_verbosity()
    library.addHandler(caplog.handler)
    logging.set_verbosity_warning()  # TransformerLens sets it to errors alone
    try:
        type(logging.get_logger("transformers")).warning_once.cache_clear()
        compare(model, model, TEXTS, **QUIET)
        assert not caplog.records
        type(logging.get_logger("transformers")).warning_once.cache_clear()
        model(torch.tensor([[0, 5, 1]]))  # a pass of one's own is told
        assert any("may be padded" in record.getMessage() for record in caplog.records)
    finally:
        logging.set_verbosity(spoken)
        library.removeHandler(caplog.handler)


def test_html_is_escaped():
    model = build(worlds()[0])
    found = compare(model, model, TEXTS, **QUIET)
    from dataclasses import replace

    evil = replace(found, layers_a=("<script>x</script>", "b"), computed_from=("<img src=x>",))
    html = evil._repr_html_()
    assert "<script" not in html and "<img" not in html and "&lt;" in html


# ---- real models


def tiny_stories(n):
    return json.loads(shared("data", "tinystories-1000.json").read_text())[:n]


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_bridge_and_hooked_transformer_are_the_same():
    found = compare(
        stories("bridge"),
        stories("hooked"),
        tiny_stories(6),
        text_options=TextOptions(max_tokens=60, batch_size=2),
        **QUIET,
    )
    assert found.values.shape == (1, 5, 5) and found.coverage == (1.0, 1.0)
    torch.testing.assert_close(found["cka"].diag(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_another_tokenizer():
    found = compare(stories("bridge"), tlb.zoo.load("facts"), tiny_stories(30), **QUIET)
    assert found.aligned == "characters" and found.n_truncated == 30 and 0 < found.coverage[0] < 0.2
    assert 0.4 < found.unknown[1] < 0.9 and found.n_samples > 600
    assert found.values.shape == (1, 5, 4) and (found.values > 5 * found.permutation_deviations).all()
    assert (found.standard_errors > 0).all()


@pytest.mark.parametrize("world", worlds())
def test_low_precision_model(world):
    exact = compare(build(world), bridge("llama"), TEXTS, **QUIET)
    low = compare(
        hooked("ln", torch.bfloat16) if world == "hooked" else bridge("gpt2", torch.bfloat16),
        bridge("llama"),
        TEXTS,
        **QUIET,
    )
    assert (exact.values - low.values).abs().max() < 0.02


@pytest.mark.parametrize("world", worlds())
def test_a_planted_massive_activation(world):
    """What spans say of the shipped model's layers with one of 30,000 in them, by QR and least squares of all rows."""
    model, other = (tlb.zoo.load("facts", kind=kind) for kind in (world, "bridge"))
    prompts = [case.prompt for case in tlb.zoo.edit_cases("test")[:60]]
    place = "blocks.1.hook_resid_post"

    def plant(x, hook):
        x = x.clone()
        x[:, 0, 7] += 30_000.0
        return x

    with model.hooks(fwd_hooks=[(place, plant)]), pytest.warns(UserWarning, match="position 0 make up 100%"):
        found = compare(
            model,
            other,
            prompts,
            measures=["cca", "linear_regression"],
            layers_a=[1],
            layers_b=[2],
            text_options=TextOptions(batch_size=16),
            **QUIET,
        )
        x = torch.cat([model.run_with_cache(model.to_tokens(text))[1][place][0].double() for text in prompts])
    y = torch.cat(
        [other.run_with_cache(other.to_tokens(text))[1]["blocks.2.hook_resid_post"][0].double() for text in prompts]
    )
    assert len(x) == found.n_samples and float(x[:, 7].max()) > 29_000
    x, y = x - x.mean(0), y - y.mean(0)
    spans = [torch.linalg.qr(side / side.norm(dim=0)).Q for side in (x, y)]
    cca = torch.linalg.svdvals(spans[0].T @ spans[1]).clamp(max=1).mean()
    explained = ((spans[0].T @ y) ** 2).sum() / (y**2).sum()
    assert (
        abs(float(found["cca"]) - float(cca)) < 1e-4
        and abs(float(found["linear_regression"]) - float(explained)) < 1e-4
    )


@every_world
def test_the_control_is_pairs_of_untrained_networks(world):
    """Values of networks drawn one by one here: another draw for B, so that a model beside itself has a control too."""
    model, options = build(world), {"measures": ("cka", "procrustes"), "text_options": TextOptions(batch_size=2)}
    control = tlb.lens.RandomInit(n_draws=2, seed=7)
    before = state(model)
    found = compare(model, model, TEXTS, run_options=RunOptions(control=control), **options, **QUIET)
    assert_same(before, state(model))
    for draw in range(2):
        a, b = (random_init(model, seed=seed) for seed in (7 + draw, 9 + draw))
        once = compare(a, b, TEXTS, run_options=RunOptions(jackknife=0, permutations=0), **options, **QUIET)
        torch.testing.assert_close(found.untrained[draw], once.values)
    alone = compare(model, model, TEXTS, **options, **QUIET)
    torch.testing.assert_close(found.values, alone.values)
    assert not alone.untrained and alone.to_frame()["untrained_mean"].isna().all()
    row = found.to_frame().iloc[1]
    assert row["untrained_mean"] == pytest.approx(found.untrained[:, 0, 0, 1].mean().item())
    assert row["untrained_low"] < row["untrained_high"]


def test_a_control_reads_the_data_for_every_draw():
    options = RunOptions(control="random_init")
    model = bridge("llama")
    with pytest.raises(TypeError, match="read for every draw of the control, got an iterator; pass a list of it"):
        compare(model, model, iter(TEXTS), run_options=options, **QUIET)


def test_a_model_without_an_untrained_copy_is_refused_before_the_pass(monkeypatch):
    passes = []
    monkeypatch.setattr("tl_backward.dissimilarity.comparison.evaluate", lambda *_: passes.append(1))
    sound, adapted = bridge("llama"), bridge("llama")
    torch.nn.utils.parametrizations.weight_norm(adapted.original_model.model.layers[0].mlp.down_proj.original_component)
    for models in ((sound, adapted), (adapted, sound)):
        with pytest.raises(ValueError, match="Expected every parameter to be one that .* makes from its configuration"):
            compare(*models, TEXTS, run_options=RunOptions(control="random_init"), **QUIET)
    assert not passes
