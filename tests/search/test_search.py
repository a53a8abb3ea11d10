"""Search against brute force over the encoder's own embeddings."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bgl.hyperbolic import HyperbolicDistance, to_poincare_ball
from bgl.images import BrokenImageError
from bgl.models import ModelConfig, assemble_model, create_backbone, load, save
from bgl.search import SearchIndex, find_images
from bgl.search.__main__ import main
from bgl.search.index import _entries, _queries, _scores

ODD = 'a"<b>&.png'


def make_run(folder: Path, curvature: float | None = None) -> Path:
    backbone, info = create_backbone("test_resnet", "none")
    config = ModelConfig("test_resnet", 16, (0.5,) * 3, (0.5,) * 3, 6, curvature=curvature)
    save(assemble_model(backbone, info.num_features, config), folder, config)
    return folder


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
    index = SearchIndex.build(run, [pictures], output, batch_size=5)
    assert len(index) == 12
    query = pictures / "00.png"
    hits = index.query([query], k=12)[0][query]
    expected = brute_force(run, index.paths, query, output)
    nearest_first = expected.argsort(descending=index.measure == "cosine similarity")
    assert [hit.path for hit in hits] == [index.paths[i] for i in nearest_first]
    scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64)
    torch.testing.assert_close(scores, expected[nearest_first], rtol=1e-3, atol=2e-3)
    assert hits[0].path == query
    hyperbolic = curvature is not None and output == "head"
    assert index.measure == ("hyperbolic distance" if hyperbolic else "cosine similarity")


@pytest.mark.parametrize("c", [0.05, 1.0])
def test_hyperbolic_order_and_distance(c: float) -> None:
    """The lifted inner product against the distance, in float64."""
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randn(50, 5, dtype=torch.float64)
    x, y = (to_poincare_ball(z / c**0.5, c=c, clip_radius=1.2 / c**0.5) for z in (x, y))
    products = torch.from_numpy(_queries(x, c) @ _entries(y, c).T)
    distance = HyperbolicDistance(c)(x, y)
    # the distance's formula has a 1e-5 that the scores do not
    torch.testing.assert_close(_scores(products, c), distance, rtol=1e-3, atol=0)
    assert torch.equal(products.argsort(dim=1, descending=True), distance.argsort(dim=1))


def test_saved_and_loaded(run: Path, pictures: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(run, [pictures])
    index.save(tmp_path / "deep" / "index")
    assert {f.name for f in (tmp_path / "deep/index").iterdir()} == {"index.faiss", "index.json"}
    again = SearchIndex.load(tmp_path / "deep" / "index")
    query = [pictures / "00.png", pictures / "deep" / ODD]
    assert again.query(query, k=4) == index.query(query, k=4)
    assert repr(again) == f"SearchIndex(12 images, output='head', {run})"


def test_broken_images_are_left_out(run: Path, pictures: Path) -> None:
    index = SearchIndex.build(run, [pictures])
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
    SearchIndex.build(run, [pictures]).save(tmp_path / "index")
    run.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        SearchIndex.load(tmp_path / "index")
    assert len(SearchIndex.load(tmp_path / "index", tmp_path / "moved")) == 12
    make_run(run)  # another one at the same place
    with pytest.raises(ValueError, match="another one: build it again"):
        SearchIndex.load(tmp_path / "index")


def test_a_model_that_changes_before_the_index_is_saved(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    index = SearchIndex.build(run, [pictures])
    make_run(run)
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="another one"):
        SearchIndex.load(tmp_path / "index")


def test_broken_indexes(run: Path, pictures: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(run, [pictures])
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        SearchIndex.load(tmp_path)
    index.save(tmp_path / "index")
    entries = tmp_path / "index" / "index.json"
    text = entries.read_text()
    for content in ("", "[]", "{}"):
        entries.write_text(content)
        with pytest.raises(ValueError, match=r"index\.json to describe an index"):
            SearchIndex.load(tmp_path / "index")
    entries.write_text(text)
    (tmp_path / "index" / "index.faiss").write_bytes(b"junk")  # as after half a build
    with pytest.raises(ValueError, match="build the index again"):
        SearchIndex.load(tmp_path / "index")


def test_command_line(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    index = tmp_path / "index"
    assert main(["build", str(run), str(pictures), "--index", str(index)]) == 0
    output = capsys.readouterr()
    assert "12 images in" in output.out
    assert "skipped" in output.err
    assert "broken.jpg" in output.err
    assert main(["query", str(index), str(pictures / "deep" / ODD), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"   1    1\.0000  .*{re.escape(ODD)}", lines[1])
    page = (index / "search.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 4
    assert html.escape(ODD) in page
    assert ODD not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_shows_what_is_gone(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    index, page = tmp_path / "index", tmp_path / "new" / "page.html"
    main(["build", str(run), str(pictures), "--index", str(index)])
    (pictures / "02.png").unlink()
    query = str(pictures / "00.png")
    assert main(["query", str(index), query, "-k", "12", "--page", str(page)]) == 0
    assert page.read_text().count("no longer there") == 1


def test_errors_on_the_command_line(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    assert main(["query", str(tmp_path), str(pictures)]) == 2
    assert main(["build", str(tmp_path), str(pictures), "--index", str(tmp_path / "i")]) == 2
    assert "holds models in run" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()
