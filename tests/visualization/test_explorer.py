"""The explorer page without a browser: what is embedded, from graphs and from run folders."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorer_runs import (
    change_recorded,
    make_run,
    make_splits,
    without_edges,
    without_files,
    without_images,
)
from safetensors.torch import load_file
from torch_geometric.data import Data

from bgl import to_batch_graph
from bgl.layers import AdaptiveGraph
from bgl.training import (
    ProgressList,
    TrainConfig,
    build_encoder,
    train,
)
from bgl.training.comparison import comparison
from bgl.training.config import DyBGROptions
from bgl.visualization import explore
from bgl.visualization._encode import script_json, weights64
from bgl.visualization._frames import make_frame
from bgl.visualization._sample import sample_nodes
from bgl.visualization.explore.__main__ import main
from bgl.visualization.recorder import (
    Recorder,
    batch_graphs,
    fixed_batch,
    map_items,
    read_frames,
)


def payload(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def numbers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<" + kind)


def graph(n: int = 12, k: int = 3) -> Data:
    return to_batch_graph(torch.randn(n, 4), torch.arange(n) // 3, AdaptiveGraph(k))


def test_graph_is_embedded_whole(tmp_path):
    data = graph()
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    page = payload(
        explore(data, images, tmp_path / "page.html", nodes=[f"n{i}" for i in range(12)])
    )
    (shown,) = page["graphs"]
    assert shown["labels"] == data.y.tolist()
    assert shown["classes"] == ["0", "1", "2", "3"]
    assert shown["nodes"][3] == "n3"
    (frame,) = shown["frames"]
    edges = torch.tensor(
        np.stack([numbers(frame[s], "u2") for s in ("source", "target")]).astype(int)
    )
    assert torch.equal(edges, data.edge_index)
    weight = numbers(frame["weight"], "u2") / 65535 * frame["largest"]
    np.testing.assert_allclose(weight, data.edge_weight, atol=frame["largest"] / 65000)
    assert numbers(shown["positions"][0], "f4").shape == (24,)
    assert page["atlases"]["batch"]["src"].startswith("data:image/webp;base64,UklGR")
    assert page["notes"] == []


def test_several_graphs_are_steps(tmp_path):
    page = payload(explore([graph(), graph()], path=tmp_path / "page.html"))
    assert [frame["epoch"] for frame in page["graphs"][0]["frames"]] == [0, 1]
    assert "No pictures" in page["notes"][0]


EVIL = (
    '</script><script>document.title="broken"</script>'
    '<img src=x onerror="document.title=1">&{{data}}'
)


def test_html_in_labels_stays_text(tmp_path):
    names = [EVIL, "b", "c", "d"]
    path = explore(
        graph(), path=tmp_path / "page.html", classes=names, nodes=[EVIL] * 12, title=EVIL
    )
    assert payload(path)["graphs"][0]["classes"] == names
    text = path.read_text(encoding="utf-8")
    assert '<script>document.title="broken"' not in text
    assert "<img src=x" not in text
    assert text.count("<script") == 3


def test_json_in_a_script():
    value = {"a": ["</script>", "<!--", float("nan"), np.float32(0.5), torch.tensor([1, 2])]}
    text = script_json(value)
    assert "<" not in text
    assert json.loads(text) == {"a": ["</script>", "<!--", None, 0.5, [1, 2]]}


def test_weights_in_sixteen_bits():
    made = weights64(np.array([0.25, 1.0, -1.0, np.nan]))
    assert numbers(made["weight"], "u2").tolist() == [16384, 65535, 0, 0]
    assert weights64(np.zeros(0))["largest"] == 1.0


@pytest.mark.parametrize(
    "data",
    [
        Data(edge_index=torch.zeros(2, 0).long(), num_nodes=3),
        Data(edge_index=torch.zeros(2, 1).long(), num_nodes=1),
        Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.zeros(2).long(), num_nodes=2),
        Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.zeros(1), num_nodes=2),
        Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.rand(1, 4), num_nodes=2),
    ],
    ids=["no edges", "one node", "one class", "zero weights", "heads"],
)
def test_odd_graphs(data, tmp_path):
    assert payload(explore(data, path=tmp_path / "p.html"))["graphs"][0]["n"] == data.num_nodes


@pytest.mark.parametrize("labelled", [True, False])
def test_ten_thousand_nodes_become_a_thousand(labelled, tmp_path):
    n = 10_000
    edge_index = torch.stack([torch.arange(n).repeat(5), torch.randint(0, n, (5 * n,))])
    y = torch.arange(n) % 100 if labelled else None
    page = payload(explore(Data(edge_index=edge_index, y=y, num_nodes=n), path=tmp_path / "p.html"))
    assert page["graphs"][0]["n"] == 1000
    assert page["notes"][0].startswith("The graph has 10,000 nodes; this page shows 1,000 of them")
    if labelled:
        assert np.bincount(page["graphs"][0]["labels"]).tolist() == [100] * 10


def test_surroundings_of_the_busiest_node():
    ring = torch.arange(50)
    edge_index = torch.stack([ring, (ring + 1) % 50])
    edge_index = torch.cat([edge_index, torch.tensor([[20] * 5, [0, 5, 10, 30, 40]])], dim=1)
    chosen = sample_nodes(Data(edge_index=edge_index, num_nodes=50), most=8)
    assert chosen.tolist() == [0, 5, 10, 19, 20, 21, 30, 40]


def test_dense_graphs_keep_their_strongest_edges():
    n = 60
    edge_index = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    data = Data(edge_index=edge_index, edge_weight=torch.rand(n * n), num_nodes=n)
    frame = make_frame(data, epoch=3)
    assert (frame.total, len(frame.source), frame.epoch) == (n * (n - 1), 30 * n, 3)
    others = data.edge_weight[edge_index[0] != edge_index[1]]
    assert frame.weight.min() == others.sort(descending=True).values[30 * n - 1]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="at least one graph"):
        explore([])
    with pytest.raises(ValueError, match="one size"):
        explore([graph(12), graph(9)])
    with pytest.raises(ValueError, match="`images`"):
        explore(graph(), torch.zeros(3, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`nodes`"):
        explore(graph(), nodes=["a"])
    with pytest.raises(ValueError, match="`classes`"):
        explore(graph(), classes=["a"])
    with pytest.raises(FileNotFoundError, match="no run folder"):
        explore(tmp_path / "nothing")


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two methods; do not write into it."""
    return make_run(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_page_of_a_run(run):
    page = payload(explore(run, path=run.parent / "page.html"))
    assert page["notes"] == []
    assert [g["name"] for g in page["graphs"]] == ["dybgr-seed0"]
    frames = page["graphs"][0]["frames"]
    assert [(f["epoch"], f["iteration"]) for f in frames] == [
        (e, i) for e in range(3) for i in range(2)
    ]
    assert [v["name"] for v in page["map"]["views"]] == [
        "before training",
        "none-seed0",
        "dybgr-seed0",
    ]
    assert page["retrieval"]["comparisons"] == [
        {"name": "dybgr-seed0", "before": 0, "without": 1, "graph": 2}
    ]
    assert page["table"]["header"][:3] == ["method", "embedding", "R@1"]
    assert "Δ R@1" in page["table"]["header"]
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert page["table"]["cells"] == comparison(rows)[1]
    assert all("±" in line[2] for line in page["table"]["cells"])  # there are two seeds
    assert [c["name"] for c in page["config"]] == ["About this run", "none-seed0", "dybgr-seed0"]
    assert {c["title"] for c in page["curves"]} >= {"Loss", "Recall@1 on validation classes"}
    assert set(page["atlases"]) > {"items"}


def test_answers_are_the_nearest(run):
    """Against a plain sort of the test vectors, which the recorder was given."""
    page = payload(explore(run, path=run.parent / "page.html"))
    vectors = torch.load(run / "vectors.pt")
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
    notes = payload(explore(copy))["notes"]
    assert any(note.startswith(said) for note in notes), notes


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
    assert payload(explore(copy))["graphs"] is not None


def test_run_whose_images_are_gone(copy):
    page = payload(explore(without_images(copy)))
    assert any("cannot be had" in note for note in page["notes"])
    assert page["atlases"] == {}
    assert page["graphs"][0]["atlas"] is None
    assert page["items"]["names"]


def test_run_without_edges_and_with_one_class(copy):
    page = payload(explore(without_edges(copy)))
    (shown,) = page["graphs"]
    assert set(shown["labels"]) == {0}
    assert all(numbers(frame["source"], "u2").size == 0 for frame in shown["frames"])
    assert page["retrieval"]["comparisons"]


def test_run_with_one_test_class(copy):
    labels = np.zeros(24, np.int32)
    for file in copy.rglob("explorer.npz"):
        change_recorded(file, test_labels=labels)
    page = payload(explore(copy))
    assert set(page["items"]["labels"]) == {0}


def test_only_graphs_are_left(copy):
    page = payload(explore(without_files(copy)))
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
    page = payload(explore(copy))
    assert page["table"] is None


def test_empty_folder(tmp_path):
    page = payload(explore(tmp_path))
    assert len(page["notes"]) >= 2


def test_command(copy, capsys):
    assert main([str(copy), "--page", str(copy / "x.html")]) == 0
    assert capsys.readouterr().out.strip() == f"look at it: {copy / 'x.html'}"
    assert (copy / "x.html").stat().st_size < 15e6
    assert main([str(copy / "nothing")]) == 2
    assert "no run folder" in capsys.readouterr().err


# --- the recorder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "dybgr"])
@pytest.mark.parametrize("workers", [0, 1])
def test_recorder_changes_nothing(method, workers, tmp_path):
    splits = make_splits()
    config = small(method=method, workers=workers)
    train(config, splits, tmp_path / "plain")
    recorder = Recorder(tmp_path / "watched", splits)
    train(config, splits, tmp_path / "watched", ProgressList(recorder))
    recorder.finish()
    for name in ("model.safetensors", "embeddings.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("plain", "watched"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [
        [
            line.rpartition(",")[0]
            for line in (tmp_path / f / "metrics.csv").read_text().splitlines()
        ]
        for f in ("plain", "watched")
    ]
    assert rows[0] == rows[1]


def small(**options: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "dataset": "folder",
            "method": "dybgr",
            "backbone": "test_resnet",
            "weights": "none",
            "image_size": 32,
            "head_dim": 8,
            "epochs": 2,
            "batch_size": 8,
            "per_class": 2,
            "device": "cpu",
            "workers": 0,
            "dybgr": DyBGROptions(k=3, num_iterations=2),
            **options,
        }
    )


