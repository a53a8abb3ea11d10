"""Search against brute force over the encoder's own embeddings."""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file

import bgl
from bgl.hyperbolic import HyperbolicDistance
from bgl.images import BrokenImageError
from bgl.models import load
from bgl.search import SearchIndex, find_images
from bgl.search.__main__ import main
from bgl.search.folder import INDEX_FILE
from bgl.search.store import open_store

ODD = 'a"<b>&.png'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve images in two folders, one with an odd name; a broken one; one that is hidden."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        name = ODD if i == 3 else f"{i:02d}.png"
        pixels = rng.integers(0, 256, (20, 24 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("deep" if i % 2 else ".") / name)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / ".hidden.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image")
    return root


def brute_force(run: Path, paths: list[Path], query: Path, output: str) -> torch.Tensor:
    """What an independent computation says about every image, in float64."""
    encoder = load(run)
    x, y = (encoder.embed(p, output=output).double() for p in ([query], paths))
    if output == "head" and isinstance(encoder.distance, HyperbolicDistance):
        return encoder.distance(x, y)[0]
    return torch.nn.functional.cosine_similarity(x, y)


@pytest.mark.parametrize("output", ["head", "backbone"])
@pytest.mark.parametrize("curvature", [None, 0.3], ids=["euclidean", "hyperbolic"])
def test_equals_brute_force(tmp_path: Path, pictures: Path, curvature, output) -> None:
    run = make_run(tmp_path / "run", curvature)
    index = SearchIndex.build(run, [pictures], tmp_path / "index", output, batch_size=5)
    assert len(index) == 12
    query = pictures / "00.png"
    hits = index.query([query], k=12)[0][query]
    paths = [path for path in find_images([pictures]) if path.name != "broken.jpg"]
    expected = brute_force(run, paths, query, output)
    nearest_first = expected.argsort(descending=index.measure == "cosine similarity")
    assert [hit.path for hit in hits] == [paths[i] for i in nearest_first]
    assert {hit.label for hit in hits} == {"pictures", "deep"}
    scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64)
    torch.testing.assert_close(scores, expected[nearest_first], rtol=0, atol=1e-5)
    assert hits[0].path == query
    hyperbolic = curvature is not None and output == "head"
    assert index.measure == ("hyperbolic distance" if hyperbolic else "cosine similarity")


