"""The command ``bgl`` against the functions behind it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import write_noisy_classes

import bgl
from bgl.cli import main
from bgl.datasets import dataset_names, load_dataset
from bgl.metrics import retrieval_metrics
from bgl.models import ModelConfig, assemble_model, create_backbone, load, save
from bgl.training import TrainConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_noisy_classes(tmp_path / "data", {"train": 4, "test": 3}, 3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    backbone, info = create_backbone("test_resnet", "none")
    config = ModelConfig("test_resnet", 16, (0.5,) * 3, (0.5,) * 3, 6, curvature=0.2)
    save(assemble_model(backbone, info.num_features, config), tmp_path / "run", config)
    return tmp_path / "run"


def test_eval(run: Path, folder: Path, capsys) -> None:
    assert main(["eval", str(run), "--dataset", "folder", "--data-root", str(folder)]) == 0
    title, *lines_of_embeddings = capsys.readouterr().out.splitlines()
    lines = dict(line.split(": ") for line in lines_of_embeddings)
    encoder, test = load(run), load_dataset("folder", folder).test
    assert title == f"folder, {test.num_classes} test classes; the model's embedding: head"
    for output, distance in (("backbone", "cosine"), ("head", encoder.distance)):
        x = encoder.embed([folder / "test" / path for path in _paths(folder)], output=output)
        expected = retrieval_metrics(x, test.labels, distance=distance)
        found = dict(cell.rsplit(" ", 1) for cell in lines[output].split(", "))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, abs=1e-4)


def test_eval_of_a_run_is_on_its_own_data(run: Path, folder: Path, capsys) -> None:
    (next(folder.rglob("test/test0/0.png"))).write_bytes(b"broken")
    config = TrainConfig(dataset="folder", data_root=str(folder), skip_broken=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert main(["eval", str(run)]) == 0
    assert capsys.readouterr().out.startswith("folder, 3 test classes; ")
    assert main(["eval", str(run), "--dataset", "folder", "--data-root", str(folder)]) == 2


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_eval_on_no_device(run: Path, device: str, capsys) -> None:
    assert main(["eval", str(run), "--device", device]) == 2
    assert re.fullmatch(rf"error: .*--device.*{device}.*\n", capsys.readouterr().err)


def _paths(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder / "test") for p in (folder / "test").rglob("*.png"))


def test_explore(tmp_path: Path, capsys) -> None:
    assert main(["explore", str(tmp_path), "--page", str(tmp_path / "deep" / "x.html")]) == 0
    assert (tmp_path / "deep" / "x.html").stat().st_size > 0
    assert "x.html" in capsys.readouterr().out


def test_train(folder: Path, tmp_path: Path) -> None:
    words = f"--dataset folder --data-root {folder} --output-dir {tmp_path / 'out'} --epochs 1"
    words += " --method none --backbone test_resnet --weights none --image-size 16"
    assert main(["train", *words.split(), "--batch-size", "4", "--per-class", "2"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"pixels", "untrained", "none"}
    assert len(load(tmp_path / "out" / "none-seed0").embed(list(folder.rglob("*.png")))) == 21


def test_search(run: Path, folder: Path, tmp_path: Path, capsys) -> None:
    index = str(tmp_path / "index")
    assert main(["search", "build", str(run), str(folder / "test"), "--index", index]) == 0
    assert main(["search", "query", index, str(folder / "test/test0/0.png"), "-k", "2"]) == 0
    assert "9 images" in capsys.readouterr().out


def test_datasets(folder: Path, capsys) -> None:
    assert main(["datasets"]) == 0
    assert capsys.readouterr().out.split() == list(dataset_names())
    assert main(["datasets", "folder", "--data-root", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "test: 3 classes with 9 images" in output
    assert load_dataset("folder", folder).digest in output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["datasets", "cifar"], "cifar"),
        (["datasets", "cub", "--download"], "--data-root"),
        (["eval", "nowhere"], r"model\.json"),
        (["explore", "nowhere"], "no run folder"),
    ],
)
def test_errors_are_one_line(argv: list[str], message: str, capsys) -> None:
    assert main(argv) == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "bgl.cli"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"bgl {bgl.__version__}"
    done = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'trian'" in done.stderr
