"""The processes of torch.distributed, where there are any."""

import os

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether this process is one of several that have met."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def process() -> tuple[int, int]:
    """The process's number and how many there are.

    Raises:
        RuntimeError: started by a launcher of several, but none of them has met the others.
    """
    if several():
        return distributed.get_rank(), distributed.get_world_size()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise RuntimeError(
            f"Expected torch.distributed to be initialised under a launcher of {world} processes, got none; create an "
            "accelerate.Accelerator(), or call torch.distributed.init_process_group, before comparing."
        )
    return 0, 1


def sum_over(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, of a tensor that each of them has in the same shape."""
    return _reduced(tensor, distributed.ReduceOp.SUM)


def greatest_of(value: float) -> float:
    """The greatest of one number a process."""
    return float(_reduced(torch.tensor([value], dtype=torch.float64), distributed.ReduceOp.MAX))


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every process's tensor, of one shape, by their numbers."""
    carried = _carried(tensor)
    every = [torch.empty_like(carried) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, carried)
    return [each.to(tensor.device) for each in every]


def from_process(tensor: Tensor, number: int) -> Tensor:
    """The tensor as one of the processes has it."""
    carried = _carried(tensor).clone()
    distributed.broadcast(carried, number)
    return carried.to(tensor.device)


def _reduced(tensor: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
    carried = _carried(tensor)
    distributed.all_reduce(carried, operation)
    return tensor if carried is tensor else tensor.copy_(carried)


def _carried(tensor: Tensor) -> Tensor:
    """The tensor where the backend can reach it: NCCL's on the GPU."""
    tensor = tensor.contiguous()
    return tensor.cuda() if distributed.get_backend() == "nccl" and tensor.device.type != "cuda" else tensor
