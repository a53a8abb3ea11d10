"""The contextual similarity against plain loops over sets of neighbours."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss

from bgl.losses import ContextualSimilarityLoss

N = 12
LABELS = torch.arange(N) // 4


def contextual_by_sets(s: torch.Tensor, k: int, eps: float) -> torch.Tensor:
    """Sets of neighbours and of those that are none; distances are those of unit vectors."""
    n = len(s)
    distance = 2 - 2 * s

    def near(i: int, k: int) -> set[int]:
        furthest = distance[i].sort().values[k - 1]
        return {j for j in range(n) if distance[i, j] - eps <= furthest}

    sets, halves = ([near(i, size) for i in range(n)] for size in (k, k // 2))
    everyone = set(range(n))
    w = torch.zeros_like(s)
    for i in range(n):
        for j in sets[i]:
            apart_i, apart_j = everyone - sets[i], everyone - sets[j]
            overlap = len(sets[i] & sets[j]) / len(sets[i])
            w[i, j] = (overlap + len(apart_i & apart_j) / max(1, len(apart_i))) / 2
    v = torch.zeros_like(s)
    for i in range(n):
        mutual = [p for p in halves[i] if i in halves[p]]
        v[i] = sum(w[p] for p in mutual) / len(mutual)
    return (v + v.t()) / 2


@pytest.mark.parametrize(("k", "eps"), [(4, 0.05), (2, 0.0), (5, 0.3), (N, 0.0)])
def test_equals_a_loop_over_sets(k, eps):
    x = torch.randn(N, 6, dtype=torch.float64)
    unit = x / x.norm(dim=1, keepdim=True)
    s = unit @ unit.t()
    c = contextual_by_sets(s, k, eps)
    loss = ContextualSimilarityLoss(k=k, eps=eps)
    torch.testing.assert_close(loss.contextual(s), c, rtol=0, atol=1e-12)
    total = 0.1 * (s.mean() - 0.25) ** 2
    for i in range(N):
        for j in range(N):
            if i != j:
                total += 0.4 / N**2 * (float(LABELS[i] == LABELS[j]) - c[i, j]) ** 2
    total += 0.5 * ContrastiveLoss(0.75, 0.6, distance=loss.distance)(x, LABELS)
    torch.testing.assert_close(loss(x, LABELS), total)


def test_gradient_is_that_of_lines_through_the_steps():
    """Where every step is a line of slope 10, the function is smooth, and so checkable."""
    x = torch.randn(N, 6, dtype=torch.float64)
    s = x @ x.t() / 50
    loss = ContextualSimilarityLoss(k=4)
    point = s.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss.contextual(point).square().sum(), point)

    def lines(moved: torch.Tensor) -> torch.Tensor:
        m, half = (
            (2 * s + 0.05 >= 2 * s.topk(k, dim=1).values[:, -1:]).double() + 20 * (moved - s)
            for k in (4, 2)
        )
        size = m.detach().sum(1, keepdim=True)
        w = ((m @ m.t()) / size + ((1 - m) @ (1 - m).t()) / (N - size)) / 2 * m
        r = half * half.t()
        v = (r @ w) / r.sum(1, keepdim=True)
        return ((v + v.t()) / 2).square().sum()

    again = s.clone().requires_grad_()
    (expected,) = torch.autograd.grad(lines(again), again)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_batches_have_a_finite_gradient(n):
    x = torch.randn(n, 6, requires_grad=True)
    ContextualSimilarityLoss()(x, torch.zeros(n).long()).backward()
    assert x.grad.isfinite().all()
