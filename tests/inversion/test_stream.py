import itertools

import pytest
import torch
from models import build, worlds

from inversion.small import SITES, texts
from tl_backward.inversion.stream import BLOCK, CHUNK, Drawing, Shares, TrainingStream
from tl_backward.model.place import resolve_places
from tl_backward.text.data import TextSource


def stream(model, positions=(-1, 2), *, data=texts, null=None, n_kept=5, **drawing):
    sites = resolve_places(model, SITES)
    drawing = Drawing(**{"batch_size": 12, "pairs": 3, "no_information": 0.0} | drawing)
    null = torch.zeros(len(sites), 24, dtype=torch.float64) if null is None else null
    return TrainingStream(model, sites, positions, TextSource(data, n_held_out=n_kept), drawing, null, 1)


def activations(model, row):
    """Every site's activations [pos, d] of one text, by TransformerLens's own cache."""
    _, cache = model.run_with_cache(torch.tensor([row]))
    z = cache["blocks.1.attn.hook_z"][0]
    w_o = model.W_O[1, 0]
    return [cache["blocks.0.hook_resid_post"][0], z[:, 2], z[:, 0] @ w_o]


@pytest.mark.parametrize("world", worlds())
@pytest.mark.parametrize("positions", [(-1, 2), None])
def test_batches_are_texts_with_their_own_activations(world, positions):
    model = build(world)
    seen = set()
    for batch in itertools.islice(stream(model, positions), 4):
        for z, site, tokens, length in zip(
            *(batch[k] for k in ("activations", "sites", "tokens", "lengths")), strict=True
        ):
            row = [0, *tokens[:length].tolist()]
            assert all(3 <= token <= 12 for token in row[1:])
            expected = activations(model, row)[site]
            errors = (expected - z[: expected.shape[1]]).norm(dim=1) / expected.norm(dim=1)
            at = int(errors.argmin())
            assert errors[at] < 1e-6
            assert not z[expected.shape[1] :].any()
            seen.add((int(site), at - len(row) if positions and at == len(row) - 1 else at))
            assert positions is None or at in (2, len(row) - 1)
    assert {site for site, _ in seen} == {0, 1, 2}
    assert len({at for _, at in seen}) > (3 if positions is None else 1)


def test_pairs_of_a_text_differ_and_are_as_many_as_asked():
    for batch in itertools.islice(stream(build(worlds()[0])), 3):
        kinds = [
            (tuple(row[:n].tolist()), int(site), z.sum().item())
            for z, site, row, n in zip(*batch.values(), strict=True)
        ]
        assert len(set(kinds)) == len(kinds) == 12


def test_a_stream_goes_on_where_it_is_told():
    model = build(worlds()[0])
    whole = list(itertools.islice(stream(model), CHUNK + 6))
    later = stream(model)
    later.first = CHUNK + 3  # inside a block
    for a, b in zip(whole[CHUNK + 3 :], later, strict=False):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_processes_share_the_texts():
    model, found = build(worlds()[0]), []
    for process in (0, 1):
        part = stream(model)
        part.process, part.n_processes = process, 2
        rows = [
            tuple(r[:n].tolist())
            for b in itertools.islice(part, CHUNK)
            for r, n in zip(b["tokens"], b["lengths"], strict=True)
        ]
        assert len(rows) == CHUNK * 6
        found.append(rows)
    drawn = [
        tuple(model.to_tokens(t)[0, 1:].tolist())
        for t in itertools.islice(iter(TextSource(texts, n_held_out=5)), CHUNK * 4)
    ]
    assert sorted(set(found[0])) == sorted(set(drawn[0::2]))
    assert sorted(set(found[1])) == sorted(set(drawn[1::2]))


def test_shares_say_what_is_drawn_from_their_batch_on():
    part = stream(build(worlds()[0]), pairs=1)
    part.history.append(Shares(BLOCK, torch.tensor([[0.0, 0], [0, 1], [0, 0]], dtype=torch.float64)))
    sites = [batch["sites"] for batch in itertools.islice(part, 8)]
    assert len(set(torch.cat(sites[:BLOCK]).tolist())) == 3
    assert all((found == 1).all() for found in sites[BLOCK:])


