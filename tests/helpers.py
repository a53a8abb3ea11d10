"""Comparisons shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, tol: float = 1e-8) -> None:
    """Equal to ``tol`` relative to the largest expected magnitude (1e-8: the golden tolerance)."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol * scale)
