"""A whole run on a folder of images: what it writes, how it goes on, what it says, its table."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import result_row, write_noisy_classes
from safetensors.torch import load_file

from bgl.models.config import EMBEDDINGS
from bgl.pipeline import as_csv, markdown, options, rows, run
from bgl.pipeline.comparison import comparison
from bgl.pipeline.folder import locked, new_folder
from bgl.pipeline.overview import TOUR
from bgl.training.loop import Progress

TWO = ["--method", "none", "--epochs", "2"]
METRICS = ["recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"]
SMALL = [
    *("--dataset", "folder", "--backbone", "test_resnet", "--weights", "none"),
    *("--image-size", "32", "--epochs", "1", "--batch-size", "8", "--per-class", "2"),
    *("--head-dim", "8", "--device", "cpu", "--workers", "0", "--dybgr.k", "3"),
    *("--checkpoint-minutes", "0"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset: 6 + 2 train classes and 3 test classes of 3 noisy images each."""
    return write_noisy_classes(tmp_path_factory.mktemp("images"), {"train": 8, "test": 3}, 3)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two methods; do not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = [*SMALL, "--data-root", str(images), "--method", "none", "dybgr"]
    assert run.main([*words, "--output-dir", str(folder)]) == 0
    return folder


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def test_run_writes_results(finished: Path) -> None:
    content = results(finished)
    rows = content["rows"]
    assert [(row["method"], row["seed"], row["embedding"]) for row in rows] == [
        ("pixels", None, "pixels"),
        ("untrained", None, "backbone"),
        ("untrained", None, "readout"),
        *(("none", 0, embedding) for embedding in EMBEDDINGS),
        *(("dybgr", 0, embedding) for embedding in EMBEDDINGS),
    ]
    for row in rows:
        assert set(METRICS) <= row["metrics"].keys()
        assert all(0 <= row["metrics"][m] <= 1 for m in METRICS)
        assert row["metrics"]["num_queries"] == 9
    trained = rows[-1]
    assert [row["dimension"] for row in rows[-3:]] == [96, 8, 96]
    for row in rows:
        fitted = row.get("readout")
        assert (fitted is not None) == (row["embedding"] == "readout")
        assert fitted is None or fitted["chosen_by"] == "validation MAP@R"
    assert trained["epoch"] == trained["epochs"] == 1
    with (finished / "dybgr-seed0" / "metrics.csv").open(newline="") as file:
        (epoch,) = csv.DictReader(file)
    assert trained["validation"] == float(epoch["val_backbone_map@r"])
    assert trained["graph_at_test_time"] is False
    assert trained["config"]["dybgr"]["k"] == 3
    assert trained["skipped_steps"] == 0
    assert trained["seconds"] > 0
    assert trained["peak_memory_mb"] > 0

    dataset = content["dataset"]
    assert dataset["name"] == "folder"
    assert len(dataset["digest"]) == 12
    assert dataset["train"] == {"classes": 6, "images": 18}
    assert dataset["val"] == {"classes": 2, "images": 6}
    assert dataset["test"] == {"classes": 3, "images": 9}
    how = "best validation MAP@R of the backbone embedding; shrinkage of the readout: "
    assert content["selection"] == how + "best validation MAP@R"
    assert content["test_evaluations"] == 1
    assert {"torch", "timm", "torch_geometric", "python", "bgl"} <= content["versions"].keys()


def test_the_last_line_says_what_the_run_took(finished: Path) -> None:
    content = results(finished)
    about: Any = {**content, "seconds": 90.0}
    done = run.Run(None, None, about, finished, content["rows"])  # type: ignore[arg-type]
    line = run.summary(done)
    assert re.fullmatch(
        r"1\.5 min, CPU, fp32, 1 process, peak memory \d+\.\d GB, [\d,]+ images/s, "
        r"\d+% waiting for data",
        line,
    )
    versions = {"cuda": "13.0", "cudnn": "91300", "nccl": "2.28.9"}
    about |= {"gpu": "NVIDIA H100", "processes": 8, "versions": versions}
    about["precision"] = {"training": "bf16"}
    done.rows[-1]["peak_gpu_memory_mb"] = 2048.0
    assert run.summary(done).startswith(
        "1.5 min, NVIDIA H100, bf16, cuda 13.0, cudnn 91300, nccl 2.28.9, 8 processes, peak memory"
    )
    assert ", of the GPU 2.0 GB, " in run.summary(done)


