"""Two kinds of classifier that agree on some prompts and differ on others: told apart, pair by pair as by hand."""

import math

import pytest
import torch
from leaves_no_trace import assert_same, state
from models import worlds

from tl_backward.studies.dissimilarity import heuristics
from tl_backward.studies.dissimilarity.heuristics import MEASURES
from tl_backward.zoo.classification import CuedPrompts

from .family import gram_cka, model, stream

WORDS = [f"w{i}" for i in range(3, 50)]


def prompts(n=60):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 8, (n,), generator=generator).tolist()
    return [" ".join(f"w{int(i)}" for i in torch.randint(3, 50, (m,), generator=generator)) for m in lengths]


def word_logits(model, texts):
    """[prompt, word] at each prompt's last token, one prompt at a time."""
    with torch.no_grad():
        return torch.stack([model(model.to_tokens(text))[0, -1, 3:] for text in texts])


@pytest.fixture(scope="module", params=worlds())
def models(request):
    """Three near one random model, then three near another whose late layers alone differ."""
    kinds = []
    other = model(request.param, seed=1, n_layers=3)
    for kind in range(2):
        for copy in range(3):
            one = model(request.param, noise=0.01, noise_seed=3 * kind + copy, n_layers=3)
            if kind:
                with torch.no_grad():
                    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
                        if ".2." in name:
                            mine.copy_(theirs + 0.01 * torch.sin(99 * theirs + copy))
            with torch.no_grad():
                one.embed.get_parameter(next(name for name, _ in one.embed.named_parameters())).mul_(
                    6
                )  # prompts matter
            kinds.append(one)
    return kinds


@pytest.fixture(scope="module")
def quiet(models):
    """Options, with the two words on which the kinds differ most often while they still often agree."""
    said = torch.stack([word_logits(one, prompts()) for one in (models[0], models[3])])
    above = (said[:, :, :, None] > said[:, :, None]).unbind()  # [prompt, word, word]
    apart = (above[0] != above[1]).sum(0)
    best = int(torch.minimum(apart, len(prompts()) - apart).argmax())
    return {"answers": (WORDS[best // len(WORDS)], WORDS[best % len(WORDS)]), "show_progress": False}


def answers(model, texts, quiet):
    """[prompt, 2] logits."""
    return word_logits(model, texts)[:, [WORDS.index(word) for word in quiet["answers"]]]


@pytest.fixture(scope="module")
def tests_of(models, quiet):
    """Prompts on which all answer alike, and prompts on which the kinds differ; the first kind is right."""
    texts = prompts()
    said = torch.stack([answers(each, texts, quiet).argmax(1) for each in models])
    first, second = (kind.eq(kind[0]).all(0) for kind in (said[:3], said[3:]))
    alike, apart = (first & second & agree for agree in (said[0] == said[3], said[0] != said[3]))
    assert alike.sum() > 8 and apart.sum() > 8
    made = CuedPrompts(tuple(texts), said[0], said[3])
    return made.select(alike.nonzero().flatten()), made.select(apart.nonzero().flatten())


@pytest.fixture(scope="module")
def found(models, tests_of, quiet):
    return heuristics(models, *tests_of, **quiet)


def test_accuracies_and_kinds(found):
    assert found.accuracy.tolist() == [1.0] * 6
    assert found.accuracy_out.tolist() == [1.0] * 3 + [0.0] * 3
    assert found.generalises.tolist() == [True] * 3 + [False] * 3
    assert found.models_frame()["generalises"].tolist() == found.generalises.tolist()


def test_kinds_part_where_they_were_made_to(found):
    """The first two layers are one model's but for noise; the third differs between the kinds."""
    gap = found.gaps.gap
    for measure in (0, 1, 3):
        assert gap[measure, 2] > 10 * gap[measure, :2].abs().max()
        assert found.gaps.p[measure, 2] == 2 / 20 and found.gaps.low[measure, 2] > 0
    assert found.crossover[2] > 0.9 and found.crossover[:2].max() < 0.1  # the noise decides close calls


@pytest.mark.parametrize("i, j, layer", [(1, 4, 0), (5, 2, 2)])
def test_pairs_as_by_hand(models, tests_of, quiet, found, i, j, layer):
    inside, outside = tests_of
    ids = [int(models[0].to_tokens(answer, prepend_bos=False)[0, 0]) for answer in quiet["answers"]]

    def last(model, texts):
        return torch.cat([stream(model, model.to_tokens(text), layer)[:, -1] for text in texts])

    def stitched(texts):
        logits = []
        for text in texts:
            tokens = models[i].to_tokens(text)
            residual = stream(models[i], tokens, layer)
            hook = (f"blocks.{layer}.hook_resid_post", lambda value, hook, residual=residual: residual)
            with torch.no_grad():
                logits.append(models[j].run_with_hooks(tokens, fwd_hooks=[hook])[0, -1, ids])
        return torch.stack(logits)

    def loss(logits):
        return float(-logits.log_softmax(1)[torch.arange(len(logits)), inside.labels].mean())

    for measure, texts in ((0, inside.prompts), (1, outside.prompts)):
        expected = 1 - gram_cka(last(models[i], texts), last(models[j], texts), debiased=True)
        assert found.dissimilarities[i, j, measure, layer] == pytest.approx(expected, abs=1e-8)
    expected = loss(stitched(inside.prompts)) - loss(answers(models[j], inside.prompts, quiet))
    assert found.dissimilarities[i, j, 2, layer] == pytest.approx(expected, abs=1e-8)
    said = stitched(outside.prompts).argmax(1)
    head, tail = (answers(models[k], outside.prompts, quiet).argmax(1) for k in (i, j))
    assert found.dissimilarities[i, j, 3, layer] == pytest.approx(float((said != tail).double().mean()))
    if (head != tail).any():
        assert found.follows_head[i, j, layer] == pytest.approx(float((said == head)[head != tail].double().mean()))
    else:
        assert math.isnan(found.follows_head[i, j, layer])


def test_frames_and_determinism(models, tests_of, quiet, found):
    before = state(models[0])
    again = heuristics(models, *tests_of, **quiet)
    assert_same(before, state(models[0]))
    assert torch.equal(found.dissimilarities.nan_to_num(7), again.dissimilarities.nan_to_num(7))
    frame = found.to_frame()
    assert len(frame) == len(MEASURES) * 3 and set(frame["n_models"]) == {6}
    row = frame[(frame["measure"] == MEASURES[2]) & (frame["layer"] == 1)].iloc[0]
    cell = found.dissimilarities[:, :, 2, 1]
    same = found.generalises[:, None] == found.generalises
    assert row["between"] == pytest.approx(float(cell[~same].mean()))
    assert row["within"] == pytest.approx(float(cell[same & ~torch.eye(6, dtype=torch.bool)].mean()))
    assert row["gap"] == pytest.approx(row["between"] - row["within"])
    assert repr(found) == "Heuristics(6 models, of which 3 generalise; 3 layers)"
    assert found._repr_html_().count("<tr") == 2 + 6 + len(frame)


def test_bad_input(models, tests_of, quiet):
    inside, outside = tests_of
    with pytest.raises(ValueError, match="Expected four or more models of one shape, got 3 of 1 shapes"):
        heuristics(models[:3], inside, outside, **quiet)
    with pytest.raises(ValueError, match="Expected an answer of one token, got 'w5 w6' of 2; choose another word"):
        heuristics(models, inside, outside, answers=("w5 w6", "w7"), show_progress=False)
    with pytest.raises(ValueError, match="at least two models on either side of 0.5 .* set threshold between"):
        heuristics(models[:4], inside, outside, **quiet)
