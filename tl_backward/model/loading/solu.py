"""SoLU, which Hugging Face's GPT-2 does not know by itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN


class SoLU(nn.Module):
    """``x * softmax(x)`` over the neurons of a layer (Elhage et al. 2022, "Softmax Linear Units").

    Without the extra LayerNorm of that paper: this is TransformerLens's ``act_fn="solu"``.
    """

    def forward(self, x: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... d_mlp"]:
        """The activation, of the input's shape."""
        return x * torch.softmax(x, dim=-1)


def register_solu() -> None:
    """Let Hugging Face models be built from a config that says ``"solu"``."""
    ACT2FN["solu"] = SoLU
