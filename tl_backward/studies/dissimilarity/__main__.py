"""``python -m tl_backward.studies.dissimilarity``."""

import sys

from tl_backward.studies.dissimilarity.command import main

if __name__ == "__main__":
    sys.exit(main())