def test_built_and_loaded(run: Path, pictures: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(run, [pictures], tmp_path / "deep" / "index")
    again = SearchIndex.load(tmp_path / "deep" / "index")
    query = [pictures / "00.png", pictures / "deep" / ODD]
    assert again.query(query, k=4) == index.query(query, k=4)
    assert repr(again) == f"SearchIndex(12 images, output='head', {run})"


def test_broken_images_are_left_out(run: Path, pictures: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(run, [pictures], tmp_path / "index")
    assert [error.path for error in index.broken] == [pictures / "broken.jpg"]
    results, broken = index.query([pictures / "broken.jpg", pictures / "00.png"], k=99)
    assert [len(hits) for hits in results.values()] == [12]
    assert isinstance(broken[0], BrokenImageError)
    with pytest.raises(ValueError, match=r"none of 1 can; the first.*broken\.jpg"):
        index.query([pictures / "broken.jpg"])


def test_find_images(pictures: Path) -> None:
    found = find_images([pictures / "notes.txt", pictures, pictures / "00.png"])
    assert len(found) == 14  # with the broken one, and the named one whatever it ends in
    assert found[0] == pictures / "notes.txt"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images([pictures / "nowhere"])
    (pictures / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_images([pictures / "empty"])


def test_an_index_belongs_to_its_model(run: Path, pictures: Path, tmp_path: Path) -> None:
    SearchIndex.build(run, [pictures], tmp_path / "index")
    run.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        SearchIndex.load(tmp_path / "index")
    assert len(SearchIndex.load(tmp_path / "index", tmp_path / "moved")) == 12
    make_run(run)  # another one at the same place
    with pytest.raises(ValueError, match="another one: build it again"):
        SearchIndex.load(tmp_path / "index")


def edited(path: Path, embeddings: Any = None, keys: Any = None, **entries: Any) -> None:
    """Change what an index file holds; its own digest follows the embeddings."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["index"])
    if embeddings is not None:
        tensors["embeddings"] = embeddings(tensors["embeddings"])
    if keys is not None:
        tensors["keys"] = torch.tensor(list(json.dumps(keys).encode()), dtype=torch.uint8)
    about["digest"] = hashlib.sha256(tensors["embeddings"].numpy().tobytes()).hexdigest()
    save_file(tensors, path, {"index": json.dumps(about | entries)})


def test_damaged_index_files_are_named(run: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.safetensors"):
        SearchIndex.load(tmp_path)
    SearchIndex.build(run, [pictures], tmp_path)
    path = tmp_path / INDEX_FILE
    content = path.read_bytes()
    nested = {"index": "[" * 100_000}
    embeddings = {"embeddings": torch.zeros(12, 6)}
    for damaged in (
        b"",
        b"junk",
        content[:-1],
        content[:-1] + bytes([content[-1] ^ 1]),
        save_bytes(embeddings),
        save_bytes(embeddings, nested),
        save_bytes(embeddings, {"index": "[]"}),
        save_bytes(embeddings, {"index": "{}"}),
        save_bytes({"x": torch.zeros(12, 6)}, {"index": "{}"}),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"index\.safetensors.*build the index again"):
            SearchIndex.load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match=r"index\.safetensors"):
        SearchIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("embeddings", "entries", "message"),
    [
        (lambda x: x[:-1].contiguous(), {}, r"12 images have .*\[11, 6\]"),
        (lambda x: x[:, :5].contiguous(), {"dim": 5}, "6 columns.*got 5"),
        (lambda x: x.double(), {}, "float64"),
        (lambda x: x[0], {}, r"\[6\]"),
        (lambda x: x[:0], {"keys": []}, "no images"),
        (None, {"keys": "abcdefghijkl"}, "no list of texts"),
        (None, {"keys": [*range(12)]}, "no list of texts"),
        (None, {"keys": ["a"] * 11}, "11 images"),
        (None, {"output": "tail"}, "`output`.*'tail'"),
        (None, {"run": None}, "`run`"),
        (None, {"model": 3}, "`model`"),
    ],
)
def test_an_index_is_checked_as_a_whole(
    run: Path, pictures: Path, tmp_path: Path, embeddings: Any, entries: Any, message: str
) -> None:
    SearchIndex.build(run, [pictures], tmp_path)
    edited(tmp_path / INDEX_FILE)
    assert len(SearchIndex.load(tmp_path)) == 12
    edited(tmp_path / INDEX_FILE, embeddings, **entries)
    with pytest.raises(ValueError, match=f"{message}.*build the index again"):
        SearchIndex.load(tmp_path)


def test_a_reader_gets_the_old_index_or_the_new_one(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = SearchIndex.build(run, [pictures], tmp_path)
    paths = [hit.path for hit in whole.query([pictures / "00.png"], k=12)[0][pictures / "00.png"]]
    half = whole.store.find([str(path) for path in paths[:6]])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            whole.store.change(removed=half.keys)
            whole.store.change([half])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {len(open_store(tmp_path)) for _ in range(200)} <= {6, 12}
    finally:
        stop.set()
        writer.join()


def test_a_write_that_fails_leaves_the_old_index(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SearchIndex.build(run, [pictures], tmp_path)
    before = (tmp_path / INDEX_FILE).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        index.remove([pictures / "00.png"])
    assert (tmp_path / INDEX_FILE).read_bytes() == before


def test_command_line(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    index = tmp_path / "index"
    assert main(["build", str(run), str(pictures), "--store", str(index)]) == 0
    output = capsys.readouterr()
    assert "12 images in" in output.out
    assert "skipped" in output.err
    assert "broken.jpg" in output.err
    assert main(["query", str(pictures / "deep" / ODD), "-k", "3", "--store", str(index)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"   1    1\.0000  .*{re.escape(ODD)}", lines[1])
    page = (index / "search.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 4
    assert html.escape(ODD) in page
    assert ODD not in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_query_tells_whether_refining_would_help(
    run: Path, pictures: Path, tmp_path: Path, capsys
) -> None:
    main(["build", str(run), str(pictures), "--store", str(tmp_path)])
    main(["query", str(pictures / "00.png"), "--check", "--store", str(tmp_path)])
    index = SearchIndex.load(tmp_path)
    expected = str(bgl.forecast(index.store.vectors))
    assert str(index.forecast()) == expected
    assert expected in capsys.readouterr().out
    assert html.escape(expected) in (tmp_path / "search.html").read_text()


def test_names_that_a_terminal_cannot_show(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "00.png").rename(pictures / "ベクター.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["build", str(run), str(pictures), "--store", str(tmp_path / "索引")]) == 0
    assert b"12 images in" in terminal.buffer.getvalue()


def test_the_page_shows_what_is_gone(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    index, page = tmp_path / "index", tmp_path / "new" / "page.html"
    main(["build", str(run), str(pictures), "--store", str(index)])
    (pictures / "02.png").unlink()
    (pictures / "04.png").unlink()
    os.mkfifo(pictures / "04.png")
    query = str(pictures / "00.png")
    assert main(["query", query, "--store", str(index), "-k", "12", "--page", str(page)]) == 0
    assert page.read_text().count("no longer there") == 2


def test_errors_on_the_command_line(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    assert main(["query", str(pictures), "--store", str(tmp_path)]) == 2
    assert main(["build", str(tmp_path), str(pictures), "--store", str(tmp_path / "i")]) == 2
    assert "holds models in run" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


@pytest.fixture(params=["folder", pytest.param("milvus", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "milvus":
        return str(request.getfixturevalue("milvus_file"))
    return str(tmp_path / "index")


def test_the_same_commands_for_every_store(
    run: Path, pictures: Path, tmp_path: Path, address: str, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ["--store", address]

    def lines(*arguments: str) -> list[str]:
        assert main([*arguments, *store]) == 0
        return capsys.readouterr().out.splitlines()

    assert lines("build", str(run), str(pictures / "deep"))[-1].startswith("6 images in")
    assert lines("add", str(pictures))[0] == "6 images embedded"
    first, other = str(pictures / "00.png"), str(pictures / "02.png")
    assert f"1.0000  {first}" in lines("query", first, "-k", "3", "--label", "pictures")[1]
    (pictures / "00.png").unlink()
    assert f"1.0000  {first}" in lines("query", "pictures/00.png", "-k", "3")[1]  # by its path
    (pictures / "02.png").write_bytes((pictures / "deep" / "01.png").read_bytes())
    assert lines("update", other)[0] == "1 images embedded"
    hits = lines("query", other, "-k", "2")[1:3]
    assert all("1.0000" in hit for hit in hits)
    assert {hit.split("  ")[-1] for hit in hits} == {other, str(pictures / "deep" / "01.png")}
    assert lines("remove", first)[:1] == ["1 images removed"]
    assert main(["query", first, *store]) == 2
    with pytest.raises(FileNotFoundError, match=r"paths in the index.*00\.png"):
        SearchIndex.load(address).remove([first])
    assert len(SearchIndex.load(address)) == 11


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_bgl_embed_wrote_is_not_embedded_again(
    run: Path, pictures: Path, tmp_path: Path, address: str, dtype: str
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from bgl import embed

    (pictures / "broken.jpg").unlink()
    embed(run, [pictures], tmp_path / "shards", dtype=dtype)
    index = SearchIndex.build(run, [tmp_path / "shards"], address)
    images = SearchIndex.build(run, [pictures], tmp_path / "other")
    query = pictures / "00.png"
    hits, expected = (i.query([query], 12)[0][query] for i in (index, images))
    near = dict(rel=0, abs=2e-3 if dtype == "float16" else 1e-6)
    assert {hit.path: hit.score for hit in hits} == pytest.approx(
        {hit.path: hit.score for hit in expected}, **near
    )
    assert all((hit.label == "deep") == (hit.path.parent.name == "deep") for hit in hits)
    with pytest.raises(ValueError, match="another `output`"):
        SearchIndex.build(run, [tmp_path / "shards"], address, "backbone")
    make_run(run)
    with pytest.raises(ValueError, match="another `model`"):
        SearchIndex.build(run, [tmp_path / "shards"], address)
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="let bgl embed finish"):
        SearchIndex.build(run, [tmp_path / "shards"], address)
