"""retrieval_metrics against the reference arrays, a plain loop and pytorch-metric-learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor
from torch.nn.functional import normalize

from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall
from bgl.metrics import retrieval, retrieval_metrics

F64 = torch.float64
CUB_K, SOP_K, IN_SHOP_K = (1, 2, 4, 8, 16, 32), (1, 10, 100, 1000), (1, 10, 20, 30, 40, 50)


def recalls(result: dict[str, float], k: tuple[int, ...]) -> Tensor:
    return torch.tensor([result[f"recall@{cutoff}"] for cutoff in k], dtype=F64)


def loop_metrics(
    distances: Tensor, query_labels: Tensor, gallery_labels: Tensor, k: tuple[int, ...], own: bool
) -> dict[str, float]:
    """One query at a time, from a matrix of distances; ties by index."""
    per_query: list[list[float]] = []
    for i, row in enumerate(distances.tolist()):
        order = sorted((d, j) for j, d in enumerate(row) if not (own and i == j))
        hits = [bool(gallery_labels[j] == query_labels[i]) for _, j in order]
        r = sum(hits)
        if r == 0:
            continue
        precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(r)]
        map_at_r = sum(p for p, hit in zip(precisions, hits[:r], strict=True) if hit) / r
        per_query.append([*(float(any(hits[:c])) for c in k), map_at_r, sum(hits[:r]) / r])
    names = [f"recall@{c}" for c in k] + ["map@r", "r_precision"]
    means = torch.tensor(per_query, dtype=F64).mean(0).tolist()
    counts = {"num_queries": len(per_query), "num_excluded": len(distances) - len(per_query)}
    return dict(zip(names, means, strict=True)) | counts


# --- reference arrays --------------------------------------------------------------------------


# The reference takes x xᵀ for hyp_c = 0; the rows of those cases have unit norm, so it is cosine.
@pytest.mark.parametrize(
    ("case", "k", "distance"),
    [
        ("cub_cos_n80", CUB_K, "cosine"),
        ("cub_cos_n80", CUB_K, "euclidean"),
        ("cub_hyp_n120", CUB_K, HyperbolicDistance(c=0.1)),
        ("sop_cos_n1200", SOP_K, "cosine"),
    ],
    ids=["cub-cosine", "cub-euclidean", "cub-hyperbolic", "sop-cosine"],
)
def test_recall_equals_reference(golden, case, k, distance):
    arrays = golden(f"get_recall__{case}")
    result = retrieval_metrics(arrays["x"], arrays["labels"], k=k, distance=distance)
    assert_close(recalls(result, k), arrays["recall"])


@pytest.mark.parametrize(
    ("case", "distance"),
    [("cos", "cosine"), ("hyp", HyperbolicDistance(c=0.1))],
    ids=["cosine", "hyperbolic"],
)
def test_query_and_gallery_recall_equals_reference(golden, case, distance):
    a = golden(f"get_recall_inshop__{case}")
    result = retrieval_metrics(
        a["xq"], a["yq"], a["xg"], a["yg"], k=IN_SHOP_K, distance=distance, chunk_size=7
    )
    assert_close(recalls(result, IN_SHOP_K), a["recall"])
    assert result["num_excluded"] == 0


@pytest.mark.parametrize(("case", "k"), [("n60", (1, 2, 4, 8)), ("n90_unequal", (1, 10))])
def test_map_and_r_precision_equal_reference(golden, case, k):
    arrays = golden(f"iaa_recall__{case}")
    result = retrieval_metrics(arrays["x"], arrays["labels"], k=k)
    # The reference adds up its percentages in float32.
    assert_close(100 * recalls(result, k), arrays["recall"], tol=1e-6)
    actual = torch.tensor([result["map@r"], result["r_precision"]], dtype=F64)
    assert_close(100 * actual, arrays["map_rp"], tol=1e-6)


def test_set_smaller_than_k_is_no_error(golden):
    arrays = golden("get_recall__edge_n20")
    result = retrieval_metrics(arrays["x"], arrays["labels"], k=CUB_K)
    assert result["recall@32"] == 1.0


def test_queries_without_a_positive_are_no_error(golden):
    a = golden("get_recall_inshop__edge_no_positive")
    without = sum(label not in a["yg"] for label in a["yq"])
    assert 0 < without < len(a["yq"])
    result = retrieval_metrics(a["xq"], a["yq"], a["xg"], a["yg"])
    assert result["num_excluded"] == without
    assert result["num_queries"] == len(a["yq"]) - without


# --- independent computations ------------------------------------------------------------------


def exact_distances(x: Tensor, y: Tensor, distance: object) -> Tensor:
    x, y = x.double(), y.double()
    if distance == "cosine":
        return 1 - normalize(x) @ normalize(y).T
    if distance == "euclidean":
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance(x, y)


@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
@pytest.mark.parametrize(
    "distance",
    ["cosine", "euclidean", HyperbolicDistance(c=0.1), LpDistance(p=1, normalize_embeddings=False)],
    ids=["cosine", "euclidean", "hyperbolic", "manhattan"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64], ids=str)
@pytest.mark.parametrize(("n", "classes", "seed"), [(2, 1, 0), (25, 4, 1), (60, 30, 2)])
def test_equals_a_loop(n, classes, seed, dtype, distance, own):
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> tuple[Tensor, Tensor]:
        x = ToPoincareBall()(torch.randn(size, 12, generator=generator)).to(dtype)
        return x, torch.randint(classes, (size,), generator=generator) - 3

    k = (1, 2, 100)
    x, labels = draw(n)
    if own:
        result = retrieval_metrics(x, labels, k=k, distance=distance, chunk_size=7)
        expected = loop_metrics(exact_distances(x, x, distance), labels, labels, k, own=True)
    else:
        y, other = draw(n + 9)
        result = retrieval_metrics(x, labels, y, other, k=k, distance=distance, chunk_size=7)
        expected = loop_metrics(exact_distances(x, y, distance), labels, other, k, own=False)
    assert result == pytest.approx(expected, abs=1e-12)
    assert list(result) == list(expected)
    assert all(type(result[name]) is type(expected[name]) for name in expected)


@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
def test_equals_pytorch_metric_learning(own):
    pytest.importorskip("faiss")
    x, labels = normalize(torch.randn(300, 16)), torch.randint(40, (300,))
    y, other = normalize(torch.randn(400, 16)), torch.randint(40, (400,))
    reference = (x, labels) if own else (y, other)
    names = {
        "precision_at_1": "recall@1",
        "mean_average_precision_at_r": "map@r",
        "r_precision": "r_precision",
    }
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count")
    if own:
        expected = calculator.get_accuracy(x, labels)
        result = retrieval_metrics(x, labels)
    else:
        expected = calculator.get_accuracy(x, labels, *reference)
        result = retrieval_metrics(x, labels, *reference)
    for theirs, ours in names.items():
        assert result[ours] == pytest.approx(expected[theirs], abs=1e-6)


def test_similarities_are_used_as_they_are():
    x, labels = torch.randn(50, 8), torch.arange(50) % 6
    expected = retrieval_metrics(x, labels, distance="cosine")
    assert retrieval_metrics(x, labels, distance=CosineSimilarity()) == expected


@pytest.mark.parametrize("distance", ["cosine", "euclidean", HyperbolicDistance()], ids=str)
def test_close_neighbours_keep_their_order(distance):
    # A collapsed embedding: in float32 these distances drown in the rounding of inner products.
    x = torch.full((1, 8), 0.3, dtype=F64) + 1e-5 * torch.randn(40, 8, dtype=F64)
    labels = torch.arange(40) % 5
    expected = loop_metrics(exact_distances(x, x, distance), labels, labels, (1, 2, 4, 8), own=True)
    assert retrieval_metrics(x, labels, distance=distance) == pytest.approx(expected, abs=1e-12)


EUCLIDEAN = {
    "grid": lambda n: torch.randint(4, (n, 8)).double(),
    "plane": lambda n: torch.randint(6, (n, 2)).float(),
    "codes of 0 and 1": lambda n: torch.randint(2, (n, 16)).float(),
    "codes of -1 and 1": lambda n: torch.randint(2, (n, 16)).double() * 2 - 1,
    "half precision grid": lambda n: torch.randint(-3, 4, (n, 6)).bfloat16(),
    "grid far away": lambda n: torch.randint(5, (n, 4)).double() + 12345,
    **{
        f"spread of 1e-4 about {offset:.0e}": lambda n, offset=offset: (
            offset + 1e-4 * torch.randn(n, 64, dtype=F64)
        )
        for offset in (1.0, 1e2, 1e3, 1e4)
    },
}


@pytest.mark.parametrize("outlier", [False, True], ids=["all alike", "one far away"])
@pytest.mark.parametrize("kind", EUCLIDEAN)
def test_euclidean_order_is_that_of_long_doubles(kind, outlier):
    x, labels = EUCLIDEAN[kind](150), torch.arange(150) % 30
    if outlier:  # the squares of the others drown beside it in float32
        x[-1] += 1000
    wide = x.double().numpy().astype(np.longdouble)
    squared = np.stack([((wide - row) ** 2).sum(axis=1) for row in wide])
    rank = np.stack([np.unique(row, return_inverse=True)[1] for row in squared])
    expected = loop_metrics(torch.from_numpy(rank), labels, labels, (1, 2), own=True)
    actual = retrieval_metrics(x, labels, k=(1, 2), distance="euclidean")
    assert actual == pytest.approx(expected, abs=1e-12)


# --- ties, blocks, exclusions ------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "euclidean", HyperbolicDistance()], ids=str)
@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
def test_duplicates_keep_gallery_order_for_every_chunk_size(distance, own):
    # Every row four times, under changing labels: which copy comes first decides the result.
    few = torch.randn(23, 37) * 0.2
    copy_of = torch.arange(92) % 23
    x, labels = few[copy_of], torch.randint(5, (92,))
    query, query_labels = (x, labels) if own else (few, torch.randint(5, (23,)))
    gallery = () if own else (x, labels)
    results = [
        retrieval_metrics(query, query_labels, *gallery, distance=distance, chunk_size=size)
        for size in (1, 2, 10, 1000)
    ]
    assert all(result == results[0] for result in results)
    distances = exact_distances(query, few, distance)[:, copy_of]
    expected = loop_metrics(distances, query_labels, labels, (1, 2, 4, 8), own)
    assert results[0] == pytest.approx(expected, abs=1e-12)


def test_all_equal_rows_rank_by_index():
    x, labels = torch.ones(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    result = retrieval_metrics(x, labels, k=(1, 2), chunk_size=4)
    # Query 0 sees 1, 2, ...: a miss, then a hit. Query 1 sees 0, 2, ... and so on.
    assert result == loop_metrics(torch.zeros(6, 6), labels, labels, (1, 2), own=True)


def test_self_is_excluded_by_index_not_by_rank():
    # Row 0 ties with row 1 itself: dropping "the nearest" would drop it, and count row 1 as a hit.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    result = retrieval_metrics(x, torch.tensor([0, 1, 1]), k=(1, 2))
    assert result["recall@1"] == 0.0
    assert result["recall@2"] == 1.0
    assert (result["num_queries"], result["num_excluded"]) == (2, 1)


@pytest.mark.parametrize("chunk_size", [1, 3, 64, 10_000])
def test_chunk_size_does_not_change_the_result(chunk_size):
    x = torch.randn(150, 16)
    # One class of half the set, some pairs, some singles.
    labels = torch.cat([torch.zeros(75), torch.arange(50) // 2 + 1, torch.arange(25) + 100]).long()
    labels = labels[torch.randperm(150)]
    assert retrieval_metrics(x, labels, chunk_size=chunk_size) == retrieval_metrics(x, labels)


def test_gallery_keeps_the_query_itself():
    x, labels = torch.randn(10, 4), torch.arange(10)
    assert retrieval_metrics(x, labels, x, labels, k=(1,))["recall@1"] == 1.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_any_integer_labels(dtype):
    x, labels = torch.randn(20, 4), torch.arange(20) % 4
    assert retrieval_metrics(x, labels.to(dtype)) == retrieval_metrics(x, labels)


def test_needs_no_gradient_and_ignores_autocast():
    x, labels = torch.randn(20, 4), torch.arange(20) % 4
    expected = retrieval_metrics(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_metrics(x.requires_grad_(), labels) == expected


@pytest.mark.parametrize("screened", [True, False], ids=["screened", "float64"])
def test_never_holds_all_pairs(monkeypatch, screened):
    largest = 0
    topk = Tensor.topk

    def watched(scores: Tensor, *args: object, **kwargs: object) -> object:
        nonlocal largest
        largest = max(largest, scores.numel())
        return topk(scores, *args, **kwargs)

    monkeypatch.setattr(Tensor, "topk", watched)
    if not screened:
        monkeypatch.setattr(retrieval, "_screen", lambda distance, gallery: None)
    retrieval_metrics(torch.randn(2000, 4), torch.arange(2000) // 4, chunk_size=16)
    assert 0 < largest <= 2000 * 40


# --- errors ------------------------------------------------------------------------------------

X, Y = torch.eye(4), torch.tensor([0, 0, 1, 1])
NAN = torch.eye(4).index_fill(0, torch.tensor([2]), math.nan)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], Y), {}, "`query`"),
        ((X, Y[:3]), {}, "`query_labels`"),
        ((X, Y.float()), {}, "`query_labels`"),
        ((NAN, Y), {}, "`query`.*index 2"),
        ((X, Y, NAN, Y), {}, "`gallery`.*index 2"),
        ((X[:0], Y[:0]), {}, "`query`.*at least one row"),
        ((X, Y, X[:0], Y[:0]), {}, "`gallery`.*at least one row"),
        ((X, Y, X[:, :3], Y), {}, "`gallery`.*columns"),
        ((X, Y, X), {}, "together"),
        ((X, Y, None, Y), {}, "together"),
        ((X, Y), {"k": (1, 0)}, "`k`"),
        ((X, Y), {"chunk_size": 0}, "`chunk_size`"),
        ((X, Y), {"distance": "manhattan"}, "`distance`.*cosine.*euclidean"),
        ((X, Y), {"distance": None}, "`distance`"),
        ((X, torch.arange(4)), {}, "none of the 4 queries"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(*arguments, **options)
