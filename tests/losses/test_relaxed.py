"""The relaxed contrastive loss against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgl.losses import RelaxedContrastiveLoss


def by_definition(x: Tensor, w: Tensor, margin: float) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    total = x.new_zeros(())
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                d = (unit[i] - unit[j]).norm()
                total = total + w[i, j] * d**2 + (1 - w[i, j]) * max(margin - d, 0) ** 2
    return total / len(x)


@pytest.mark.parametrize("margin", [0.5, 1.0, 1.7])
def test_agrees_with_the_definition(margin: float) -> None:
    x, w = torch.randn(7, 3).double(), torch.rand(7, 7).double()
    loss = RelaxedContrastiveLoss(margin)
    torch.testing.assert_close(loss(x, w), by_definition(x, w, margin))
    diagonals = [loss(x, w.clone().fill_diagonal_(value)) for value in (0.0, 1.0)]
    torch.testing.assert_close(*diagonals)


def test_gradients() -> None:
    x, w = torch.randn(6, 4).double().requires_grad_(), torch.rand(6, 6).double()
    assert torch.autograd.gradcheck(RelaxedContrastiveLoss(1.2), (x, w))


def test_copies_have_a_gradient() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    RelaxedContrastiveLoss()(x, torch.tensor([[1.0, 0.5, 0.0]] * 3)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    x, w = torch.randn(6, 4).bfloat16(), torch.rand(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = RelaxedContrastiveLoss()(x, w)
    assert torch.equal(loss, RelaxedContrastiveLoss()(x.float(), w))


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (torch.ones(3), torch.ones(3, 3), "`embeddings` to be a floating-point tensor"),
        (
            torch.ones(3, 2),
            torch.ones(2, 2),
            "`relations` to have a row and a column for",
        ),
        (torch.ones(3, 2), torch.ones(3, 3, dtype=torch.long), "`relations` to be a floating"),
    ],
)
def test_bad_input(x: Tensor, w: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelaxedContrastiveLoss()(x, w)


def test_a_margin_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match="`margin`"):
        RelaxedContrastiveLoss(0.0)
