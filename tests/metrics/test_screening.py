"""Rankings from float32 products: the same metrics as in float64, on sets made to break them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bgl import _sizes
from bgl._neighbors import smallest
from bgl.hyperbolic import HyperbolicDistance, ToPoincareBall, rank_factors, rank_matrix
from bgl.metrics import retrieval, retrieval_metrics, screening
from bgl.metrics.screening import Screen

F64 = torch.float64
DISTANCES = ["cosine", "euclidean", HyperbolicDistance(c=0.1)]
distances = pytest.mark.parametrize("distance", DISTANCES, ids=["cosine", "euclidean", "ball"])


def points(kind: str, n: int) -> Tensor:
    clusters = torch.randn(20, 12)[torch.arange(n) % 20] + 0.7 * torch.randn(n, 12)
    return {
        "clusters": lambda: clusters,
        "duplicates": lambda: clusters[torch.randint(n, (n,)) % (n // 3)],
        "grid": lambda: torch.randint(-1, 2, (n, 4)).float(),
        "zeros": lambda: clusters * (torch.rand(n, 1) > 0.3),
        "collapsed": lambda: 1 + 1e-4 * clusters,
        "almost equal": lambda: clusters[torch.arange(n) % 9].double() + 1e-5 * clusters,
        "far apart": lambda: clusters * 10 ** torch.linspace(-15, 15, n)[torch.randperm(n), None],
        "one far point": lambda: torch.cat([clusters[1:], 1e6 * clusters[:1]]),
        "tiny": lambda: clusters * 1e-30,
    }[kind]()


KINDS = ["clusters", "duplicates", "grid", "zeros", "collapsed", "almost equal", "far apart"]
KINDS += ["one far point", "tiny"]


@distances
@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
@pytest.mark.parametrize(
    "kind", [*KINDS[:3], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[3:])]
)
def test_equals_float64_throughout(monkeypatch, kind, own, distance):
    x, labels = points(kind, 230), torch.arange(230) % 20
    if isinstance(distance, HyperbolicDistance):
        x = ToPoincareBall(clip_radius=None)(x)  # the far ones end at the boundary
    gallery = () if own else (x[60:], labels[60:])
    query, query_labels = (x, labels) if own else (x[:90], labels[:90])

    def measure(**options: object) -> dict[str, float]:
        return retrieval_metrics(query, query_labels, *gallery, distance=distance, **options)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "_screen", lambda distance, gallery: None)
        expected = measure()
    assert measure() == pytest.approx(expected, abs=1e-14)
    monkeypatch.setattr(retrieval, "MANY_SPARE", 8)  # few enough for ties that lie behind
    # one way, each pair once, and with a gallery that memory does not hold
    for most, kept in ((0, True), (1000, True), (1000, False))[0 if own else 1 :]:
        monkeypatch.setattr(retrieval, "SYMMETRIC_KEPT", most)
        monkeypatch.setattr(screening, "fits", lambda *_, kept=kept: kept)
        assert measure(chunk_size=37, k=(1, 50)) == measure(chunk_size=1000, k=(1, 50))
        assert measure(chunk_size=37) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@distances
def test_embeddings_of_a_file_are_those_in_memory(monkeypatch, tmp_path, dtype, distance):
    """Shards on disk, mapped; blocks so small that there are several of rows and of columns."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from bgl.embedding import Block, Manifest, write_manifest, write_shard

    x, labels = points("clusters", 700), torch.arange(700) % 50
    if isinstance(distance, HyperbolicDistance):
        x = ToPoincareBall()(x)
    x = x.to(getattr(torch, dtype))
    for part in range(2):
        rows = slice(350 * part, 350 * (part + 1))
        keys = [str(i) for i in range(350)]
        write_shard(
            tmp_path, part, Block(keys, list(map(str, labels[rows].tolist())), x[rows].numpy())
        )
    about = Manifest("run", "0" * 64, "head", None, dim=12, dtype=dtype)
    shards = write_manifest(tmp_path, about, parts=2)
    mapped = torch.from_numpy(shards.write_npy(tmp_path / "vectors.npy"))
    read = torch.tensor([int(label) for block in shards.blocks() for label in block.labels])
    expected = retrieval_metrics(x, labels, distance=distance)
    with monkeypatch.context() as patch:
        patch.setattr(screening, "fits", lambda *_: False)
        patch.setattr(_sizes, "_CPU_SCORES", 2**14)
        patch.setattr(_sizes, "_CONVERTED_FOR_ROWS", 100)
        assert retrieval_metrics(mapped, read, distance=distance) == expected