def test_shares_are_kept_on_average():
    part = stream(build(worlds()[0]), pairs=1, batch_size=64)
    part.history = [Shares(0, torch.tensor([[4.0, 0], [1, 0], [3, 0]], dtype=torch.float64))]
    drawn = torch.cat([batch["sites"] for batch in itertools.islice(part, 60)])
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.125, 0.375]), atol=0.04, rtol=0)


def test_no_information_is_mixed_in():
    null = torch.full((3, 24), 9.0, dtype=torch.float64)
    part = stream(build(worlds()[0]), null=null, no_information=0.3)
    without = torch.cat([(b["activations"] == 9).all(1) for b in itertools.islice(part, 60)]).double().mean()
    assert without == pytest.approx(0.3, abs=0.06)


def test_a_text_without_the_position_is_left_out():
    def data(epoch):
        yield from (["w3 w4", "w5 w6 w7 w8"] * 40)

    for batch in itertools.islice(stream(build(worlds()[0]), (4,), data=data, n_kept=2), CHUNK + 3):
        assert (batch["lengths"] == 4).all()
    with pytest.raises(ValueError, match=r"texts that have one of the positions \[12\], got 128 without"):
        next(iter(stream(build(worlds()[0]), (12,), data=data)))


# ---- sources


def test_a_function_is_called_anew_each_epoch():
    source = TextSource(lambda epoch: [f"e{epoch} {i}" for i in range(3)], n_held_out=2)
    assert source.held_out == ["e0 0", "e0 1"]
    assert list(itertools.islice(source, 7)) == ["e1 0", "e1 1", "e1 2", "e2 0", "e2 1", "e2 2", "e3 0"]


def test_a_list_is_shuffled_each_epoch_and_keeps_some_back():
    data = [f"t{i}" for i in range(20)]
    source = TextSource(data, n_held_out=5, seed=1)
    assert len(source.held_out) == 5 and source.held_out != data[:5], "a list may be sorted by what it is about"
    drawn = list(itertools.islice(source, 30))
    assert set(drawn[:15]) == set(drawn[15:]) == set(data) - set(source.held_out)
    assert drawn[:15] != drawn[15:]
    assert drawn == list(itertools.islice(TextSource(data, n_held_out=5, seed=1), 30))
    assert drawn != list(itertools.islice(TextSource(data, n_held_out=5, seed=2), 30))


def test_a_short_list_keeps_half():
    source = TextSource(["a", "b", "c", "d"], n_held_out=64)
    assert len(source.held_out) == 2
    assert {*source.held_out, *itertools.islice(source, 4)} == {"a", "b", "c", "d"}
    assert next(iter(TextSource(["a"], n_held_out=64))) == "a"


def test_data_sets_and_streams():
    from datasets import Dataset

    rows = Dataset.from_dict({"text": [f"t{i}" for i in range(6)], "story": [f"s{i}" for i in range(6)]})
    for data in (rows, rows.to_iterable_dataset()):
        source = TextSource(data, n_held_out=2, column="story")
        assert source.held_out == ["s0", "s1"]
        assert list(itertools.islice(source, 6)) == ["s2", "s3", "s4", "s5", "s2", "s3"]


def ends_early(epoch):
    yield from ([f"w{i + 3}" for i in range(4)] if epoch < 2 else [])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "Expected at least one text to train on, got none"),
        (lambda epoch: iter(()), ValueError, "first epoch gave nothing"),
        (ends_early, ValueError, "Expected texts in every epoch, got none in epoch 2 after 4 texts"),
        ("one text", TypeError, "got one text; put texts into a list"),
        ((t for t in ["a", "b"]), TypeError, "read again each epoch, got generator"),
        (7, TypeError, "a function epoch -> texts or a data set, got int"),
        ([1, 2], TypeError, "Expected texts, or rows with a text under 'text', got [12]"),
        ([{"story": "a"}], TypeError, "a text under 'text', got {'story': 'a'}"),
        (lambda epoch: "abc", TypeError, "Expected the function to give texts, got str"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        list(itertools.islice(TextSource(data, n_held_out=2), 10))
