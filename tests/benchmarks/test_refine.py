"""benchmarks/: refined embeddings, their peers, and the rows that ``--refine`` adds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_noisy_classes
from torch import Tensor
from torch.nn.functional import normalize

import bgl
from benchmarks import report
from benchmarks.refinement import datasets, peers
from benchmarks.refinement import features as embedding
from benchmarks.refinement import forecast as fitting
from benchmarks.refinement import run as refine
from bgl import models, pipeline
from bgl._io import write_tensors
from bgl.datasets import load_dataset
from bgl.metrics import retrieval_metrics

EVERY = torch.arange(40)


@pytest.fixture
def x() -> Tensor:
    centers = torch.randn(8, 12).repeat_interleave(5, 0)
    return (centers + 0.8 * torch.randn(40, 12)).double()


def test_ranking_metrics_are_those_of_the_library(x):
    y = EVERY // 5
    expected = retrieval_metrics(x, y)
    assert peers.ranking_metrics(peers.plain(x), y) == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_expansion_by_definition(x, alpha):
    unit = normalize(x)
    expanded = []
    for item in unit:
        order = (unit @ item).argsort(descending=True)[:4]  # itself and three
        expanded.append(sum((unit[j] @ item) ** alpha * unit[j] for j in order))
    expanded = normalize(torch.stack(expanded))
    actual = peers.query_expansion(x, 3, alpha)(EVERY)
    torch.testing.assert_close(actual, -expanded @ unit.t())
    actual = peers.database_augmentation(x, 3, alpha)(EVERY)
    torch.testing.assert_close(actual, -expanded @ expanded.t())


def k_reciprocal_by_definition(x: Tensor, k1: int, k2: int, lam: float) -> Tensor:
    unit = normalize(x)
    distance = (2 - 2 * unit @ unit.t()).clamp(min=0)
    distance = distance / distance.amax(1, keepdim=True)
    order = distance.argsort(1).tolist()

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    vectors = torch.zeros(len(x), len(x), dtype=x.dtype)
    for i in range(len(x)):
        members = mutual(i, k1)
        grown = set(members)
        for j in members:
            others = mutual(j, round(k1 / 2))
            if len(members & others) > 2 / 3 * len(others):
                grown |= others
        for j in grown:
            vectors[i, j] = torch.exp(-distance[i, j])
        vectors[i] /= vectors[i].sum()
    vectors = torch.stack([vectors[order[i][:k2]].mean(0) for i in range(len(x))])
    low = torch.minimum(vectors[:, None], vectors[None]).sum(2)
    high = torch.maximum(vectors[:, None], vectors[None]).sum(2)
    return (1 - lam) * (1 - low / high) + lam * distance


@pytest.mark.parametrize(("k1", "k2", "lam"), [(6, 2, 0.3), (9, 4, 0.0), (5, 1, 1.0)])
def test_k_reciprocal_by_definition(x, k1, k2, lam):
    actual = peers.k_reciprocal(x, k1, k2, lam)(EVERY)
    expected = k_reciprocal_by_definition(x, k1, k2, lam)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_diffusion_by_definition(x):
    """The limit of walking on with probability α and starting again otherwise."""
    cosine = normalize(x) @ normalize(x).t()
    near = cosine.clone().fill_diagonal_(-1).topk(5).indices
    weight = torch.zeros(40, 40, dtype=x.dtype)
    for i in range(40):
        for j in near[i].tolist():
            if i in near[j].tolist():
                weight[i, j] = max(float(cosine[i, j]), 0) ** 3
    root = weight.sum(1).clamp(min=1e-12).rsqrt()
    step, reached = root[:, None] * weight * root, torch.zeros(40, 40, dtype=x.dtype)
    for _ in range(300):
        reached = 0.8 * step @ reached + torch.eye(40, dtype=x.dtype)
    actual = peers.diffusion(x, 5, 0.8)(EVERY)
    torch.testing.assert_close(actual, -(reached + 1e-6 * cosine))


def test_whitening_without_shrinkage_leaves_the_identity(x):
    white = peers.whitened(x, 1e-12)
    centered = normalize(x) - normalize(x).mean(0)
    full = centered @ torch.linalg.pinv(centered.t() @ centered / 40) @ centered.t()
    scale = full.diagonal().sqrt()
    torch.testing.assert_close(white @ white.t(), full / scale[:, None] / scale)


def entry(method: str, options: dict[str, Any], recall: float, precision: float) -> dict[str, Any]:
    metrics = {"recall@1": recall, "recall@8": 1.0, "map@r": precision}
    return {"kind": "none", "seed": 0, "method": method, "options": options, "metrics": metrics}


def test_the_choice_keeps_recall(monkeypatch):
    settings = [{"k": 1}, {"k": 2}, {"k": 3}]
    monkeypatch.setattr(
        refine,
        "METHODS",
        {"plain": (peers.plain, [{}]), "a": (None, settings), "b": (None, settings)},
    )
    rows = [entry("plain", {}, 0.5, 0.3)]
    rows += [entry("a", {"k": k}, r, p) for k, r, p in ((1, 0.5, 0.4), (2, 0.6, 0.5), (3, 0.4, 1))]
    rows += [entry("b", {"k": k}, r, p) for k, r, p in ((1, 0.2, 1), (2, 0.3, 0), (3, 0.1, 1))]
    chosen = refine.choose(rows, "none")
    assert chosen["a"]["options"] == {"k": 2}  # k = 3 loses Recall@1
    assert chosen["b"]["options"] == {"k": 2}  # all do: the one that loses least


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with ``--refine``."""
    root = tmp_path_factory.mktemp("refine")
    write_noisy_classes(root / "images", {"train": 8, "test": 4}, 4)
    words = "--dataset folder --backbone test_resnet --weights none --image-size 32 --epochs 1"
    words += " --batch-size 8 --per-class 2 --head-dim 8 --device cpu --workers 0 --method none"
    words += f" --val-fraction 0.5 --refine --data-root {root / 'images'} --output-dir {root / 'a'}"
    assert pipeline.main(words.split()) == 0
    return root / "a"


