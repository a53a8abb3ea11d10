"""Factors whose largest inner products are the nearest images."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from bgl.hyperbolic import rank_factors


def entry_factors(x: Tensor, curvature: float | None) -> Tensor:
    """Factors of images in an index [N, W]."""
    return normalize(x.float()) if curvature is None else rank_factors(x.float(), c=curvature)[1]


def query_factors(x: Tensor, curvature: float | None) -> Tensor:
    """Factors of queries [Q, W]."""
    return normalize(x.float()) if curvature is None else -rank_factors(x.float(), c=curvature)[0]
