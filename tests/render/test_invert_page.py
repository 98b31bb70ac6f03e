"""The page of what an activation knows: true to its results, token by token, and safe."""

import base64
import csv
import io
import re
from dataclasses import replace

import pytest
import torch
from inversion.oracle import scores
from inversion.tiny import cached
from models import worlds

from tl_backward import render
from tl_backward._support.sentences import count_text
from tl_backward.inversion import (
    Closeness,
    common_features,
    compare_sites,
    compare_with_exact,
    enumerate_preimage,
    pool_preimage,
    preimage_of,
    read_preimage,
)
from tl_backward.inversion.features import FeatureConsistency, FeatureTable, Rate

from .reading import PICTURE, read

QUIET = {"show_progress": False}
QUERY = "w5 w6 w7 w8"
TEXTS = ["w5 w6 w7 w8", "w5 w6 w7", "w9", "w3 w3 w41 w10 w12", "w5 w6 w7 w8 w9", "w8 w7 w6 w5", "w5 w6", "w9"]
FEATURES = {"first": lambda text: text.split()[0], "words": lambda text: len(text.split())}
SITE = ("resid_mid", 1)
every_world = pytest.mark.parametrize("world", worlds())


class Hostile:
    """A tokenizer whose every word tries to be something else."""

    bos_token_id = None

    def __init__(self, words):
        self.words = words

    def decode(self, ids, **options):
        return "".join(self.words[int(i) % len(self.words)] for i in ids)

    def convert_ids_to_tokens(self, token):
        return self.decode([token])


class Shading:
    """A decoder's word on each token, as numbers that a test can look for."""

    def token_probabilities(self, texts, query):
        with_z = torch.linspace(0.5, 0.9, texts.tokens.numel()).view(texts.tokens.shape)
        with_z[:, 0] = torch.nan
        return with_z, with_z - 0.25


def reading(world, *, epsilon=None, decoder=None, **options):
    model = cached(world)
    exact = enumerate_preimage(model, QUERY, SITE, -1, sorted(set(TEXTS)), epsilon=epsilon or middle(world), **QUIET)
    found = preimage_of(model, QUERY, SITE, -1, TEXTS, epsilon=exact.epsilon, prior=TEXTS[3:], **QUIET)
    near = pool_preimage(model, QUERY, SITE, -1, TEXTS[2:], epsilon=exact.epsilon, **QUIET)
    return read_preimage(
        model, found, features=FEATURES, prior=TEXTS, retrieval=near, exact=exact, decoder=decoder, **options
    )


def middle(world):
    """An epsilon with texts on either side."""
    distances = sorted(preimage_of(cached(world), QUERY, SITE, -1, TEXTS, **QUIET).distances.tolist())
    return (distances[3] + distances[4]) / 2


def data_of(html, name):
    found = re.search(rf'download="{re.escape(name)}" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html)
    assert found, name
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))


@every_world
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_every_tokens_distance_by_brute_force(world, metric):
    """D of a token is that of the text cut there, asked at its last token: attention looks back only."""
    model = cached(world)
    found = preimage_of(model, QUERY, SITE, -1, TEXTS, epsilon=Closeness(0.01, metric=metric), **QUIET)
    read_one = read_preimage(model, found)
    assert read_one.features is None and read_one.exact is None and read_one.retrieval is None
    shown = (*read_one.inside, *read_one.outside)
    assert sorted(TEXTS[text.index] for text in shown) == sorted(set(TEXTS))  # each once
    for text in shown:
        words = TEXTS[text.index].split()
        for n in range(1, len(words) + 1):
            expected, _ = scores(
                model, [" ".join(words[:n])], QUERY, ("blocks.1.hook_resid_mid", None, False), -1, metric, "same"
            )
            assert text.distances[len(text.strings) - len(words) + n - 1].item() == pytest.approx(expected[0], abs=1e-9)
        assert text.distances.min().item() == pytest.approx(found.distances[text.index].item(), abs=1e-12)
        assert text.shading is None and [string.strip() for string in text.strings[-len(words) :]] == words
    distances = [found.distances[text.index].item() for text in read_one.outside]
    assert distances == sorted(distances)


