"""The decoders that ship: of which model, sites and positions, and how each is trained."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion.decoder import Decoder, load_from
from tl_backward.inversion.network import DecoderConfig
from tl_backward.inversion.storage import DESCRIPTION
from tl_backward.inversion.stream import Drawing
from tl_backward.inversion.training import TrainingOptions
from tl_backward.model.place import PlaceLike
from tl_backward.text.data import Data
from tl_backward.zoo import addition, counting, facts
from tl_backward.zoo import load as load_model

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How a shipped decoder is made; the same recipe gives the same decoder on one machine."""

    model: str
    """The zoo's name of the probed model."""
    sites: tuple[PlaceLike, ...]
    positions: tuple[int, ...]
    data: Callable[[], Data]
    others: Callable[[], Iterable[str]]
    """Held-out texts: queries of the final figures and the prior of their chance rates."""
    valid: Callable[[str], bool]
    budget: int
    warm: bool = False
    """Whether the decoder starts from the model's own weights."""
    config: DecoderConfig = DecoderConfig()
    options: TrainingOptions = TrainingOptions()


def _facts_prompts(split: str) -> list[str]:
    return [example.prompt for example in facts.world().examples(split=split)]


@cache
def facts_by_prompt() -> dict[str, facts.Example]:
    """Every prompt of the facts models' world."""
    return {example.prompt: example for example in facts.world().examples()}


RECIPES = MappingProxyType(
    {
        "counting": Recipe(
            model="counting",
            sites=(("result", 0, 0), ("resid_mid", 0), ("resid_post", 0), ("result", 1, 0), ("resid_mid", 1)),
            positions=(-2, -1),
            data=lambda: lambda epoch: counting.prompts(seed=epoch),
            others=lambda: counting.prompts(split="held_out"),
            valid=lambda text: counting.parse(text) is not None,
            budget=1_250_000,
            warm=True,
            config=DecoderConfig(n_heads=1),
            options=TrainingOptions(drawing=Drawing(pairs=2)),
        ),
        "addition": Recipe(
            model="addition",
            sites=(
                *(("result", layer, head) for layer in (0, 1) for head in range(4)),
                ("resid_post", 0),
                ("resid_mid", 1),
            ),
            positions=(-1,),
            data=lambda: lambda epoch: addition.prompts(seed=epoch),
            others=lambda: addition.prompts(split="held_out"),
            valid=lambda text: addition.parse(text) is not None,
            budget=400_000,
        ),
        "facts": Recipe(
            model="facts",
            sites=tuple(("resid_post", layer) for layer in range(4)),
            positions=(-1,),
            data=lambda: _facts_prompts("train"),
            others=lambda: _facts_prompts("held_out"),
            valid=lambda text: text in facts_by_prompt(),
            budget=300_032,
            options=TrainingOptions(drawing=Drawing(pairs=2)),
        ),
    }
)
"""Name -> recipe; the name is that of the zoo's model."""


def names() -> tuple[str, ...]:
    """The decoders that ship with the package.

    Examples:
        >>> tlb.inversion.names()
        ('addition', 'counting', 'facts')
    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob(f"*/{DESCRIPTION}")))


@public
def load(
    name_or_dir: str | Path,
    *,
    model: TransformerLensModel | None = None,
    valid: Callable[[str], bool] | None = None,
) -> Decoder:
    """A decoder with the model whose activations it reads.

    Args:
        name_or_dir: one that ships ("counting", "addition", "facts"), or a directory that `train` wrote.
        model: the probed model; for one that ships, `zoo.load(name)` by default.
        valid: text -> whether it is well-formed; for one that ships, its task's by default.

    Raises:
        ValueError: an unknown name, a directory without a decoder or one for which no model is given, or another model,
            tokenizer or site than those it was trained on.

    Examples:
        >>> decoder = tlb.inversion.load("counting")
        >>> len(decoder.sites)
        5
    """
    recipe = RECIPES.get(str(name_or_dir))
    if recipe is not None:
        if name_or_dir not in names():
            raise ValueError(
                f"Expected a decoder that ships ({', '.join(names())}), got {str(name_or_dir)!r}; train it with "
                f"`python -m tl_backward.inversion.train_shipped {name_or_dir} --out DIR` and load DIR."
            )
        model = load_model(recipe.model) if model is None else model
        return load_from(WEIGHTS / name_or_dir, model, valid=valid or recipe.valid)
    if not Path(name_or_dir).is_dir():
        raise ValueError(
            f"Expected a decoder that ships ({', '.join(names())}) or a directory that inversion.train wrote, got "
            f"{str(name_or_dir)!r}; there is no such directory."
        )
    if model is None:
        raise ValueError(
            f"Expected the model beside the directory {str(name_or_dir)!r}, got none; pass model=, the one that the "
            "decoder was trained on."
        )
    return load_from(name_or_dir, model, valid=valid)
