"""Named directions of the residual stream to read vectors in: a dictionary's latents, probes, another unembedding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from tl_backward._support.arrays import tensor_of
from tl_backward._support.checks import all_finite, as_path, check_choice, is_integer, short
from tl_backward._support.hints import say_as
from tl_backward._support.public import public
from tl_backward.text.files import read_records, read_table

Side: TypeAlias = Literal["decoder", "encoder"]


@public
@dataclass(frozen=True, repr=False, eq=False)
class Basis:
    """Directions [n_latents, d_model] with names, for `readout(..., basis=...)`; memory is shared, not copied.

    Any of them: a sparse autoencoder's or transcoder's latents (`Basis.from_sae(sae)`), probes, steering vectors,
    another model's unembedding (`Basis(other.W_U.T, names=tokens)`).

    Attributes:
        directions: what each latent writes, the rows of W_dec.
        encoder: what each latent reads, the columns of W_enc as rows; None where there is none.
        names: one a latent, None for a latent without one.

    Raises:
        ValueError: no matrix of floating-point numbers, no latent, NaN or inf; an encoder or names of another number.

    Examples:
        >>> basis = tlb.Basis(torch.eye(4, 64), names=["one", "two", "three", None])
        >>> basis
        Basis(4 latents, d_model=64, 3 names, no encoder)
    """

    directions: Float[Tensor, "n_latents d_model"]
    encoder: Float[Tensor, "n_latents d_in"] | None = None
    names: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        """Refuse what no vector can be read in."""
        object.__setattr__(self, "directions", _matrix("directions", self.directions))
        n = len(self.directions)
        if self.encoder is not None:
            object.__setattr__(self, "encoder", _matrix("encoder", self.encoder))
            if len(self.encoder) != n:
                raise ValueError(
                    f"Expected an encoder of {n} latents as the directions have, got {len(self.encoder)}; pass W_enc.T "
                    "and W_dec of one dictionary."
                )
        if self.names is None:
            return
        if isinstance(self.names, str) or not all(isinstance(name, str | None) for name in self.names):
            raise ValueError(f"Expected a list of names, text or None each, got {short(self.names)}; name each latent.")
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.names) != n:
            raise ValueError(
                f"Expected {n} names, one a latent, got {len(self.names)}; give None to those without one, or use "
                "Basis.named with a file of some."
            )

    @classmethod
    def from_sae(cls, sae: object) -> "Basis":
        """The latents of a dictionary with W_dec [d_sae, d_out] and, where it has one, W_enc [d_in, d_sae].

        SAELens's SAEs and transcoders are such (its library is not needed), on whatever device and in whatever type
        they are. For one that reads one point and writes another, sides are of different points.

        Raises:
            ValueError: no W_dec, a W_enc of another shape; one whose output is rescaled after W_dec, by the token or
                by a factor that is not folded in yet, or whose rows are not of the residual stream (hook_z).
        """
        decoder, encoder = getattr(sae, "W_dec", None), getattr(sae, "W_enc", None)
        if not isinstance(decoder, Tensor) or decoder.ndim != 2:
            raise ValueError(
                f"Expected a dictionary with W_dec [d_sae, d_in], got {short(decoder)} as that of "
                f"{type(sae).__name__}; pass its directions, Basis(directions)."
            )
        settings = getattr(sae, "cfg", None)
        rescaled = getattr(settings, "normalize_activations", None) or "none"
        if rescaled != "none":
            fix = "pass the directions that you mean, Basis(directions)"
            if rescaled == "expected_average_only_in":
                fix = "call its fold_activation_norm_scaling_factor first"
            raise ValueError(
                "Expected a dictionary whose output is in the units of the residual stream, got one with "
                f"normalize_activations={rescaled!r}, which rescales it after W_dec; {fix}."
            )
        reshaped = getattr(settings, "reshape_activations", None) or "none"
        if reshaped != "none":
            raise ValueError(
                "Expected a dictionary of the residual stream, got one of heads' outputs before W_O "
                f"(reshape_activations={reshaped!r}); pass W_dec times W_O, Basis(directions)."
            )
        if encoder is None:
            return cls(decoder)
        if not isinstance(encoder, Tensor) or encoder.ndim != 2 or encoder.shape[1] != len(decoder):
            raise ValueError(
                f"Expected W_enc [d_in, d_sae={len(decoder)}], got {short(encoder)}; pass Basis(W_dec, encoder=...)."
            )
        return cls(decoder, encoder=encoder.T)

    def named(self, path: str | Path) -> "Basis":
        """The same directions with the labels of a file (.json, .jsonl, .csv) of records {"index", "description"}.

        Neuronpedia's exports are such. Of a latent with several labels the first stays; one without keeps its name.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a malformed one, an index that no latent has, or no description at all.
        """
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Expected a file of labels, got {str(path)!r}; there is no such file.")
        if path.suffix.lower() not in (".json", ".jsonl", ".csv"):
            raise ValueError(f"Expected labels as .json, .jsonl or .csv, got {path.name!r}; convert the file first.")
        is_table = path.suffix.lower() == ".csv"
        found: dict[int, str] = {}
        for where, record in read_table(path, ("index", "description")) if is_table else read_records(path):
            index, text = _label(record, where, len(self.directions))
            if text:
                found.setdefault(index, text)
        if not found:
            raise ValueError(
                f"Expected records with index and description in {path.name!r}, got no description; look at its fields."
            )
        names = [None] * len(self.directions) if self.names is None else self.names
        return replace(self, names=[found.get(index, name) for index, name in enumerate(names)])

    def of(self, side: Side) -> Float[Tensor, "n_latents d"]:
        """The directions of one side.

        Raises:
            ValueError: the encoder's where there is none, or another word.
        """
        check_choice("side", side, ("decoder", "encoder"))
        if side == "decoder":
            return self.directions
        if self.encoder is None:
            raise ValueError(
                "Expected a basis with an encoder for side='encoder', got one without; pass "
                "Basis(W_dec, encoder=W_enc.T)."
            )
        return self.encoder

    def __repr__(self) -> str:
        n_names = sum(name is not None for name in self.names or ())
        encoder = "no encoder" if self.encoder is None else "with an encoder"
        n, width = self.directions.shape
        return f"Basis({n:,} latents, d_model={width}, {n_names or 'no'} names, {encoder})"


say_as(Basis, "tlb.Basis(directions, names=...)")


def _matrix(what: str, given: object) -> Tensor:
    """A matrix of finite numbers, without its graph."""
    matrix = tensor_of(given)
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point() or not matrix.numel():
        raise ValueError(
            f"Expected {what} [n_latents, d_model] of floating-point numbers, got {short(given)}; pass one "
            "row a latent."
        )
    if not all_finite(matrix):
        raise ValueError(f"Expected finite {what}, got NaN or inf among them; leave out the latents that have any.")
    return matrix.detach()


def _label(record: object, where: str, n: int) -> tuple[int, str | None]:
    """A latent and what a record calls it."""
    if not isinstance(record, dict):
        raise ValueError(f"Expected an object in {where}, got {type(record).__name__}; one record is one label.")
    index, text = record.get("index"), record.get("description")
    number = int(index) if is_integer(index) or (isinstance(index, str) and index.isdecimal()) else None
    if number is None or not 0 <= number < n:
        raise ValueError(
            f"Expected an index from 0 to {n - 1} in {where}, got {short(index)}; take the labels of this dictionary."
        )
    if not isinstance(text, str | None):
        raise ValueError(f"Expected a description as text in {where}, got {short(text)}; mend the record.")
    return number, text