@every_world
def test_the_numbers_on_the_page_are_the_results(world):
    model, one = cached(world), reading(world)
    comparison = compare_sites(
        model, QUERY, [("resid_post", 0), SITE], inputs=TEXTS, features=FEATURES, positions=[0, 1, -1], **QUIET
    )
    page = render.invert_report(one, comparison=comparison, name="<b>mine</b>")
    html = page.to_html()
    assert "What an activation knows: &lt;b&gt;mine&lt;/b&gt;" in html and "<details open" in html
    p = one.preimage
    assert p.diagnostics.recall == 1 and set(p.diagnostics.total_variation) == set(FEATURES)
    assert p.diagnostics == compare_with_exact(replace(p), one.exact, FEATURES).diagnostics
    for value in (
        p.diagnostics.share_inside,
        p.diagnostics.chance,
        p.diagnostics.effective_sample_size,
        p.diagnostics.total_variation["first"],
    ):
        assert f">{value:.4g}<" in html
    rows = data_of(html, f"texts_blocks.1.hook_resid_mid_{p.position}.csv")
    order = p.distances.argsort(stable=True).tolist()
    assert [row["text"] for row in rows] == [TEXTS[i] for i in order]
    assert [float(row["distance"]) for row in rows] == p.distances[order].tolist()
    assert [row["inside"] for row in rows] == [str(bool(p.inside[i])) for i in order]
    hypotheses = data_of(html, f"features_blocks.1.hook_resid_mid_{p.position}.csv")
    table = common_features(p, FEATURES, prior=TEXTS)
    assert [row["feature"] for row in hypotheses] == [row.feature for row in table.rows]
    assert [float(row["rate"]) for row in hypotheses] == [row.rate.value for row in table.rows]
    for row in table.rows:
        assert (
            str(row.rate) in html
            and str(row.prior) in html
            and f"{one.exact_features[row.feature].rate.value:.3f}" in html
        )
    for text in (*one.inside, *one.outside):
        assert all(f"D {distance:.4g}" in html for distance in text.distances.tolist())
    assert len(data_of(html, "feature_map.csv")) == 2 * 3 * len(FEATURES)
    n_exact = int(one.exact.inside.sum())
    assert f"{count_text(n_exact, 'input')} of the domain" in html and "Retrieval, the baseline" in html


@every_world
def test_a_map_has_a_cell_for_every_site_and_position(world):
    sites, positions = [("resid_post", 0), ("result", 1, 2)], [0, 2, -1]
    found = compare_sites(
        cached(world), QUERY, sites, inputs=TEXTS[1:], features=FEATURES, positions=positions, **QUIET
    )
    html = render.feature_map(found, "first").html
    shown = re.findall(r'<td style[^>]*><span dir="auto">([^<]*)</span>', html)
    rates = found.to_frame().query("feature == 'first'").rate.tolist()
    assert shown == ["\u2013" if rate != rate else f"{rate:.2f}" for rate in rates]
    assert "L0 resid_post" in html and "L1 result[2]" in html and "first = w5" in html
    with pytest.raises(KeyError, match="Expected one of the features"):
        render.feature_map(found, "last")


def test_shading_is_what_the_decoder_adds():
    one = reading(worlds()[-1], decoder=Shading())
    (text, *_) = one.inside
    assert text.shading[1:].tolist() == pytest.approx([0.25] * (len(text.strings) - 1)) and text.shading[0].isnan()
    html = render.preimage_samples(one).html
    assert f"; p {text.conditional[1]:.3g} with z, {text.unconditional[1]:.3g} without" in html
    assert "p(token | z) minus" in html and "p(token | z)" not in render.preimage_samples(reading(worlds()[-1])).html


