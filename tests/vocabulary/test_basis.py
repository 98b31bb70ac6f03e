"""Vectors in the latents of a dictionary: against float64 sums, autograd through a dictionary, and random directions."""

import json
from types import SimpleNamespace
from weakref import finalize

import plain
import pytest
import torch
from models import build, worlds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tl_backward as tlb
from tl_backward.vocabulary.latents import read_latents

every_world = pytest.mark.parametrize("world", worlds())
WORLD = worlds()[0]


def drawn(*shape, number=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number), dtype=dtype)


def whole(*shape, number=0):
    """Small whole numbers, whose products are exact and tie."""
    return (drawn(*shape, number=number) * 1.5).round()


def dictionary(n, d, number=0):
    """A sparse autoencoder as others have it: W_enc [d_in, d_sae] and W_dec [d_sae, d_in]."""
    parts = {"W_enc": drawn(d, n, number=number), "W_dec": drawn(n, d, number=number + 1)}
    return SimpleNamespace(**parts, b_enc=drawn(n, number=number + 2), b_dec=drawn(d, number=number + 3))


@every_world
@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_scores_cosines_and_words(world, side):
    model = build(world)
    d, k = model.cfg.d_model, 7
    sae = SimpleNamespace(W_dec=whole(40, d), W_enc=whole(d, 40, number=1))
    sae.W_dec[11] = sae.W_dec[3]
    sae.W_dec[5] = 0
    basis, v = tlb.Basis.from_sae(sae), whole(2, 3, d, number=2)
    directions = sae.W_dec if side == "decoder" else sae.W_enc.T
    read = tlb.readout(model, v, k=k, basis=basis, side=side)
    scores = v @ directions.T
    cosines = scores / (v.norm(dim=-1, keepdim=True) * directions.norm(dim=-1).clamp(min=1))
    for end, largest in (("top", True), ("bottom", False)):
        ids, values = getattr(read, f"{end}_ids"), getattr(read, f"{end}_values")
        torch.testing.assert_close(
            getattr(read, f"{end}_cosines"), cosines.topk(k, largest=largest).values, rtol=0, atol=1e-12
        )
        torch.testing.assert_close(scores.gather(-1, ids), values, rtol=1e-12, atol=1e-12)
        assert all(len(set(row)) == k for row in ids.reshape(-1, k).tolist())
        torch.testing.assert_close(getattr(read, f"{end}_cosines"), cosines.gather(-1, ids), rtol=0, atol=1e-12)
    torch.testing.assert_close(read.norm, v.norm(dim=-1))
    listed = torch.cat([read.top_ids, read.bottom_ids]).unique()
    own = tlb.readout(model, directions[listed].to(model.W_U.dtype), k=k)
    assert torch.equal(read.listed, listed) and torch.equal(read.word_ids, own.top_ids)
    assert list(read.words.values()) == own.top_tokens
    assert torch.equal(read[1, 0].top_ids, read.top_ids[1, 0]) and read[1].words == read.words


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
def test_gradients_of_the_latents(scale):
    """dL/df = dL/dx_hat @ W_dec.T, by autograd through the dictionary."""
    model = build(WORLD)
    d, n = model.cfg.d_model, 33
    sae = dictionary(n, d)
    latents = (drawn(4, d, number=9) @ sae.W_enc + sae.b_enc).relu().requires_grad_()
    decoded = latents @ sae.W_dec + sae.b_dec
    loss = scale * (decoded.tanh() * drawn(4, d, number=8)).sum()
    of_latents, delta = torch.autograd.grad(loss, [latents, decoded])
    read = tlb.readout(model, delta, k=n, basis=tlb.Basis.from_sae(sae))
    found = torch.zeros_like(of_latents).scatter(-1, read.top_ids, read.top_values)
    torch.testing.assert_close(found, of_latents, rtol=1e-12, atol=1e-12 * float(of_latents.abs().max()))
    narrow = tlb.Basis.from_sae(SimpleNamespace(W_dec=sae.W_dec.float()))
    read = tlb.readout(model, delta, k=n, basis=narrow)  # 1e-60 is no float32 number
    found = torch.zeros_like(of_latents).scatter(-1, read.top_ids, read.top_values)
    torch.testing.assert_close(found, of_latents, rtol=1e-4, atol=1e-5 * float(of_latents.abs().max()))


