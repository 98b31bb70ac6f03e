"""The lowest versions that a job of the workflow installs are those that pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_lowest_versions():
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.M))
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(promised) >= 14
    for bound in promised:
        name, lowest = re.match(r"([\w-]+)>=([\d.]+)", bound).groups()
        exact = pinned[name]
        assert name == "torch" or exact == lowest or re.fullmatch(rf"{re.escape(lowest)}(\.0)+", exact), bound
