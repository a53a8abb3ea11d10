"""The example of the docs on a local Ray of two workers, and the callable without Ray."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_run
from make_images import jpeg, make_folder
from PIL import Image

from bgl import Embedder
from bgl.models import load

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
COUNT = 12


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path / "runs" / "mine")
    make_folder(tmp_path / "photos", COUNT)
    (tmp_path / "photos" / "class0" / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_batches_with_every_column(home: Path) -> None:
    embedder = Embedder("runs/mine", batch_size=5)
    paths = sorted(str(path) for path in Path("photos").rglob("0*.jpg"))
    expected = load("runs/mine").embed(paths, batch_size=5)
    columns = {
        "path": np.array([*paths, "photos/class0/broken.jpg"]),
        "bytes": np.array([*(Path(path).read_bytes() for path in paths), b"no image"], object),
        "image": np.stack([np.asarray(Image.open(path)) for path in paths]),
    }
    for name, column in columns.items():
        batch = {name: column, "row": np.arange(len(column))}
        if name == "image":
            found = embedder(batch)
        else:
            with pytest.warns(UserWarning, match="1 images are left out"):
                found = embedder(batch)
        torch.testing.assert_close(torch.from_numpy(found["embedding"]), expected)
        assert found["row"].tolist() == list(range(COUNT))
        assert len(found[name]) == COUNT
    with pytest.warns(UserWarning, match="left out"):
        nothing = embedder({"bytes": np.array([b"no image"])})
    assert nothing["embedding"].shape == (0, 6)
    with pytest.raises(ValueError, match="`batch`"):
        embedder({"picture": columns["image"]})


@pytest.mark.slow
def test_the_example_of_the_docs(home: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra ray")
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
        if "import ray" in block
    )
    assert len(code.splitlines()) <= 20
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        exec(code, {})
    finally:
        ray.shutdown()
    rows = pq.read_table(home / "embeddings").to_pydict()
    names = [int(Path(path).stem) for path in rows["path"]]
    assert sorted(names) == list(range(COUNT))
    expected = load("runs/mine").embed([jpeg(name) for name in names])
    found = torch.tensor(np.array([np.asarray(x) for x in rows["embedding"]]))
    torch.testing.assert_close(found, expected)