def test_a_planted_latent_is_claimed_and_a_random_vector_is_not():
    model = build(WORLD)
    d, n = model.cfg.d_model, 300
    basis = tlb.Basis(drawn(n, d), names=[f"feature {i}" for i in range(n)])
    planted = tlb.readout(model, basis.directions[17] * 3 + 0.3 * drawn(d, number=5), basis=basis)
    assert planted.top_ids[0] == 17 and planted.top_stands_out[0]
    assert planted.summary().startswith("The vector points along latent 17 ('feature 17'; says ")
    assert "against latent 17" in tlb.readout(model, -basis.directions[17], basis=basis).summary()
    random = tlb.readout(model, drawn(400, d, number=6), k=1, basis=basis)
    out = (random.top_stands_out | random.bottom_stands_out).float().mean()
    assert out < 0.1  # about 5 %
    small = tlb.Basis(basis.directions * torch.where(torch.arange(n) == 17, 1e-3, 1.0)[:, None])
    assert tlb.readout(model, basis.directions[17], basis=small).top_ids[0] == 17  # whatever its own length
    few = tlb.readout(model, drawn(d, number=7), basis=basis)
    assert not few.top_stands_out.any() and few.summary().startswith("No latent is nearer than random directions come:")
    mixed = tlb.readout(model, torch.stack([basis.directions[2], basis.directions[4], drawn(d, number=7)]), basis=basis)
    assert mixed.summary().startswith("Of 3 vectors 2 point along or against a latent")


def test_the_control_is_drawn_apart():
    """Of as many directions of the same norms, by a seed, whatever else is read and drawn."""
    model = build(WORLD)
    d, n = model.cfg.d_model, 120
    basis, v = tlb.Basis(3 * torch.nn.functional.normalize(drawn(n, d))), drawn(6, d, number=2)
    before = torch.get_rng_state()
    read = tlb.readout(model, v, basis=basis)
    assert torch.equal(torch.get_rng_state(), before)
    again = tlb.readout(model, v[4:5], basis=basis)
    torch.testing.assert_close(read[4:5].high, again.high)
    assert not torch.equal(tlb.readout(model, v, basis=basis, seed=1).high, read.high)
    for score, cosine in ((read.score_low, read.low), (read.score_high, read.high)):
        torch.testing.assert_close(score, 3 * v.norm(dim=-1) * cosine, rtol=1e-4, atol=1e-4)
    reached = drawn(2000, n, d, number=3, dtype=torch.float32)[:, :, 0] / drawn(
        2000, n, d, number=3, dtype=torch.float32
    ).norm(dim=-1)
    assert 0.9 < (reached.amax(1)[:, None] <= read.high).float().mean() <= 1
    without = tlb.readout(model, v, basis=basis, n_control=4)
    assert without.high.isnan().all() and not without.top_stands_out.any()
    assert "it is not known whether" in without.summary()


