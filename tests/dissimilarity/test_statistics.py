"""The sums against brute force in float64: merged, shifted, saved, resumed, and reduced over two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dissimilarity.brute_force import WIDTHS_A, WIDTHS_B, brute_cka, fed, reference, rows, song
from tl_backward._support.storage import save_tensors
from tl_backward.dissimilarity import ADDITIVE, CovarianceStatistics
from tl_backward.dissimilarity.checkpoint import load_checkpoint, save_checkpoint
from tl_backward.dissimilarity.grouped import GroupedStatistics, jackknife


def assert_equal(one, other, tolerance=1e-12):
    assert one.n == other.n
    one.flush(), other.flush()
    for name, value in one.tensors().items():
        theirs = other.tensors()[name]
        assert float((value - theirs).abs().max()) <= tolerance * max(1.0, float(value.abs().max())), name


@pytest.mark.parametrize("sizes", [[41], [20, 21], [1, 3, 30, 7]])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_every_sum_is_brute_force(sizes, mean):
    x, y = rows(41, WIDTHS_A, 0, mean), rows(41, WIDTHS_B, 1, -mean)
    stats = fed(x, y, sizes)
    assert stats.n == 41
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            pair = stats.pair(i, j)
            p, q = a - pair.a.shift, b - pair.b.shift
            p2, q2 = p.square().sum(1), q.square().sum(1)
            expected = {
                "cross": p.T @ q,
                "square_cross": (p2 * q2).sum(),
                "weighted_a": q2 @ p,
                "weighted_b": p2 @ q,
            }
            layer = {"sum": p.sum(0), "square": p2.sum(), "within": p.T @ p, "quartic": (p2**2).sum(), "cubic": p2 @ p}
            for name, value in expected.items():
                torch.testing.assert_close(getattr(pair, name), value, rtol=1e-11, atol=1e-8)
            for name, value in layer.items():
                torch.testing.assert_close(getattr(pair.a, name), value, rtol=1e-11, atol=1e-8)
            centred = a - a.mean(0), b - b.mean(0)
            torch.testing.assert_close(pair.scatter(), centred[0].T @ centred[1], rtol=1e-9, atol=1e-9)
            assert pair.hsic() == pytest.approx(song(*centred), rel=1e-9, abs=1e-11)
            assert pair.a.own_hsic == pytest.approx(song(centred[0], centred[0]), rel=1e-9)


def test_float32_far_from_zero_keeps_its_digits():
    x, y = rows(500, [24], 0, 1000.0, torch.float32), rows(500, [24], 1, -500.0, torch.float32)
    y = [y[0] + x[0]]
    exact = brute_cka(x[0].double() - 1000, y[0].double() - 500)
    assert ADDITIVE["cka_debiased"](fed(x, y, [100] * 5).pair(0, 0)) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype):
    x, y = rows(300, [8], 0, dtype=dtype), rows(300, [6], 1, dtype=dtype)
    exact = brute_cka(x[0].double(), y[0].double())
    assert ADDITIVE["cka_debiased"](fed(x, y, [150, 150]).pair(0, 0)) == pytest.approx(exact, abs=1e-5)


def test_tiles_and_buffers_do_not_matter(monkeypatch):
    import tl_backward.dissimilarity._rows as module

    x, y = rows(67, WIDTHS_A, 0), rows(67, WIDTHS_B, 1)
    whole = fed(x, y, [67])
    for name, value in {"TILE": 3, "BLOCK": 2, "ROWS": 5}.items():
        monkeypatch.setattr(module, name, value)
    tiled = fed(x, y, [30, 37])
    tiled.move(whole.shift_a, whole.shift_b)
    assert_equal(whole, tiled)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_merged_equals_one_run(mean):
    x, y = rows(60, WIDTHS_A, 0), rows(60, WIDTHS_B, 1)
    x, y = ([torch.cat([r[:25], r[25:] + mean]) for r in side] for side in (x, y))
    whole = fed(x, y, [60])
    one, two = fed([r[:25] for r in x], [r[:25] for r in y], [25]), fed([r[25:] for r in x], [r[25:] for r in y], [35])
    assert not torch.equal(one.shift_a, two.shift_a)
    before = two.copy()
    both, turned = one + two, two + one
    assert_equal(before, two)  # adding changes neither
    for merged in (both, turned, CovarianceStatistics(WIDTHS_A, WIDTHS_B) + two + one):
        merged.move(whole.shift_a, whole.shift_b)
        assert_equal(whole, merged)
    for measure in ADDITIVE.values():
        assert measure(both.pair(1, 0)) == pytest.approx(measure(whole.pair(1, 0)), rel=1e-9, abs=1e-9)


def test_saved_and_resumed(tmp_path):
    x, y = rows(50, WIDTHS_A, 0), rows(50, WIDTHS_B, 1)
    whole = fed(x, y, [20, 30])
    part = fed([r[:20] for r in x], [r[:20] for r in y], [20])
    part.save(tmp_path / "sums.safetensors")
    loaded = CovarianceStatistics.load(tmp_path / "sums.safetensors")
    assert_equal(part, loaded, 0)
    loaded.update([r[20:] for r in x], [r[20:] for r in y])
    assert_equal(whole, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["sums.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    stats = fed(rows(9, WIDTHS_A, 0), rows(9, WIDTHS_B, 1), [9])
    stats.save(tmp_path / "sums.safetensors")
    before = (tmp_path / "sums.safetensors").read_bytes()

    def interrupt(*args, **options):
        Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stats.save(tmp_path / "sums.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["sums.safetensors"]
    assert (tmp_path / "sums.safetensors").read_bytes() == before


def test_groups_are_merged_and_stay_bounded(tmp_path):
    x, y = rows(66, WIDTHS_A, 0), rows(66, WIDTHS_B, 1)
    grouped = GroupedStatistics(CovarianceStatistics(WIDTHS_A, WIDTHS_B), max_groups=4)
    for batch in range(11):
        at = slice(6 * batch, 6 * batch + 6)
        grouped.update(batch, [r[at] for r in x], [r[at] for r in y])
        assert len(grouped.groups) <= 4
        if batch == 6:
            save_checkpoint(tmp_path / "checkpoint", {"sums": grouped}, {"note": "seven", "max_groups": 4})
            fresh = GroupedStatistics(CovarianceStatistics(WIDTHS_A, WIDTHS_B), max_groups=4)
            run = load_checkpoint(tmp_path / "checkpoint", {"sums": fresh}, {"max_groups": 4}, "cpu")
            assert run["note"] == "seven"
            grouped = fresh
    assert grouped.level == 2 and sorted(grouped.groups) == [0, 1, 2] and grouped.n == 66
    total = grouped.total()
    whole = fed(x, y, [66])
    values = [ADDITIVE["cka_debiased"](stats.pair(0, 1)) for stats in (total, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-11)
    for number, view in enumerate(grouped.left_out(total)):
        keep = torch.ones(66, dtype=torch.bool)
        keep[24 * number : 24 * number + 24] = False
        assert ADDITIVE["cka_debiased"](view.pair(0, 1)) == pytest.approx(brute_cka(x[0][keep], y[1][keep]), rel=1e-9)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left_out = (values.sum(0) - values) / 29
    torch.testing.assert_close(jackknife(left_out), values.std(0) / 30**0.5)
    assert jackknife(values[:1]).isnan().all()


@pytest.mark.parametrize("name", [name for name, measure in ADDITIVE.items() if measure.oracle])
def test_additive_measures_reproduce_the_reference(name):
    oracle, pairs = reference()
    measure = ADDITIVE[name]
    for which, (x, y) in pairs.items():
        expected = oracle[measure.oracle][which]
        pair = fed([x], [y], [len(part) for part in x.split(37)]).pair(0, 0)
        got = measure(pair)
        if name in ("procrustes", "procrustes_normalised", "shape_angular", "cka_angular") or "permutation" in name:
            # The root (or arccos) of a difference: near zero only its square has eight digits.
            expected, got = expected**2, got**2
        scale = (
            pair.a.spread() + pair.b.spread()
            if name.startswith("procrustes") and name != "procrustes_normalised" or "permutation" in name
            else 1.0
        )
        assert got == pytest.approx(expected, rel=1e-8, abs=1e-8 * scale), which


@pytest.mark.parametrize("name", ADDITIVE)
def test_float32_agrees(name):
    measure = ADDITIVE[name]
    for which, (x, y) in reference()[1].items():
        x, y = x.float(), y.float()
        exact = measure(fed([x.double()], [y.double()], [len(x)]).pair(0, 0))
        got = measure(fed([x], [y], [len(part) for part in x.split(37)]).pair(0, 0))
        # A distance is the root (or arccos) of a difference: its square has the digits.
        power = 2 if measure.kind == "distance" and measure.range != (0.0, 1.0) else 1
        scale = max(
            1.0,
            exact**power,
            *(float(z.double().square().sum()) for z in (x - x.mean(0), y - y.mean(0)) if name == "procrustes"),
        )
        assert abs(got**power - exact**power) <= 1.5e-4 * scale, which


def test_null_mean_reproduces_the_reference():
    oracle, pairs = reference()
    for which, (x, y) in pairs.items():
        null = ADDITIVE["cka_biased"].null(fed([x], [y], [len(x)]).pair(0, 0))
        assert null == pytest.approx(oracle["cka_null_mean(row permutation)"][which], rel=1e-8), which


@pytest.mark.parametrize("name", [name for name, measure in ADDITIVE.items() if measure.null])
def test_closed_form_null_is_the_mean_over_all_pairings(name):
    from itertools import permutations

    x, y = rows(6, [2], 0)[0], rows(6, [3], 1)[0]
    measure = ADDITIVE[name]
    values = [measure(fed([x], [y[list(order)]], [6]).pair(0, 0)) for order in permutations(range(6))]
    assert sum(values) / len(values) == pytest.approx(measure.null(fed([x], [y], [6]).pair(0, 0)), abs=1e-9)


BAD = {
    "other lengths": (lambda s: s.update([torch.ones(3, 3)], [torch.ones(4, 2)]), r"same samples.*\[3, 4\]"),
    "other widths": (lambda s: s.update([torch.ones(3, 4)], [torch.ones(3, 2)]), r"layers of A of widths \[3\], got \[4\]"),
    "nan": (lambda s: s.update([torch.tensor([[0.0, 1, 2], [0, float("nan"), 1]])], [torch.ones(2, 2)]), "NaN or inf in row 1 of layer 0 of A"),
    "inf": (lambda s: s.update([torch.ones(2, 3)], [torch.tensor([[float("inf"), 1], [0, 1]])]), "NaN or inf in row 0 of layer 0 of B"),
    "other statistics": (lambda s: s + CovarianceStatistics([1], [1]), "same layers add up"),
    "no layer": (lambda s: CovarianceStatistics([], [1]), "at least one layer"),
    "no file": (lambda s: CovarianceStatistics.load("nowhere.safetensors"), "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(CovarianceStatistics([3], [2]))


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "text").write_text("no")
    save_tensors(tmp_path / "other", {"x": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="Expected a file that tl_backward saved, got .*text"):
        CovarianceStatistics.load(tmp_path / "text")
    with pytest.raises(
        ValueError, match="Expected a file written by CovarianceStatistics.save, got .*other.*of another format"
    ):
        CovarianceStatistics.load(tmp_path / "other")


TWO_PROCESSES = """
import sys, torch
from torch import distributed
from dissimilarity.brute_force import rows, WIDTHS_A, WIDTHS_B
from tl_backward.dissimilarity import CovarianceStatistics
from tl_backward.dissimilarity.checkpoint import save_checkpoint
from tl_backward.dissimilarity.grouped import GroupedStatistics
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x, y = rows(60, WIDTHS_A, 0, 5.0), rows(60, WIDTHS_B, 1)
grouped = GroupedStatistics(CovarianceStatistics(WIDTHS_A, WIDTHS_B), 4)
for batch in range(rank, 10, 2):
    at = slice(6 * batch, 6 * batch + 6)
    grouped.update(batch, [r[at] for r in x], [r[at] for r in y])
