"""The explorer page of a run folder, without a browser."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from explorer_runs import (
    change_recorded,
    make_run,
    make_splits,
    numbers,
    payload,
    small,
    without_edges,
    without_files,
    without_images,
)

from bgl.cli import main
from bgl.models import load
from bgl.pipeline import explore_run, load_splits, read_config
from bgl.pipeline.arrays import read_arrays
from bgl.pipeline.comparison import comparison
from bgl.pipeline.overview import overview
from bgl.pipeline.recorder import Recorder
from bgl.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two methods; do not write into it."""
    return make_run(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_page_of_a_run(run):
    page = payload(explore_run(run, path=run.parent / "page.html"))
    assert page["notes"] == []
    assert [g["name"] for g in page["graphs"]] == ["dybgr, seed 0"]
    frames = page["graphs"][0]["frames"]
    assert [(f["epoch"], f["iteration"]) for f in frames] == [
        (e, i) for e in range(3) for i in range(2)
    ]
    assert [v["name"] for v in page["map"]["views"]] == [
        "before training",
        "none, seed 0",
        "dybgr, seed 0",
    ]
    assert [v["model"] for v in page["map"]["views"]] == [0, 1, 2]
    assert page["map"]["method"] in ("t-SNE", "UMAP")
    assert page["retrieval"]["comparisons"] == [
        {"name": "dybgr, seed 0", "before": 0, "without": 1, "graph": 2, "by": "graph"}
    ]
    assert page["table"]["header"][:3] == ["method", "embedding", "R@1"]
    assert "Δ R@1" in page["table"]["header"]
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert page["table"]["cells"] == comparison(rows)[1]
    assert all("±" in line[2] for line in page["table"]["cells"])  # there are two seeds
    assert [c["name"] for c in page["config"]] == [
        "About this run",
        "none, seed 0",
        "dybgr, seed 0",
    ]
    assert {c["title"] for c in page["curves"]} >= {"Loss", "Recall@1 on validation classes"}
    assert set(page["atlases"]) > {"items"}


def test_answers_are_the_nearest(run):
    """Against a plain sort of the vectors that the model gives by itself."""
    page = payload(explore_run(run, path=run.parent / "page.html"))
    encoder, config = load(run / "dybgr-seed0"), read_config(run / "dybgr-seed0")
    assert encoder.config.embedding == "readout"
    vectors = encoder.embed(load_splits(config).test)
    unit = torch.nn.functional.normalize(vectors)
    score = (unit @ unit.T).fill_diagonal_(-2)
    k = page["retrieval"]["k"]
    found = numbers(page["retrieval"]["models"][2]["nearest"], "u2").reshape(-1, k)
    expected = score.gather(1, score.argsort(dim=1, descending=True)[:, :k])
    actual = score.gather(1, torch.tensor(found.astype(int)))
    torch.testing.assert_close(actual, expected)  # ties may be in any order


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("results.json", "results.json is missing"),
        ("dybgr-seed0/explorer.npz", "dybgr-seed0 has no explorer.npz"),
        ("dybgr-seed0/config.yaml", "dybgr-seed0/config.yaml is missing"),
        ("none-seed0/metrics.csv", "none-seed0/metrics.csv is missing"),
    ],
)
def test_missing_files_are_named(copy, lost, said):
    (copy / lost).unlink()
    notes = payload(explore_run(copy))["notes"]
    assert any(note.startswith(said) for note in notes), notes


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "results.json",
        "dybgr-seed0/explorer.npz",
        "none-seed0/config.yaml",
        "none-seed0/metrics.csv",
    ],
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff broken: [", b"[]"])
def test_broken_files_do_not_break_the_page(copy, file, content):
    (copy / file).write_bytes(content)
    assert payload(explore_run(copy))["graphs"] is not None


def test_damaged_arrays_are_refused(run, tmp_path):
    """Whatever is damaged: a key is missing, or has another rank, kind or range."""
    with np.load(run / "dybgr-seed0" / "explorer.npz") as stored:
        arrays = dict(stored)
    assert read_arrays(run / "dybgr-seed0" / "explorer.npz").keys() == arrays.keys()
    file = tmp_path / "explorer.npz"
    for name, array in arrays.items():
        bad = [None, array.reshape(-1, 1, 1), np.array({"an": "object"}, dtype=object)]
        if array.dtype.kind == "u" or name in ("nearest", "queries", "map_items", "test_labels"):
            bad.append(np.full_like(array, 60_000))
        if array.dtype.kind == "i":
            bad.append(array - 10_000)
        # before the test classes are measured some are missing, in older runs others
        for value in bad[name in ("nearest", "ranks") :]:
            np.savez(file, **{n: a for n, a in {**arrays, name: value}.items() if a is not None})
            with pytest.raises(ValueError, match=r"explorer\.npz cannot be read"):
                read_arrays(file)


def test_damaged_arrays_are_left_out(copy):
    change_recorded(copy / "dybgr-seed0" / "explorer.npz", source=np.zeros(3))
    change_recorded(copy / "none-seed0" / "explorer.npz", queries=np.full(24, 99))
    page = payload(explore_run(copy))
    assert sum("explorer.npz cannot be read" in note for note in page["notes"]) == 2
    assert page["graphs"] == []


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 9))])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["results.json", "dybgr-seed0/config.yaml"])
@pytest.mark.parametrize("content", [BOMB, "[" * 50_000], ids=["bomb", "nested"])
def test_files_that_grow_or_nest(copy, file, content):
    (copy / file).write_text(content)
    notes = payload(explore_run(copy))["notes"]
    assert any(note.startswith(file) for note in notes)


