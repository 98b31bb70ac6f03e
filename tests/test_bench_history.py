"""The file that `make bench` keeps."""

import csv

from benchmarks.history import FIELDS, FILE, History


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


def test_what_is_kept_reads():
    with FILE.open(newline="") as rows:
        reader = csv.DictReader(rows)
        assert tuple(reader.fieldnames) == FIELDS and all(float(row["ratio"]) > 0 for row in reader)
