"""Every measure once more, straight from its definition: n x n matrices, loops and numpy in float64."""

import itertools

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata


def centre(x):
    return x - x.mean(0)


def span(x, center=True):
    """Orthonormal basis and singular values, rounding noise left out."""
    x = centre(x) if center else x
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    keep = s > 1e-10 * s[0]
    return u[:, keep], s[keep]


def rhos(x, y):
    return np.linalg.svd(span(x)[0].T @ span(y)[0], compute_uv=False)


def distances(x, name="euclidean"):
    """Pair by pair."""
    out = np.zeros((len(x), len(x)))
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            if name == "euclidean":
                out[i, j] = np.linalg.norm(a - b)
            elif name == "sqeuclidean":
                out[i, j] = np.sum((a - b) ** 2)
            elif i != j:
                a0, b0 = (a - a.mean(), b - b.mean()) if name == "correlation" else (a, b)
                out[i, j] = 1 - a0 @ b0 / np.linalg.norm(a0) / np.linalg.norm(b0)
    return out


def hsic_biased(k, q):
    h = np.eye(len(k)) - 1 / len(k)
    return np.trace(h @ k @ h @ q)


def hsic_song(k, q):
    """The U-statistic; k and q need not be symmetric."""
    n, k, q = len(k), k - np.diag(np.diag(k)), q - np.diag(np.diag(q))
    ones = np.ones(n)
    return (
        np.trace(k @ q)
        + (ones @ k @ ones) * (ones @ q @ ones) / (n - 1) / (n - 2)
        - 2 / (n - 2) * (ones @ k @ q @ ones)
    ) / (n * (n - 3))


def aligned(hsic, k, q):
    return hsic(k, q) / np.sqrt(hsic(k, k) * hsic(q, q))


def gram(x):
    return centre(x) @ centre(x).T


def hollow(x):
    k = gram(x)
    return k - np.diag(np.diag(k))


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def gaussian(x):
    d = distances(x, "sqeuclidean")
    return np.exp(-d / (2 * np.median(d)))


def svcca(x, y):
    kept = []
    for u, s in (span(x), span(y)):
        k = 1
        while np.sum(s[:k] ** 2) < 0.99 * np.sum(s**2):
            k += 1
        kept.append(u[:, :k])
    return np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean()


def pwcca(x, y):
    u = span(x)[0]
    turn, rho, _ = np.linalg.svd(u.T @ span(y)[0], full_matrices=False)
    variates = u @ turn
    weights = np.array([sum(abs(h @ column) for column in centre(x).T) for h in variates.T])
    return np.sum(weights * rho) / np.sum(weights)


def widen(x, y):
    d = max(x.shape[1], y.shape[1])
    return (np.pad(side, ((0, 0), (0, d - side.shape[1]))) for side in (x, y))


def rotated_distance(x, y):
    x, y = widen(x, y)
    u, _, vh = np.linalg.svd(x.T @ y)
    return np.linalg.norm(x @ (u @ vh) - y)


def unit(x):
    return x / np.linalg.norm(x)


def angle(x, y):
    return 2 * np.arcsin(rotated_distance(unit(x), unit(y)) / 2)


def partially_whitened(x, alpha=0.5):
    u, s = span(x)
    return u * (alpha * s + 1 - alpha)


def permuted_distance(x, y):
    x, y = widen(x, y)
    cost = np.array([[np.sum((a - b) ** 2) for b in y.T] for a in x.T])
    rows, columns = linear_sum_assignment(cost)
    return np.sqrt(cost[rows, columns].sum())


def correlations(x, y):
    out = np.zeros((x.shape[1], y.shape[1]))
    for i, a in enumerate(x.T):
        for j, b in enumerate(y.T):
            out[i, j] = 0 if np.ptp(a) == 0 or np.ptp(b) == 0 else np.corrcoef(a, b)[0, 1]
    return out


def hard_match(x, y):
    r = correlations(x, y)
    return r[linear_sum_assignment(-r)].mean()


def soft_match(x, y):
    r = correlations(x, y)
    return (r.max(0).mean() + r.max(1).mean()) / 2


