"""The lines of docs/scale.md that load what bgl embed wrote into other databases."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from bgl.embedding import Block, Manifest, write_manifest, write_shard

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def run_block(package: str) -> dict:
    """Run the example of the page that imports a package; return its variables."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    (block,) = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.M)]
    variables: dict = {}
    exec(block, variables)
    return variables


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Forty vectors of two classes, in two files of the folder ``embeddings``."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    for part in range(2):
        rows = range(20 * part, 20 * part + 20)
        block = Block([f"{i}.jpg" for i in rows], [f"class{i % 2}" for i in rows], x[rows])
        (tmp_path / "embeddings").mkdir(exist_ok=True)
        write_shard("embeddings", part, block)
    write_manifest("embeddings", Manifest("run", "0" * 64, "head", None, 8, "float32"), 2)
    return x


def nearest(x: np.ndarray, rows: list[int]) -> list[str]:
    unit = x.astype("float64") / np.linalg.norm(x.astype("float64"), axis=1, keepdims=True)
    return [f"{i}.jpg" for i in sorted(rows, key=lambda i: -float(unit[0] @ unit[i]))[:10]]


@pytest.mark.slow
def test_lancedb_finds_what_is_nearest(vectors: np.ndarray) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    found = run_block("lancedb")["found"]
    assert [row["key"] for row in found] == nearest(vectors, [*range(0, 40, 2)])


def test_qdrant_finds_what_is_nearest(vectors: np.ndarray) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    variables = run_block("qdrant_client")
    variables["client"].close()
    assert [point.payload["key"] for point in variables["found"]] == nearest(vectors, [*range(40)])


def test_metrics_and_refining_take_mapped_files(
    vectors: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = run_block("torch")
    assert "map@r" in capsys.readouterr().out
    assert variables["gallery"].embeddings.shape == (40, 8)
