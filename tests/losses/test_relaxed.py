"""Losses of soft relations against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bgl.losses import RelatedNeighborsLoss, RelaxedContrastiveLoss


def relaxed(x: Tensor, w: Tensor, margin: float) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    total = x.new_zeros(())
    for i in range(len(x)):
        mean = sum((unit[i] - unit[k]).norm() for k in range(len(x)) if k != i) / len(x)
        for j in range(len(x)):
            if i != j:
                d = (unit[i] - unit[j]).norm() / mean
                total = total + w[i, j] * d**2 + (1 - w[i, j]) * max(margin - d, 0) ** 2
    return total / len(x)


def related(x: Tensor, w: Tensor, temperature: float) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    total = x.new_zeros(())
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        q = w[i, others] / w[i, others].sum()
        p = (unit[others] @ unit[i] / temperature).exp()
        total = total + (q * (q / (p / p.sum())).log()).sum()
    return total / len(x)


@pytest.mark.parametrize("value", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("loss", "definition"), [(RelaxedContrastiveLoss, relaxed), (RelatedNeighborsLoss, related)]
)
def test_agrees_with_the_definition(loss: type, definition: object, value: float) -> None:
    x, w = torch.randn(7, 3).double(), torch.rand(7, 7).double()
    torch.testing.assert_close(loss(value)(x, w), definition(x, w, value))  # type: ignore[operator]
    diagonals = [loss(value)(x, w.clone().fill_diagonal_(own)) for own in (0.0, 1.0)]
    torch.testing.assert_close(*diagonals)


LOSSES = [RelaxedContrastiveLoss(1.2), RelatedNeighborsLoss(0.5)]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss: nn.Module) -> None:
    x, w = torch.randn(6, 4).double().requires_grad_(), torch.rand(6, 6).double()
    assert torch.autograd.gradcheck(loss, (x, w))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("relation", [0.0, 0.5, 1.0])
def test_copies_and_strangers_have_a_gradient(loss: nn.Module, relation: float) -> None:
    x = torch.cat([torch.ones(2, 4), torch.eye(4)]).requires_grad_()
    loss(x, torch.full((6, 6), relation)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