def test_what_is_opened_outside_of_the_run_is_said_and_not_shown(copy, tmp_path):
    """A run may be somebody else's, and its page may be given away."""
    secret = tmp_path / "secret.txt"
    secret.write_text("top secret,of mine\n")
    for file in copy.glob("*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        changed = {**config, "dataset": "table", "table": str(secret), "data_root": None}
        file.write_text(yaml.safe_dump(changed))
    with pytest.warns(UserWarning, match=r"Reads \S+secret\.txt, as \S+-seed0/config\.yaml says"):
        page = explore_run(copy)
    assert "top secret" not in page.read_text()


def test_run_without_a_plain_training_says_training_not_graph(copy):
    shutil.rmtree(copy / "none-seed0")
    page = payload(explore_run(copy))
    assert page["retrieval"]["comparisons"] == [
        {"name": "dybgr, seed 0", "before": 0, "without": None, "graph": 1, "by": "training"}
    ]


def test_graph_is_credited_only_with_what_was_compared(copy):
    """Not with the difference to a training of another seed, loss, augmentation or length."""
    file = copy / "none-seed0" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    other = {"seed": 1, "loss": "multi-similarity", "augmentation": "iaa", "epochs": 5}
    for name, value in other.items():
        file.write_text(yaml.safe_dump({**config, name: value}))
        (shown,) = payload(explore_run(copy))["retrieval"]["comparisons"]
        assert (shown["without"], shown["by"]) == (None, "training"), name


def test_overview_has_the_figures_of_the_table(run):
    page = payload(explore_run(run, path=run.parent / "page.html"))
    header, cells = page["table"]["header"], page["table"]["cells"]
    shown = page["overview"]
    lines = {line[0]: dict(zip(header, line, strict=True)) for line in cells if "readout" in line}
    assert [arm["name"] for arm in shown["arms"]] == ["none", "dybgr"]
    for arm in shown["arms"]:
        line = lines[arm["name"]]
        assert (arm["recall"], arm["map"]) == (line["R@1"], line["MAP@R"])
        assert arm["recall_gain"].lstrip("+") == line["Δ R@1"]
        assert (arm["seeds"], arm["epoch"]) == (line["seeds"], line["epoch"])
    assert "readout" in shown["measured"]


def rows(seeds: int, recall: float, method: str, **more: Any) -> list[Any]:
    """Rows of a method whose seeds differ by a point."""
    return [
        {
            "method": method,
            "seed": seed,
            "embedding": "backbone",
            "epoch": 1,
            "metrics": {"recall@1": recall + more.get("step", 0.0) * seed, "num_queries": 5000},
        }
        for seed in range(seeds)
    ]


def test_one_seed_says_what_says_nothing():
    (remark,) = overview({"rows": rows(1, 0.5, "none") + rows(1, 0.6, "dybgr")})["remarks"]
    # two equal encoders with a rate of one half: the deviation of the difference is one point
    assert remark.startswith("One seed: differences of R@1 below 2.0 points say nothing.")


@pytest.mark.parametrize(
    ("recall", "step", "said"),
    [
        (0.6, 0.01, "R@1 +12.0 ± 2.0, a gain over 5 seeds"),
        (0.4, 0.01, "R@1 -8.0 ± 2.0, a loss over 5 seeds"),
        (0.49, 0.01, "R@1 +1.0 ± 2.0, no difference shown over 5 seeds"),
    ],
)
def test_several_seeds_say_what_their_interval_shows(recall, step, said):
    """The differences are 0 to 4 points above the first: s = √2.5 and t = 2.776, so ± 2.0."""
    shown = overview({"rows": rows(5, 0.5, "none") + rows(5, recall, "dybgr", step=step)})
    assert shown["remarks"] == [f"dybgr: {said}."]


def test_without_a_training_to_compare_with_nothing_is_claimed():
    (remark,) = overview({"rows": rows(3, 0.5, "dybgr")})["remarks"]
    assert remark.startswith("dybgr: there is no such training without graph")


def test_several_runs_on_one_page(run, copy):
    page = explore_run([run, copy], path=copy.parent / "page.html")
    assert payload(page)["name"] == payload(page, 1)["name"] == "run"
    assert payload(page, 1)["graphs"] == payload(page)["graphs"]
    with pytest.raises(ValueError, match="at least one run folder"):
        explore_run([])


def test_runs_of_earlier_versions_lack_ranks(copy):
    for file in copy.rglob("explorer.npz"):
        with np.load(file) as arrays:
            kept = {n: a for n, a in arrays.items() if n not in ("ranks", "similarities")}
        np.savez_compressed(file, **kept)
    page = payload(explore_run(copy))
    assert page["notes"] == []
    assert all(model["ranks"] is None for model in page["retrieval"]["models"])


def test_run_whose_images_are_gone(copy):
    with pytest.warns(UserWarning, match="The page has no pictures: .*gone"):
        page = payload(explore_run(without_images(copy)))
    assert any("cannot be loaded" in note for note in page["notes"])
    assert page["atlases"] == {}
    assert page["graphs"][0]["atlas"] is None
    assert page["items"]["names"]


def test_run_without_edges_and_with_one_class(copy):
    page = payload(explore_run(without_edges(copy)))
    (shown,) = page["graphs"]
    assert set(shown["labels"]) == {0}
    assert all(numbers(frame["source"], "u2").size == 0 for frame in shown["frames"])
    assert page["retrieval"]["comparisons"]


def test_run_with_one_test_class(copy):
    labels = np.zeros(24, np.int32)
    for file in copy.rglob("explorer.npz"):
        change_recorded(file, test_labels=labels)
    page = payload(explore_run(copy))
    assert set(page["items"]["labels"]) == {0}


def test_only_graphs_are_left(copy):
    page = payload(explore_run(without_files(copy)))
    said = " ".join(page["notes"])
    for file in ("results.json", "config.yaml", "metrics.csv", "none-seed0 has no explorer.npz"):
        assert file in said
    assert [g["name"] for g in page["graphs"]] == ["dybgr-seed0"]
    assert page["table"] is None


@pytest.mark.parametrize(
    "row",
    [
        3,
        {"method": "none"},
        {"method": None, "embedding": "head", "seed": 0, "metrics": {"recall@1": 0.5}},
        {"method": "none", "embedding": "head", "seed": 0, "metrics": {"recall@1": "high"}},
    ],
)
def test_rows_that_are_none(copy, row):
    (copy / "results.json").write_text(json.dumps({"rows": [row]}))
    page = payload(explore_run(copy))
    assert page["table"] is None


def test_empty_folder(tmp_path):
    page = payload(explore_run(tmp_path))
    assert len(page["notes"]) >= 2


def test_command(copy, capsys):
    assert main(["explore", str(copy), "--page", str(copy / "x.html")]) == 0
    assert capsys.readouterr().out.strip() == f"look at it: {copy / 'x.html'}"
    assert (copy / "x.html").stat().st_size < 15e6
    assert main(["explore", str(copy / "nothing")]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_separate_gallery_and_no_validation(tmp_path):
    splits = make_splits()
    splits = dataclasses.replace(splits, val=None, gallery=splits.test)
    folder = tmp_path / "run" / "dybgr-seed0"
    recorder = Recorder(folder, splits)
    train(small(), splits, folder, recorder)
    recorder.finish()
    page = payload(explore_run(folder.parent))
    assert "training batch" in page["graphs"][0]["notes"][0]
    assert len(page["items"]["labels"]) == 2 * len(splits.test)