grouped.reduce()
save_checkpoint(f"{folder}/{rank}.safetensors", {"sums": grouped}, {})
one_sided = CovarianceStatistics(WIDTHS_A, WIDTHS_B)
if rank == 1:
    one_sided.update(x, y)
one_sided.reduce()
one_sided.save(f"{folder}/one-sided-{rank}.safetensors")
distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    running = [
        subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(rank), str(tmp_path)], env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    x, y = rows(60, WIDTHS_A, 0, 5.0), rows(60, WIDTHS_B, 1)
    alone = GroupedStatistics(CovarianceStatistics(WIDTHS_A, WIDTHS_B), 4)
    for batch in range(10):
        at = slice(6 * batch, 6 * batch + 6)
        alone.update(batch, [r[at] for r in x], [r[at] for r in y])
    for rank in (0, 1):
        together = GroupedStatistics(CovarianceStatistics(WIDTHS_A, WIDTHS_B), 4)
        load_checkpoint(tmp_path / f"{rank}.safetensors", {"sums": together}, {}, "cpu")
        assert sorted(together.groups) == sorted(alone.groups) and together.n_batches == 10
        for number, group in together.groups.items():
            group.move(alone.groups[number].shift_a, alone.groups[number].shift_b)
            assert_equal(alone.groups[number], group)
        one_sided = CovarianceStatistics.load(tmp_path / f"one-sided-{rank}.safetensors")
        assert_equal(fed(x, y, [60]), one_sided)
