"""What tests of several parts share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bgl.training.comparison import METRICS


def assert_close(actual: Tensor, expected: Tensor, tol: float = 1e-8) -> None:
    """Equal to ``tol`` relative to the largest expected magnitude (1e-8: the golden tolerance)."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol * scale)


def result_row(method: str, seed: int | None, value: float, **more: Any) -> dict[str, Any]:
    """A row of results.json; without a seed that of an encoder that was not trained."""
    trained = {} if seed is None else {"epoch": 4, "seconds": 90.0, "loss": "pairwise-ce"}
    return {
        "method": method,
        "seed": seed,
        "embedding": "head",
        "metrics": dict.fromkeys(METRICS, value),
        **trained,
        **more,
    }
