"""`python -m tl_backward.cli`."""

import sys

from tl_backward.cli import main

sys.exit(main())
