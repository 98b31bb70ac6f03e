"""The file that `make bench` keeps, and the intervals that it prints."""

import csv
from math import isfinite

from benchmarks.history import FIELDS, FILE, History
from benchmarks.measure import Ratio, Seconds, row


def test_a_step_back_shows(tmp_path):
    file = tmp_path / "history.csv"
    assert History(file, "one").add("lens, of a pass", 1.5) == ""
    assert History(file, "two").add("lens, of a pass", 1.8) == "[1.20 of one]"
    later = History(file, "three")
    assert later.add("lens, of a pass", 1.8) == "[1.00 of two]" and later.add("another", 1.0) == ""
    with file.open(newline="") as rows:
        rows = list(csv.DictReader(rows))
    assert [row["commit"] for row in rows] == ["one", "two", "three", "three"] and all(map(all, map(dict.values, rows)))


def test_another_machine_is_not_compared_with(tmp_path):
    file = tmp_path / "history.csv"
    first = History(file, "one")
    first.here["cpu"] = "another"
    first.add("lens", 1.5)
    assert History(file, "two").add("lens", 3.0) == ""


def test_less_memory_than_the_bound_is_kept_and_not_divided_by(tmp_path):
    file = tmp_path / "history.csv"
    History(file, "one").add("peak above the bound", -0.1)
    assert History(file, "two").add("peak above the bound", 0.2) == ""


def test_what_is_kept_reads():
    with FILE.open(newline="") as rows:
        reader = csv.DictReader(rows)
        assert tuple(reader.fieldnames) == FIELDS and all(isfinite(float(row["ratio"])) for row in reader)


def test_a_ratio_of_medians_has_the_quartiles_of_its_rounds(capsys):
    one, two = Seconds([4.0, 2.0, 3.0]), Seconds([2.0, 2.0, 2.0])
    assert (one, two, two / 4) == (3.0, 2.0, 0.5) and type(two / 4) is type(Seconds([1.0]) / one) is float
    ratio = one / two
    assert isinstance(ratio, Ratio) and (ratio, ratio.low, ratio.high) == (1.5, 1.25, 1.75)
    row("what", ratio, ">= 1", "detail")
    assert capsys.readouterr().out.split() == ["what", "1.500", "1.250..1.750", ">=", "1", "detail"]
