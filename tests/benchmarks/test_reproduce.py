"""The recipes: what they claim to have from the papers, and the program that trains their table."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import yaml
from helpers import assert_as_written

from benchmarks.reproduce import run as reproduce
from benchmarks.reproduce.dry_run import dry_run
from benchmarks.standin import write_standin
from bgl.pipeline import parse
from bgl.pipeline.published import PublishedRow, published, published_rows
from bgl.pipeline.recipes import TABLES, Recipe, _recipes_of, matching_published, recipes
from bgl.training import TrainConfig

ALL = [recipe for table in TABLES for recipe in recipes(table)]
IAA = published()["iaa_recipe"]
DYBGR = published()["rows"][0]
PAPERS_VIT = {"curvature": 0.1, "clip_radius": 2.3, "grad_clip": 3.0}


def config_of(recipe: Recipe) -> TrainConfig:
    known = _recipes_of(recipe.published.dataset)  # which are read once
    return next(config for other, config in known if other.path == recipe.path)


def value_of(config: TrainConfig, name: str) -> Any:
    """A field, an option of a part by its dotted name, or what follows from the fields."""
    part, _, option = name.rpartition(".")
    if part:
        return config.options[part][option]
    if name == "first augmented epoch":
        return round(config.options["iaa"]["start"] * config.epochs)
    if name == "family":
        return config.backbone.partition(".")[0]
    if name == "measured dimension":  # a ViT-S has 384 features
        return config.head_dim if config.select_embedding == "head" else 384
    return getattr(config, name)


def expected_dybgr(recipe: Recipe) -> dict[str, Any]:
    own = {**DYBGR["config"], **DYBGR[recipe.published.dataset]}
    classes = published()["datasets"][recipe.published.dataset]["train"][0]
    names = ("alpha", "lr", "lr_blocks", "epochs", "resize", "batch_size", "per_class", "head_dim")
    names += ("weight_decay", "grad_clip", "curvature", "clip_radius")
    wanted = {name: own[name] for name in names}
    wanted |= {f"dybgr.{n}": own[n] for n in ("k", "num_iterations", "lam", "epsilon", "beta")}
    wanted |= {"dybgr.formulation": "released", "optimizer": own["optimizer"].lower()}
    wanted |= {"family": "vit_base_patch16_224", "block_names": ["dybgr"] * own["depth"]}
    wanted |= {"loss_options": {"temperature": own["temperature"], "reduction": "sum"}}
    wanted |= {"distance": "hyperbolic", "select_embedding": "backbone", "lr_head": 1.0}
    wanted |= {"schedule": "constant", "warmup": 0.0}
    wanted["batches_per_epoch"] = -(-classes * own["per_class"] // own["batch_size"])
    return wanted


def expected_vit_s(recipe: Recipe) -> dict[str, Any]:
    dimension = int(recipe.published.embedding.partition("-")[0])
    wanted = {"family": "vit_small_patch16_224", "measured dimension": dimension, **PAPERS_VIT}
    if recipe.table == "bgformer":
        return wanted
    config = config_of(recipe)
    lr = 1e-5 if "dino" in config.backbone else 3e-5
    last = {"eval_every": config.epochs}  # a fixed last epoch
    return {**wanted, **last, "method": "none", "freeze": ["patch_embed"], "lr": lr}


def expected_iaa(recipe: Recipe) -> dict[str, Any]:
    dataset = recipe.published.dataset
    resnet = recipe.published.backbone == "ResNet-50"
    large = dataset in ("sop", "inshop")
    size = "sop_inshop_" if large else ""
    loss = recipe.path.stem.removeprefix("iaa-").split("-")[0]
    augmented = "IAA" in recipe.published.system
    wanted = {name: IAA[name] for name in ("epochs", "lr_decay_epochs", "lr_decay")}
    wanted |= {"method": "none", "distance": "cosine", "select_embedding": "head"}
    wanted |= {"backbone": "resnet50.tv_in1k" if resnet else "torchvision:googlenet"}
    wanted |= {"augmentation": "iaa" if augmented else "none", "head_dim": IAA["embedding"]}
    wanted |= {"per_class": IAA[f"{size}per_class"], "optimizer": IAA["optimizer"].lower()}
    wanted["schedule"] = "step"
    if not (large and resnet):  # whose released command has another batch
        wanted["batch_size"] = IAA[f"{size}batch_size"]
    if dataset in IAA["lr"]:
        wanted["lr"] = IAA["lr"].get(f"{dataset}_{loss}", IAA["lr"][dataset])
    if loss == "ms":
        ms = dict(IAA["ms"])
        wanted |= {"loss": "multi-similarity", "miner_options": {"epsilon": ms.pop("epsilon")}}
        wanted["loss_options"] = {name: ms[name] for name in ("alpha", "beta", "base")}
    if augmented:
        names = ("momentum", "beta", "gamma", "num_neighbors")
        wanted |= {f"iaa.{name}": IAA[name] for name in names}
        wanted["first augmented epoch"] = IAA["start_epoch"]
        wanted |= {"iaa.update_every": IAA["update_every_epochs"], "iaa.schedule": True}
        if dataset in IAA["strength"] and not (large and resnet):
            wanted["iaa.strength"] = IAA["strength"][dataset]
        if not (large and loss == "contrastive"):  # whose released command has 2
            wanted["iaa.num_samples"] = IAA["num_samples"]
    return wanted


EXPECTED = {
    "dybgr": expected_dybgr,
    "bgformer": expected_vit_s,
    "hyp-vit": expected_vit_s,
    "iaa": expected_iaa,
}


# --- what the files say ---------------------------------------------------------------------------


def test_every_published_row_has_one_recipe_and_no_other_row_has():
    def row_of(row: PublishedRow) -> tuple[str | None, ...]:
        return row.system, row.dataset, row.backbone, row.embedding

    claimed = sorted(str(row_of(recipe.published)) for recipe in ALL)
    assert claimed == sorted(str(row_of(row)) for row in published_rows())
    assert len({recipe.path for recipe in ALL}) == len(ALL) == 54
    folders = {recipe.path.parent for recipe in ALL}
    files = {path for folder in folders for path in folder.glob("*.yaml") if path.stem != "base"}
    assert files == {recipe.path for recipe in ALL}


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_recipes_have_the_published_values_and_leave_the_protocol_open(table):
    for recipe in recipes(table):
        config = config_of(recipe)
        wanted = EXPECTED[table](recipe)
        wanted |= {"dataset": recipe.published.dataset, "protocol": "honest", "weights": "auto"}
        assert {name: value_of(config, name) for name in wanted} == wanted, recipe.name
        assert config.resize in (224, 256)
        written = yaml.safe_load(recipe.path.read_text())
        assert not {"protocol", "seed", "data_root", "device"} & written.keys()
        assert written.pop("method", [config.method]) == [config.method]
        assert_as_written(config, written)


def test_a_comparison_on_a_papers_dataset_changes_the_method_alone():
    configs = parse(["--dataset", "cub", "--method", "none", "dybgr"]).configs
    for name in ("backbone", "lr", "batch_size", "loss_options", "epochs", "head_dim", "resize"):
        assert getattr(configs[0], name) == getattr(configs[1], name)
    assert configs[1].options["dybgr"]["k"] == 30  # of configs/cub/dybgr.yaml


@pytest.mark.slow
def test_each_recipe_is_compared_with_its_own_row():
    for recipe in ALL:
        embedding = "backbone" if "backbone" in recipe.published.embedding else "head"
        config = dataclasses.replace(config_of(recipe), protocol="paper", epochs=3, seed=4)
        row = matching_published(config, embedding, {"recall@1": 0.5, "map@r": 0.25})
        figure = recipe.published.figures["recall@1"]
        assert row is not None, recipe.name
        assert row["source"] == recipe.published.source
        assert row["figures"]["recall@1"] == figure
        assert row["difference"]["recall@1"] == 50 - figure
        assert row["figures"].keys() <= {"recall@1", "map@r"}


def test_what_no_paper_has_trained_stands_alone():
    metrics = {"recall@1": 0.5}
    (config,) = parse(["--dataset", "cub", "--method", "dybgr+dybgr"]).configs
    assert matching_published(config, "backbone", metrics)
    assert matching_published(config, "head", metrics) is None  # they measured the other one
    for words in (["--backbone", "resnet50"], ["--head-dim", "64"], ["--augmentation", "iaa"]):
        (other,) = parse(["--dataset", "cub", "--method", "dybgr+dybgr", *words]).configs
        assert matching_published(other, "backbone", metrics) is None
    (emoji,) = parse(["--dataset", "emoji", "--method", "dybgr"]).configs
    assert matching_published(emoji, "backbone", metrics) is None


# --- dry runs -------------------------------------------------------------------------------------

OTHER_SYSTEMS = ["cars/bgformer-384", "inshop/hyp-vit", "sop/iaa-ms-googlenet"]


@pytest.mark.parametrize(
    "name", ["cub/dybgr", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_SYSTEMS)]
)
def test_dry_run_of_one_recipe_per_system(name):
    (recipe,) = [recipe for recipe in ALL if recipe.name == name]
    said = dry_run(recipe)
    assert "random weights" in said
    assert ("test_vit" in said) == ("googlenet" not in name)


@pytest.mark.slow
def test_dry_run_of_the_papers_protocol():
    (recipe,) = [recipe for recipe in ALL if recipe.name == "vehicleid-medium/ms-googlenet"]
    dry_run(recipe, "paper")


@pytest.mark.recipes
@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_dry_run(recipe):
    dry_run(recipe)


def test_dry_run_prints_a_line_each_and_fails_if_one_fails(monkeypatch, capsys):
    def dry_run(recipe: Recipe) -> str:
        if recipe.published.dataset == "cars":
            raise ValueError("no such thing")
        return "all well"

    monkeypatch.setattr(reproduce, "dry_run", dry_run)
    assert reproduce.main(["--table", "dybgr", "--dry-run", "--datasets", "cub"]) == 0
    capsys.readouterr()
    assert reproduce.main(["--table", "dybgr", "--dry-run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["ok", "cub/dybgr"],
        ["failed", "cars/dybgr"],
        ["ok", "sop/dybgr"],
        ["ok", "inshop/dybgr"],
    ]
    assert "ValueError: no such thing" in lines[1]
    assert lines[4] == "3 of 4 recipes passed"


# --- the table ------------------------------------------------------------------------------------

TINY = [
    *("--allow-partial", "--backbone", "test_resnet", "--weights", "none", "--device", "cpu"),
    *("--image-size", "32", "--resize", "32", "--workers", "0", "--epochs", "1"),
    *("--eval-every", "1", "--batch-size", "32", "--per-class", "4", "--head-dim", "8"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_reproduce_trains_what_it_can_and_goes_on(tmp_path, capsys, monkeypatch):
    write_standin("cub", tmp_path / "data" / "cub")
    words = ["--table", "dybgr", "--data-root", str(tmp_path / "data"), "--datasets", "cub", "sop"]
    words += ["--output-dir", str(tmp_path / "runs"), "--seeds", "0", "1", *TINY]
    assert reproduce.main(words) == 0
    out = capsys.readouterr().out
    assert "88.3" in out
    assert "paper-style (optimistic)" in out
    assert "changed: --allow-partial" in out
    assert "skipped: sop/dybgr, honest" in out
    assert "skipped: sop/dybgr, paper" in out
    content = json.loads((tmp_path / "runs" / "dybgr" / "table.json").read_text())
    (row,) = content["rows"]
    assert (row["system"], row["dataset"]) == ("DyBGR", "cub")
    batches = {"paper": 32, "honest": 24}  # 8 classes; 6 without the validation classes
    for protocol, batch in batches.items():
        found = row["results"][protocol]
        assert [r["seed"] for r in found] == [0, 1]
        assert {r["embedding"] for r in found} == {"backbone"}
        assert {r["protocol"] for r in found} == {protocol}
        assert {r["config"]["batch_size"] for r in found} == {batch}

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("bgl.pipeline.rows.train", refuse)
    assert reproduce.main(words) == 0
    assert json.loads((tmp_path / "runs" / "dybgr" / "table.json").read_text()) == content


def test_line_of_the_table():
    (recipe,) = recipes("dybgr", ["cub"])

    def rows(*values: float) -> list[dict[str, Any]]:
        return [{"metrics": {"recall@1": value}} for value in values]

    line = reproduce.line(recipe, {"paper": rows(0.88, 0.90), "honest": rows(0.86, 0.86)})
    assert line[:3] == ["cub", "DyBGR, 768-d", "88.3"]
    assert line[3].startswith("89.0 ± ")
    assert line[4:] == ["86.0 ± 0.0", "-2.3", "2"]
    assert reproduce.line(recipe, {"paper": rows(0.5)})[3:] == ["50.0", "", "", "1"]


def test_what_fails_is_listed_and_the_rest_is_trained(monkeypatch, capsys, tmp_path):
    def train_row(recipe: Recipe, protocol: str, *_: Any) -> list[dict[str, Any]]:
        if protocol == "paper":
            raise torch.OutOfMemoryError("too large")
        return [{"metrics": {"recall@1": 0.5}}]

    monkeypatch.setattr(reproduce, "train_row", train_row)
    words = ["--table", "hyp-vit", "--datasets", "cub", "--output-dir", str(tmp_path)]
    assert reproduce.main(words) == 1
    out = capsys.readouterr().out
    assert "failed: cub/hyp-vit, paper: too large" in out
    assert "50.0" in out


def test_unknown_dataset_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce.main(["--table", "dybgr", "--datasets", "cifar"])
    assert caught.value.code == 2
    assert "cifar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "dataset", "expected"),
    [("cub", "cub", "cub"), ("vehicleid", "vehicleid-medium", "vehicleid"), ("other", "cub", "")],
)
def test_where_a_dataset_is_looked_for(tmp_path, made, dataset, expected):
    (tmp_path / made).mkdir()
    assert reproduce.data_folder(tmp_path, dataset) == tmp_path / expected
