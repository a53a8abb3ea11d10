"""benchmarks/studies: what is trained, what is kept, what is shown."""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import FORK
from helpers import write_noisy_classes
from scipy.stats import t as student

from benchmarks.studies import plan, train
from benchmarks.studies import report as study_report
from benchmarks.studies import run as study
from benchmarks.studies.plan import Store, Study, Training
from bgl.pipeline import CONFIGS

STUDY: dict[str, Any] = {
    "base": {"dataset": "emoji"},
    "seeds": [0, 1, 2],
    "grid": {"lr": [0.1, 0.2]},
    "grid_seeds": [0],
    "arms": {"none": {"method": "none"}, "graph": {"method": "dybgr"}},
    "baselines": {"graph": "none"},
    "controls": {"graph": ["none"]},
    "sweeps": {"k": {"arms": ["graph"], "option": "dybgr.k", "values": [2], "seeds": [1]}},
}


def load(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return Study.load(path)


def finish(
    training: Training, val: float, test: float, readout: float | None = None
) -> dict[str, Any]:
    """A finished training with made-up figures; the head has a tenth of the backbone's."""
    config = training.config
    recalls = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision"]
    rows = [
        {
            "method": config.method,
            "seed": config.seed,
            "embedding": embedding,
            "epoch": 2,
            "metrics": {**dict.fromkeys(recalls, value), "map@r": value / 2},
        }
        for embedding, value in (("backbone", test), ("head", test / 10), ("readout", readout))
        if value is not None
    ]
    last = {"val_backbone_map@r": val, "test_backbone_recall@1": 0.4, "test_backbone_map@r": 0.3}
    if config.method != "none":
        last |= {"loss_plain": 0.5, "loss_graph": 0.4, "same_class_edges": 0.2}
    best = {**last, "test_backbone_recall@1": 0.7}
    return {
        "command": "python " + " ".join(training.command),
        "epoch": 2,
        "config": json.loads(json.dumps(config.to_dict())),
        "rows": rows,
        "before": {"same_class_edges": 0.1} if config.method != "none" else {},
        "history": [best, last],
    }


def names(trainings: Any) -> list[tuple[str, float, int, int]]:
    return [(t.arm, t.config.lr, t.options.get("dybgr.k", 15), t.seed) for t in trainings]


def test_grid_comes_first_then_the_chosen_point_with_all_seeds(tmp_path):
    wanted = load(tmp_path)
    first = list(wanted.wanted({}))
    grid = [("none", 0.1), ("none", 0.2), ("graph", 0.1), ("graph", 0.2)]
    assert [(t.arm, t.config.lr) for t in first] == grid
    done = {}
    for training, val in zip(first, [0.3, 0.5, 0.6, 0.4], strict=True):
        done[training.key] = finish(training, val, 0.5)
    rest = [t for t in wanted.wanted(done) if t.key not in done]
    assert names(rest) == [
        ("none", 0.2, 15, 1),
        ("graph", 0.1, 15, 1),
        ("none", 0.2, 15, 2),
        ("graph", 0.1, 15, 2),
        ("graph", 0.1, 2, 1),
    ]


def test_without_a_grid_every_arm_is_trained_as_it_stands(tmp_path):
    wanted = load(tmp_path, grid={}, grid_seeds=[], sweeps={}, seeds=[4])
    assert [(t.arm, t.seed) for t in wanted.wanted({})] == [("none", 4), ("graph", 4)]


def test_a_sweep_takes_each_of_its_arms_with_what_the_grid_chose_for_it(tmp_path):
    both = {"arms": ["graph", "none"], "option": "ema", "values": [0, 0.5], "seeds": [3]}
    wanted = load(tmp_path, sweeps={"ema": both})
    vals = {("none", 0.1): 0.3, ("none", 0.2): 0.5, ("graph", 0.1): 0.6, ("graph", 0.2): 0.4}
    first = [t for t in wanted.wanted({}) if t.arm == "none"]
    done = {t.key: finish(t, vals["none", t.config.lr], 0.5) for t in first}
    swept = [t for t in wanted.wanted(done) if t.seed == 3]
    assert [(t.arm, t.config.lr, t.config.ema) for t in swept] == [
        ("none", 0.2, e) for e in (0, 0.5)
    ]
    others = [t for t in wanted.wanted(done) if t.arm == "graph"]
    done |= {t.key: finish(t, vals["graph", t.config.lr], 0.5) for t in others}
    swept = [t for t in wanted.wanted(done) if t.seed == 3]
    assert [(t.arm, t.config.lr) for t in swept] == [("graph", 0.1)] * 2 + [("none", 0.2)] * 2


@pytest.mark.parametrize("value", [True, False])
def test_options_that_are_on_or_off(value):
    options = {"method": "none", "deterministic": value, "iaa.schedule": value}
    config = Training("a", {**options, "augmentation": "iaa"}, 0).config
    assert (config.deterministic, config.options["iaa"]["schedule"]) == (value, value)


def test_two_studies_that_write_one_file_lose_no_run_of_each_other(tmp_path):
    one, other = (Store(tmp_path / "results.json") for _ in range(2))
    for store, seed in ((one, 0), (other, 1), (one, 2)):
        store.add(finish(Training("none", {"method": "none"}, seed), 0.5, 0.5))
    assert one.done == Store(tmp_path / "results.json").done
    assert sorted(entry["config"]["seed"] for entry in one.done.values()) == [0, 1, 2]


def test_a_folder_has_a_short_name_of_its_own():
    long = {"method": "none", "data_root": "/deep" * 60}
    one, other = (Training("a/b", {**long, "lr": lr}, 0).slug for lr in (0.1, 0.2))
    assert one != other
    assert all(len(name) < 100 and "/" not in name for name in (one, other))


def test_key_ignores_what_cannot_change_the_result():
    one = Training("none", {"method": "none"}, 0)
    other = {"workers": 2, "checkpoint_minutes": 9, "cache": "somewhere"}
    same = Training("other", {"method": "none", "dybgr.k": 3, "alpha": 0.9, **other}, 0)
    assert one.key == same.key
    assert one.key != Training("none", {"method": "none"}, 1).key
    other_data = Training("none", {"method": "none", "data_root": "other"}, 0)
    assert one.key != other_data.key
    there = {**other_data.config.to_dict(), "data_root": "/another/machine/other"}
    assert plan.config_key(there) == other_data.key
    graph = Training("g", {"method": "dybgr"}, 0)
    assert graph.key != Training("g", {"method": "dybgr", "dybgr.k": 3}, 0).key


def test_key_of_an_older_configuration_has_the_defaults_of_its_time():
    training = Training("g", {"method": "dybgr"}, 0)
    stored = finish(training, 0.5, 0.5)["config"]
    del stored["deterministic" if "deterministic" in stored else "eval_every"]
    del stored["dybgr"]["norm"]
    assert plan.config_key(stored) == training.key


ALONE: dict[str, Any] = {"baselines": {}, "controls": {}, "sweeps": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "fields of a study"),
        ({"baselines": {"graph": "nobody"}}, "`arm`"),
        ({"controls": {"graph": ["nobody"]}}, "`arm`"),
        ({"sweeps": {"k": {**STUDY["sweeps"]["k"], "arms": "graph"}}}, "list of names"),
        ({**ALONE, "arms": {"none": {"method": "none", "lrr": 1}}}, "lrr"),
        ({**ALONE, "arms": {"none": {"method": ["none", "dybgr"]}}}, "one"),
    ],
    ids=[
        *("unknown field", "unknown baseline", "unknown control", "one arm without a list"),
        *("unknown option", "two methods"),
    ],
)
def test_errors_of_the_file(tmp_path, capsys, changes, message):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    try:
        status = study.main([str(tmp_path / "study.yaml"), "--output-dir", str(tmp_path / "out")])
    except SystemExit as exit:  # an unknown option ends as it does on the command line of run.py
        status = int(exit.code or 0)
    assert status == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset of noisy images."""
    return write_noisy_classes(tmp_path_factory.mktemp("images"), {"train": 8, "test": 3}, 3)


@pytest.fixture(scope="module")
def small(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two arms and one training each."""
    base = {
        **{"dataset": "folder", "data-root": str(images), "backbone": "test_resnet"},
        **{"weights": "none", "image-size": 32, "epochs": 1, "batch-size": 8, "per-class": 2},
        **{"head-dim": 8, "device": "cpu", "dybgr.k": 3},
    }
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    changes = {"base": base, "seeds": [0], "grid": {}, "grid_seeds": [], "sweeps": {}}
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that need not import anything first."""
    if FORK is not None:
        monkeypatch.setattr(train.multiprocessing, "get_context", lambda _: FORK)


def test_a_study_is_trained_once_and_goes_on(small, tmp_path, monkeypatch, capsys, forks):
    words = [str(small), "--output-dir", str(tmp_path), "--jobs", "2"]
    assert study.main(words) == 0
    results = Store(tmp_path / "results.json").done
    entries = {e["rows"][0]["method"]: e for e in results.values()}
    assert entries.keys() == {"none", "dybgr"}
    assert entries["none"]["before"] == {}
    assert "commit" in entries["none"]
    assert 0 <= entries["dybgr"]["before"]["same_class_edges"] <= 1
    assert [row["epoch"] for row in entries["dybgr"]["history"]] == [1]

    # what is stored is not trained again, the rest is
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(
        train.multiprocessing, "get_context", lambda _: type("C", (), {"Process": never})
    )
    assert study.main(words) == 0
    assert study.main([*words, "--list"]) == 0
    assert not re.search("^open", capsys.readouterr().out, re.MULTILINE)


def test_several_studies_are_trained_into_one_file(small, tmp_path, capsys, forks):
    own = {"arms": {"three": {"method": "none"}}, "baselines": {}, "controls": {}, "seeds": [3]}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"like": str(small), **own}))
    words = [str(small), str(tmp_path / "more.yaml"), "--output-dir", str(tmp_path)]
    assert study.main(words) == 0
    done = Store(tmp_path / "results.json").done.values()
    assert sorted((e["config"]["method"], e["config"]["seed"]) for e in done) == [
        ("dybgr", 0),
        ("none", 0),
        ("none", 3),
    ]
    assert {e["device"] for e in done} == {"cpu"}
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({"like": str(small), **own, "measure": "validation"})
    )
    assert study.main([str(tmp_path / "other.yaml"), *words]) == 2
    assert "the same classes" in capsys.readouterr().out


def test_a_training_that_fails_is_named_and_the_others_go_on(small, tmp_path, capsys, forks):
    values = yaml.safe_load(small.read_text())
    values["arms"]["graph"]["data-root"] = str(tmp_path / "nowhere")
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    out = tmp_path / "out"
    assert study.main([str(tmp_path / "broken.yaml"), "--output-dir", str(out), "--jobs", "1"]) == 1
    text = capsys.readouterr().out
    assert "failed: graph, seed 0" in text
    assert "nowhere" in text
    assert len(Store(out / "results.json").done) == 1


def test_a_study_of_validation_classes_measures_no_test_class(small, tmp_path, capsys, forks):
    own = {"arms": {"none": {}}, "baselines": {}, "controls": {}, "measure": "validation"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"like": str(small), **own}))
    words = [str(tmp_path / "study.yaml"), "--output-dir", str(tmp_path)]
    assert study.main(words) == 0
    store = Store(tmp_path / "results.json", "validation")
    (entry,) = store.done.values()
    rows = [*store.untrained, *entry["rows"]]
    assert {row["metrics"]["num_queries"] for row in rows} == {2 * 3}  # of 8 classes for training
    best = {row["embedding"]: row["metrics"]["map@r"] for row in entry["rows"]}["readout"]
    assert Study.load(tmp_path / "study.yaml").validation(entry) == best
    capsys.readouterr()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"like": str(small)}))
    assert study.main(words) == 2
    assert "validation classes" in capsys.readouterr().out


def test_a_study_is_like_another(tmp_path):
    load(tmp_path)
    (tmp_path / "more.yaml").write_text("like: study.yaml\nseeds: [7]\nbase: {epochs: 3}\n")
    wanted = Study.load(tmp_path / "more.yaml")
    base = Study.load(tmp_path / "study.yaml").base
    assert (wanted.seeds, list(wanted.arms)) == ([7], ["none", "graph"])
    assert wanted.base == {**base, "epochs": 3}


@pytest.mark.recipes
@pytest.mark.parametrize("path", sorted((CONFIGS / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_that_come_along_can_be_run(path):
    assert list(Study.load(path).wanted({}))


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A stored study: the arm with the graph is better by 0.1, 0.2 and 0.3."""
    wanted = load(tmp_path)
    store = Store(tmp_path / "results.json")
    for arm, lr in (("none", 0.2), ("graph", 0.1)):
        options = {"dataset": "emoji", "lr": lr, "method": STUDY["arms"][arm]["method"]}
        for seed in wanted.seeds:
            test = 0.5 + (0.1 * (seed + 1) if arm == "graph" else 0.0)
            store.add(finish(Training(arm, options, seed), 0.6, test))
        other = {**options, "lr": {0.1: 0.2, 0.2: 0.1}[lr]}
        store.add(finish(Training(arm, other, 0), 0.1, 0.9))
    swept = {"dataset": "emoji", "lr": 0.1, "method": "dybgr", "dybgr.k": 2}
    store.add(finish(Training("graph", swept, 1), 0.55, 0.8))
    return tmp_path


