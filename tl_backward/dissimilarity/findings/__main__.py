"""``python -m tl_backward.dissimilarity.findings``."""

import sys

from tl_backward.dissimilarity.findings.command import main

if __name__ == "__main__":
    sys.exit(main())