@pytest.mark.parametrize("method", ["none", "dybgr"])
def test_run_folder_of_a_method(finished: Path, method: str) -> None:
    folder = finished / f"{method}-seed0"
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "model.safetensors", "result.json"} <= files
    assert "checkpoint.pt" not in files
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (stored,) = {
        json.dumps(row["config"]) for row in results(finished)["rows"] if row["method"] == method
    }
    assert config == json.loads(stored)
    assert config["method"] == method
    with (folder / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["epoch"] == "1"
    assert ("loss_graph" in row) == (method == "dybgr")
    state = load_file(folder / "model.safetensors")
    assert state["head.0.weight"].shape == (8, 96)
    assert any(name.startswith("blocks.0.") for name in state) == (method == "dybgr")


def again(images: Path, folder: Path, *words: str) -> int:
    return run.main([*SMALL, "--data-root", str(images), "--output-dir", str(folder), *words])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake ends in."""
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("error:")]
    return line


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("trained again")


def test_finished_trainings_are_taken_as_they_are(images, finished, monkeypatch, capsys):
    monkeypatch.setattr(rows, "train", never)
    before = results(finished)
    assert again(images, finished, "--method", "none", "dybgr") == 0
    after = results(finished)
    assert after["rows"] == before["rows"]
    assert "dybgr-seed0: finished before, taken as it is" in capsys.readouterr().out


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two epochs that was stopped after the first; do not write into it."""

    def stop(self: Progress, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.TerminalProgress, "epoch", stop)
        assert again(images, folder, "--method", "none", "--epochs", "2") == 130
    return folder


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "stopped"))


def test_ctrl_c_leaves_a_readable_state_to_go_on_from(images, interrupted, capsys):
    assert [row["method"] for row in results(interrupted)["rows"]] == ["pixels", *["untrained"] * 2]
    folder = interrupted / "none-seed0"
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    assert load_file(folder / "model.safetensors")
    assert (folder / "config.yaml").exists()
    capsys.readouterr()

    assert again(images, interrupted, "--method", "none", "--epochs", "2") == 0
    assert "epoch   1" not in capsys.readouterr().out  # it was not repeated
    assert [row["embedding"] for row in results(interrupted)["rows"][3:]] == list(EMBEDDINGS)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_signal_in_the_middle_of_an_epoch_and_resume(images, tmp_path, monkeypatch, capsys):
    """The end is that of a run that nobody interrupted; --resume needs nothing but the folder."""
    words = ["--method", "none", "dybgr", "--epochs", "2"]
    assert again(images, tmp_path / "whole", *words) == 0
    advance, steps = run.TerminalProgress.advance, [0]

    def stop(self: run.TerminalProgress, amount: int) -> None:
        advance(self, amount)
        steps[0] += amount == 1
        if steps[0] == 5:  # the second step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "parts"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(run.TerminalProgress, "advance", stop)
        assert again(images, folder, *words) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    out = capsys.readouterr().out
    assert f"--resume {folder}" in out
    assert "interrupted by SIGTERM" in out
    assert (folder / "none-seed0" / "checkpoint.pt").exists()

    assert run.main(["--resume", str(folder)]) == 0
    for whole, parts in zip(
        results(tmp_path / "whole")["rows"], results(folder)["rows"], strict=True
    ):
        assert parts["metrics"] == whole["metrics"]
        assert parts.get("epoch") == whole.get("epoch")
    for method in ("none-seed0", "dybgr-seed0"):
        one, two = (
            load_file(p / method / "model.safetensors") for p in (tmp_path / "whole", folder)
        )
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_was_found_is_said_at_once() -> None:
    figures = {"recall@1": 0.5, "map@r": 0.25}
    rows: list[Any] = [
        {"method": "pixels", "seed": None, "embedding": "pixels", "metrics": figures},
        {"method": "none", "seed": 3, "embedding": "backbone", "metrics": figures},
        {"method": "none", "seed": 3, "embedding": "head", "metrics": figures},
    ]
    assert run.row_lines(rows) == [
        "pixels  test pixels: R@1 50.0%, MAP@R 25.0%",
        "none-seed3  test backbone: R@1 50.0%, MAP@R 25.0%  test head: R@1 50.0%, MAP@R 25.0%",
    ]
    (line,) = run.row_lines([{**rows[2], "transductive": True}])
    assert "test head, refined: " in line


