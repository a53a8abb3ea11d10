"""The command ``bgl`` against the functions behind it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import make_run, write_noisy_classes

import bgl
from bgl._usage import train_fields
from bgl.cli import COMMANDS, main
from bgl.datasets import dataset_names, load_dataset
from bgl.metrics import retrieval_metrics
from bgl.models import load
from bgl.training import TrainConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_noisy_classes(tmp_path / "data", {"train": 4, "test": 3}, 3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", curvature=0.2)


def test_eval(run: Path, folder: Path, capsys) -> None:
    assert main(["eval", str(run), "--dataset", "folder", "--data-root", str(folder)]) == 0
    title, *lines_of_embeddings = capsys.readouterr().out.splitlines()
    lines = dict(line.split(": ") for line in lines_of_embeddings)
    encoder, test = load(run), load_dataset("folder", folder).test
    among = f"folder: retrieval among the {test.num_classes} test classes"
    assert title == f"{among}; the model's embedding: head"
    for output, distance in (("backbone", "cosine"), ("head", encoder.distance)):
        x = encoder.embed([folder / "test" / path for path in _paths(folder)], output=output)
        expected = retrieval_metrics(x, test.labels, distance=distance)
        found = dict(cell.rsplit(" ", 1) for cell in lines[f"test {output}"].split(", "))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, abs=1e-4)


def test_refine(run: Path, folder: Path, capsys) -> None:
    words = ["refine", str(run), "--dataset", "folder", "--data-root", str(folder)]
    assert main([*words, "-k", "4", "--epsilon", "0.3"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "folder: retrieval among the 3 test classes"
    test = load_dataset("folder", folder).test
    x = load(run).embed([folder / "test" / path for path in _paths(folder)], output="backbone")
    for line, result in zip(lines, (x, bgl.refine(x, k=4, epsilon=0.3)), strict=True):
        assert f"map@r {retrieval_metrics(result, test.labels)['map@r']:.4f}" in line
    assert main([*words, "-k", "4", "--check"]) == 0
    assert capsys.readouterr().out == f"{bgl.forecast(x, k=4)}\n"
    (folder / "test" / "test0" / "broken.png").write_bytes(b"broken")
    assert main(["refine", str(run), str(folder / "test"), "-k", "4", "--check"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{bgl.forecast(x, k=4)}\n"
    assert shown.err.startswith("note: 1 image")


def test_refine_of_images_needs_check(run: Path, folder: Path, capsys) -> None:
    assert main(["refine", str(run), str(folder)]) == 2
    assert "--check" in capsys.readouterr().err
    assert main(["refine", str(run), str(folder), "--check", "--dataset", "emoji"]) == 2
    assert "got both" in capsys.readouterr().err


def test_eval_of_a_run_is_on_its_own_data(run: Path, folder: Path, capsys) -> None:
    (next(folder.rglob("test/test0/0.png"))).write_bytes(b"broken")
    config = TrainConfig(dataset="folder", data_root=str(folder), skip_broken=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert main(["eval", str(run)]) == 0
    assert capsys.readouterr().out.startswith("folder: retrieval among the 3 test")
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
    assert main(["search", "build", str(run), str(folder / "test"), "--store", index]) == 0
    assert (
        main(["search", "query", str(folder / "test/test0/0.png"), "--store", index, "-k", "2"])
        == 0
    )
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
        (["trian"], r"no command 'trian': did you mean train\?"),
        (["train", "--mehtod", "none"], r"no option --mehtod: did you mean --method\?"),
        (["train", "--dybgr.num-iteration", "1"], r"did you mean --dybgr.num_iterations\?"),
        (["eval", "x", "--data-rot", "y"], r"no option --data-rot: did you mean --data-root\?"),
        (
            ["search", "query", "y", "--store", "x", "--pge", "z"],
            r"no option --pge: did you mean --page\?",
        ),
        (["train", "--epochs", "ten"], "Expected --epochs to be an integer, but got ten"),
        (["eval"], "required: run"),
        (
            ["search", "query", "nothere.jpg", "--store", "index"],
            "`store` .*found none: index: build it",
        ),
    ],
)
def test_errors_are_one_line(argv: list[str], message: str, capsys) -> None:
    assert main(argv) == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)


def test_the_first_steps_are_commands_that_there_are(capsys) -> None:
    assert main([]) == 0
    steps = re.findall(r"^  bgl (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert {"train", "check", "adapt", "embed", "refine"} <= set(steps) <= {*COMMANDS, "--help"}


def test_help_and_mistakes_import_nothing_slow() -> None:
    code = """
import sys
from bgl.cli import main
for line in ("", "--help", "train --help", "search query --help", "check --help",
             "trian", "train --mehtod none", "eval"):
    try:
        status = main(line.split())
    except SystemExit as ended:
        status = ended.code
    assert status == (0 if not line or "--help" in line else 2), line
    assert not {"torch", "numpy", "PIL"} & set(sys.modules), line
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: bgl") == 3


@pytest.mark.slow
def test_as_a_program_it_says_nothing_foreign() -> None:
    command = [sys.executable, "-m", "bgl.cli"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"bgl {bgl.__version__}"
    done = subprocess.run([*command, "datasets"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_short_help_has_the_options_that_people_use(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    shown = re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)
    assert {"--data-root", "--method", "--epochs", "--batch-size", "--output-dir"} <= set(shown)
    assert 20 <= len(shown) <= 25
    assert "--help-all" in text


def test_fields_are_read_off_the_source_as_they_are() -> None:
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    assert list(train_fields()) == list(fields)
    assert all(text.endswith(".") for _, text in train_fields().values())
    assert train_fields()["lr"] == ("0.00015", "Learning rate of the encoder.")
