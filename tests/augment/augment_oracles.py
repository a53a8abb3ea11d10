"""Eq. 9-16 of IAA and the released copies, in plain NumPy loops."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def class_weight(n: int, beta: float, limit: int) -> float:
    return 1 / (1 + math.log(1 + beta * (n - 1))) if n <= limit else 0.0


def global_variance(variance: Array, size: Array) -> Array:
    total, samples = np.zeros_like(variance[0]), 0
    for k, n in enumerate(size):
        if n >= 2:
            total, samples = total + n * variance[k], samples + n
    return total / max(samples, 1)


def neighbors(mean: Array, size: Array, k: int, count: int) -> list[int]:
    others = [i for i in range(len(size)) if i != k and size[i] >= 2]
    return sorted(others, key=lambda i: np.linalg.norm(mean[i] ** 2 - mean[k] ** 2))[:count]


def neighbor_variance(
    mean: Array, variance: Array, size: Array, k: int, count: int, sm: float, sv: float
) -> tuple[Array, float]:
    """Eq. 12 and the effective number of neighbours; exponentials as printed."""
    chosen = neighbors(mean, size, k, count)
    if not chosen or size[k] == 0:
        return global_variance(variance, size), 0.0
    weight = []
    for i in chosen:
        dm = np.linalg.norm(mean[i] ** 2 - mean[k] ** 2)
        dv = np.linalg.norm(variance[i] - variance[k])
        weight.append(size[i] * math.exp(-(dm**2) / (2 * sm**2) - dv**2 / (2 * sv**2)))
    average = sum(w * variance[i] for w, i in zip(weight, chosen, strict=True)) / sum(weight)
    return average, sum(weight) ** 2 / sum(w * w for w in weight)


def released_neighbor_variance(
    mean: Array, variance: Array, size: Array, k: int, count: int
) -> Array:
    """Eq. 12 with the released weights: both distances min-max normalised over their row.

    The row of mean distances holds 1e12 for the class itself and for those with one sample, so
    that all others become 0: the mean distance has no say.
    """
    dm = [np.linalg.norm(m**2 - mean[k] ** 2) for m in mean]
    dm = np.array([d + 1e12 * (i == k or size[i] == 1) for i, d in enumerate(dm)])
    dv = np.array([np.linalg.norm(v - variance[k]) for v in variance])
    near = np.argsort(dm, kind="stable")[:count]
    dm = (dm - dm.min()) / (dm.max() - dm.min())
    dv = (dv - dv.min()) / (dv.max() - dv.min())
    weight = [size[i] * math.exp(-(dm[i] ** 2) / 2 - dv[i] ** 2 / 2) for i in near]
    return sum(w * variance[i] for w, i in zip(weight, near, strict=True)) / sum(weight)


def corrected_variance(
    mean: Array,
    variance: Array,
    size: Array,
    num_neighbors: int = 25,
    beta: float = 0.1,
    gamma: float = 0.1,
    max_count: int = 40,
    sigma_mean: float = 1.0,
    sigma_var: float = 1.0,
) -> tuple[Array, Array]:
    """Eq. 15 for every class, and the effective numbers of neighbours."""
    overall, rows, effective = global_variance(variance, size), [], []
    for k, n in enumerate(size):
        around, number = neighbor_variance(
            mean, variance, size, k, num_neighbors, sigma_mean, sigma_var
        )
        a = class_weight(max(n, 1), beta, max_count)
        rows.append((1 - a) * variance[k] + a * gamma * overall + a * (1 - gamma) * around)
        effective.append(number)
    return np.stack(rows), np.array(effective)