def test_nothing_inside_and_nothing_outside_are_said():
    model = cached(worlds()[-1])
    none = read_preimage(
        model, preimage_of(model, QUERY, SITE, -1, TEXTS[2:4], epsilon=1e-6, **QUIET), features=FEATURES
    )
    page = render.invert_report([none]).to_html()
    assert (
        not none.inside
        and "No text within epsilon was found." in page
        and "How near the nearest texts come" in page.partition("<h2>The query")[0]
        and "nan" not in re.sub(r'base64,[^"]*|<script>.*?</script>', "", page, flags=re.DOTALL)
    )
    everything = read_preimage(model, preimage_of(model, QUERY, SITE, -1, TEXTS, epsilon=99.0, **QUIET))
    assert not everything.outside and "Every text is within epsilon." in render.invert_report(everything).to_html()


def test_hostile_tokens_stay_text(hostile):
    one = reading(worlds()[-1], decoder=Shading())
    for start in range(0, len(hostile), 10):
        words = hostile[start : start + 10]
        tokenizer = Hostile(words)

        def bad(preimage, tokenizer=tokenizer, words=words):
            source = tuple(words[i % len(words)] for i in range(len(preimage)))
            inputs = replace(preimage.inputs, tokenizer=tokenizer, source=source)
            return replace(preimage, inputs=inputs, query=replace(preimage.query, text=words[0]))

        def strings(texts, words=words):
            return tuple(replace(t, strings=tuple(words[i % len(words)] for i in range(len(t.strings)))) for t in texts)

        rows = tuple(replace(row, feature=words[0], query_value=words[-1]) for row in one.features.rows)
        evil = replace(
            one, preimage=bad(one.preimage), retrieval=bad(one.retrieval), exact=bad(one.exact), inside=strings(one.inside),
            outside=strings(one.outside), features=replace(one.features, rows=rows), exact_features=None,
            retrieval_features=None,
        )  # fmt: skip
        html = render.invert_report(evil, name=words[0]).to_html()
        reader = read(html)
        allowed = {"html", "head", "meta", "link", "title", "style", "body", "main", "h1", "h2", "p", "section", "footer", "div", "span",
                   "details", "summary", "a", "table", "thead", "tbody", "tr", "th", "td", "nav", "code", "i", "sub", "sup", "script"}  # fmt: skip
        assert set(reader.tags) <= allowed | PICTURE and reader.tags.count("script") == html.count("<script>") == 1
        assert not any(name.startswith("on") or name == "src" for name, _ in reader.attributes)
        assert all(value.startswith(("data:", "#part-")) for name, value in reader.attributes if name == "href")


def test_the_open_map_is_of_what_is_kept_where_the_query_was_asked():
    """A token keeps what it is itself, trivially and in more bits than the finding has."""
    world = worlds()[-1]
    found = compare_sites(cached(world), QUERY, SITE, inputs=TEXTS, features=FEATURES, positions=[0, -1], **QUIET)

    def table(first, words):
        shares = {"first": (first, 0.05), "words": (words, 0.12)}
        rows = (
            FeatureConsistency(name, 1, Rate(own, own - 0.02, own, 200.0), Rate(prior, 0.0, prior + 0.02, 200.0))
            for name, (own, prior) in shares.items()
        )
        return FeatureTable(tuple(rows), "")

    evident = replace(found, features=(table(1.0, 0.12), table(0.05, 0.5)))
    one = replace(reading(world), features=table(0.05, 0.5))
    html = render.invert_report(one, comparison=evident).to_html()
    assert html.index("words = ") < html.index("first = ")
    opened = re.search(r"<details open[^>]*><summary[^>]*>([^<]*)<", html)
    assert opened is not None and opened[1] == "words"
    picture = re.search('aria-label="(Texts within [^"]*)"', html)
    assert picture is not None and "have the query" in picture[1] and "other texts" in html


def test_bad_input():
    one = reading(worlds()[-1])
    with pytest.raises(ValueError, match="Expected readings of one query, got 0 of 0"):
        render.invert_report([])
    other = replace(one, preimage=replace(one.preimage, query=replace(one.preimage.query, tokens=torch.tensor([1, 2]))))
    with pytest.raises(ValueError, match="got 2 of 2 queries"):
        render.invert_report([one, other])
    with pytest.raises(ValueError, match="Expected n_shown of at least 1, got 0"):
        reading(worlds()[-1], n_shown=0)
    assert len(reading(worlds()[-1], n_shown=1).outside) == 1 and "beside retrieval and exact" in repr(one)