def cells(text: str, *start: str) -> list[str]:
    """The cells of the table's row that begins with the given ones."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_tables_and_plots(results):
    page = results / "results.md"
    tables = ["arms", "heads", "controls", "grid", "selection", "sweeps", "graphs", "commands"]
    places = "".join(f"<!-- study-{t} -->\nold\n<!-- /study-{t} -->\n" for t in tables)
    other = "<!-- another-arms -->\nkept\n<!-- /another-arms -->\n"
    page.write_text(f"# Text\n{places}![gains](study_gains.png)\n{other}")
    words = [
        str(results / name) for name in ("study.yaml", "results.json", "results.md", "all.csv")
    ]
    assert study_report.main([*words[:3], "--csv", words[3]]) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Text\n<!-- study-arms -->\n| arm |")
    assert text.endswith(other)

    gains = [10.0, 20.0, 30.0]
    half = student.ppf(0.975, 2) * statistics.stdev(gains) / 3**0.5
    arm = cells(text, "graph", "0.1", "3")
    assert arm[3:] == ["70.0 ± 24.8", "35.0 ± 12.4", f"+20.0 ± {half:.1f}", "+10.0 ± 12.4", "none"]
    by_backbone, by_head = [f"+20.0 ± {half:.1f}", "+10.0 ± 12.4"], ["+2.0 ± 2.5", "+1.0 ± 1.2"]
    assert cells(text, "graph", "none", "3")[3:] == [*by_backbone, *by_head]
    assert cells(text, "none", "0.2", "3")[5:] == ["", "", ""]
    assert cells(text, "graph", "**60.0**") == ["graph", "**60.0**", "10.0"]
    chosen = cells(text, "graph", "R@1")  # test curves: 0.7 in epoch 1, 0.4 in the chosen epoch 2
    assert chosen[2:] == ["3", "40.0 ± 0.0", "40.0 ± 0.0", "70.0 ± 0.0"]
    expected = ["55.0", "60.0", "80.0", "40.0", "+10.0", "+5.0"]
    assert cells(text, "k", "graph", "2")[3:] == ["1", *expected]
    assert cells(text, "graph", "10", "20")[3:7] == ["", "", "0.50", "0.40"]
    command = "`python benchmarks/run.py --dataset emoji --lr 0.1 --method dybgr --seed 0 1 2`"
    assert cells(text, "graph", command)
    # the plot that the page shows, and no other
    assert [path.name for path in results.glob("*.png")] == ["study_gains.png"]
    assert (results / "study_gains.png").read_bytes()[:4] == b"\x89PNG"
    with (results / "all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 9
    assert {line["embedding"] for line in lines} == {"backbone", "head"}

    # made again, the page is the same
    assert study_report.main(words[:3]) == 0
    assert page.read_text() == text

    page.write_text("![graphs](study_graphs.png)\n")
    assert study_report.main(words[:3]) == 0
    assert (results / "study_graphs.png").read_bytes()[:4] == b"\x89PNG"


def test_tables_show_neither_what_is_not_run_nor_a_figure_twice(tmp_path):
    load(tmp_path, grid={}, grid_seeds=[], measure="validation")
    store = Store(tmp_path / "results.json", "validation")
    options = {"dataset": "emoji", "method": "dybgr"}
    for given in (options, {**options, "dybgr.k": 2}):
        store.add(finish(Training("graph", given, 1), 0.6, 0.5))
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- study-{t} -->\n<!-- /study-{t} -->\n" for t in ("controls", "sweeps"))
    )
    words = [str(tmp_path / name) for name in ("study.yaml", "results.json", "page.md")]
    assert study_report.main(words) == 0
    text = page.read_text()
    assert "| graph | none |" not in text
    assert cells(text, "sweep")[3:6] == ["seeds", "R@1", "MAP@R"]
    assert cells(text, "k", "graph", "2")[3:] == ["1", "50.0", "25.0", "+0.0", "+0.0"]


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs a clone")
def test_a_row_printed_on_a_page_is_repeated_by_its_command():
    stored: set[str] = set()
    for path in RESULTS.glob("*/*.json"):
        content = json.loads(path.read_text())
        left_out = path.parent.name == "tried"  # with options that are gone
        if not left_out and "trainings" in content:
            stored |= Store(path, content.get("measure", "test")).done.keys()
    printed = 0
    for page in RESULTS.glob("*.md"):
        for line in re.findall(
            r"^\| .* \| `python benchmarks/run.py (.*)` \|$", page.read_text(), re.M
        ):
            options, _, seeds = line.partition(" --seed ")
            words = shlex.split(options)
            keys = (plan.key_of(int(seed), *words) for seed in seeds.split())
            assert any(key in stored for key in keys), f"{page.name}: {options} was not trained"
            printed += 1
    assert printed


@pytest.mark.parametrize("everywhere", [True, False], ids=["all read", "one without"])
def test_the_readout_counts_where_every_training_has_one(everywhere, tmp_path):
    """By the encoder's output the graph is worse, by the readout better."""
    plain = {"grid": {}, "grid_seeds": [], "sweeps": {}}
    store = Store(tmp_path / "results.json")
    for training in load(tmp_path, **plain).wanted({}):
        graph, last = training.arm == "graph", training.seed == 2
        readout = 0.7 + 0.01 * training.seed + 0.1 * graph if everywhere or not last else None
        store.add(finish(training, 0.6, 0.6 - 0.2 * graph, readout))
    store.untrained = [
        {"method": name, "embedding": embedding, "metrics": {"recall@1": value, "map@r": value}}
        for name, embedding, value in [
            *[("pixels", "pixels", 0.1), ("pretrained", "backbone", 0.2)],
            ("pretrained", "readout", 0.3),
        ]
    ]
    store.write()
    tables = ["arms", "outputs", "heads", "readouts", "controls", "graphs"]
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- study-{t} -->\n<!-- /study-{t} -->\n" for t in tables))
    files = [str(tmp_path / name) for name in ("study.yaml", "results.json", "page.md")]
    assert study_report.main(files) == 0
    text = page.read_text()
    table = {t: text.split(f"study-{t} -->")[1] for t in tables}

    output = ["60.0 ± 0.0", "30.0 ± 0.0", "", "", ""]
    read = ["71.0 ± 2.5", "35.5 ± 1.2", "", "", ""]
    assert cells(table["outputs"], "none")[2:] == output
    assert cells(table["outputs"], "pretrained")[2:4] == ["20.0", "20.0"]
    assert cells(table["arms"], "none")[2:] == (read if everywhere else output)
    untrained = ["30.0", "30.0"] if everywhere else ["20.0", "20.0"]
    assert cells(table["arms"], "pretrained")[2:4] == untrained
    assert cells(table["arms"], "pixels")[2:4] == ["10.0", "10.0"]
    by_output, by_readout = ["-20.0 ± 0.0", "-10.0 ± 0.0"], ["+10.0 ± 0.0", "+5.0 ± 0.0"]
    by_head = ["-2.0 ± 0.0", "-1.0 ± 0.0"]
    first = [*by_readout, *by_output] if everywhere else by_output
    assert cells(table["controls"], "graph", "none")[3:] == [*first, *by_head]
    named = ["backbone: Δ R@1", "backbone: Δ MAP@R"] if everywhere else []
    header = ["Δ R@1", "Δ MAP@R", *named, "head: Δ R@1", "head: Δ MAP@R"]
    assert cells(table["controls"], "arm")[3:] == header
    assert cells(table["graphs"], "graph")[-1] == first[1]
    gained = cells(table["readouts"], "graph")
    assert gained[1] == ("3" if everywhere else "2")
    assert gained[2].startswith("+41.0" if everywhere else "+40.5")


def test_unknown_marker(results, capsys):
    page = results / "results.md"
    page.write_text("<!-- study-armz -->\n<!-- /study-armz -->\n")
    words = [str(results / name) for name in ("study.yaml", "results.json", "results.md")]
    assert study_report.main(words) == 2
    assert "armz" in capsys.readouterr().err
    assert page.read_text() == "<!-- study-armz -->\n<!-- /study-armz -->\n"
