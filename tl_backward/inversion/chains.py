"""How many independent draws correlated chains are worth."""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_sample_size(values: Float[Tensor, "step chain"]) -> float:
    """Of the mean of `values` over chains: steps * chains / (1 + 2 sum_t rho_t) (Gelman et al., BDA3, sec. 11.5).

    rho_t is the autocorrelation at lag t, from the variogram within chains and the variance within and between them, so
    that chains which disagree count for little; the sum ends at the first negative pair (Geyer 1992). At most
    steps * chains; where nothing varies, or over fewer than four steps, one draw a chain.
    """
    n, m = values.shape
    x = values.double()
    if n < 4:
        return float(m)
    within = x.var(0).mean()
    between = x.mean(0).var() if m > 1 else x.new_zeros(())
    total = (n - 1) / n * within + between
    if not total > 0:
        return float(m)
    centred = x - x.mean(0)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(centred, n=size, dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), n=size, dim=0)[:n].mean(1) / n
    rho = 1 - (within - covariance * n / (n - 1)) / total
    rho[0] = 1.0
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    negative = (pairs < 0).nonzero().flatten()
    kept = pairs[: int(negative[0])] if len(negative) else pairs
    time = -1 + 2 * float(kept.cummin(0).values.sum())
    return min(float(n * m), n * m / max(time, 1e-12))
