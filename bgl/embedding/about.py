"""Whose embeddings a folder or an index holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bgl._checks import check_choice, check_int
from bgl.hyperbolic import HyperbolicDistance
from bgl.models.config import EMBEDDINGS


@dataclass(frozen=True)
class About:
    """Whose embeddings these are.

    Attributes:
        run: Where the model was, as :func:`bgl.models.load` takes it.
        model: The model's digest, :func:`bgl.models.model_digest`.
        output: Which of its embeddings this is: "readout", "backbone" or "head".
        curvature: Curvature of the ball that the embeddings lie on; None: compare by cosine.
        dim: Dimension of the vectors.

    Raises:
        TypeError, ValueError: If it is no such description.
    """

    run: str
    model: str
    output: str
    curvature: float | None
    dim: int

    def __post_init__(self) -> None:
        for name in ("run", "model"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"`{name}` is no text")
        check_choice(self.output, "output", EMBEDDINGS)
        check_int(self.dim, "dim", 1)

    @property
    def distance(self) -> Any:
        """How to compare the vectors, as :func:`bgl.metrics.retrieval_metrics` takes it."""
        return "cosine" if self.curvature is None else HyperbolicDistance(self.curvature)
