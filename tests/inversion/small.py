"""A tiny model and texts that a decoder is trained on in a second."""

import random

from models import build

from tl_backward.inversion.network import DecoderConfig
from tl_backward.inversion.stream import Drawing
from tl_backward.inversion.training import TrainingOptions, train

SITES = [("resid_post", 0), ("z", 1, 2), ("result", 1, 0)]
CONFIG = DecoderConfig(n_layers=1, d_model=16, n_heads=2, n_vectors=2, d_hidden=8)
QUIET = {"show_progress": False}


def options(**changes):
    drawing = {"batch_size": 16, "pairs": 4} | changes.pop("drawing", {})
    return TrainingOptions(
        **{"n_kept": 12, "n_queries": 3, "n_samples": 2, "n_evaluations": 3, "drawing": Drawing(**drawing)} | changes
    )


def texts(epoch, n=60):
    rng = random.Random(epoch)
    for _ in range(n):
        yield " ".join(f"w{rng.randint(3, 12)}" for _ in range(rng.randint(2, 9)))


def trained(world, **changes):
    made = {"budget": 16 * 12, "positions": [-1, 2], "config": CONFIG, "options": options()} | QUIET | changes
    model = made.pop("model", None) or build(world)
    return train(model, made.pop("sites", SITES), made.pop("data", texts), **made)
