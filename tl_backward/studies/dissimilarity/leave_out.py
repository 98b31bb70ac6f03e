"""Linear CKA without one dimension, or without one group of the samples, for every dimension and group in turn."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cka_without_dimension(x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"]) -> Float[Tensor, "d1"]:
    """Biased linear CKA of y and x less each of x's dimensions in turn; NaN where nothing varies in what is left.

    With X'Y and X'X of centred samples, leaving out dimension k leaves row k out of |X'Y|_F^2, and row and column k out
    of |X'X|_F^2.
    """
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    crossed, own = (x.T @ y).square().sum(1), (x.T @ x).square()
    # Sums anew, not totals less a part: beside a dimension that is nearly all of a total, the rest is rounding.
    kept = ~torch.eye(len(crossed), dtype=torch.bool, device=x.device)
    inner = kept.double() @ crossed
    norm = torch.stack([own[keep][:, keep].sum() for keep in kept]).sqrt()
    return inner / (norm * torch.linalg.matrix_norm(y.T @ y))


def cka_without_group(
    x: Float[Tensor, "sample d1"], y: Float[Tensor, "sample d2"], groups: Int[Tensor, "sample"], n_groups: int
) -> Float[Tensor, "group"]:
    """Biased linear CKA over the samples outside each group 0 .. n_groups - 1 in turn, centred anew each time.

    NaN where no sample is left, or nothing varies in those that are.
    """
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    # As above, the sums of all other groups are added up from both sides rather than taken off a total.
    parts = [_moments(x[groups == group], y[groups == group]) for group in range(n_groups)]
    values = []
    for group in range(n_groups):
        others = zip(*(parts[:group] + parts[group + 1 :]), strict=True)
        n, sx, sy, xy, xx, yy = (torch.stack(each).sum(0) for each in others)
        inner, own_x, own_y = (
            torch.linalg.matrix_norm(second - torch.outer(left, right) / n)
            for second, left, right in ((xy, sx, sy), (xx, sx, sx), (yy, sy, sy))
        )
        values.append(inner.square() / (own_x * own_y))
    return torch.stack(values)


def _moments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Samples, sums, and sums of products."""
    return torch.tensor(float(len(x))).to(x), x.sum(0), y.sum(0), x.T @ y, x.T @ x, y.T @ y