def test_a_graph_is_drawn_once_where_a_method_has_one(finished, tmp_path, monkeypatch):
    assert (finished / "graph.png").read_bytes().startswith(b"\x89PNG")
    drawn, lines = [], []

    def draw(config: Any, splits: Any, path: Path) -> None:
        drawn.append(config.method)
        path.touch()

    monkeypatch.setattr(run, "draw_first_graph", draw)
    for methods in (["none"], ["none", "bgformer", "dybgr"], ["dybgr"]):
        configs = options.parse(["--method", *methods]).configs
        command = options.Command(configs, tmp_path, [])
        run.Run(command, None, {}, tmp_path, []).draw(lines.append)  # type: ignore[arg-type, typeddict-item]
    assert drawn == ["bgformer"]
    assert lines == [
        f"look at it: {tmp_path / 'graph.png'}, the graph of some images before training"
    ]


def test_no_picture_stops_a_run(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(run, "draw_first_graph", fail)
    lines: list[str] = []
    command = options.Command(options.parse(["--method", "dybgr"]).configs, tmp_path, [])
    run.Run(command, None, {}, tmp_path, []).draw(lines.append)  # type: ignore[arg-type, typeddict-item]
    assert lines == ["note: there is no picture of a graph: no space left"]


def test_signal_outside_of_trainings(images, tmp_path, monkeypatch, capsys):
    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "pixel_rows", stop)
    assert again(images, tmp_path / "run", "--method", "none") == 143
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_a_method_that_fails_does_not_end_the_others(images, tmp_path, monkeypatch, capsys):
    real = rows.train

    def train(config: Any, *rest: Any) -> Any:
        if config.method == "dybgr":
            raise FloatingPointError("The loss is not finite in epoch 1")
        return real(config, *rest)

    monkeypatch.setattr(rows, "train", train)
    folder = tmp_path / "run"
    assert again(images, folder, "--method", "dybgr", "none") == 1
    content = results(folder)
    assert content["failed"] == {"dybgr-seed0": "The loss is not finite in epoch 1"}
    assert {row["method"] for row in content["rows"]} == {"pixels", "untrained", "none"}
    told = capsys.readouterr()
    assert re.search(r"^ *dybgr-seed0: failed", told.out, re.MULTILINE)
    assert "dybgr-seed0 failed: The loss is not finite in epoch 1" in told.err
    monkeypatch.undo()
    assert again(images, folder, "--method", "dybgr", "none") == 0
    assert results(folder)["failed"] == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--backbone", "no_such_model"],
        ["--weights", "/no/such.pth"],
        ["--readout-dim", "97"],
        ["--freeze", "[nothing]"],
        ["--dybgr.k", "0"],
        ["--loss", "triplet", "--loss-options", '{"no_such": 1}'],
        ["--augmentation", "iaa", "--iaa.momentum", "7"],
        ["--teacher", "wide", "--wide.heads", "0"],
    ],
    ids=lambda words: words[0],
)
def test_nothing_is_written_before_the_arguments_are_known_to_be_good(images, tmp_path, words):
    assert again(images, tmp_path / "run", "--method", "none", "dybgr", *words) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", [["--resume", "RUN"], ["--resume=RUN"]], ids=" ".join)
