"""What a capture says of the memory its factors take, against what they take."""

import warnings

import pytest
from models import TOKENS, bridge, hooked, worlds

import tl_backward as tlb
from tl_backward._support.checks import LargeCaptureWarning
from tl_backward.gradients import capture


def held(cache):
    return sum(side.numel() * 8 for f in cache.factors.values() for side in (f.inputs, f.deltas))


@pytest.mark.parametrize(
    "build", [lambda: bridge("gpt2"), lambda: bridge("mixtral"), *([hooked] if "hooked" in worlds() else [])]
)
def test_the_estimate_is_what_the_factors_take(build):
    model = build()
    sites = tlb.weight_sites(model)
    chosen = {name: site for name, site in sites.items() if site.is_default}
    _, cache = tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, names_filter=[])
    assert capture.factor_bytes(model, chosen.values(), TOKENS.numel()) == held(cache)


def test_a_large_capture_says_so_beforehand(monkeypatch):
    model = bridge("gpt2")
    monkeypatch.setattr(capture, "NOTICE_BYTES", 1000)
    ran = []
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: ran.append(1))]
    with pytest.warns(LargeCaptureWarning, match=r"will hold about 0.0 GiB of factors \(12 weights, 14 tokens\)"):
        tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=hooks)
    assert ran
    with warnings.catch_warnings():
        warnings.simplefilter("error", LargeCaptureWarning)
        with pytest.raises(LargeCaptureWarning):
            tlb.run_with_gradient_cache(model, TOKENS, tlb.next_token_loss, fwd_hooks=hooks)
    assert len(ran) == 1  # said before the pass
