"""A place for an index in Milvus Lite."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def milvus_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of Milvus Lite; the test is skipped where it is not installed."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    for index in [*vars(faiss).values()]:  # other tests may have imported what replaces its search
        if isinstance(index, type) and "search_numpy" in vars(index):
            monkeypatch.setattr(index, "search", index.search_numpy)
            monkeypatch.delattr(index, "search_numpy")
    return f"milvus:{tmp_path / 'index.db'}"