def test_small_batch_of_the_page_brings_no_warning(recwarn):
    """Its size is not the user's choice."""
    config = small(dybgr=DyBGROptions(k=30))
    graphs = batch_graphs(build_encoder(config)[0], make_splits().test, list(range(8)))
    assert graphs[0].num_edges == 8 * 6
    assert not [w for w in recwarn if "needs at least" in str(w.message)]


def test_recorder_goes_on_after_an_interruption(tmp_path):
    splits = make_splits()

    class Stop(Recorder):
        def epoch(self, row: dict[str, Any]) -> None:
            super().epoch(row)
            if row["epoch"] == 1:
                raise KeyboardInterrupt

    whole, part = tmp_path / "whole", tmp_path / "part"
    train(small(), splits, whole, Recorder(whole, splits))
    with pytest.raises(KeyboardInterrupt):
        train(small(), splits, part, Stop(part, splits))
    train(small(), splits, part, Recorder(part, splits))
    frames = [read_frames(folder / "explorer.npz") for folder in (whole, part)]
    assert len(frames[0]) == len(frames[1]) == 6
    for one, other in zip(*frames, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_separate_gallery_and_no_validation(tmp_path):
    splits = make_splits()
    splits = dataclasses.replace(splits, val=None, gallery=splits.test)
    folder = tmp_path / "run" / "dybgr-seed0"
    recorder = Recorder(folder, splits)
    train(small(), splits, folder, recorder)
    recorder.finish()
    page = payload(explore(folder.parent))
    assert "training batch" in page["graphs"][0]["notes"][0]
    assert len(page["items"]["labels"]) == 2 * len(splits.test)


def test_fixed_batch():
    labels = torch.tensor([0] * 5 + [1] + [2] * 4 + [3] * 4)
    assert fixed_batch(labels, 8, 4) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert fixed_batch(torch.tensor([0, 1]), 8, 4) == [0, 1]


def test_map_items_are_whole_classes():
    labels = torch.arange(3000) % 300
    items = map_items(labels)
    assert len(items) == 1200
    assert labels[items].bincount(minlength=300).unique().tolist() == [0, 10]