def test_resume_has_the_whole_command(finished, form):
    command = options.parse([word.replace("RUN", str(finished)) for word in form])
    assert command.folder == finished
    assert command.trackers == []
    stored = [results(finished)["rows"][i]["config"] for i in (3, 6)]
    assert [config.to_dict() for config in command.configs] == stored


def test_a_run_of_before_there_were_tours_can_be_resumed(finished, tmp_path):
    stored = yaml.safe_load((finished / "command.yaml").read_text())
    del stored["quick"]
    (tmp_path / "command.yaml").write_text(yaml.safe_dump(stored))
    command = options.read_command(tmp_path)
    assert (len(command.configs), command.quick) == (len(stored["configs"]), False)


@pytest.mark.slow
def test_a_resumed_tour_is_still_a_tour(images, tmp_path, capsys):
    folder = tmp_path / "run"
    assert again(images, folder, "--method", "none", "--quick") == 0
    first = capsys.readouterr().out
    assert run.main(["--resume", str(folder)]) == 0
    resumed = capsys.readouterr().out
    for out in (first, resumed, (folder / "explorer.html").read_text()):
        assert TOUR in out
    assert results(folder)["quick"]
    assert again(images, folder, "--method", "dybgr") == 2
    assert "quick is False, was True" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--lr", "0.5"], ["--dybgr.k", "4"], ["--seed", "1"]], ids=str)
def test_resume_takes_nothing_that_defines_the_result(finished, words):
    name = words[0].partition(".")[0]
    for order in (["--resume", str(finished), *words], [*words, f"--resume={finished}"]):
        with pytest.raises(ValueError, match=f"defines the result, but got {name}: leave it out"):
            options.parse(order)


@pytest.mark.slow
def test_resume_takes_what_does_not_define_the_result(images, interrupted, tmp_path):
    """... and comes to the same end: on other workers, with the data in another place."""
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    words = ["--data-root", str(moved), "--workers", "1", "--on-nonfinite", "skip", "--skip-broken"]
    assert run.main(["--resume", str(interrupted), *words]) == 0
    again = options.parse(["--resume", str(interrupted)]).configs[0]
    assert (again.data_root, again.workers, again.skip_broken) == (str(moved), 1, True)
    whole = tmp_path / "whole"
    assert run.main([*SMALL, "--data-root", str(images), "--output-dir", str(whole), *TWO]) == 0
    assert [row["metrics"] for row in results(interrupted)["rows"]] == [
        row["metrics"] for row in results(whole)["rows"]
    ]


def rename_classes(images: Path) -> None:
    for old, new in (("train0", "x"), ("train7", "train0"), ("x", "train7")):
        (images / "train" / old).rename(images / "train" / new)
    (images / "train" / "train1").rename(images / "train" / "another")


def remove_test_images(images: Path) -> None:
    for path in images.glob("test/*/0.png"):
        path.unlink()


