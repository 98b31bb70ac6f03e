"""Which model this is: a fingerprint of its weights, by which files know the model that they were made with."""

from typing import cast

from torch import nn

from tl_backward._support.storage import fingerprint
from tl_backward._support.types import TransformerLensModel

_PROBED = 64  # numbers of a weight: training changes nearly all of them


def model_digest(model: TransformerLensModel) -> str:
    """Fingerprint of a model's weights, from up to 127 numbers of each."""
    parts: list[object] = [f"{model.cfg.n_heads} heads"]
    for name, weight in cast(nn.Module, model).named_parameters():
        few = weight.detach().flatten()[:: max(1, weight.numel() // _PROBED)]
        parts += [f"{name} {list(weight.shape)}", few.float()]
    return fingerprint(*parts)[:16]