class Counted(TorchDispatchMode):
    """The most bytes of storages made within it and alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        for each in tree_leaves(made):
            if torch.is_tensor(each):
                storage = each.untyped_storage()
                if storage.data_ptr() not in given | self.known and storage.nbytes():
                    self.known.add(storage.data_ptr())
                    self.alive += storage.nbytes()
                    self.most = max(self.most, self.alive)
                    finalize(storage, self._gone, storage.data_ptr(), storage.nbytes())
        return made

    def _gone(self, pointer, size):
        self.known.discard(pointer)
        self.alive -= size


def test_a_large_dictionary_is_read_in_tiles(monkeypatch):
    """65,536 x 768 are 192 MiB: no copy of it, of its scores or of as many random directions is ever held."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads make is not counted
    try:
        basis, v = tlb.Basis(drawn(65536, 768, dtype=torch.float32)), drawn(4, 768, dtype=torch.float32)
        with Counted() as counted:
            read = read_latents(
                v, basis, lambda rows: torch.zeros(len(rows), 1, dtype=torch.long), k=5, side="decoder", n_control=5,
                seed=0, tokenizer=None,
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert 16 * 2**20 < counted.most < 80 * 2**20
    cosines = basis.directions @ v[0] / basis.directions.norm(dim=1)
    assert torch.equal(read.top_ids[0], cosines.topk(5).indices)


def test_zero_vectors_and_none():
    model = build(WORLD)
    d = model.cfg.d_model
    basis, v = tlb.Basis(drawn(30, d)), drawn(3, d, number=1)
    v[1] = 0
    read = tlb.readout(model, v, k=2, basis=basis)
    assert read.is_zero.tolist() == [False, True, False] and read.top_ids[1].tolist() == [-1, -1]
    assert read.top_names[1] == ["", ""] and not read[1].top_stands_out.any()
    assert read[1].summary() == tlb.readout(model, v[:0], basis=basis).summary()
    assert "nothing points along a latent" in read[1].summary()
    frame = read.to_frame()
    assert len(frame) == 12 and frame["latent"].tolist()[2:4] == [-1, -1] and frame["words"].tolist()[2] == []


def test_shown_saved_and_read_again(tmp_path):
    model = build(WORLD)
    d = model.cfg.d_model
    hostile = "<script>alert(1)</script>\u202e"
    basis = tlb.Basis(drawn(30, d), names=[hostile if i == 7 else None for i in range(30)])
    read = tlb.readout(model, basis.directions[[7, 8]].float(), k=2, basis=basis)
    assert read.top_names[0][0] == hostile and read.top_names[1][0] == "latent 8"
    for text in (read._repr_html_(), read[0]._repr_html_()):
        assert "<script" not in text and "\u202e" not in text and "&lt;script" in text
    assert "\u202e" not in read[0].summary() and read[0].summary() in repr(read[0])
    back = tlb.load_result(read.save(tmp_path / "read.safetensors"), tokenizer=model.tokenizer)
    assert isinstance(back, tlb.LatentReadout) and back.summary() == read.summary()
    assert back.to_frame().equals(read.to_frame())


def labels(folder, name, records):
    path = folder / name
    if name.endswith(".csv"):
        path.write_text(
            "index,description\n" + "".join(f'{each["index"]},"{each["description"]}"\n' for each in records)
        )
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("name", ["labels.json", "labels.jsonl", "labels.csv"])
def test_labels_of_a_file(name, tmp_path):
    records = [{"index": "2", "description": "cities, large"}, {"index": 0, "description": ""}]
    records.append({"index": 2, "description": "a second label"})
    basis = tlb.Basis(torch.eye(3, 4), names=["one", None, None]).named(labels(tmp_path, name, records))
    assert basis.names == ("one", None, "cities, large")


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("a.json", [{"index": 3, "description": "x"}], r"an index from 0 to 2 in 'a.json', record 0, got 3"),
        ("a.json", [{"index": -1, "description": "x"}], "an index from 0 to 2"),
        ("a.json", [{"description": "x"}], "got None"),
        ("a.jsonl", [{"index": 1, "description": 3}], "a description as text in 'a.jsonl', line 1, got 3"),
        ("a.json", [{"index": 1, "label": "x"}], "got no description"),
        ("a.json", [], "got no description"),
        ("a.json", [1], "Expected an object"),
        ("a.txt", [], "labels as .json, .jsonl or .csv"),
    ],
)
def test_labels_that_are_none(name, records, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tlb.Basis(torch.eye(3, 4)).named(labels(tmp_path, name, records))


def test_no_file_of_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        tlb.Basis(torch.eye(3, 4)).named(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("latent,label\n1,x\n")
    with pytest.raises(ValueError, match="Expected the columns index and description in 'a.csv'"):
        tlb.Basis(torch.eye(3, 4)).named(tmp_path / "a.csv")


def test_an_encoder_of_other_latents():
    done = plain.run("import torch, tl_backward as tlb; tlb.Basis(torch.eye(2), encoder=torch.eye(3))")
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ValueError: Expected an encoder of 2 latents as the directions have, got 3; pass W_enc.T")


def sae_with(**settings):
    return SimpleNamespace(W_dec=torch.eye(3, 4), W_enc=torch.eye(4, 3), cfg=SimpleNamespace(**settings))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tlb.Basis(torch.tensor([[1.0, torch.nan]])), "finite directions, got NaN or inf"),
        (lambda: tlb.Basis(torch.eye(2), encoder=torch.full((2, 2), torch.inf)), "finite encoder"),
        (lambda: tlb.Basis(torch.eye(2), names=["a"]), "Expected 2 names, one a latent, got 1"),
        (lambda: tlb.Basis(torch.eye(2), names="ab"), "a list of names"),
        (lambda: tlb.Basis(torch.zeros(0, 4)), "directions \\[n_latents, d_model\\]"),
        (lambda: tlb.Basis.from_sae(object()), "W_dec \\[d_sae, d_in\\], got None as that of object"),
        (lambda: tlb.Basis.from_sae(SimpleNamespace(W_dec=torch.eye(3, 4), W_enc=torch.eye(3, 4))), "Expected W_enc"),
        (lambda: tlb.Basis.from_sae(sae_with(normalize_activations="layer_norm")), "'layer_norm', which rescales"),
        (lambda: tlb.Basis.from_sae(sae_with(normalize_activations="constant_norm_rescale")), "which rescales"),
        (lambda: tlb.Basis.from_sae(sae_with(normalize_activations="expected_average_only_in")), "call its fold_activ"),
        (lambda: tlb.Basis.from_sae(sae_with(reshape_activations="hook_z")), "heads' outputs before W_O"),
    ],
)  # fmt: skip
def test_no_basis(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert str(raised.value).startswith("Expected ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": tlb.Basis(torch.eye(3, 7))}, "a basis of d_model=20, got decoder directions of width 7"),
        ({"basis": tlb.Basis(torch.eye(3, 20)), "k": 4}, r"1 <= k <= 3 \(the latents\), got k=4"),
        ({"basis": tlb.Basis(torch.eye(3, 20)), "k": 0}, "got k=0"),
        ({"basis": tlb.Basis(torch.eye(3, 20)), "side": "encoder", "k": 1}, "with an encoder for side='encoder'"),
        ({"basis": tlb.Basis(torch.eye(3, 20)), "target": 3, "k": 1}, "a basis or a token to rank, got both"),
        ({"basis": tlb.Basis(torch.eye(3, 20)), "n_control": -1, "k": 1}, "n_control of at least 0"),
        ({"side": "encoder"}, "a basis with side, n_control or seed, got none"),
    ],
)  # fmt: skip
def test_refusals(options, message):
    from models import HAS_HOOKED_TRANSFORMER, hooked

    if not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer, whose width the messages name")
    with pytest.raises(ValueError, match=message) as raised:
        tlb.readout(hooked("ln"), torch.ones(2, 20), **options)
    assert str(raised.value).startswith("Expected ") and "\n" not in str(raised.value)


