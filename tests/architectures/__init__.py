"""Every architecture that TransformerLens registers, as a tiny random model."""

from . import decoders, encoders, experts, mixers, multimodal, own
from .table import Row

ROWS: dict[str, Row] = {
    row.name: row for part in (decoders, experts, mixers, encoders, multimodal, own) for row in part.ROWS
}
"""Every row by its name."""


def registered() -> list[str]:
    """The names that the installed TransformerLens registers."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return sorted(SUPPORTED_ARCHITECTURES)
