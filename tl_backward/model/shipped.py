"""The models that ship with the package: names, files, and a check that the files are unchanged."""

import difflib
from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "zoo" / "weights"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
METRICS = "metrics.json"
TRAINED_ON_REQUEST = ("facts-gelu-2l", "facts-solu-2l")
"""The names of `tl_backward.zoo.RECIPES` whose weights do not ship."""


def names() -> tuple[str, ...]:
    """The models that ship with the package.

    Examples:
        >>> tlb.zoo.names()
        ('addition', 'counting', 'facts')
    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


def shipped_directory(name: str) -> Path | None:
    """Where the weights of a shipped model lie; None for other names.

    Raises:
        ValueError: a recipe whose weights do not ship.
    """
    if name in TRAINED_ON_REQUEST:
        raise ValueError(
            f"The weights of {name!r} do not ship (shipped: {', '.join(map(repr, names()))}): train it with "
            f"`python -m tl_backward.zoo.train {name} --out DIR` and load DIR."
        )
    return WEIGHTS / name if name in names() else None


def nearest_shipped(name: str) -> str | None:
    """The shipped model that another name is most like; None where it is like none."""
    close = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.7)
    return close[0] if close else None


def check_not_misspelt(name: str) -> None:
    """Refuse a name that is nearly a shipped model's, before anything is fetched for it.

    A model of the hub is named with its owner, and none that TransformerLens knows without one is near to these.

    Raises:
        ValueError: it is nearly one, and no folder.
    """
    close = nearest_shipped(name)
    if close and close != name and "/" not in name.rstrip("/") and not Path(name).exists():
        raise ValueError(
            f"Expected a shipped model ({', '.join(names())}), a folder, or a name that TransformerLens can load, got "
            f"{name!r}; did you mean {close!r}?"
        )


def metrics(directory: Path) -> dict:
    """Metrics recorded when a model was saved, once its checksums match; empty for models saved elsewhere.

    Raises:
        ValueError: a file that is damaged or another's.
    """
    from tl_backward._support.storage import load_json  # and PyTorch, which a list of names does without

    path = directory / METRICS
    return load_json(path, beside=FILES) if path.is_file() and b"crc32" in path.read_bytes() else {}
