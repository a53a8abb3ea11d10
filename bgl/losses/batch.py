"""What the losses share that compare all samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bgl._checks import check_index_vector, check_matrix, describe
from bgl._precision import at_least_float32, exact_matmul


class WholeBatchLoss(nn.Module):
    """Base of losses of embeddings and labels alone, called as pytorch-metric-learning's are.

    Subclasses implement :meth:`compute`, and say in ``REASON`` why they take no pairs.
    """

    REASON: str

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        """Compute the loss of ``embeddings`` [N, C] with ``labels`` [N]; the rest must be None."""
        more = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        for name, value in more.items():
            if value is not None:
                raise ValueError(f"Expected argument `{name}` to be None: {self.REASON}")
        check_matrix(embeddings, "embeddings", "[N, D]")
        check_index_vector(labels, embeddings.size(0), "labels")
        return self.compute(embeddings, labels)

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch that was checked."""
        raise NotImplementedError


def cosines(embeddings: Tensor) -> Tensor:
    """Compute the cosines of all pairs [N, N] of embeddings [N, D], in at least float32."""
    check_matrix(embeddings, "embeddings", "[N, D]")
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = normalize(at_least_float32(embeddings), dim=1)
        return exact_matmul(unit, unit.t())


def check_pairs(x: Tensor, name: str, n: int) -> None:
    """Raise unless ``x`` has a number for each pair of ``n`` samples."""
    check_matrix(x, name, "[N, N]")
    if x.shape != (n, n):
        raise ValueError(
            f"Expected argument `{name}` to have a row and a column for each of {n} samples, but "
            f"got {describe(x)}"
        )
