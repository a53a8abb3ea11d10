"""The models that come with the package: small, offline, as their card says."""

from __future__ import annotations

import argparse
import re
import socket
from pathlib import Path

import pytest
import torch
from helpers import write_pngs

from bgl import cli
from bgl.datasets import ImageDataset, load_dataset, raw_pixels
from bgl.metrics import retrieval_metrics
from bgl.models import export, load, model_digest
from bgl.models.files import MODELS, WEIGHTS_FILE, address, locate
from bgl.search import SearchIndex


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def drawings() -> ImageDataset:
    """Thirty classes that the model was not trained on."""
    test = load_dataset("emoji").test
    chosen = (test.labels < 30).nonzero().flatten()
    images = torch.stack([test.read(i) for i in chosen.tolist()])
    return ImageDataset(images, test.labels[chosen], test.class_names)


@pytest.mark.parametrize("name", MODELS)
def test_a_packaged_model_is_small_and_has_a_card(name: str) -> None:
    folder = locate(name)
    assert (folder / WEIGHTS_FILE).stat().st_size < 3_000_000
    assert "licence" in (folder / "README.md").read_text(encoding="utf-8")
    assert address(name) == name
    assert model_digest(name) == model_digest(folder)


@pytest.mark.slow
def test_the_emoji_model_orders_unseen_drawings_better_than_pixels(drawings: ImageDataset) -> None:
    encoder = load("emoji")
    assert encoder.config.embedding == "readout"
    assert not encoder.model.blocks
    pixels = retrieval_metrics(raw_pixels(drawings), drawings.labels)
    found = retrieval_metrics(encoder.embed(drawings), drawings.labels)
    assert found["map@r"] > pixels["map@r"]


@pytest.mark.reliability
def test_its_card_has_the_figures_of_the_weights() -> None:
    card = (locate("emoji") / "README.md").read_text(encoding="utf-8")
    header, _, *rows = re.findall(r"^\|.*\|$", card, re.M)
    said = dict(zip(header.split("|"), rows[-1].split("|"), strict=True))  # of the readout
    test = load_dataset("emoji").test
    found = retrieval_metrics(load("emoji").embed(test), test.labels)
    for name, title in (("recall@1", " R@1 "), ("map@r", " MAP@R ")):
        assert float(said[title]) == pytest.approx(100 * found[name], abs=0.1)


@pytest.mark.slow
def test_its_name_is_taken_wherever_a_model_is(drawings: ImageDataset, tmp_path: Path) -> None:
    paths = write_pngs(tmp_path, [drawings.read(i) for i in range(6)])
    vectors = load("emoji").embed(paths)
    index = SearchIndex.build("emoji", paths, tmp_path / "index")
    assert all(hits[0].path == path for path, hits in index.query(paths, k=1)[0].items())
    assert SearchIndex.load(tmp_path / "index").store.about.run == "emoji"
    program = torch.export.load(export("emoji", tmp_path / "emoji.pt2", "torch"))
    images = torch.stack([load("emoji").transform(drawings.read(i)) for i in range(6)])
    torch.testing.assert_close(program.module()(images)[0], vectors)


def test_its_name_is_taken_by_embed(drawings: ImageDataset, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra scale")
    from bgl import embed

    paths = write_pngs(tmp_path, [drawings.read(i) for i in range(6)])
    shards = embed("emoji", paths, tmp_path / "shards")
    torch.testing.assert_close(torch.from_numpy(shards.vectors()), load("emoji").embed(paths))


def test_a_folder_of_its_name_does_not_say_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "config.yaml").write_text("dataset: folder\n")
    options = dict.fromkeys(cli.DATA) | {"run": "emoji"}
    assert cli._splits(argparse.Namespace(**options)).name == "emoji"


def test_a_path_is_always_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load(Path("emoji"))
    assert address("./emoji") == str(tmp_path / "emoji")