def test_a_transcoder_s_sides_are_of_two_widths():
    model = build(WORLD)
    d = model.cfg.d_model
    basis = tlb.Basis.from_sae(SimpleNamespace(W_dec=drawn(30, d), W_enc=drawn(d + 2, 30)))
    assert tlb.readout(model, drawn(2, d), basis=basis).side == "decoder"
    with pytest.raises(ValueError, match=f"got encoder directions of width {d + 2}"):
        tlb.readout(model, drawn(2, d), basis=basis, side="encoder")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_read_in_float32(dtype):
    model = build(WORLD)
    d = model.cfg.d_model
    basis, v = tlb.Basis(drawn(30, d).to(dtype)), drawn(3, d, number=1).to(dtype)
    read = tlb.readout(model, v, k=5, basis=basis)
    wide = basis.directions.double()
    expected = (v.double() @ wide.T).gather(-1, read.top_ids)
    assert torch.equal(read.top_ids, (v.double() @ (wide / wide.norm(dim=1, keepdim=True)).T).topk(5).indices)
    torch.testing.assert_close(read.top_values.double(), expected, rtol=1e-5, atol=1e-5)


def test_sae_lens():
    """Its own dictionary: gradients through its own decoder, its own folding of a scale."""
    lens = pytest.importorskip("sae_lens", reason="NOT TESTED: SAELens is not installed (it needs TransformerLens < 4)")
    model = build(WORLD)
    d, n = model.cfg.d_model, 32

    def made(**settings):
        torch.manual_seed(0)
        return lens.StandardSAE(lens.StandardSAEConfig(d_in=d, d_sae=n, dtype="float64", **settings))

    sae = made()
    assert sae.W_dec.shape == (n, d) and sae.W_enc.shape == (d, n)
    latents = sae.encode(drawn(3, d)).detach().requires_grad_()
    decoded = sae.decode(latents)
    of_latents, delta = torch.autograd.grad((decoded * drawn(3, d, number=1)).sin().sum(), [latents, decoded])
    read = tlb.readout(model, delta, k=n, basis=tlb.Basis.from_sae(sae))
    found = torch.zeros_like(of_latents).scatter(-1, read.top_ids, read.top_values)
    torch.testing.assert_close(found, of_latents, rtol=1e-12, atol=1e-12)
    for scaled in ("layer_norm", "constant_norm_rescale", "expected_average_only_in"):
        with pytest.raises(ValueError, match=f"normalize_activations='{scaled}'"):
            tlb.Basis.from_sae(made(normalize_activations=scaled))
    folded = made(normalize_activations="expected_average_only_in")
    folded.fold_activation_norm_scaling_factor(2.0)
    torch.testing.assert_close(tlb.Basis.from_sae(folded).directions, sae.W_dec.detach() / 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dictionary_drawn_with_the_same_seed_is_no_draw(seed):
    model = tlb.zoo.load("facts")
    torch.manual_seed(seed)
    directions = torch.randn(37, model.cfg.d_model)
    read = tlb.readout(model, directions[8], k=1, basis=tlb.Basis(directions), seed=seed)
    assert read.top_ids.tolist() == [8] and read.top_stands_out.all() and float(read.high) < 0.6
    assert "points along latent 8" in read.summary()


def test_no_bound_of_a_cosine_lies_beyond_one():
    model = build(WORLD)
    read = tlb.readout(model, drawn(50, model.cfg.d_model), k=1, basis=tlb.Basis(drawn(20_000, model.cfg.d_model)))
    assert (read.high <= 1).all() and (read.low >= -1).all()


def test_the_nearest_is_the_nearest():
    """Without a claim the sentence names the latent of the largest cosine, whatever the bounds."""
    model = build(WORLD)
    for number in range(20):
        directions, v = drawn(37, model.cfg.d_model, number=100 + number), drawn(model.cfg.d_model, number=number)
        read = tlb.readout(model, v, k=3, basis=tlb.Basis(directions))
        nearest = int(torch.nn.functional.cosine_similarity(directions, v[None]).abs().argmax())
        if not read.top_stands_out.any() and not read.bottom_stands_out.any():
            assert f"the nearest to the vector is latent {nearest} " in read.summary()
