"""`make bench`: every ratio, one line each; `history.csv` keeps them, and each is set beside the last one."""

import platform
import sys
import warnings

import torch

from tests.benchmarks import (
    capture,
    compare,
    cores,
    dissimilarity,
    earlier,
    edits,
    enumeration,
    experts,
    imports,
    inversion,
    lens,
    peers,
    same,
    similarity,
    store,
    sweeps,
    top_pairs,
    training,
)
from tests.benchmarks.history import History
from tests.benchmarks.measure import KEPT


def main() -> None:
    """Print the table, or the parts of it that are named, after a row that says how far two equal times differ."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    modules = (
        imports,
        capture,
        earlier,
        experts,
        lens,
        sweeps,
        similarity,
        edits,
        top_pairs,
        dissimilarity,
        compare,
        enumeration,
        inversion,
        training,
        store,
        peers,
        cores,
    )
    parts = {module.__name__.rpartition(".")[2]: module for module in modules}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; medians of CPU time")
    print(f"{'what':<62} {'ratio':>7} {'of rounds':<14} {'goal':<9} detail")
    KEPT.append(History())
    same.main()
    for name in sys.argv[1:] or parts:
        parts[name].main()


if __name__ == "__main__":
    main()
