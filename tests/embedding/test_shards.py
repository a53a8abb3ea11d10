"""Folders of shards, read against the arrays that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra scale")

from bgl.embedding import Block, Manifest, ShardFolder, write_manifest, write_shard
from bgl.hyperbolic import HyperbolicDistance

SIZES = (5000, 0, 3, 4096)  # one with two row groups, one whose images were all broken
TOTAL = sum(SIZES)


@pytest.fixture(params=["float16", "float32"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ShardFolder, Block]:
    dtype = request.param
    rng = np.random.default_rng(0)
    labels = [None if i % 3 else f"é {i}" for i in range(TOTAL)]
    rows = Block(
        [f"/a/{i}" for i in range(TOTAL)], labels, rng.normal(size=(TOTAL, 3)).astype(dtype)
    )
    start = 0
    for part, size in enumerate(SIZES):
        piece = Block(*(column[start : start + size] for column in rows))
        skipped = [("/b/1", "a comma, and\na line")] if size == 0 else []
        write_shard(tmp_path, part, piece, skipped)
        start += size
    about = Manifest("run", "digest", "head", 0.1, 3, dtype)
    return write_manifest(tmp_path, about, len(SIZES)), rows


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 1), (4095, 4097), (4999, 5002), (5003, 99_999), (7, 7)]
)
def test_rows_are_those_that_were_written(
    written: tuple[ShardFolder, Block], start: int, stop: int | None
) -> None:
    shards, rows = written
    found = list(shards.blocks(start, stop))
    assert [key for block in found for key in block.keys] == rows.keys[start:stop]
    assert [label for block in found for label in block.labels] == rows.labels[start:stop]
    np.testing.assert_array_equal(shards.vectors(start, stop), rows.vectors[start:stop])
    assert shards.vectors(start, stop).dtype == rows.vectors.dtype
    assert all(len(block.keys) <= 4096 for block in found)


def test_manifest_and_a_memory_mapped_copy(
    written: tuple[ShardFolder, Block], tmp_path: Path
) -> None:
    shards, rows = written
    assert len(shards) == TOTAL
    assert isinstance(shards.manifest.distance, HyperbolicDistance)
    assert list(shards.skipped()) == [("/b/1", "a comma, and\na line")]
    array = shards.write_npy(tmp_path / "vectors.npy")
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, rows.vectors)


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "other rows", "another", "manifest", "format"]
)
def test_damage_is_named(written: tuple[ShardFolder, Block], damage: str) -> None:
    shards, rows = written
    path, manifest = shards.folder / "part-00002.parquet", shards.folder / "manifest.json"
    named = path.name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other rows":
        write_shard(shards.folder, 2, Block(*(column[:2] for column in rows)))
    elif damage == "another":
        wider = np.zeros((3, 4), rows.vectors.dtype)
        write_shard(shards.folder, 2, Block(rows.keys[:3], rows.labels[:3], wider))
    else:
        values = json.loads(manifest.read_text())
        values |= {"count": 3} if damage == "manifest" else {"format": 99}
        manifest.write_text(json.dumps(values))
        named = manifest.name
    with pytest.raises(ValueError, match=named):
        ShardFolder(shards.folder).vectors()


def test_a_folder_that_is_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finish"):
        ShardFolder(tmp_path)
    write_shard(tmp_path, 0, Block(["a"], [None], np.zeros((1, 2), np.float32)))
    with pytest.raises(FileNotFoundError, match="part-00001"):
        write_manifest(tmp_path, Manifest("run", "digest", "head", None, 2, "float32"), 2)
