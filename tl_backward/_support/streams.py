"""Random numbers for controls that nobody else draws."""

import torch

from tl_backward._support.storage import fingerprint


def own_stream(what: str, *seeds: int) -> torch.Generator:
    """A generator on the CPU for one kind of draw.

    `torch.Generator().manual_seed(seed)` gives the numbers that a user gets after `torch.manual_seed(seed)`: a model or
    a dictionary that was drawn so would be its own control.

    Args:
        what: is drawn, which no other draw is called.
        seeds: that it depends on.
    """
    return torch.Generator().manual_seed(int(fingerprint([what, *seeds])[:15], 16))