@pytest.mark.parametrize("change", [rename_classes, remove_test_images])
@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_other_data_are_refused_and_nothing_is_touched(
    images, finished, interrupted, state, change, tmp_path, capsys
):
    folder = Path(
        shutil.copytree({"finished": finished, "interrupted": interrupted}[state], tmp_path / "run")
    )
    before = contents(folder)
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    change(moved)
    capsys.readouterr()
    assert run.main(["--resume", str(folder), "--data-root", str(moved)]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "other data: digest is" in text
    if change is remove_test_images:
        assert "test is {'classes': 3, 'images': 6}, was {'classes': 3, 'images': 9}" in text
    assert text.endswith("Restore them, or use another --output-dir")
    assert contents(folder) == before
    (folder / "results.json").unlink()  # result.json and checkpoint.pt know the data as well
    assert run.main(["--resume", str(folder), "--data-root", str(moved)]) != 0
    assert "but got other data" in " ".join(capsys.readouterr().err.split())


def test_a_later_command_adds_its_rows(images, finished, tmp_path, capsys):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = results(folder)["rows"]
    assert again(images, folder, "--method", "none", "--seed", "1") == 0
    rows = results(folder)["rows"]
    best = max(rows[3:], key=lambda row: row["validation"])  # the first of equals
    line = f"highest MAP@R on the validation classes: {folder / best['method']}-seed{best['seed']}"
    assert line in capsys.readouterr().out
    assert rows[: len(before)] == before
    assert [(row["method"], row["seed"]) for row in rows[len(before) :]] == [("none", 1)] * 3
    assert again(images, folder, "--method", "none", "--image-size", "48") == 2
    assert "image_size is 48, was 32" in " ".join(capsys.readouterr().err.split())
    assert results(folder)["rows"] == rows


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1, 2]", "", "[" * 100_000, '{"rows": [1]}'])
def test_a_file_that_is_not_ours_is_not_overwritten(images, tmp_path, content, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(content)
    assert again(images, folder, "--method", "none") == 2
    line = error_line(capsys)
    assert "results.json" in line
    assert "move it away" in line
    assert (folder / "results.json").read_text() == content


def test_a_folder_in_use_is_refused(images, tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert again(images, tmp_path / "run", "--method", "none") == 2
        assert f"process {os.getpid()} on" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    with locked(tmp_path / "run"):  # it is free again
        pass


def test_leftovers_go_and_files_of_others_stay(tmp_path):
    (tmp_path / ".results.json.0f0f0f0f.bgl-tmp").touch()
    (tmp_path / ".notes.tmp").touch()
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".notes.tmp", ".owner"}


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path):
    folders = [new_folder("emoji", tmp_path) for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(path.is_dir() for path in folders)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 broken", None], ids=["empty", "cut", "folder"]
)
def test_files_of_the_page_cannot_stop_a_run(images, interrupted, content, capsys):
    place = interrupted / "none-seed0" / "explorer.npz"
    if content is None:
        place.unlink()
        place.mkdir()
    else:
        place.write_bytes(content)
    (interrupted / "explorer.html").mkdir()
    assert run.main(["--resume", str(interrupted)]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^note: .*explorer\.npz", captured.err, re.MULTILINE)
    text = " ".join(captured.out.split())
    assert re.search(
        r"note: there is no page to look at: Expected \S+explorer\.html to be a file", text
    )


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "command.yaml"])
@pytest.mark.parametrize("content", ["", "{a: [", "[" * 50_000, "rows: 3"])
def test_damaged_files_are_named_in_one_line(finished, name, content, tmp_path, capsys):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    place = folder / name if name == "command.yaml" else folder / "dybgr-seed0" / name
    place.write_text(content)
    if name == "config.yaml":  # it is read where a training has not ended
        (place.parent / "result.json").unlink()
        (place.parent / "checkpoint.pt").touch()
    assert run.main(["--resume", str(folder)]) in (1, 2)
    line = error_line(capsys)
    assert name in line
    assert len(line) < 1000


@pytest.mark.parametrize("content", [None, "", "- 1", "configs: [{lrate: 1}]\nlog: []", "{"])
def test_resume_of_what_is_no_run(tmp_path, content, capsys):
    if content is not None:
        (tmp_path / "command.yaml").write_text(content)
    assert run.main(["--resume", str(tmp_path)]) == 2
    assert re.search(r"error:.*`--resume`.*command\.yaml", capsys.readouterr().err)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_changed_configuration_is_refused_and_touches_nothing(images, state, request, capsys):
    folder = request.getfixturevalue(state)
    before = contents(folder)
    epochs = "1" if state == "finished" else "2"
    capsys.readouterr()
    assert again(images, folder, "--method", "none", "--epochs", epochs, "--lr", "0.5") != 0
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert "lr differ" in text
    assert "--output-dir" in text
    assert contents(folder) == before


