"""What bgl is measured against: the same results from a careful author, a library or a formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCNConv, SimpleConv

Statistics = tuple[Tensor, Tensor, Tensor]  # mean [K, D], variance [K, D], count [K]
FloatArray = NDArray[np.floating]


def dybgr(x: Tensor, y: Tensor, k: int, iterations: int, formula: bool = False) -> Tensor:
    """DyBGR's graph and features, refined in turn, on N × N matrices.

    As a careful author has it: ``topk``, and the weights scattered to a matrix. With ``formula``
    as in the authors' code: every row sorted, and a sum over the neighbours' features [N, k, C].
    """
    lam, beta, epsilon = 0.3, 0.5, 0.5
    eye = torch.eye(len(x), dtype=x.dtype)
    same = (y[:, None] == y[None, :]).to(x.dtype) + eye
    correlation = same / same.sum(1, keepdim=True)
    gram = x @ x.T
    square = gram.diagonal()
    distance = (square[:, None] + square[None, :] - 2 * gram).clamp(min=1e-12).sqrt()
    cost = row_min_max(distance - 2 * beta * correlation - 1e-5 * row_min_max(gram))

    cost = cost + 1e6 * eye  # itself comes last
    ordered, order = cost.sort(dim=1) if formula else cost.topk(k + 1, dim=1, largest=False)
    near, neighbor, next_one = ordered[:, :k], order[:, :k], ordered[:, k]
    gamma = (0.5 * (k * next_one - near.sum(1))).mean()
    eta = (1 + near.sum(1) / (2 * gamma)) / k
    out = x
    for _ in range(iterations):
        context = row_min_max(out @ out.T).gather(1, neighbor)
        weight = (eta[:, None] - (near - lam * context) / (2 * gamma)).relu()
        if formula:
            mixed = (weight[:, :, None] * x[neighbor]).sum(1)
        else:
            mixed = torch.zeros_like(cost).scatter(1, neighbor, weight) @ x
        out = epsilon * mixed + (1 - epsilon) * x
    return out


def row_min_max(matrix: Tensor) -> Tensor:
    """(value − min) / (max − min), row by row."""
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    return (matrix - low) / (high - low)


def bgformer(x: Tensor, y: Tensor, heads: int, k: int, block: Any) -> Tensor:
    """BGFormer's two branches, with its layers: dense top-k attention, dense label graph."""
    n, channels = x.shape
    query, key, values = (
        block.visual.qkv(x).view(n, 3, heads, channels // heads).permute(1, 2, 0, 3)
    )
    scores = query @ key.transpose(1, 2) / math.sqrt(channels // heads)
    strongest, index = scores.topk(k, dim=2)
    attention = torch.zeros_like(scores).scatter(2, index, strongest.softmax(2))
    visual = block.visual.proj((attention @ values).transpose(0, 1).reshape(n, channels))

    adjacency = (y[:, None] == y[None, :]).to(x.dtype) + torch.eye(n, dtype=x.dtype)
    scale = adjacency.sum(1).rsqrt()
    values = (scale[:, None] * adjacency * scale[None, :]) @ block.semantic.value(x)
    return 0.5 * visual + 0.5 * block.semantic.proj(values)


def mobius_distance(x: Tensor, y: Tensor, c: float) -> Tensor:
    """Distances in the Poincaré ball of all pairs, through the points (−x) ⊕ y [..., D]."""
    x, y = -x[:, None, :], y[None, :, :]
    dot = (x * y).sum(-1, keepdim=True)
    x2, y2 = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    numerator = (1 + 2 * c * dot + c * y2) * x + (1 - c * x2) * y
    difference = numerator / (1 + 2 * c * dot + c**2 * x2 * y2 + 1e-5)
    ratio = (math.sqrt(c) * difference.norm(dim=-1)).clamp(max=1 - 1e-5)
    return 2 / math.sqrt(c) * ratio.atanh()


def pairwise_loss(z: Tensor, per_class: int, c: float, temperature: float) -> Tensor:
    """Hyp-ViT's loss, one pair of samples after the other, as in its code; z sorted by class."""
    z = z.view(-1, per_class, z.size(1))
    itself = torch.eye(len(z), dtype=torch.bool)
    target = torch.arange(len(z))
    total = z.new_zeros(())
    for i in range(per_class):
        for j in range(per_class):
            if i != j:
                positive = -mobius_distance(z[:, i], z[:, j], c) / temperature
                other = -mobius_distance(z[:, i], z[:, i], c) / temperature
                logits = torch.cat([positive, other.masked_fill(itself, -torch.inf)], dim=1)
                total = total + F.cross_entropy(logits, target)
    return total


def pairwise_loss_at_once(z: Tensor, per_class: int, c: float, temperature: float) -> Tensor:
    """The same from one matrix of all distances, which follow from inner products."""
    gram = z @ z.T
    square = gram.diagonal()
    x2, y2 = square[:, None], square[None, :]
    a, b = 1 - 2 * c * gram + c * y2, 1 - c * x2
    norm = (a * a * x2 - 2 * a * b * gram + b * b * y2).clamp(min=1e-12).sqrt()
    ratio = math.sqrt(c) * norm / (1 - 2 * c * gram + c**2 * x2 * y2 + 1e-5)
    distance = 2 / math.sqrt(c) * ratio.clamp(max=1 - 1e-5).atanh()

    logits = (-distance / temperature).view(-1, per_class, len(z) // per_class, per_class)
    logits = logits.permute(1, 3, 0, 2)  # [P, P, K, K]
    own = logits.diagonal(dim1=0, dim2=1).permute(2, 0, 1)  # [P, K, K]
    itself = torch.eye(own.size(1), dtype=torch.bool)
    negative = own.masked_fill(itself, -torch.inf).logsumexp(2)
    loss = torch.logaddexp(logits.logsumexp(3), negative[:, None])
    loss = loss - logits.diagonal(dim1=2, dim2=3)
    return (loss.sum() - loss.diagonal(dim1=0, dim2=1).sum()) / loss.size(2)


def index_add_statistics(old: Statistics, z: Tensor, y: Tensor, momentum: float) -> Statistics:
    """IAA's running statistics by sums over the samples of each class."""
    mean, variance, count = old
    n = torch.bincount(y, minlength=len(mean))
    size = n.clamp(min=1)[:, None]
    batch_mean = torch.zeros_like(mean).index_add_(0, y, z) / size
    squares = torch.zeros_like(mean).index_add_(0, y, (z - batch_mean[y]).square())
    share = torch.where(n > 0, (n / (n + count).clamp(min=1)).clamp(min=1 - momentum), 0)
    mean, variance = _blend(mean, variance, batch_mean, squares / size, share.to(z.dtype)[:, None])
    return mean, variance, count + n


def loop_statistics(old: Statistics, z: Tensor, y: Tensor, momentum: float) -> Statistics:
    """IAA's running statistics, one class after the other."""
    mean, variance, count = (value.clone() for value in old)
    for label in range(len(mean)):
        own = z[y == label]
        if len(own) > 0:
            share = max(len(own) / (len(own) + int(count[label])), 1 - momentum)
            mean[label], variance[label] = _blend(
                mean[label], variance[label], own.mean(0), own.var(0, unbiased=False), share
            )
            count[label] += len(own)
    return mean, variance, count


def _blend(
    mean: Tensor, variance: Tensor, new_mean: Tensor, new_variance: Tensor, share: Tensor | float
) -> tuple[Tensor, Tensor]:
    drift = share * (1 - share) * (mean - new_mean).square()
    variance = (1 - share) * variance + share * new_variance + drift
    return (1 - share) * mean + share * new_mean, variance


def neighbor_correction(
    mean: FloatArray, variance: FloatArray, count: NDArray[np.integer]
) -> FloatArray:
    """IAA's neighbor correction (Eq. 9-16), one class after the other; two samples or more each."""
    neighbors, beta, gamma, max_count, sigma = 25, 0.1, 0.1, 40, 1.0
    corrected = variance.copy()
    overall = (count[:, None] * variance).sum(0) / count.sum()
    for k in range(len(mean)):
        if count[k] > max_count:
            continue
        mean_distance = np.sqrt(((mean**2 - mean[k] ** 2) ** 2).sum(1))
        mean_distance[k] = np.inf
        chosen = np.argsort(mean_distance)[:neighbors]
        variance_distance = np.sqrt(((variance[chosen] - variance[k]) ** 2).sum(1))
        logits = np.log(count[chosen]) - (mean_distance[chosen] ** 2 + variance_distance**2) / (
            2 * sigma**2
        )
        weight = np.exp(logits - logits.max())
        borrowed = (weight[:, None] * variance[chosen]).sum(0) / weight.sum()
        alpha = 1 / (1 + np.log(1 + beta * (count[k] - 1)))
        corrected[k] = (1 - alpha) * variance[k] + alpha * (
            gamma * overall + (1 - gamma) * borrowed
        )
    return corrected


def augmented_multi_similarity(
    z: Tensor, y: Tensor, deviation: Tensor, strength: float, noise: Tensor
) -> Tensor:
    """IAA's multi-similarity loss (Eq. 17 and 20), one anchor after the other.

    ``deviation`` [N, D] is the standard deviation of each sample's class, ``noise`` [M, N, D].
    """
    alpha, beta, base, epsilon = 2.0, 40.0, 0.5, 0.1
    copies = z + math.sqrt(strength) * deviation * noise
    candidates = F.normalize(torch.cat([z[None], copies]), dim=2)
    total = z.new_zeros(())
    for i in range(len(z)):
        similarity = candidates @ F.normalize(z[i], dim=0)  # [1 + M, N]
        own = torch.arange(len(z)) == i
        positive = similarity[:, (y == y[i]) & ~own].flatten()
        negative = similarity[:, y != y[i]].flatten()
        hard_positive = positive[positive - epsilon < negative.max()]
        hard_negative = negative[negative + epsilon > positive.min()]
        total = total + torch.log1p((-alpha * (hard_positive - base)).exp().sum()) / alpha
        total = total + torch.log1p((beta * (hard_negative - base)).exp().sum()) / beta
    return total / len(z)


def hyperbolic_row_loop(x: Tensor, y: Tensor, k: Sequence[int], c: float) -> dict[str, Tensor]:
    """Retrieval metrics from the distances and the full ranking of one query after the other."""
    depth = max(*k, int(torch.bincount(y).max()))
    hits = []
    for i in range(len(x)):
        distance = mobius_distance(x[i : i + 1], x, c)[0]
        distance[i] = torch.inf
        hits.append(y[distance.argsort()[:depth]] == y[i])
    return ranking_metrics(torch.stack(hits).numpy(), y.numpy(), k)


def faiss_metrics(x: Tensor, y: Tensor, k: Sequence[int]) -> dict[str, Tensor]:
    """Retrieval metrics by cosine, from faiss's exact search."""
    import faiss

    points = F.normalize(x).numpy().astype(np.float32)
    labels = y.numpy()
    depth = max(*k, int(np.bincount(labels).max()) - 1)
    index = faiss.IndexFlatIP(points.shape[1])
    index.add(points)
    _, found = index.search(points, depth + 1)
    others = found != np.arange(len(points))[:, None]
    others[others.all(1), -1] = False  # itself was not found: one too many
    found = found[others].reshape(len(points), depth)
    return ranking_metrics(labels[found] == labels[:, None], labels, k)


def topk_metrics(x: Tensor, y: Tensor, k: Sequence[int]) -> dict[str, Tensor]:
    """Retrieval metrics by cosine, from products of 1,000 queries at a time and ``topk``."""
    points = F.normalize(x)
    depth = max(*k, int(torch.bincount(y).max()) - 1)
    hits = []
    for first in range(0, len(x), 1000):
        similarity = points[first : first + 1000] @ points.T
        queries = torch.arange(len(similarity))
        similarity[queries, first + queries] = -torch.inf
        found = similarity.topk(depth, dim=1).indices
        hits.append(y[found] == y[first + queries, None])
    return ranking_metrics(torch.cat(hits).numpy(), y.numpy(), k)


def ranking_metrics(
    hits: NDArray[np.bool_], labels: NDArray[np.integer], k: Sequence[int]
) -> dict[str, Tensor]:
    """Recall@K, MAP@R and R-precision from the hits [N, depth] in ranked order."""
    relevant = np.bincount(labels)[labels] - 1
    hits, relevant = hits[relevant > 0], relevant[relevant > 0]
    rank = np.arange(1, hits.shape[1] + 1)
    within = hits & (rank <= relevant[:, None])
    precision = hits.cumsum(1) / rank
    values = {f"recall@{cutoff}": hits[:, :cutoff].any(1).mean() for cutoff in k}
    values["map@r"] = ((precision * within).sum(1) / relevant).mean()
    values["r_precision"] = (within.sum(1) / relevant).mean()
    return {name: torch.tensor(float(value)) for name, value in values.items()}


def accuracy_calculator_metrics(x: Tensor, y: Tensor, k: str | None) -> dict[str, Tensor]:
    """Retrieval metrics by cosine from pytorch-metric-learning, over a search ``k`` deep."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {
        "precision_at_1": "recall@1",
        "mean_average_precision_at_r": "map@r",
        "r_precision": "r_precision",
    }
    calculator = AccuracyCalculator(include=tuple(names), k=k, device=torch.device("cpu"))
    values = calculator.get_accuracy(F.normalize(x), y)
    return {names[name]: torch.tensor(float(value)) for name, value in values.items()}


def in_block(x: Tensor, mix: Callable[[Tensor], Tensor], block: Any) -> Tensor:
    """A pre-norm transformer block around ``mix``, with the layers of ``block``."""
    x = x + mix(block.norm1(x))
    return x + block.mlp(block.norm2(x))


def sparse_sum(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j as a product with a CSR matrix; edges are sorted by target and source."""
    source, target = edge_index
    ends = torch.bincount(target, minlength=len(x)).cumsum(0)
    matrix = torch.sparse_csr_tensor(F.pad(ends, (1, 0)), source, weight, (len(x), len(x)))
    return matrix @ x


def scatter_sum(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j as a product with an N × N matrix."""
    source, target = edge_index
    matrix = x.new_zeros(len(x), len(x)).index_put((target, source), weight)
    return matrix @ x


def simple_sum(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j by PyG's ``SimpleConv``."""
    return SimpleConv(aggr="sum")(x, edge_index, weight)


def gcn_sum(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """Σ_j a_ij x_j by PyG's ``GCNConv`` on an ``EdgeIndex``, without its linear layer."""
    conv = GCNConv(x.size(1), x.size(1), normalize=False, bias=False)
    conv.lin = nn.Identity()
    edges = EdgeIndex(edge_index, sparse_size=(len(x), len(x)), sort_order="col")
    return conv(x, edges, weight)


def nearest_by_graph(x: Tensor, sizes: Sequence[int], k: int) -> Tensor:
    """The k nearest nodes of each node's own graph, one graph after the other, as edges."""
    edges, first = [], 0
    for part in x.split(list(sizes)):
        distance = torch.cdist(part, part)
        distance.fill_diagonal_(torch.inf)
        source = distance.topk(k, dim=1, largest=False).indices.flatten()
        target = torch.arange(len(part)).repeat_interleave(k)
        edges.append(first + torch.stack([source, target]))
        first += len(part)
    return torch.cat(edges, dim=1)


def open_metric_learning_recall(x: Tensor, y: Tensor, k: Sequence[int]) -> dict[str, Tensor]:
    """Recall@K by cosine from open-metric-learning (its MAP@K is another measure than MAP@R)."""
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_retrieval_metrics

    ids = torch.arange(len(x))
    _, found, relevant = batched_knn(F.normalize(x), ids, ids, top_n=max(k), labels_gt=y)
    values = calc_retrieval_metrics(
        found, relevant, cmc_top_k=tuple(k), precision_top_k=(), map_top_k=(), verbose=False
    )
    return {f"recall@{cutoff}": values["cmc"][cutoff] for cutoff in k}


def torchmetrics_recall(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Recall@1 and R-precision by cosine from torchmetrics, which takes every pair as a line."""
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalRPrecision

    points = F.normalize(x)
    other = ~torch.eye(len(x), dtype=torch.bool)
    similarity, relevant = (points @ points.T)[other], (y[:, None] == y)[other]
    query = torch.arange(len(x)).repeat_interleave(len(x) - 1)
    metrics = {"recall@1": RetrievalHitRate(top_k=1), "r_precision": RetrievalRPrecision()}
    return {name: metric(similarity, relevant, query) for name, metric in metrics.items()}
