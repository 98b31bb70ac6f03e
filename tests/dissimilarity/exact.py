"""What samples span, from 40-digit arithmetic on the numbers as they are: neither of the package's two ways."""

import mpmath
import numpy as np

from dissimilarity.reference import DEFINITIONS

DIGITS = 40


class Span:
    """An orthonormal basis of the columns of X by its 40-digit SVD, columns scaled to norm 1, cut by the documented rule.

    The rule: a column that varies by no more than 4 eps of its norm is constant; a direction counts where its singular
    value exceeds 2 eps |X D|_F (n^-1/2 + d^-1/2), what rounding X's entries makes of nothing (eps of the rows' dtype).
    """

    def __init__(self, x, eps, center=True):
        with mpmath.workdps(DIGITS):
            n, d = x.shape
            columns = [[mpmath.mpf(float(value)) for value in x[:, j]] for j in range(d)]
            whole = [mpmath.norm(column) for column in columns]
            if center:
                columns = [[value - mpmath.fsum(column) / n for value in column] for column in columns]
            norms = [mpmath.norm(column) for column in columns]
            kept = [j for j in range(d) if norms[j] > (4 * eps * whole[j] if center else 0)]
            scaled = mpmath.matrix([[columns[j][i] / norms[j] for j in kept] for i in range(n)])
            left, values, _ = mpmath.svd_r(scaled)
            sizes = mpmath.fsum((whole[j] / norms[j]) ** 2 for j in kept)
            self.noise = float(2 * eps * mpmath.sqrt(sizes) * (1 / mpmath.sqrt(n) + 1 / mpmath.sqrt(len(kept))))
            self.values = np.array([float(value) for value in values])
            self.u = np.array(left.tolist(), dtype=float)[:, self.values > max(self.noise, 1e-14)]
            self.x = np.array([[float(value) for value in column] for column in columns]).T
            self.varies = np.isin(np.arange(d), kept)

    @property
    def clear(self):
        """Whether no direction is at the border of the rule."""
        return bool(np.all(np.abs(self.values / max(self.noise, 1e-14) - 1) > 1e-2))

    def own(self):
        """U, S in X's own units, within the span."""
        inside = self.u.T @ self.x
        turn, s, _ = np.linalg.svd(inside, full_matrices=False)
        return self.u @ turn, s


def rhos(a, b):
    return np.linalg.svd(a.u.T @ b.u, compute_uv=False).clip(max=1)


def pwcca(a, b):
    turn, rho, _ = np.linalg.svd(a.u.T @ b.u, full_matrices=False)
    weights = np.abs((a.u @ turn).T @ a.x).sum(1)
    return weights @ rho.clip(max=1) / weights.sum()


def partial(a, b):
    mixed = [u * (0.5 * s + 0.5) for u, s in (a.own(), b.own())]
    mixed = [side / np.linalg.norm(side) for side in mixed]
    return np.arccos(min(1, np.linalg.svd(mixed[0].T @ mixed[1], compute_uv=False).sum()))


SPANS = {
    "cca": lambda a, b: rhos(a, b).mean(),
    "cca_squared": lambda a, b: (rhos(a, b) ** 2).mean(),
    "cca_yanai": lambda a, b: (rhos(a, b) ** 2).sum() / np.sqrt(a.u.shape[1] * b.u.shape[1]),
    "pwcca": pwcca,
    "pwcca_y": lambda a, b: pwcca(b, a),
    "linear_regression": lambda a, b: np.linalg.norm(a.u.T @ b.x) ** 2 / np.linalg.norm(b.x) ** 2,
    "linear_regression_y_to_x": lambda a, b: np.linalg.norm(b.u.T @ a.x) ** 2 / np.linalg.norm(a.x) ** 2,
    "gulp_squared_0": lambda a, b: a.u.shape[1] + b.u.shape[1] - 2 * (rhos(a, b) ** 2).sum(),
    "shape_partial": partial,
}


def value(name, x, y, eps):
    """A measure of two float64 matrices whose entries were rounded to a dtype of that eps."""
    if name == "eigenspace_overlap":
        a, b = (Span(side, eps, center=False) for side in (x, y))
        return np.sum((a.u.T @ b.u) ** 2) / max(x.shape[1], y.shape[1])
    if name == "permutation_procrustes_uncentred":
        return DEFINITIONS[name](x, y)
    a, b = Span(x, eps), Span(y, eps)
    if name in ("hard_match", "soft_match"):  # a constant neuron correlates with none
        return DEFINITIONS[name](a.x * a.varies, b.x * b.varies)
    return SPANS[name](a, b) if name in SPANS else DEFINITIONS[name](a.x, b.x)
