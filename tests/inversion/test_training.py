import os
import shutil
import signal
from pathlib import Path

import plain
import pytest
import torch
from models import build, worlds

from inversion.small import CONFIG, QUIET, SITES, options, texts, trained
from tl_backward.inversion.evaluation import nearest_distances, read_queries
from tl_backward.inversion.shipped import load
from tl_backward.inversion.training import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def weights(decoder):
    return torch.cat([p.flatten() for p in decoder.network.parameters()])


def test_a_decoder_learns():
    """One of four texts, which the last token's activation tells apart."""
    data = ["w3 w4 w5", "w6 w7", "w8 w9 w10 w11", "w12 w3 w12"] * 30
    model = build(worlds()[0])
    made = train(
        model, ("resid_post", 0), data, budget=16 * 450, positions=-1, config=CONFIG,
        options=options(learning_rate=1e-2, drawing={"pairs": 1}), **QUIET,
    )  # fmt: skip
    history = made.description["history"]
    assert [each["step"] for each in history] == [150, 300, 450]
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    p = made.preimage("w8 w9 w10 w11", site=("resid_post", 0), position=-1, n=50, **QUIET)
    assert p.inside.double().mean() > 0.7
    assert "w8 w9 w10 w11" in p.texts


def test_the_same_seed_gives_the_same_decoder():
    first, again = trained(worlds()[0]), trained(worlds()[0])
    assert torch.equal(weights(first), weights(again))
    assert first.description == again.description
    other = trained(worlds()[0], options=options(drawing={"seed": 1}))
    assert not torch.equal(weights(first), weights(other))


RUN = """
import os, signal, sys, torch
from inversion.small import options, trained
from models import worlds
torch.set_num_threads(1)
import tl_backward.inversion._trainer as module
step = module.DecoderTrainer.training_step
def killed(self, *args, **kwargs):
    if len(self.losses) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
module.DecoderTrainer.training_step = killed
trained(worlds()[0], budget=16 * 20, out=sys.argv[1], options=options(save_every=4))
"""


@pytest.fixture(scope="module")
def left_by_a_kill(tmp_path_factory):
    """What a process leaves that is killed in its twelfth of twenty steps."""
    out = tmp_path_factory.mktemp("killed") / "broken"
    killed = plain.run(RUN, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    return out


@pytest.fixture
def one_thread():
    """As many as the process that was killed had: sums are the same to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_and_resumed_equals_unbroken(tmp_path, left_by_a_kill, one_thread):
    shutil.copytree(left_by_a_kill, tmp_path / "broken")
    (left,) = (tmp_path / "broken").iterdir()
    assert left.name == "checkpoint-8"
    assert {path.suffix for path in left.iterdir()} == {".safetensors", ".json"}
    for name in ("whole", "broken"):
        trained(worlds()[0], budget=16 * 20, out=tmp_path / name, options=options(save_every=4))
    model = build(worlds()[0])
    whole, broken = (load(tmp_path / name, model=model) for name in ("whole", "broken"))
    assert whole.description["final_loss"] == broken.description["final_loss"]
    assert whole.description == broken.description
    assert torch.equal(weights(whole), weights(broken))
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == ["decoder.json", "decoder.safetensors"]


def test_anothers_checkpoint_is_refused(tmp_path, left_by_a_kill):
    shutil.copytree(left_by_a_kill, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="Expected the checkpoint of this run in .*got one that differs in budget"):
        trained(worlds()[0], budget=16 * 30, out=tmp_path, options=options(save_every=4))


def test_a_directory_with_a_decoder_is_not_written_over(tmp_path):
    trained(worlds()[0], budget=16, out=tmp_path)
    with pytest.raises(ValueError, match="Expected a directory without a decoder, got .*load it with inversion.load"):
        trained(worlds()[0], budget=16, out=tmp_path)


def test_bfloat16(tmp_path):
    made = trained(worlds()[0], budget=16 * 6, options=options(mixed_precision="bf16"))
    plain = trained(worlds()[0], budget=16 * 6)
    assert made.network.mean.dtype == torch.float32
    assert not torch.equal(weights(made), weights(plain))
    assert made.description["final_loss"] == pytest.approx(plain.description["final_loss"], rel=0.1)


def test_rates_are_distances_by_hand():
    model = build(worlds()[0])
    from tl_backward.activations import PlaceReader
    from tl_backward.text.encoded import encode

    reader = PlaceReader(model, SITES)
    asked, others = encode(model, ["w3 w4 w5", "w6 w7"]), encode(model, ["w8 w9 w3", "w4 w4 w4 w4 w5", "w7"])
    queries = read_queries(reader, asked, [-1, 3], 24)
    assert len(queries.sites) == 3 * 3, "the second text has no position 3"
    picked = torch.arange(len(queries.sites)) % 3
    found = nearest_distances(queries, others.select(picked))
    for i, site in enumerate(queries.sites.tolist()):
        z = queries.activations[i][: reader.widths[reader.places[site]]]
        _, cache = model.run_with_cache(torch.tensor([others.row(int(picked[i]))]))
        value = [cache["blocks.0.hook_resid_post"][0], cache["blocks.1.attn.hook_z"][0, :, 2],
                 cache["blocks.1.attn.hook_z"][0, :, 0] @ model.W_O[1, 0]][site]  # fmt: skip
        expected = ((value - z).norm(dim=1) / z.norm()).min()
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-6)


BAD = {
    "a site it lacks": ({"sites": ("resid_pst", 0)}, ValueError, "Expected a hook point of the model"),
    "a head it lacks": ({"sites": ("z", 0, 9)}, IndexError, "head"),
    "no text": ({"data": lambda epoch: iter(())}, ValueError, "Expected at least one text to train on"),
    "ends early": (
        {"data": lambda epoch: texts(0) if epoch < 2 else iter(())},
        ValueError,
        "got none in epoch 2 after 60 texts",
    ),
    "too long": ({"data": [" ".join(["w3"] * 20)] * 30}, ValueError, "at most n_ctx=16 tokens.*got 21"),
    "no budget": ({"budget": 3}, ValueError, "a budget of at least one batch"),
    "pairs": (
        {"options": options(drawing={"pairs": 5})},
        ValueError,
        "batch_size to be a multiple of pairs x processes, got 16 and 5 x 1",
    ),
    "no such position": ({"positions": 14}, ValueError, "texts that have one of the positions"),
    "fp16 on the CPU": (
        {"options": options(mixed_precision="fp16")},
        ValueError,
        "on a GPU with mixed_precision 'fp16'.*use 'bf16' there",
    ),
    "a learning rate": ({"options": options(learning_rate=1e30)}, ValueError, "Expected a finite loss, got"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        trained(worlds()[0], **{"budget": 16 * 60} | changes)


def test_a_failure_leaves_the_random_state():
    state = torch.get_rng_state()
    with pytest.raises(ValueError):
        trained(worlds()[0], options=options(learning_rate=1e30))
    assert torch.equal(torch.get_rng_state(), state)
