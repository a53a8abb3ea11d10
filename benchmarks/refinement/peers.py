"""Re-ranking without labels as usual, as peers of ``bgl.refine``.

Each takes the gallery [N, C], whose items are the queries too, and gives a :data:`Ranking`: the
scores of some items against all, smaller for nearer ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from bgl import refine
from bgl.metrics import retrieval_metrics

Ranking = Callable[[Tensor], Tensor]  # item numbers [R] -> scores [R, N]
BLOCK = 256  # items at a time


def plain(x: Tensor) -> Ranking:
    """Cosine."""
    return _cosine(normalize(x), normalize(x))


def refined(x: Tensor, k: int, epsilon: float = 0.5, shrinkage: float | None = None) -> Ranking:
    """``bgl.refine``; by default without its metric."""
    result = refine(x, k=k, epsilon=epsilon, shrinkage=shrinkage)
    return _cosine(result, result)


def query_expansion(x: Tensor, k: int, alpha: float = 0.0) -> Ranking:
    """Each query becomes the mean of itself and its ``k`` nearest, weighted by cosine^α.

    α = 0: average query expansion (Chum et al., ICCV 2007); α > 0: α-weighted (Radenović et al.,
    TPAMI 2018).
    """
    x = normalize(x)
    return _cosine(_expand(x, k, alpha), x)


def database_augmentation(x: Tensor, k: int, alpha: float = 0.0) -> Ranking:
    """Every gallery item is expanded, the queries among them (Turcot and Lowe, ICCV-W 2009)."""
    expanded = _expand(normalize(x), k, alpha)
    return _cosine(expanded, expanded)


def k_reciprocal(x: Tensor, k1: int = 20, k2: int = 6, lam: float = 0.3) -> Ranking:
    """Jaccard distance of k-reciprocal neighbour sets (Zhong et al., CVPR 2017).

    With d the squared distance, scaled by each item's largest: the sets R(i, k1) of mutual
    neighbours grow by R(j, k1/2) of members j that lie in them by more than two thirds; an item
    is described by weights exp(−d) over its set, averaged over its k2 nearest; the result is
    (1 − λ) Jaccard + λ d. Sets are sparse here, so that memory does not grow with N².
    """
    x = normalize(x)
    n = len(x)
    near, largest = _nearest(x, max(k1 + 1, k2))

    def mutual(k: int) -> sparse.csr_matrix:
        chosen = _rows(near[:, : k + 1])
        return chosen.multiply(chosen.T).tocsr()

    wide, narrow = mutual(k1), mutual(round(k1 / 2))
    shared = wide.multiply(wide @ narrow.T).tocoo()
    size = np.asarray(narrow.sum(1)).ravel()
    inside = shared.data > 2 / 3 * size[shared.col]
    members = sparse.csr_matrix(
        (np.ones(inside.sum(), np.float32), (shared.row[inside], shared.col[inside])), (n, n)
    )
    weights = (wide + members @ narrow).tocoo()
    row, column = torch.from_numpy(weights.row).long(), torch.from_numpy(weights.col).long()
    dots = torch.cat(
        [(x[i] * x[j]).sum(1) for i, j in zip(row.split(2**15), column.split(2**15), strict=True)]
    )
    distance = (2 - 2 * dots).clamp(min=0) / largest[row]
    weights.data = (-distance).exp().numpy()
    described = weights.tocsr()
    described = sparse.diags(1 / np.asarray(described.sum(1)).ravel()) @ described
    described = (_rows(near[:, :k2]) @ described / k2).tocsr()
    holders = described.T.tocsr()

    def score(items: Tensor) -> Tensor:
        distance = (2 - 2 * x[items] @ x.t()).clamp(min=0) / largest[items, None]
        overlap = np.zeros((len(items), n), np.float32)
        for line, i in zip(overlap, items.tolist(), strict=True):
            part = slice(described.indptr[i], described.indptr[i + 1])
            for node, weight in zip(described.indices[part], described.data[part], strict=True):
                held = slice(holders.indptr[node], holders.indptr[node + 1])
                line[holders.indices[held]] += np.minimum(weight, holders.data[held])
        jaccard = 1 - torch.from_numpy(overlap / (2 - overlap))
        return (1 - lam) * jaccard + lam * distance

    return score


def whitened(x: Tensor, shrinkage: float) -> Tensor:
    """PCA whitening (Jégou and Chum, ECCV 2012), shrunk as in ``bgl.refine``."""
    x = normalize(x)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    values = values.clamp(min=0)
    spread = values + shrinkage * values.square().sum() / values.sum()
    return normalize(x @ vectors * spread.rsqrt())


def whitening(x: Tensor, shrinkage: float) -> Ranking:
    """Cosine of whitened embeddings."""
    return plain(whitened(x, shrinkage))


def whitened_k_reciprocal(
    x: Tensor, k1: int, k2: int, shrinkage: float, lam: float = 0.3
) -> Ranking:
    """:func:`k_reciprocal` on whitened embeddings."""
    return k_reciprocal(whitened(x, shrinkage), k1, k2, lam)


def diffusion(x: Tensor, k: int, alpha: float = 0.9, gamma: float = 3.0) -> Ranking:
    """Random walks with restart on the graph of mutual neighbours (Iscen et al., CVPR 2017).

    With W the cosines^γ of mutual ``k`` nearest neighbours and S = D^(−1/2) W D^(−1/2), an item's
    scores are its row of (I − αS)^(−1); what a walk never reaches follows by cosine. Memory grows
    with N².
    """
    x = normalize(x)
    near = _nearest(x, k + 1)[0][:, 1:]
    chosen = torch.zeros(len(x), len(x), dtype=torch.bool).scatter_(1, near, True)
    cosine = x @ x.t()
    weight = (cosine.clamp(min=0) ** gamma).where(chosen & chosen.t(), 0)
    root = weight.sum(1).clamp(min=1e-12).rsqrt()
    walk = torch.eye(len(x), dtype=x.dtype) - alpha * root[:, None] * weight * root
    reached = torch.linalg.inv(walk)
    return lambda items: -(reached[items] + 1e-6 * cosine[items])


def ranking_metrics(
    ranking: Ranking, labels: Tensor, k: tuple[int, ...] = (1, 2, 4, 8)
) -> dict[str, float]:
    """:func:`bgl.metrics.retrieval_metrics` of a ranking, every item but itself its gallery."""
    items = torch.arange(len(labels), dtype=torch.float64)[:, None]
    return retrieval_metrics(
        items, labels, k=k, distance=lambda queries, _: ranking(queries[:, 0].long()).double()
    )


def _cosine(queries: Tensor, gallery: Tensor) -> Ranking:
    return lambda items: -queries[items] @ gallery.t()


def _nearest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each item's nearest [N, count], itself first, and its largest squared distance [N]."""
    near, largest = [], []
    for first in range(0, len(x), BLOCK):
        dots = x[first : first + BLOCK] @ x.t()
        own = torch.arange(len(dots))
        largest.append(2 - 2 * dots.amin(1))
        dots[own, first + own] = torch.inf
        near.append(dots.topk(count, dim=1).indices)
    return torch.cat(near), torch.cat(largest)


def _expand(x: Tensor, k: int, alpha: float) -> Tensor:
    near, _ = _nearest(x, k + 1)
    parts = zip(x.split(BLOCK), near.split(BLOCK), strict=True)
    dots = torch.cat([torch.einsum("rc,rpc->rp", rows, x[nodes]) for rows, nodes in parts])
    weight = dots.clamp(min=0) ** alpha
    return normalize(embedding_bag(near, x, per_sample_weights=weight, mode="sum"))


def _rows(nodes: Tensor) -> sparse.csr_matrix:
    """The matrix [N, N] with ones at each row's nodes."""
    n, k = nodes.shape
    ones = np.ones(n * k, np.float32)
    return sparse.csr_matrix((ones, nodes.flatten().numpy(), np.arange(0, n * k + 1, k)), (n, n))
