"""Streams of random numbers that nobody else draws."""

import torch

from tl_backward._support.streams import own_stream


def test_each_draw_has_its_own():
    def drawn(generator):
        return tuple(torch.randn(8, generator=generator).tolist())

    before = torch.get_rng_state()
    found = {drawn(own_stream(what, *seeds)) for what in ("a", "b") for seeds in ((0,), (1,), (0, 1), (1, 0))}
    assert len(found) == 8 and torch.equal(torch.get_rng_state(), before)
    assert drawn(own_stream("a", 0)) == drawn(own_stream("a", 0))
    users = {drawn(torch.Generator().manual_seed(seed)) for seed in range(100)}
    assert not found & users