def test_broken_image_is_named(images, tmp_path, capsys):
    """Also where a process of its own reads it."""
    root = tmp_path / "images"
    shutil.copytree(images, root)
    for c in range(8):
        file = root / "train" / f"train{c}" / "1.png"
        file.write_bytes(file.read_bytes()[:50])
    words = ["--method", "none", "--workers", "1"]
    assert again(root, tmp_path / "run", *words) != 0
    line = error_line(capsys)
    assert re.search(r"but 8 of \d+ cannot be used: \S+/train\d/1\.png, ", line)
    assert line.endswith("on the command line --skip-broken")
    # the rest of every class is enough
    assert again(root, tmp_path / "run2", "--method", "none", "--skip-broken") == 0
    assert "note: Left out 8 images" in capsys.readouterr().err
    assert len(results(tmp_path / "run2")["dataset"]["skipped"]) == 8


def test_too_few_classes_for_a_batch(images, tmp_path, capsys):
    """... is said in the words of the user, before anything is written."""
    assert again(images, tmp_path / "run", "--batch-size", "14") == 2
    line = error_line(capsys)
    assert "--batch-size" in line
    assert "6 training classes (2 of 8 held out for validation) allow up to 12" in line
    assert line.endswith("--per-class 2, got 14")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data-root", "no/such/folder"], "no/such/folder"),
        (["--data-root", "[/no]"], "[/no]"),
        (["--dataset", "cub201"], "cub201"),
        (["--dataset", "emoji"], "emoji"),
        (["--backbone", "resnet81"], "resnet18"),
        (["--weights", "no/such.pth"], "no/such.pth"),
        (["--loss", "arcface"], "arcface"),
        (["--method", "gat"], "gat"),
        (["--device", "cuda"], "CUDA"),
        (["--method", "none", "--batch-size", "64"], "--batch-size"),
        (["--loss-options", '{"temprature": 1}', "--method", "none"], "temprature"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_error_is_one_line(images, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert again(images, tmp_path / "run", *words) in (1, 2)
    assert named in error_line(capsys)


def test_markdown():
    lines = markdown([result_row("none", 0, 0.5), result_row("dybgr", 0, 0.6)]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[1].startswith("| :-- | :-- | --: |")
    assert lines[3].startswith("| dybgr | head | 60.0 |")


def test_columns_of_other_epochs():
    """... where there are any, and with a label that says which of them is optimistic."""
    looked = {"last_epoch": {"recall@1": 0.7, "map@r": 0.6}, "best_on_test": {"recall@1": 0.9}}
    looked["best_on_test"]["map@r"] = 0.8
    pair = [result_row("none", 0, 0.5), result_row("dybgr", 0, 0.6, **looked)]
    header, none, dybgr = csv.reader(as_csv(pair).splitlines())
    places = [header.index(f"{m} last epoch") for m in ("R@1", "MAP@R")]
    places += [header.index(f"{m} best on test (optimistic)") for m in ("R@1", "MAP@R")]
    assert [dybgr[i] for i in places] == ["70.0", "60.0", "90.0", "80.0"]
    assert [none[i] for i in places] == [""] * 4
    assert not any("last epoch" in name for name in comparison(pair[:1])[0])


def test_columns_of_published_figures():
    """... beside the rows that repeat one; the difference is the mean over seeds."""
    rows = [
        result_row(
            "dybgr",
            seed,
            0.6,
            published={"figures": {"recall@1": 88.3}, "difference": {"recall@1": difference}},
        )
        for seed, difference in ((0, -28.3), (1, -26.3))
    ]
    table = as_csv([result_row("none", 0, 0.5), *rows])
    header, none, dybgr = csv.reader(table.splitlines())
    names = [f"{m}{what}" for m in ("R@1", "MAP@R") for what in (" published", " - published")]
    places = [header.index(name) for name in names]
    assert [dybgr[i] for i in places] == ["88.3", "-27.3", "", ""]
    assert [none[i] for i in places] == [""] * 4
    assert not any("published" in name for name in comparison([result_row("none", 0, 0.5)])[0])


def test_other_epochs_of_a_history():
    history = [{"test_head_map@r": 0.5, "val_head_map@r": 0.9}, {"test_head_map@r": 0.4}]
    found = rows.other_epochs(history, "head")
    assert found == {"last_epoch": {"map@r": 0.4}, "best_on_test": {"map@r": 0.5}}
    assert rows.other_epochs([*history, {}], "head") == {}
