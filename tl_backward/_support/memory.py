"""Memory that is freed between batches and taken again stays with the process."""

from functools import cache

import torch

_MIB = 31
"""Just below what glibc's malloc takes for a block that it always gives back (32 MiB)."""


@cache
def keep_freed_memory() -> None:
    """Let malloc keep what one batch frees for the next, once a process, where batches take and free many MB.

    glibc gives blocks above a threshold, and a heap's free end, back to the kernel, which has to clear the pages when
    they are taken again: of a process's first `compare` that was a quarter of its time. The threshold grows to the
    largest block that was freed so far; this frees one that nobody wrote to. Elsewhere it does nothing.
    """
    torch.empty(_MIB << 20, dtype=torch.uint8, device="cpu")  # freed at once
