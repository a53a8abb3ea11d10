"""Refining embeddings without labels."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from helpers import clusters
from torch import Tensor
from torch.nn.functional import normalize

from bgl import RefinedGallery, gallery_readout, refine
from bgl.layers import DyBGR
from bgl.metrics import retrieval_metrics


def by_definition(
    x: Tensor, k: int, epsilon: float, lam: float, iterations: int, rho: float | None
) -> Tensor:
    """The formulas one item after the other, every other item a candidate."""

    def graph(h: np.ndarray, f: np.ndarray) -> np.ndarray:
        f = f / np.linalg.norm(f, axis=1, keepdims=True)
        weights = np.zeros((len(h), len(h)))
        for i in range(len(h)):
            cost = ((h - h[i]) ** 2).sum(1) - lam * f @ f[i]
            cost[i] = np.inf
            order = np.argsort(cost)
            gap = cost[order[k]] - cost[order[:k]]
            weights[i, order[:k]] = gap / gap.sum()
        return weights

    def inverse_root(w: np.ndarray) -> np.ndarray:
        s = rho * np.trace(w @ w) / np.trace(w)
        values, vectors = np.linalg.eigh(w + s * np.eye(len(w)))
        return vectors @ np.diag(values**-0.5) @ vectors.T

    h = normalize(x).numpy()
    if rho is not None:
        centred = h - h.mean(0)
        root = inverse_root(np.cov(h.T, bias=True))
        z = normalize(torch.from_numpy(centred @ root)).numpy()
        weights = graph(z, z)
        w = sum(
            weights[i, j] * np.outer(z[i] - z[j], z[i] - z[j])
            for i in range(len(h))
            for j in range(len(h))
        )
        h = normalize(torch.from_numpy(centred @ root @ inverse_root(w / len(h)))).numpy()
    f = h
    for _ in range(iterations):
        f = epsilon * graph(h, f) @ h + (1 - epsilon) * h
    return normalize(torch.from_numpy(f))


@pytest.mark.parametrize("rho", [None, 0.1, 1.0])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_agrees_with_the_definition(rho: float | None, iterations: int) -> None:
    x = clusters()
    gallery = RefinedGallery(x, 5, 0.4, 0.3, iterations, rho, candidates=len(x) - 1)
    expected = by_definition(x, 5, 0.4, 0.3, iterations, rho)
    torch.testing.assert_close(gallery.embeddings, expected)


def test_without_metric_it_is_dybgr_without_labels() -> None:
    x = clusters()
    layer = DyBGR(4, 3, 0.3, 0.0, 0.6, "paper")
    result = refine(x, k=4, epsilon=0.6, shrinkage=None, candidates=len(x) - 1)
    torch.testing.assert_close(result, normalize(layer(normalize(x))))


def test_candidates_are_the_nearest_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters()
    similarity = normalize(x) @ normalize(x).t()
    expected = similarity.fill_diagonal_(-1).topk(8).indices
    for rows, scores in ((256, 2**23), (7, 7 * len(x)), (5, 60), (1, 1)):
        monkeypatch.setattr("bgl._sizes._SCORED_ROWS", rows)
        monkeypatch.setattr("bgl._sizes._CPU_SCORES", scores)
        assert torch.equal(RefinedGallery(x, 4, candidates=8)._near, expected)


def test_precision_rises_on_noisy_clusters() -> None:
    x = clusters(classes=30, size=8, channels=24, noise=0.9)
    x[:, :4] += 2 * torch.randn(240, 4)  # says nothing about the class
    y = torch.arange(30).repeat_interleave(8)
    plain = retrieval_metrics(x, y)["map@r"]
    cosine = retrieval_metrics(refine(x, k=7, shrinkage=None), y)["map@r"]
    assert cosine > plain + 0.02
    assert retrieval_metrics(refine(x, k=7), y)["map@r"] > cosine + 0.02


@pytest.mark.parametrize("shrinkage", [None, 0.1])
def test_turns_with_the_embeddings_and_ignores_their_length(shrinkage: float | None) -> None:
    x = clusters()
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    length = torch.logspace(-200, 150, len(x), dtype=torch.float64)[:, None]
    expected = refine(x, k=5, shrinkage=shrinkage)
    torch.testing.assert_close(refine(x * length, k=5, shrinkage=shrinkage), expected)
    torch.testing.assert_close(refine(x @ turn, k=5, shrinkage=shrinkage), expected @ turn)
    order = torch.randperm(len(x))
    torch.testing.assert_close(refine(x[order], k=5, shrinkage=shrinkage), expected[order])


def test_nothing_to_do() -> None:
    x = clusters()
    torch.testing.assert_close(refine(x, k=5, epsilon=0.0, shrinkage=None), normalize(x))
    torch.testing.assert_close(refine(x, k=5, num_iterations=0, shrinkage=None), normalize(x))


@pytest.mark.parametrize("shrinkage", [None, 0.1])
def test_a_query_does_not_depend_on_others(shrinkage: float | None) -> None:
    x = clusters()
    gallery, queries = RefinedGallery(x[:60], 5, shrinkage=shrinkage), x[60:]
    embeddings = gallery.embeddings.clone()
    together = gallery.refine(queries)
    alone = torch.cat([gallery.refine(query[None]) for query in queries])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gallery.refine(queries.flip(0)).flip(0), together)
    assert torch.equal(gallery.embeddings, embeddings)
    assert gallery.refine(queries[:0]).shape == (0, 16)
    first, second = refine(x[:60], queries, k=5, shrinkage=shrinkage)
    assert torch.equal(first, embeddings)
    assert torch.equal(second, together)


def test_a_query_is_mixed_with_gallery_items_as_defined() -> None:
    x = clusters()
    gallery = RefinedGallery(x[:60], 5, epsilon=0.4, shrinkage=None, candidates=59)
    h, context = normalize(x[:60]), gallery.embeddings
    for query, result in zip(normalize(x[60:]), gallery.refine(x[60:]), strict=True):
        f = query
        for _ in range(3):
            cost = (h - query).square().sum(1) - 0.3 * context @ normalize(f, dim=0)
            near, order = cost.topk(6, largest=False)
            gap = near[5] - near[:5]
            f = 0.4 * (gap / gap.sum()) @ h[order[:5]] + 0.6 * query
        torch.testing.assert_close(result, normalize(f, dim=0))


def test_queries_are_mapped_by_the_metric_of_the_gallery() -> None:
    x = clusters()
    gallery = RefinedGallery(x, 5, epsilon=0.0, shrinkage=0.1)
    torch.testing.assert_close(gallery.refine(x), gallery.embeddings)


def test_the_metric_is_one_linear_map() -> None:
    x = clusters()
    gallery = RefinedGallery(x, 5, epsilon=0.0)
    assert gallery.metric is not None
    torch.testing.assert_close(normalize(gallery.metric(normalize(x))), gallery.embeddings)
    assert RefinedGallery(x, 5, shrinkage=None).metric is None


def test_a_readout_of_a_gallery_is_its_metric() -> None:
    x = clusters()
    unit = normalize(x)
    metric = RefinedGallery(unit, 5, shrinkage=0.3).metric
    assert metric is not None
    for scale in (1.0, 1e-4, 1e4):
        readout = gallery_readout(unit * scale, k=5, shrinkage=0.3)
        torch.testing.assert_close(readout(unit * scale), metric(unit))
    long = torch.rand(len(x), 1) + 0.5  # lengths count: the map is of embeddings as they are
    assert not torch.allclose(gallery_readout(x * long, k=5)(x), gallery_readout(x, k=5)(x))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (clusters()[:5], {"k": 5}, "smaller than the gallery, which has 5 rows, got 5"),
        (torch.zeros(9, 3), {"k": 2}, "to have a direction in every row"),
        (clusters(), {"shrinkage": 0.0}, "`shrinkage` to be a finite number"),
        (torch.ones(9), {}, "`x` to be a floating-point tensor of shape"),
    ],
)
def test_bad_input_of_a_readout(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gallery_readout(x, **options)


def far_apart() -> tuple[Tensor, Tensor]:
    """Two groups that never choose from each other, and more of the second."""
    x = clusters(2, 40, noise=0.3)
    return torch.cat([x[:40], x[40:70]]), x[70:]


@pytest.mark.parametrize("shrinkage", [None, 0.1])
def test_adding_leaves_what_is_far_away_as_it_is(shrinkage: float | None) -> None:
    x, items = far_apart()
    gallery = RefinedGallery(x, 5, shrinkage=shrinkage)
    before = gallery.embeddings
    copy = before.clone()
    gallery.add(items)
    assert torch.equal(gallery.embeddings[:40], copy[:40])
    assert not torch.equal(gallery.embeddings[40:70], copy[40:])
    assert torch.equal(before, copy)
    after = gallery.embeddings
    gallery.add(items[:0])
    assert gallery.embeddings is after


def test_adding_finds_the_candidates_of_the_whole() -> None:
    x = clusters(20, 8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    gallery = RefinedGallery(x[order[:120]], 5, shrinkage=None)
    for part in order[120:].split(15):
        gallery.add(x[part])
    whole = RefinedGallery(x[order], 5, shrinkage=None)
    assert torch.equal(gallery._near.sort(1).values, whole._near.sort(1).values)
    # what differs is the context of rows that were left alone
    similarity = (gallery.embeddings * whole.embeddings).sum(1)
    assert similarity.min() > 0.99
    without_context = RefinedGallery(x[order[:120]], 5, lam=0.0, shrinkage=None)
    without_context.add(x[order[120:]])
    torch.testing.assert_close(
        without_context.embeddings, refine(x[order], k=5, lam=0.0, shrinkage=None)
    )


def test_an_exact_index_finds_the_same() -> None:
    x = clusters().float()
    unit = normalize(x)
    for index in (faiss.IndexFlatIP(16), faiss.IndexFlatL2(16)):
        index.add(unit[:60].numpy())
        indexed, exact = RefinedGallery(x[:60], 5, index=index), RefinedGallery(x[:60], 5)
        torch.testing.assert_close(indexed.embeddings, exact.embeddings)
        torch.testing.assert_close(indexed.refine(x[60:]), exact.refine(x[60:]))
        for gallery in (indexed, exact):
            gallery.add(x[60:66])
        assert index.ntotal == 66
        torch.testing.assert_close(indexed.embeddings, exact.embeddings)
        torch.testing.assert_close(indexed.refine(x[66:]), exact.refine(x[66:]))


def test_an_approximate_index_may_find_too_few() -> None:
    x = clusters(40, 8).float()
    index = faiss.index_factory(16, "IVF40,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(normalize(x).numpy())
    index.add(normalize(x).numpy())
    gallery = RefinedGallery(x, 5, index=index)
    assert (gallery._near < 0).any()
    assert torch.isfinite(gallery.embeddings).all()
    exact = refine(x, k=5)
    assert (gallery.embeddings * exact).sum(1).median() > 0.9


def test_an_item_without_neighbours_stays_as_it_is() -> None:
    unit = normalize(clusters().float())

    class Forgetful:
        """Finds nothing near item 7 but itself."""

        def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            similarity, found = (torch.from_numpy(x) @ unit.t()).topk(k)
            found[found[:, 0] == 7, 1:] = -1
            return similarity.numpy(), found.numpy()

        def add(self, x: np.ndarray) -> None: ...

    gallery = RefinedGallery(unit, 5, epsilon=1.0, shrinkage=None, index=Forgetful())
    torch.testing.assert_close(gallery.embeddings[7], unit[7])
    assert not torch.isclose(gallery.embeddings[8], unit[8]).all()


@pytest.mark.parametrize("shrinkage", [None, 0.1])
def test_duplicates(shrinkage: float | None) -> None:
    same = torch.ones(30, 4)
    torch.testing.assert_close(refine(same, k=5, shrinkage=None), normalize(same))
    assert torch.isfinite(refine(same, k=5, shrinkage=shrinkage)).all()
    x = clusters().repeat(12, 1)  # more copies than candidates
    result = refine(x, k=2, shrinkage=shrinkage)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result, result[:72].repeat(12, 1))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("shrinkage", [None, 0.1])
def test_small_galleries(n: int, shrinkage: float | None) -> None:
    for k in range(1, n):
        result = refine(clusters()[:n], k=k, shrinkage=shrinkage)
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype: torch.dtype) -> None:
    x = clusters().to(dtype).requires_grad_()
    result = refine(x, k=5)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    assert not result.requires_grad
    torch.testing.assert_close(
        result, refine(x.double(), k=5), check_dtype=False, rtol=1e-3, atol=1e-3
    )


def index_of(x: Tensor) -> faiss.Index:
    index = faiss.IndexFlatIP(x.size(1))
    index.add(normalize(x.float()).numpy())
    return index


def spoiled(value: float) -> Tensor:
    x = clusters()
    x[7] = value
    return x


@pytest.mark.parametrize(
    ("gallery", "options", "message"),
    [
        (clusters()[:5], {"k": 5}, "`k` to be smaller than the gallery, which has 5 rows, got 5"),
        (clusters()[:0], {"k": 1}, "`k` to be smaller than the gallery, which has 0 rows"),
        (spoiled(0.0), {}, r"`gallery` to have a direction .* 1 row.s. of zeros.* index 7"),
        (spoiled(math.nan), {}, "`gallery` to be finite"),
        (spoiled(math.inf), {}, "`gallery` to be finite"),
        (clusters()[0], {}, r"`gallery` to be a floating-point tensor of shape \[N, C\]"),
        (clusters().long(), {}, "`gallery` to be a floating-point tensor"),
        (clusters(), {"k": 0}, "`k`"),
        (clusters(), {"epsilon": 1.5}, "`epsilon`"),
        (clusters(), {"lam": -1.0}, "`lam`"),
        (clusters(), {"num_iterations": -1}, "`num_iterations`"),
        (clusters(), {"shrinkage": 0.0}, "`shrinkage`"),
        (clusters(), {"k": 5, "candidates": 5}, "`candidates` to be an integer ≥ 6"),
        (clusters(), {"index": index_of(clusters()[:-1])}, "`index` .* with ntotal=71"),
        (clusters(), {"index": index_of(clusters()[:, :8])}, "`index` .* with d=8"),
        (clusters(), {"index": index_of(-clusters())}, "`index` to hold the rows of the gallery"),
        (clusters(), {"index": index_of(clusters().flip(0))}, "`index` .* in its order"),
        (clusters(), {"index": "flat"}, "`index` to have"),
    ],
)
def test_bad_input(gallery: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refine(gallery, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 15), r"to have as many columns as the gallery \(16\), but got 15"),
        (torch.zeros(1, 16), "to have a direction in every row"),
        (torch.full((1, 16), math.nan), "to be finite"),
        (torch.ones(16), "to be a floating-point tensor"),
    ],
)
def test_bad_queries_and_items(x: Tensor, message: str) -> None:
    gallery = RefinedGallery(clusters(), 5)
    before = gallery.embeddings
    with pytest.raises(ValueError, match=f"`queries` {message}"):
        gallery.refine(x)
    with pytest.raises(ValueError, match=f"`items` {message}"):
        gallery.add(x)
    assert gallery.embeddings is before


MEMORY = """
import torch
from pathlib import Path
from bgl import _sizes, refine

_sizes._CPU_SCORES = 2**23

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
x = torch.randn(20_000, 32)
refine(x[:500], k=5)  # load what is loaded lazily
before = kilobytes("VmRSS")
refine(x, k=5)
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow  # an interpreter of its own
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_square() -> None:
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY], capture_output=True, text=True, check=True
    )
    extra = int(output.stdout)
    n, channels, candidates = 20_000, 32, 20
    linear = 4 * n * (8 * channels + 8 * candidates) + 4 * (4 * 2**23)
    assert linear < n * n / 2  # half a byte for every pair
    assert 0 < extra < linear
