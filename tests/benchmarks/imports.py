"""What `import tl_backward` adds to `import transformer_lens`."""

import statistics
import subprocess
import sys

from tests.benchmarks.measure import row

SCRIPT = (
    "import transformer_lens, time; start = time.process_time(); import tl_backward; print(time.process_time() - start)"
)


def main() -> None:
    """Print the row of the import."""
    added = [float(subprocess.check_output([sys.executable, "-c", SCRIPT], text=True)) for _ in range(5)]
    row("seconds that `import tl_backward` adds to transformer_lens", statistics.median(added), "<= 0.3", "")
