"""The processes of torch.distributed, where there are any."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether torch.distributed is initialised with more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def process() -> tuple[int, int]:
    """(rank, number of processes) of this process; (0, 1) for one alone.

    Raises:
        RuntimeError: a launcher started several, but torch.distributed is not initialised.
    """
    if several():
        return distributed.get_rank(), distributed.get_world_size()
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if n_processes > 1:
        raise RuntimeError(
            f"Expected torch.distributed to be initialised under a launcher of {n_processes} processes, got none; "
            "create an accelerate.Accelerator(), or call torch.distributed.init_process_group, first."
        )
    return 0, 1


def sum_over(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, of a tensor that each of them has in the same shape."""
    return _reduced(tensor, distributed.ReduceOp.SUM)


def greatest_of(value: float) -> float:
    """The largest, over all processes, of the number that each of them gives."""
    return float(_reduced(torch.tensor([value], dtype=torch.float64), distributed.ReduceOp.MAX))


@contextmanager
def together() -> Iterator[None]:
    """A block that ends on every process at once: where one of them fails, so do the others, instead of waiting for it.

    Raises:
        RuntimeError: in those that did not fail themselves.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = greatest_of(float(error is not None)) if several() else 0
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("Expected all processes to do their part, got an error in another one; see what it says.")


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every process's tensor, all of one shape, in order of rank."""
    sent = _communicable(tensor)
    every = [torch.empty_like(sent) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, sent)
    return [each.to(tensor.device) for each in every]


def from_process(tensor: Tensor, rank: int) -> Tensor:
    """The tensor as the process of that rank has it, on every process."""
    sent = _communicable(tensor).clone()
    distributed.broadcast(sent, rank)
    return sent.to(tensor.device)


def _reduced(tensor: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
    sent = _communicable(tensor)
    distributed.all_reduce(sent, operation)
    return tensor if sent is tensor else tensor.copy_(sent)


def _communicable(tensor: Tensor) -> Tensor:
    """The tensor on a device that the backend communicates from: for NCCL, the GPU."""
    tensor = tensor.contiguous()
    return tensor.cuda() if distributed.get_backend() == "nccl" and tensor.device.type != "cuda" else tensor
