"""Independent parts of a computation, on as many threads as torch is given: each part on one of them.

An operation on a small tile leaves most threads waiting for the few that it employs, and they wait by spinning. Whole
tiles side by side wait for nothing: torch lets go of the interpreter while it computes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def n_threads(device: torch.device) -> int:
    """How many parts of a computation on a device may run side by side."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def over_threads(work: Callable[[Part], Result], parts: Iterable[Part], device: torch.device) -> Iterator[Result]:
    """work(part) of each part, in their order; a part is asked for when a thread will soon be free for it.

    With one thread, and on other devices, a part is asked for when the result of the last has been used. With n at most
    n + 1 are under way or waiting to be taken, so that `work` must not write where another part reads or writes. Fewer
    parts than threads are worked on one by one: torch divides each over all threads, where some of them would idle.
    """
    n, parts = n_threads(device), iter(parts)
    first = [] if n == 1 else list(islice(parts, n))
    if len(first) < n or n == 1:
        yield from map(work, chain(first, parts))
        return
    alone = partial(_alone, work, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n, "tl_backward", torch.set_num_threads, (1,)) as pool:
        try:
            for part in chain(first, parts):
                under_way.append(pool.submit(alone, part))
                if len(under_way) > n:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for each in under_way:
                each.cancel()
            torch.set_num_threads(n)  # what threads of others begin with, which the workers' own calls have changed


def _alone(work: Callable[[Part], Result], grad: bool, inference: bool, part: Part) -> Result:
    """The work with the modes of the thread that asked for it: each thread has its own."""
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return work(part)


def steps(n: int, step: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `step` that make up [start, n)."""
    return (slice(first, min(first + step, n)) for first in range(start, n, step))
