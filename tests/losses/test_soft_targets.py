"""Soft targets against plain loops: the divergence, the diffusion, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl.layers import AdaptiveGraph
from bgl.losses import SoftTargetLoss, diffuse

N, D = 9, 5


def plain_softmax(x: Tensor, tau: float) -> Tensor:
    """Row by row, from cosines one by one."""
    rows = []
    for a in x:
        cosines = [float(a @ b / (a.norm() * b.norm())) for b in x]
        total = sum(math.exp(c / tau) for c in cosines)
        rows.append([math.exp(c / tau) / total for c in cosines])
    return torch.tensor(rows, dtype=x.dtype)


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_equals_a_loop(tau):
    student, teacher = torch.randn(2, N, D, dtype=torch.float64)
    loss = SoftTargetLoss(tau)
    p, q = plain_softmax(student, tau), plain_softmax(teacher, tau)
    torch.testing.assert_close(loss.targets(teacher), q, rtol=0, atol=1e-12)
    expected = sum(float(q[i, j] * (q[i, j] / p[i, j]).log()) for i in range(N) for j in range(N))
    assert float(loss(student, q)) == pytest.approx(expected / N, rel=1e-10)
    assert float(loss(3 * student, loss.targets(student))) == pytest.approx(0, abs=1e-12)


def test_gradient_reaches_the_student_alone():
    student = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    loss = SoftTargetLoss(0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, loss.targets(teacher)), student)
    q = teacher @ teacher.t()
    loss(student, q.softmax(1)).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("w", [0.0, 0.3, 0.9])
def test_diffusion_is_the_series_of_walks(w):
    """(1 - w) Σ w^t A^t P, term by term, along shuffled edges of which one comes in two parts."""
    x = torch.randn(N, D, dtype=torch.float64)
    p = SoftTargetLoss(0.2).targets(torch.randn(N, D, dtype=torch.float64))
    edge_index, weight = AdaptiveGraph(k=3, lam=0.0, formulation="paper")(x)
    a = torch.zeros(N, N, dtype=torch.float64)
    for (source, target), value in zip(edge_index.t().tolist(), weight.tolist(), strict=True):
        a[target, source] = value
    expected, walk = torch.zeros_like(p), p
    for t in range(600):
        expected += (1 - w) * w**t * walk
        walk = a @ walk
    halves = torch.cat([weight[:1] / 2, weight[1:], weight[:1] / 2])
    order = torch.randperm(len(halves))
    edges = torch.cat([edge_index, edge_index[:, :1]], dim=1)
    q = diffuse(p, edges[:, order], halves[order], w)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.sum(1), torch.ones(N, dtype=torch.float64))
    assert float(q.min()) > 0


def test_diffusion_in_float32_stays_a_distribution_at_the_largest_share():
    x = normalize(torch.randn(300, 8))
    edge_index, weight = AdaptiveGraph(k=7, lam=0.0, formulation="paper")(x)
    q = diffuse(SoftTargetLoss(0.1).targets(x), edge_index, weight, 0.99)
    torch.testing.assert_close(q.sum(1), torch.ones(300), rtol=0, atol=1e-3)
    assert float(q.min()) >= 0