def test_rows_of_a_run_are_marked(finished):
    rows = json.loads((finished / "results.json").read_text())["rows"]
    (refined,) = [row for row in rows if row.get("transductive")]
    assert rows[-1] is refined
    assert (refined["method"], refined["embedding"]) == ("none", "readout")
    model = models.load(finished / "none-seed0")
    images = load_dataset("folder", finished.parent / "images", val_fraction=0.5).test
    x = model.embed([images.read(i) for i in range(16)])
    expected = retrieval_metrics(bgl.refine(x, k=7), images.labels)
    assert refined["metrics"] == pytest.approx(expected)
    text = report.markdown(rows)
    (line,) = [line for line in text.splitlines() if "refined (transductive)" in line]
    assert line == text.splitlines()[-1]


def test_the_page_shows_what_refinement_changed(finished):
    page = (finished / "explorer.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    retrieval = json.loads(found[1])["runs"][0]["retrieval"]
    assert [model["name"] for model in retrieval["models"]][1:] == [
        "none, seed 0",
        "none, seed 0, refined",
    ]
    refined = retrieval["comparisons"][-1]
    assert refined["name"] == "none, seed 0, refined (transductive)"
    assert (refined["before"], refined["without"], refined["graph"]) == (0, 1, 2)
    with np.load(finished / "none-seed0" / "refined.npz") as arrays:
        assert arrays["nearest"].shape == (16, retrieval["k"])


def test_benchmark(finished, tmp_path, monkeypatch, capsys):
    methods = {
        "plain": (peers.plain, [{}]),
        "DBA": (peers.database_augmentation, [{"k": 1, "alpha": 3.0}, {"k": 2, "alpha": 3.0}]),
        "refined": (peers.refined, [{"k": 2}, {"k": 3, "shrinkage": 0.3}]),
    }
    monkeypatch.setattr(refine, "METHODS", methods)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- refined-table -->\nold\n<!-- /refined-table -->\nafter\n")
    words = ["refine.py", str(finished), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    refine.main()
    content = (tmp_path / "out" / "results.json").read_text()
    (new,) = json.loads(content)["newcomers"]
    assert 0.5 < new["similarity"] <= 1
    assert new["metrics"]["queries, refined"]["num_queries"] == 3
    rows = json.loads(content)["rows"]
    assert [(r["kind"], r["method"], r["transductive"]) for r in rows] == [
        (kind, method, method != "plain") for kind in ("none", "pretrained") for method in methods
    ]
    assert all(row["seconds"] > 0 and row["memory_mb"] >= 0 for row in rows)
    run_rows = json.loads((finished / "results.json").read_text())["rows"]
    (same,) = [
        row
        for row in run_rows
        if (row["method"], row["embedding"]) == ("none", "backbone") and not row.get("transductive")
    ]
    assert rows[0]["metrics"] == pytest.approx(same["metrics"])

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(refine, "measure", never)
    refine.main()
    assert (tmp_path / "out" / "results.json").read_text() == content
    capsys.readouterr()
    stored = ["refine.py", "--output-dir", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", stored)
    refine.main()
    table = capsys.readouterr().out
    expected = f"before\n<!-- refined-table -->\n{table}<!-- /refined-table -->\nafter\n"
    assert page.read_text() == expected
    assert len(table.splitlines()) == 2 + len(rows) + 1 + 2 + 4


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A folder of embeddings of two data sets."""
    generator = torch.Generator().manual_seed(0)
    for name in ("a-val.one", "b-val.one", "a-test.two"):
        centers = torch.randn(30, 24, generator=generator).repeat_interleave(6, 0)
        x = centers + torch.randn(180, 24, generator=generator)
        write_tensors(tmp_path / f"{name}.safetensors", {"x": x, "y": torch.arange(180) // 6})
    return tmp_path


@pytest.mark.slow
def test_a_fitted_rule_finds_what_made_the_changes(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "FIT", ["a-val.one", "b-val.one"])
    monkeypatch.setattr(fitting, "TEST", ["a-test.two"])
    monkeypatch.setattr(fitting, "KINDS", [("all", "raw"), ("single", "white")])
    words = ["forecast.py", str(features), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    fitting.main()
    assert "| MAP@R |" in capsys.readouterr().out
    cases = json.loads((tmp_path / "out" / "forecast.json").read_text())["cases"]
    assert len(cases) == 2 * 3 * len(fitting.TRIED)
    weights = {name: i + 1.0 for i, name in enumerate(fitting.TERMS["map@r"])}
    for case in cases:
        found = case["signals"]
        case["change"]["map@r"] = 0.3 + sum(w * found[name] for name, w in weights.items())
    monkeypatch.setattr(fitting, "RIDGE", 1e-9)
    assert fitting.solve(cases, "map@r") == pytest.approx([0.3, *weights.values()], rel=1e-3)


def test_methods_on_several_data_sets(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "DATA", {"a-test.two": "a, two"})
    monkeypatch.setattr(datasets, "VALIDATION", "a-val.one")
    words = ["datasets.py", str(features), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    datasets.main()
    rows = json.loads((tmp_path / "out" / "datasets.json").read_text())["rows"]["a-test.two"]
    x, y = datasets.some(features, "a-test.two")
    assert len(x) == 180
    assert rows["plain"] == pytest.approx(retrieval_metrics(x, y))
    assert rows["refined"] == pytest.approx(retrieval_metrics(bgl.refine(x), y))
    assert capsys.readouterr().out.count("\n| a, two |") == len(rows)


def test_embedding_once(tmp_path, monkeypatch):
    write_noisy_classes(tmp_path / "images", {"train": 3, "test": 2}, 4)
    words = ["features.py", str(tmp_path), "--data", f"own={tmp_path / 'images'}", "--encoder"]
    words += ["pixels", "net=test_resnet:none", "--image-size", "32", "--per-class", "3"]
    monkeypatch.setattr(sys, "argv", words)
    embedding.main()
    x, y = fitting.read(tmp_path, "own-test.net")
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.shape == (6, models.create_backbone("test_resnet", "none")[1].num_features)
    assert fitting.read(tmp_path, "own-train.pixels")[0].shape == (9, 768)


def test_folders_without_a_model_are_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        refine.trainings([tmp_path])
