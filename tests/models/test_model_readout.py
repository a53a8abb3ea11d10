"""A readout as a part of a model: embedded, stored, exported, searched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers import write_pngs
from torch import Tensor

from bgl.hyperbolic import HyperbolicDistance
from bgl.models import Encoder, ModelConfig, assemble_model, create_backbone, export, load, save
from bgl.readout import LinearReadout, fit_readout
from bgl.search import SearchIndex

WIDTH, HEAD = 96, 4  # of test_resnet
LABELS = torch.arange(24) // 3


def pictures(n: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, 40, 36), dtype=torch.uint8, generator=generator)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    backbone, info = create_backbone("test_resnet", "none")
    config = ModelConfig("test_resnet", 32, info.mean, info.std, HEAD, curvature=0.1)
    return Encoder(assemble_model(backbone, info.num_features, config), config)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_readout_is_fitted_to_the_backbones_output(encoder: Encoder, labels: Tensor) -> None:
    images = pictures()
    x = encoder.embed(images, output="backbone")
    expected = fit_readout(x, labels, shrinkage=0.5, dim=7)(x)
    read = encoder.fit_readout(images, labels, shrinkage=0.5, dim=7, batch_size=5)
    torch.testing.assert_close(read.embed(images), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(read.embed(images, output="readout"), read.embed(images))
    found = read.embed(images, output=None)
    assert {name: part.size(1) for name, part in found.items()} == {
        **{"backbone": WIDTH, "head": HEAD},
        "readout": 7,
    }
    assert torch.equal(found["head"], encoder.embed(images))


def test_the_encoder_before_is_left_as_it_was(encoder: Encoder) -> None:
    images = pictures()
    config, plain = encoder.config, encoder.embed(images, output=None)
    readout = LinearReadout(torch.zeros(WIDTH).double(), torch.eye(WIDTH).double())
    read = encoder.with_readout(readout)
    assert encoder.config is config
    assert encoder.model.readout is None
    assert readout.weight.dtype == torch.float64
    assert list(encoder.embed(images, output=None)) == list(plain)
    torch.testing.assert_close(read.embed(images), plain["backbone"])
    with pytest.raises(ValueError, match=r"`output`.*'backbone', 'head'.*'readout'"):
        encoder.embed(images, output="readout")


def test_another_image_size_is_as_if_built_for_it(encoder: Encoder) -> None:
    images = pictures()
    config = dataclasses.replace(encoder.config, image_size=48, resize=48)
    expected = Encoder(encoder.model, config).embed(images, output=None)
    larger = encoder.fit_readout(images).with_image_size(48)  # a readout belongs to its size
    found = larger.embed(images, output=None)
    assert larger.config == dataclasses.replace(config, embedding="backbone")
    assert found.keys() == expected.keys() == {"backbone", "head"}
    for name, x in expected.items():
        assert torch.equal(found[name], x)
    assert not torch.allclose(found["head"], encoder.embed(images, output="head"), atol=1e-3)
    assert encoder.with_image_size(48).config.embedding == "head"


def test_a_backbone_for_one_size_has_no_other() -> None:
    backbone, info = create_backbone("deit_tiny_patch16_224", "none", 32)
    config = ModelConfig("deit_tiny_patch16_224", 32, info.mean, info.std, HEAD)
    encoder = Encoder(assemble_model(backbone, info.num_features, config), config)
    with pytest.raises(ValueError, match=r"`image_size`.*'deit_tiny.*32 x 32 .*none of 48 x 48"):
        encoder.with_image_size(48)
    with pytest.raises(ValueError, match=r"`image_size`"):
        encoder.with_image_size(0)


def test_every_embedding_has_its_distance(encoder: Encoder) -> None:
    assert isinstance(encoder.distance, HyperbolicDistance)  # of the head
    read = encoder.fit_readout(pictures())
    assert read.distance == "cosine"
    assert isinstance(read.config.distance_of("head"), HyperbolicDistance)
    assert read.config.distance_of("backbone") == "cosine"


@pytest.mark.parametrize("dim", [None, 5])
def test_a_readout_is_stored_with_its_model(
    encoder: Encoder, tmp_path: Path, dim: int | None
) -> None:
    images = pictures()
    read = encoder.fit_readout(images, LABELS, dim=dim)
    save(read.model, tmp_path, read.config)
    again = load(tmp_path)
    assert again.config == read.config
    assert again.config.readout_dim == (dim or WIDTH)
    assert torch.equal(again.embed(images), read.embed(images))
    # a second fit replaces the first
    other = again.fit_readout(images, dim=3)
    torch.testing.assert_close(
        other.embed(images), encoder.fit_readout(images, dim=3).embed(images)
    )


def test_a_model_saved_before_there_were_readouts_loads(encoder: Encoder, tmp_path: Path) -> None:
    save(encoder.model, tmp_path, encoder.config)
    path = tmp_path / "model.json"
    values = json.loads(path.read_text())
    del values["embedding"], values["readout_dim"]
    path.write_text(json.dumps(values))
    again = load(tmp_path)
    assert again.config == encoder.config
    assert torch.equal(again.embed(pictures()), encoder.embed(pictures(), output="head"))


def test_a_readout_that_is_missing_is_named(encoder: Encoder, tmp_path: Path) -> None:
    config = dataclasses.replace(encoder.config, embedding="readout", readout_dim=3)
    save(encoder.model, tmp_path, config)
    with pytest.raises(ValueError, match=r"missing \(readout\.mean, readout\.weight"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"`embedding`.*'backbone', 'head'.*'readout'"):
        dataclasses.replace(encoder.config, embedding="readout")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["default", "backbone", "head"])
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_an_export_gives_what_embed_gives(
    encoder: Encoder, tmp_path: Path, format: str, output: str
) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package, reason="needs bgl[export]")
        runtime = pytest.importorskip("onnxruntime", reason="needs bgl[export]")
    images = pictures()
    read = encoder.fit_readout(images, LABELS, dim=6)
    save(read.model, tmp_path, read.config)
    path = tmp_path / ("x.pt2" if format == "torch" else "x.onnx")
    export(tmp_path, path, format, output)
    prepared = torch.stack([read.transform(image) for image in images[:5]])
    about = {"model.json": ""}
    if format == "torch":
        found = torch.export.load(path, extra_files=about).module()(prepared)
    else:
        session = runtime.InferenceSession(path)
        arrays = session.run(["embeddings", "features"], {"images": prepared.numpy()})
        found = [torch.from_numpy(array) for array in arrays]
        about = session.get_modelmeta().custom_metadata_map
    for part, name in zip(found, (output, "backbone"), strict=True):
        torch.testing.assert_close(part, read.embed(images[:5], 5, name), rtol=1e-4, atol=1e-4)
    wanted = "readout" if output == "default" else output
    assert json.loads(about["model.json"])["embedding"] == wanted


def test_a_search_compares_the_readout(encoder: Encoder, tmp_path: Path) -> None:
    images = pictures()
    paths = write_pngs(tmp_path, images)
    read = encoder.fit_readout(images, LABELS)
    save(read.model, tmp_path / "model", read.config)
    SearchIndex.build(tmp_path / "model", paths, tmp_path / "index")
    index = SearchIndex.load(tmp_path / "index")
    assert index.store.about.output == "readout"
    embeddings = index.store.find([str(path) for path in paths]).vectors
    torch.testing.assert_close(embeddings, read.embed(images), rtol=1e-4, atol=1e-4)
    assert index.query([paths[3]], 1)[0][paths[3]][0].path == paths[3]