def transported(x, y):
    """By linear programming over all transport plans."""
    costs = np.array([[np.sum((a - b) ** 2) for b in centre(y).T] for a in centre(x).T])
    d1, d2 = costs.shape
    rows, columns = np.kron(np.eye(d1), np.ones(d2)), np.kron(np.ones(d1), np.eye(d2))
    margins = np.r_[np.full(d1, 1 / d1), np.full(d2, 1 / d2)]
    return np.sqrt(max(0, linprog(costs.ravel(), A_eq=np.r_[rows, columns], b_eq=margins).fun))


def r_squared(x, y):
    """By least squares with an intercept."""
    design = np.column_stack([np.ones(len(x)), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=1e-12)[0]
    return 1 - np.sum(residual**2) / np.sum(centre(y) ** 2)


def hat(x, regularization):
    n, x = len(x), centre(x)
    x = x * np.sqrt(n) / np.linalg.norm(x)
    if regularization == 0:
        return span(x)[0] @ span(x)[0].T
    return x @ np.linalg.inv(x.T @ x / n + regularization * np.eye(x.shape[1])) @ x.T / n


def gulp(x, y, regularization=1e-2):
    return np.linalg.norm(hat(x, regularization) - hat(y, regularization))


def eigenspace_overlap(x, y):
    a, b = span(x, False)[0], span(y, False)[0]
    return np.sum((a.T @ b) ** 2) / max(x.shape[1], y.shape[1])


def pairs(x, name):
    return distances(x, name)[np.triu_indices(len(x), 1)]


def rsa(x, y, name="euclidean", comparison="spearman"):
    a, b = pairs(x, name), pairs(y, name)
    if comparison == "spearman":
        a, b = rankdata(a.round(12)), rankdata(b.round(12))
    return cosine(a, b) if comparison == "cosine" else np.corrcoef(a, b)[0, 1]


def u_centred(d):
    n = len(d)
    out = d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / (n - 1) / (n - 2)
    return out - np.diag(np.diag(out))


def similarities(x, metric, center=False):
    x = centre(x) if center else x
    if metric == "euclidean":
        return -distances(x)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def neighbours(x, k=10, metric="cosine", center=False):
    s = similarities(x, metric, center).round(12)  # equal samples tie
    return [sorted((j for j in range(len(x)) if j != i), key=lambda j: (-s[i, j], j))[:k] for i in range(len(x))]


def overlap(x, y, value, **options):
    near = zip(neighbours(x, **options), neighbours(y, **options), strict=True)
    return np.mean([value(set(a), set(b)) for a, b in near])


def mutual(a, b):
    return len(a & b) / len(a)


def jaccard(a, b):
    return len(a & b) / len(a | b)


def second_order_cosine(x, y, k=10):
    s, t = similarities(x, "cosine"), similarities(y, "cosine")
    unions = [sorted(set(a) | set(b)) for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]
    return np.mean([cosine(s[i, union], t[i, union]) for i, union in enumerate(unions)])


def cknna(x, y, count=10, metric="cosine"):
    masks, grams = [], []
    for side in (x, y):
        mask = np.zeros((len(x), len(x)))
        for i, near in enumerate(neighbours(side, count, metric)):
            mask[i, near] = 1
        masks.append(mask)
        grams.append(similarities(side, metric))
    (m, p), (k, q) = masks, grams
    return hsic_song(m * p * k, m * p * q) / np.sqrt(hsic_song(m * k, m * k) * hsic_song(p * q, p * q))


def cross_bars(w, v):
    """Length of the bars of H_1 of R(min(w, v)) with a cone over R(w), by reducing columns modulo 2."""
    n, lower = len(w), np.minimum(w, v)
    faces = {1: [], 2: []}
    for dimension, found in faces.items():
        for size, d, apex in ((dimension + 1, lower, ()), (dimension, w, (n,))):
            for corners in itertools.combinations(range(n), size):
                found.append(
                    (max((d[i, j] for i, j in itertools.combinations(corners, 2)), default=0.0), corners + apex)
                )
        found.sort()
    place = {corners: k for k, (_, corners) in enumerate(faces[1])}
    columns, total = {}, 0.0
    for death, corners in faces[2]:
        column = 0
        for edge in itertools.combinations(corners, 2):
            column ^= 1 << place[edge]
        while column and (low := column.bit_length() - 1) in columns:
            column ^= columns[low]
        if column:
            columns[low] = column
            total += death - faces[1][low][0]
    return total


def rtd(x, y):
    w, v = (squareform(pdist(side)) for side in (x, y))
    w, v = (d / (np.quantile(squareform(d), 0.9) or d.max()) for d in (w, v))
    return (cross_bars(w, v) + cross_bars(v, w)) / 2


DEFINITIONS = {
    "rtd": rtd,
    "cka_biased": lambda x, y: aligned(hsic_biased, gram(x), gram(y)),
    "cka_debiased": lambda x, y: aligned(hsic_song, gram(x), gram(y)),
    "cka_hollow": lambda x, y: cosine(hollow(x), hollow(y)),
    "cka_angular": lambda x, y: 2 * np.arcsin(np.linalg.norm(unit(gram(x)) - unit(gram(y))) / 2),
    "cka_rbf": lambda x, y: aligned(hsic_biased, gaussian(x), gaussian(y)),
    "cka_rbf_debiased": lambda x, y: aligned(hsic_song, gaussian(x), gaussian(y)),
    "cca": lambda x, y: rhos(x, y).mean(),
    "cca_squared": lambda x, y: (rhos(x, y) ** 2).mean(),
    "cca_yanai": lambda x, y: cosine(span(x)[0] @ span(x)[0].T, span(y)[0] @ span(y)[0].T),
    "svcca": svcca,
    "pwcca": pwcca,
    "pwcca_y": lambda x, y: pwcca(y, x),
    "procrustes": lambda x, y: rotated_distance(centre(x), centre(y)),
    "procrustes_squared": lambda x, y: rotated_distance(centre(x), centre(y)) ** 2,
    "procrustes_normalised": lambda x, y: rotated_distance(unit(centre(x)), unit(centre(y))),
    "procrustes_disparity": lambda x, y: np.sin(angle(centre(x), centre(y))) ** 2,
    "shape_angular": lambda x, y: angle(centre(x), centre(y)),
    "shape_partial": lambda x, y: angle(partially_whitened(x), partially_whitened(y)),
    "bures_similarity": lambda x, y: np.cos(angle(centre(x), centre(y))),
    "permutation_procrustes": lambda x, y: permuted_distance(centre(x), centre(y)),
    "permutation_procrustes_uncentred": permuted_distance,
    "hard_match": hard_match,
    "soft_match": soft_match,
    "soft_match_transport": transported,
    "linear_regression": r_squared,
    "linear_regression_y_to_x": lambda x, y: r_squared(y, x),
    "gulp": gulp,
    "gulp_squared": lambda x, y: gulp(x, y) ** 2,
    "gulp_squared_0": lambda x, y: gulp(x, y, 0) ** 2,
    "gulp_squared_1": lambda x, y: gulp(x, y, 1) ** 2,
    "eigenspace_overlap": eigenspace_overlap,
    "rsa": rsa,
    "rsa_euclidean_pearson": lambda x, y: rsa(x, y, comparison="pearson"),
    "rsa_sqeuclidean_pearson": lambda x, y: rsa(x, y, "sqeuclidean", "pearson"),
    "rsa_sqeuclidean_cosine": lambda x, y: rsa(x, y, "sqeuclidean", "cosine"),
    "rsa_correlation_spearman": lambda x, y: rsa(x, y, "correlation"),
    "rsa_correlation_pearson": lambda x, y: rsa(x, y, "correlation", "pearson"),
    "rsm_difference": lambda x, y: np.linalg.norm(distances(x) - distances(y)),
    "rsm_difference_spectral": lambda x, y: np.linalg.norm(distances(x) - distances(y), 2),
    "distance_correlation": lambda x, y: np.sqrt(aligned(hsic_biased, distances(x), distances(y))),
    "distance_correlation_squared": lambda x, y: aligned(hsic_biased, distances(x), distances(y)),
    "distance_correlation_debiased": lambda x, y: cosine(u_centred(distances(x)), u_centred(distances(y))),
    "mutual_knn": lambda x, y: overlap(x, y, mutual),
    "mutual_knn_inner_product": lambda x, y: overlap(x, y, mutual, metric="inner_product"),
    "mutual_knn_euclidean": lambda x, y: overlap(x, y, mutual, metric="euclidean"),
    "jaccard": lambda x, y: overlap(x, y, jaccard),
    "jaccard_centred": lambda x, y: overlap(x, y, jaccard, center=True),
    "second_order_cosine": second_order_cosine,
    "cknna": cknna,
}
