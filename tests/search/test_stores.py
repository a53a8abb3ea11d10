"""Every store against brute force in float64, and against the same changes made to a dictionary."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bgl.embedding.about import About
from bgl.hyperbolic import HyperbolicDistance, to_poincare_ball
from bgl.search import SearchIndex, approximate
from bgl.search.store import Rows, Store, create_store, open_store

COLUMNS = 8
STORES = ["exact", "approximate", "milvus"]
ODD_LABEL = "a \"b\" 'c' \\d é {x}"


@pytest.fixture(params=STORES)
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> str:
    """An address of each engine; the approximate one is made to serve small sets."""
    if request.param == "approximate":
        pytest.importorskip("faiss", reason="faiss is not installed")
        monkeypatch.setattr(approximate, "EXACT_NUMBERS", 0)
        monkeypatch.setattr(approximate, "RECALL", 2.0)  # all lists are looked at
    if request.param == "milvus":
        return str(request.getfixturevalue("milvus_file"))
    return str(tmp_path / "index")


def about(curvature: float | None = None) -> About:
    return About("run", "digest", "head", curvature, COLUMNS)


def some_rows(n: int = 600, first: int = 0) -> Rows:
    """Tight clusters, with rows that are equal."""
    generator = torch.Generator().manual_seed(first + 1)
    centres = torch.randn(60, COLUMNS, generator=torch.Generator().manual_seed(0))
    centre = centres[torch.arange(n) % 60]
    x = centre + 0.02 * torch.randn(n, COLUMNS, generator=generator)
    x[n // 2] = x[0]
    keys = [f"/photos/é 'x\"/{i}.jpg" for i in range(first, first + n)]
    return Rows(keys, [ODD_LABEL if i % 3 else "b" for i in range(n)], x)


def index_of(store: Store) -> SearchIndex:
    """An index without a model, to be asked with vectors."""
    return SearchIndex(None, store, "")  # type: ignore[arg-type]


def check_against_brute_force(
    store: Store, rows: dict[str, tuple[str, Tensor]], label: str | None = None
) -> None:
    """Scores equal the exact ones to 1e-12, whatever found the candidates."""
    keys = [key for key, (own, _) in rows.items() if label in (None, own)]
    y = torch.stack([rows[key][1] for key in keys]).double()
    x = y[:40].float()
    for query, hits in zip(x, index_of(store).nearest(x, 10, label), strict=True):
        exact = cosine_similarity(query[None].double(), y).clamp(-1, 1)
        best = exact.sort(descending=True).values[:10]
        scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64)
        torch.testing.assert_close(scores, best, rtol=0, atol=1e-12)
        own = torch.stack([exact[keys.index(str(hit.path))] for hit in hits])
        torch.testing.assert_close(scores, own, rtol=0, atol=1e-12)
        assert all(hit.label == rows[str(hit.path)][0] for hit in hits)


def as_dict(rows: Rows) -> dict[str, tuple[str, Tensor]]:
    return {key: (label, x) for key, label, x in zip(*rows, strict=True)}


@pytest.mark.parametrize("label", [None, "b", ODD_LABEL])
def test_results_are_those_of_brute_force(address: str, label: str | None) -> None:
    rows = some_rows()
    store = create_store(address, about(), [rows])
    assert len(store) == 600
    check_against_brute_force(store, as_dict(rows), label)
    with pytest.raises(ValueError, match=r"`label` \(--label\).*'nobody'"):
        index_of(store).nearest(rows.vectors[:1], 1, "nobody")


def test_equal_images_tie_exactly(address: str) -> None:
    rows = some_rows()
    hits = index_of(create_store(address, about(), [rows])).nearest(rows.vectors[:1], 2)[0]
    assert {str(hit.path) for hit in hits} == {rows.keys[0], rows.keys[300]}
    assert hits[0].score == hits[1].score


def test_changes_are_those_of_a_dictionary(address: str) -> None:
    rows, expected = some_rows(), as_dict(some_rows())
    store = create_store(address, about(), [rows])

    def change(new: list[Rows], removed: list[str]) -> None:
        store.change(new, removed)
        for key in removed:
            del expected[key]
        for part in new:
            expected.update(as_dict(part))
        for seen in (store, open_store(address)):
            assert len(seen) == len(expected)
            check_against_brute_force(seen, expected)

    change([some_rows(50, first=1000)], [])
    change([], rows.keys[::7])
    replaced = some_rows(30, first=1010)  # 1010 … 1039 are there, with other vectors
    change([replaced], rows.keys[1:3])
    found = store.find([rows.keys[1], replaced.keys[0], rows.keys[3]])
    assert found.keys == [replaced.keys[0], rows.keys[3]]
    assert torch.equal(found.vectors, torch.stack([replaced.vectors[0], rows.vectors[3]]))
    with pytest.raises(ValueError, match="none would be left"):
        store.change(removed=list(expected))


def test_a_new_index_takes_the_place_of_the_old_one(address: str) -> None:
    create_store(address, about(), [some_rows()])
    with pytest.raises(ValueError, match="finite"):
        create_store(
            address, about(), [some_rows(), Rows(["x"], [""], torch.full((1, 8), torch.nan))]
        )
    assert len(open_store(address)) == 600
    create_store(address, about(), [some_rows(20)])
    assert len(open_store(address)) == 20


def test_writers_do_not_undo_each_other(address: str) -> None:
    one = create_store(address, about(), [some_rows()])
    other = open_store(address)
    one.change([some_rows(20, first=1000)])
    other.change([some_rows(20, first=2000)])
    assert len(other) == len(open_store(address)) == 640


def test_an_index_of_another_model_is_not_changed(address: str) -> None:
    opened = create_store(address, about(), [some_rows()])
    create_store(address, dataclasses.replace(about(), model="another"), [some_rows(20)])
    with pytest.raises(ValueError, match="another model"):
        opened.change([some_rows(20, first=1000)])
    assert open_store(address).about.model == "another"
    assert len(open_store(address)) == 20


def test_a_change_that_fails_changes_nothing(address: str) -> None:
    rows = some_rows()
    store = create_store(address, about(), [rows])
    broken = Rows(["x"], [""], torch.full((1, COLUMNS), torch.nan))
    with pytest.raises(ValueError, match="finite"):
        store.change([broken], removed=[] if "milvus" in address else rows.keys[:100])
    check_against_brute_force(store, as_dict(rows))


def test_there_is_no_index(address: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"`store`.*build it"):
        open_store(address)
    with pytest.raises(ValueError, match="at least one image"):
        create_store(address, about(), [])
    with pytest.raises(FileNotFoundError, match="build it"):
        open_store(address)


def test_an_image_comes_once_in_a_folder(tmp_path: Path) -> None:
    rows = some_rows(20)
    with pytest.raises(ValueError, match=r"0\.jpg twice"):
        create_store(tmp_path, about(), [rows, rows])


def test_hyperbolic_embeddings_need_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    with pytest.raises(ValueError, match="`store` to be a folder for hyperbolic"):
        create_store(f"milvus:{tmp_path / 'x.db'}", about(0.1), [some_rows()])


def test_faiss_that_was_replaced_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    pytest.importorskip("faiss", reason="faiss is not installed")
    importlib.import_module("pytorch_metric_learning.utils.inference")
    with pytest.raises(ValueError, match=r"utils\.inference.*use a folder or a server"):
        create_store(f"milvus:{tmp_path / 'x.db'}", about(), [some_rows()])


def test_milvus_that_does_not_answer_is_named() -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    with pytest.raises(OSError, match=r"milvus:http://127\.0\.0\.1:1 cannot be opened"):
        open_store("milvus:http://127.0.0.1:1")


@pytest.mark.parametrize("size", ["exact", "approximate"])
@pytest.mark.parametrize(
    ("c", "clip_radius"), [(None, None), (0.1, 2.3), (1.0, 2.3), (1.0, None), (0.1, None)]
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nearest_as_in_float64(
    tmp_path: Path, monkeypatch, size: str, c: float | None, clip_radius, scale: float
) -> None:
    """Tight clusters, near the boundary of the ball and beyond the cap of the distance."""
    if size == "approximate":
        pytest.importorskip("faiss", reason="faiss is not installed")
        monkeypatch.setattr(approximate, "EXACT_NUMBERS", 0)
        monkeypatch.setattr(approximate, "RECALL", 2.0)
    rows = some_rows()
    y = scale * rows.vectors
    y[300] += 0.02  # no equal rows here
    if c is not None:
        y = to_poincare_ball(y, c=c, clip_radius=clip_radius)
    index = index_of(create_store(tmp_path, about(c), [rows._replace(vectors=y)]))
    hits = index.nearest(y[:40], 10)
    keys = {key: i for i, key in enumerate(rows.keys)}
    found = torch.tensor([[keys[str(hit.path)] for hit in some] for some in hits])
    scores = torch.tensor([[hit.score for hit in some] for some in hits], dtype=torch.float64)
    x, y = y[:40].double(), y.double()
    assert torch.equal(found[:, 0], torch.arange(40))  # itself
    if c is None:
        expected = cosine_similarity(x[:, None], y[None], dim=2)
        assert scores.max() <= 1
    else:
        expected = HyperbolicDistance(c)(x, y)
        assert (scores[:, 0] == 0).all()
    best = expected.sort(dim=1, descending=c is None, stable=True)[0][:, :10]
    torch.testing.assert_close(scores, expected.gather(1, found), rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(scores, best, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "dim", "kind"),
    [
        (100_000, 128, ""),
        (1_000_000, 128, "IVF4096,SQ8"),
        (1_000_000, 1536, "IVF4096,SQ8"),
        (100_000_000, 128, "OPQ32_128,IVF32768_HNSW32,PQ32"),
    ],
)
def test_the_index_follows_from_count_and_dimension(count: int, dim: int, kind: str) -> None:
    assert approximate.factory(count, dim) == kind
    if kind:
        faiss = pytest.importorskip("faiss", reason="faiss is not installed")
        assert faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT).d == dim


def test_the_recall_told_is_the_recall_measured(tmp_path: Path, monkeypatch) -> None:
    """Product codes of few bits, which lose some of the nearest."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    monkeypatch.setattr(approximate, "factory", lambda *_: "IVF16,PQ4x4")
    monkeypatch.setattr(approximate, "SAMPLE", 2000)
    x = torch.randn(2000, COLUMNS, generator=torch.Generator().manual_seed(0))
    keys = [str(i) for i in range(2000)]
    store = create_store(tmp_path, about(), [Rows(keys, [""] * 2000, x)])
    assert "IVF16,PQ4x4, 16 lists looked at" in store.engine
    told = float(store.engine.split("recall@10 ")[1].split()[0])
    unit = torch.nn.functional.normalize(x.double())
    exact = (unit @ unit.T).fill_diagonal_(-2).topk(10).indices
    found = [
        {int(key) for key in rows.keys}
        for rows in store.search(x, approximate.candidates(10), None)
    ]
    known = [len(set(row) & some) for row, some in zip(exact.tolist(), found, strict=True)]
    assert 0.3 < told < 0.99
    assert told == pytest.approx(sum(known) / 20_000, abs=6e-4)


def test_without_faiss_the_search_is_exact(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(approximate, "EXACT_NUMBERS", 0)
    monkeypatch.setattr(approximate, "faiss_or_none", lambda: None)
    rows = some_rows()
    store = create_store(tmp_path, about(), [rows])
    assert "pip install 'bgl[search]'" in store.engine
    check_against_brute_force(store, as_dict(rows))
