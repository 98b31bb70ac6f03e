"""What a loss may do with a model: a gradient in factors is the gradient through the logits alone."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tl_backward.weights.watch import check_first_derivatives, is_detaching


class LossWatch(TorchFunctionMode):
    """Within the context a loss that reads a weight itself, or differentiates, is refused.

    Args:
        parameters: the model's, by name.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters}

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call the operation, unless it uses a weight with a gradient."""
        check_first_derivatives(func, kwargs)
        out = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(out, Tensor) and torch.is_grad_enabled() and not is_detaching(func):
            for value in args:
                for each in value if isinstance(value, list | tuple) else (value,):
                    if id(each) in self._names:
                        raise ValueError(
                            f"Expected a loss of the logits alone, got one that reads {self._names[id(each)]} itself, "
                            "whose gradient would have a part that no token writes; leave that term out (its gradient "
                            "is known in closed form), or read a constant: .detach()."
                        )
        return out
