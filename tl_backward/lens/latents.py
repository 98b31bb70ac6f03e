"""A lens's vectors in the latents of a basis: inputs along what latents read, VJPs along what they write.

Of a gradient at what a dictionary decodes to, x_hat = f @ W_dec + b_dec, the scores are the latents' own gradient,
dL/df = dL/dx_hat @ W_dec.T: raw, as the shift is, so that a descent step raises what stands at the bottom.
"""

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.types import TransformerLensModel
from tl_backward.lens.lens_result import LayerLatents
from tl_backward.lens.reading import Reading
from tl_backward.vocabulary.basis import Basis, Side
from tl_backward.vocabulary.latents import LatentReadout
from tl_backward.vocabulary.readout import readout


def in_latents(
    model: TransformerLensModel,
    vectors: Float[Tensor, "read *batch pos d_model"],
    reading: Reading,
    basis: Basis,
    k: int,
) -> dict[str, dict[int, LatentReadout]]:
    """Per readout and layer, the latents of its vectors; without an encoder none of what is read.

    Args:
        model: whose words the latents are said in.
        vectors: of each readout and layer, in the order of `reading`.
        reading: which they are.
        basis: the directions.
        k: latents of each end; all where the basis has fewer.
    """
    places = [(of, layer) for of, layers in reading.sides.items() for layer in layers]
    sides: dict[Side, list[int]] = {"encoder": [], "decoder": []}
    for at, (of, _) in enumerate(places):
        sides["decoder" if of.endswith("shift") else "encoder"].append(at)
    if basis.encoder is None:
        sides["encoder"] = []
    found: dict[str, dict[int, LatentReadout]] = {}
    for side, chosen in sides.items():
        read = (
            readout(model, vectors[chosen], k=min(k, len(basis.directions)), basis=basis, side=side) if chosen else None
        )
        for row, at in enumerate(chosen):
            assert read is not None
            found.setdefault(places[at][0], {})[places[at][1]] = read[row]
    return {of: LayerLatents(layers, model.cfg.n_layers) for of, layers in found.items()}