@distances
def test_near_ties_are_scored_again_among_what_was_found(monkeypatch, distance):
    """Clouds of hits and misses that float32 cannot order, in a gallery far larger than they."""
    n = 800
    centres = torch.randn(n // 16, 6, dtype=F64)
    x = centres[torch.arange(n) % len(centres)] + 1e-5 * torch.randn(n, 6, dtype=F64)
    if isinstance(distance, HyperbolicDistance):
        x = ToPoincareBall()(x)
    labels = torch.arange(n) % (n // 8)
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "_screen", lambda distance, gallery: None)
        expected = retrieval_metrics(x, labels, distance=distance)
    monkeypatch.setattr(retrieval, "RESCORED", 512)
    scored = []
    scorer = retrieval._scorer
    monkeypatch.setattr(
        retrieval,
        "_scorer",
        lambda distance, items: scored.append(len(items)) or scorer(distance, items),
    )
    assert retrieval_metrics(x, labels, distance=distance) == pytest.approx(expected, abs=1e-14)
    assert 0 < max(scored) <= retrieval.RESCORED


def test_only_ranks_that_matter_must_be_certain(monkeypatch):
    """Every query has a hit at rank 1 and a cloud of misses at distances that nothing separates."""
    angle = torch.cat([0.01 * torch.arange(2), 1 + 1e-9 * torch.arange(300)]).double()
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.cat([torch.zeros(2), torch.arange(1, 301)]).long()
    monkeypatch.setattr(retrieval, "_scorer", lambda *_: pytest.fail("ranked in float64"))
    result = retrieval_metrics(x, labels, k=(1, 100))
    assert (result["recall@1"], result["recall@100"], result["map@r"]) == (1, 1, 1)


@pytest.mark.parametrize("own", [True, False], ids=["own-gallery", "gallery"])
def test_blocks_of_any_shape_give_the_same(monkeypatch, own):
    """Also where the gallery is read in parts, and a share of the queries at a time."""
    x, labels = points("clusters", 230), torch.arange(230) % 60
    given = (x, labels) if own else (x[:90], labels[:90], x[60:], labels[60:])
    expected = retrieval_metrics(*given, k=(1, 100))
    for rows, scores in ((256, 10), (7, 40), (3, 500), (20, 2000)):
        monkeypatch.setattr("bgl._sizes._SCORED_ROWS", rows)
        monkeypatch.setattr("bgl._sizes._CPU_SCORES", scores)
        assert retrieval_metrics(*given, k=(1, 100)) == expected
        ranking = retrieval.Ranking(*given, k=(1, 100))
        shares = [ranking.measure(part) for part in ranking.counted.tensor_split(3)]
        assert ranking.averages(torch.cat(shares)) == expected


@distances
def test_rankings_called_certain_are_exact(distance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator)
    if isinstance(distance, HyperbolicDistance):
        x = ToPoincareBall()(x)
    screen, depth = Screen(distance, x), 20
    scores, nearest = screen.nearest(x, depth + 4, torch.arange(400))
    labels = torch.arange(400) % 3
    hit = labels[nearest] == labels[:, None]
    certain = screen.certain(x, scores, hit, torch.full((400,), depth), whole=False)
    assert certain.double().mean() > 0.5
    wide = x.double()
    if distance == "cosine":
        unit = torch.nn.functional.normalize(wide)
        exact = -unit @ unit.T
    elif distance == "euclidean":
        exact = torch.cdist(wide, wide)
    else:
        exact = distance.rank_key(wide, wide)
    order = exact.fill_diagonal_(math.inf).argsort(dim=1)[:, :depth]
    assert torch.equal((labels[order] == labels[:, None])[certain], hit[:, :depth][certain])


def test_hits_and_misses_closer_than_rounding_are_not_certain():
    # Items at distances that differ in the eighth digit: float32 cannot tell them apart.
    angle = torch.tensor([0.0, 0.5, 0.5 + 1e-8, 0.9, 1.3], dtype=F64)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    screen = Screen("cosine", x)
    scores, nearest = screen.nearest(x[:1], 4, torch.tensor([0]))
    assert set(nearest[0, :2].tolist()) == {1, 2}
    for labels, certain in [([1, 0, 0, 0], False), ([1, 1, 0, 0], True), ([0, 0, 1, 0], True)]:
        hit = torch.tensor([labels], dtype=torch.bool)[:, nearest[0] - 1]
        assert screen.certain(x[:1], scores, hit, torch.tensor([4]), whole=True).item() is certain
    # The same two at the edge of what was kept: the one left out might come first.
    hit = torch.zeros(1, 1, dtype=torch.bool)
    assert not screen.certain(x[:1], scores[:, :1], hit, torch.tensor([1]), whole=False)


@distances
def test_scores_are_certain_from_the_documented_difference_on(distance):
    """2e, and what the distance leaves open beyond it, with e = (W + 4) 2⁻²⁴ |a| |b|."""
    x = torch.randn(40, 12)
    if isinstance(distance, HyperbolicDistance):
        x = ToPoincareBall(clip_radius=None)(x)
    screen = Screen(distance, x)
    left, right, blur = screen.factors(x.double())
    e = (right.size(1) + 4) * 2**-24 * float(left[0].norm() * right.norm(dim=1).max())
    share = float((1 + blur[0] * blur.max()) ** 2 - 1)
    hit = torch.tensor([[True, False]])
    for factor, certain in ((0.9, False), (1.1, True)):
        apart = factor * (2 * e + share * (1 + e))
        scores = torch.tensor([[1.0, 1.0 + apart]], dtype=F64)
        assert screen.certain(x[:1], scores, hit, torch.tensor([2]), whole=True).item() is certain


def test_labels_decide_in_float64_where_float32_ties():
    angle = torch.tensor([0.0, 0.5 + 1e-8, 0.5, 0.9], dtype=F64)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    result = retrieval_metrics(x, torch.tensor([0, 1, 0, 2]), k=(1,))
    # Item 2 is nearer to item 0 than item 1 is; item 1 is nearest to item 2.
    assert result["recall@1"] == 0.5


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("columns", "kept"), [(1, 1), (50, 40), (333, 7), (2000, 3), (64, 100)])
def test_smallest_is_a_sort(columns, kept, transposed):
    scores = torch.randn(6, columns)
    given = scores.t().contiguous().t() if transposed else scores
    values, nearest = smallest(given, kept)
    expected = scores.sort(dim=1).values[:, :kept]
    assert torch.equal(values, expected)
    assert torch.equal(scores.gather(1, nearest), expected)


@pytest.mark.parametrize("clip_radius", [2.3, None])
def test_hyperbolic_products_order_as_the_keys_do(clip_radius):
    c = 0.1
    x = ToPoincareBall(c, clip_radius)(3 * torch.randn(60, 5, dtype=F64))
    left, right, blur = rank_factors(x, c=c)
    products, keys = (left @ right.T).clamp(min=0), rank_matrix(x, x, c=c)
    torch.testing.assert_close(products, products.T)
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=1))
    share = (1 + blur * blur.max()).square() - 1
    behind = products[:, None, :] > products[:, :, None] * (1 + share[:, :, None])
    assert behind.any()
    assert ((keys[:, None, :] > keys[:, :, None]) | ~behind).all()


def test_points_outside_the_ball_are_left_to_the_keys():
    assert rank_factors(torch.tensor([[4.0, 0.0]]), c=0.1)[2].isinf().all()
