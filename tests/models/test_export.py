"""Exported encoders against the model they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import bgl.models.exporting as exporting
from bgl.models import (
    BlockConfig,
    Encoder,
    ModelConfig,
    export,
    load,
    save,
)
from bgl.models.storage import empty_model

CONFIG = ModelConfig(
    "test_resnet",
    32,
    (0.4, 0.5, 0.6),
    (0.2, 0.3, 0.1),
    6,
    (BlockConfig("dybgr", {"k": 3}),),
    curvature=0.1,
    head_norm=True,
    pool="avgmax",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(empty_model(CONFIG), tmp_path / "run", CONFIG)
    return tmp_path / "run"


def outputs(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = encoder.model(images)
    return output.embeddings, output.features


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 5])
def test_onnx_gives_the_same(run: Path, n: int) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs bgl[export]")
    runtime = pytest.importorskip("onnxruntime", reason="needs bgl[export]")
    path = run / "encoder.onnx"
    assert export(run, path) == path
    session = runtime.InferenceSession(path)
    images = torch.randn(n, 3, 32, 32)
    found = session.run(["embeddings", "features"], {"images": images.numpy()})
    for actual, expected in zip(found, outputs(load(run), images), strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-5, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map["model.json"]
    assert about == (run / "model.json").read_text()


@pytest.mark.slow
def test_torch_export_gives_the_same(run: Path) -> None:
    about = {"model.json": ""}
    path = export(run, run / "deep" / "encoder.pt2", "torch")
    program = torch.export.load(path, extra_files=about)
    assert about["model.json"] == (run / "model.json").read_text()
    assert not any("blocks" in name for name in program.state_dict)  # not needed any more
    for n in (1, 5):  # of any batch size
        images = torch.randn(n, 3, 32, 32)
        found = program.module()(images)
        for actual, expected in zip(found, outputs(load(run), images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_wrong_arguments(run: Path) -> None:
    with pytest.raises(ValueError, match=r"`format`.*'onnx', 'torch'.*'jit'"):
        export(run, run / "x.onnx", "jit")
    with pytest.raises(ValueError, match=r"`path`.*\.pt2.*x\.onnx"):
        export(run, run / "x.onnx", "torch")
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        export(run.parent / "nothing", run / "x.onnx")


def test_nothing_is_half_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(exporting, "_torch", fail)
    with pytest.raises(OSError, match="disk full"):
        export(run, run / "x.pt2", "torch")
    assert {file.name for file in run.iterdir()} == {"model.json", "model.safetensors"}
