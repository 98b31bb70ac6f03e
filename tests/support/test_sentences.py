"""Whether numbers allow a sentence to claim something."""

import pytest

from tl_backward._support.sentences import differs


@pytest.mark.parametrize(
    ("differences", "clear"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.05], True),
        ([-1.0, -1.1, -0.9, -1.0, -1.05], True),
        ([1.0, -1.0, 0.5, -0.4, 0.1], False),
        ([1.0, 1.1, 0.9, 1.0], False),  # too few
        ([1.0] * 9, False),  # no spread to tell by
        ([], False),
        ([0.0, 0.0, 0.0, 0.0, 1.0], False),  # 0.2 of 1.96 x 0.2
        ([0.0, 0.1, 0.1, 0.1, 0.1], True),  # 0.08 of 1.96 x 0.02
    ],
)
def test_paired_differences(differences, clear):
    assert differs(differences) is clear
