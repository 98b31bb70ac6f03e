"""A decoder on disk, as safetensors and JSON, and the check that a model is the one it was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.storage import fingerprint, joined, load_json, load_tensors, part_of, save_json, save_tensors
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.network import DecoderConfig, DecoderNetwork
from tl_backward.text.encoded import Encoded, encode_rows
from tl_backward.text.token_strings import token_string, vocabulary_size

TENSORS, DESCRIPTION = "decoder.safetensors", "decoder.json"
_TIED = "lm.lm_head.weight"
N_PROBED = 4
"""Texts of the probe."""
_TOLERANCE = 1e-2
"""Of the probe's activations, relative to their norm: another dtype passes, another model does not."""


def network_tensors(network: DecoderNetwork) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones once."""
    return {name: tensor for name, tensor in network.state_dict().items() if name != _TIED}


def restore_network(network: DecoderNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Set the network's tensors from what `network_tensors` returned, in the network's own dtype.

    Raises:
        ValueError: names or shapes that the network does not have.
    """
    state = network.state_dict()
    names = set(state) - {_TIED}
    if set(tensors) != names or any(tensors[name].shape != state[name].shape for name in names):
        raise ValueError(
            "Expected the tensors of a decoder of the shape that its description gives, got others; the two files do "
            "not belong together."
        )
    network.load_state_dict({**tensors, _TIED: tensors["lm.transformer.wte.weight"]})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights."""
    return fingerprint(*(part for name in sorted(tensors) for part in (name, tensors[name].float())))


def vocabulary_digest(model: TransformerLensModel) -> str:
    """SHA-256 of all tokens as they read."""
    return fingerprint([token_string(model.tokenizer, index) for index in range(vocabulary_size(model))])


def probe(reader: PlaceReader, texts: Encoded) -> dict[str, Float[Tensor, "text _"]]:
    """Every site's activations [text, d] at the last token of some texts, to tell one model from another."""
    read = reader(texts.tokens, torch.arange(len(texts)), texts.lengths - 1, lengths=texts.lengths)
    return {str(site): value.float().cpu() for site, value in read.items()}


def save_decoder(
    directory: str | Path,
    network: DecoderNetwork,
    description: Mapping[str, object],
    probed: Mapping[str, Tensor],
    *,
    half: bool = False,
) -> None:
    """Write both files; `half` stores the weights in float16, which loading widens to float32."""
    directory = Path(directory)
    tensors = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in network_tensors(network).items()
    }
    save_tensors(directory / TENSORS, joined(network=tensors, probe=probed), {"format": "pt"})
    save_json(directory / DESCRIPTION, {"network": network.describe(), **description}, beside=[TENSORS])


def load_decoder(directory: str | Path) -> tuple[DecoderNetwork, dict[str, object], dict[str, Tensor]]:
    """The network on the CPU in float32, its description and the probe's activations.

    Raises:
        ValueError: no decoder there, or one that cannot be read.
    """
    directory = Path(directory)
    missing = [name for name in (TENSORS, DESCRIPTION) if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"Expected a decoder's directory with {TENSORS} and {DESCRIPTION}, got {str(directory)!r}, which lacks "
            f"{' and '.join(missing)}; make one with inversion.train(..., out=...)."
        )
    tensors, _ = load_tensors(directory / TENSORS)
    description = load_json(directory / DESCRIPTION, beside=[TENSORS])
    try:
        shape = dict(description["network"])
        network = DecoderNetwork(DecoderConfig(**shape.pop("config")), **shape, seed=0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a decoder's description in {str(directory / DESCRIPTION)!r}, got something else "
            f"({type(error).__name__}: {error}); make it again."
        ) from error
    wide = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    restore_network(network, part_of(wide, "network"))
    return network.eval(), description, part_of(wide, "probe")


def check_same_model(
    model: TransformerLensModel, sites: Sequence[str], description: Mapping, probed: Mapping[str, Tensor]
) -> None:
    """Refuse a model whose vocabulary or activations are not those the decoder was trained on.

    Raises:
        ValueError: another tokenizer, a site that the model lacks, or other activations; said which.
    """
    name = description["model"]
    if description["vocabulary"] != vocabulary_digest(model):
        raise ValueError(
            f"Expected the tokenizer of {name!r}, which the decoder was trained on, got one with other tokens; load "
            "the model with its own tokenizer, or train a decoder for this one."
        )
    own = probe(PlaceReader(model, list(sites)), encode_rows(model, description["probe"]))
    for site, expected in probed.items():
        value = own[site]
        if value.shape != expected.shape or (value - expected).norm() > _TOLERANCE * expected.norm():
            raise ValueError(
                f"Expected the model {name!r} that the decoder was trained on, got one with other activations at "
                f"{site!r}; load that model as it was then (folding and centring weights change activations), or train "
                "a decoder for this one."
            )
