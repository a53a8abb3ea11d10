"""The recipes: what they claim to have from the papers, and the program that trains their table."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml

from benchmarks.reproduce import run as reproduce
from benchmarks.reproduce.dry_run import dry_run
from bgl.datasets import write_standin
from bgl.pipeline import parse
from bgl.pipeline.published import published, published_rows
from bgl.pipeline.recipes import TABLES, Recipe, matching_published, recipes
from bgl.training import TrainConfig

ALL = [recipe for table in TABLES for recipe in recipes(table)]
RECIPE = published()["iaa_recipe"]


def of(*tables: str) -> Any:
    chosen = [recipe for recipe in ALL if recipe.table in tables]
    return pytest.mark.parametrize("recipe", chosen, ids=lambda recipe: recipe.name)


def config_of(recipe: Recipe) -> TrainConfig:
    (config,) = recipe.configs()
    return config


# --- what the files say ---------------------------------------------------------------------------


def test_every_published_row_has_one_recipe_and_no_other_row_has():
    rows = [(row.system, row.dataset, row.backbone, row.embedding) for row in published_rows()]
    claimed = [
        (r.published.system, r.published.dataset, r.published.backbone, r.published.embedding)
        for r in ALL
    ]
    assert sorted(map(str, claimed)) == sorted(map(str, rows))
    assert len({recipe.path for recipe in ALL}) == len(ALL) == 54
    folders = {recipe.path.parent for recipe in ALL}
    files = {path for folder in folders for path in folder.glob("*.yaml") if path.stem != "base"}
    assert files == {recipe.path for recipe in ALL}


@of(*TABLES)
def test_recipe_is_for_its_dataset_and_leaves_the_protocol_open(recipe):
    config = config_of(recipe)
    assert config.dataset == recipe.published.dataset
    assert config.protocol == "honest"
    assert config.resize in (224, 256)
    assert config.weights == "auto"
    written = yaml.safe_load(recipe.path.read_text())
    assert not {"protocol", "seed", "data_root", "device"} & written.keys()


@of("dybgr")
def test_dybgr_has_the_published_values(recipe):
    row = published()["rows"][0]
    shared, own = row["config"], {**row["config"], **row[recipe.published.dataset]}
    config = config_of(recipe)
    assert config.backbone.startswith("vit_base_patch16_224.")
    assert config.block_names == ["dybgr"] * shared["depth"]
    for name in ("k", "num_iterations", "lam", "epsilon", "beta"):
        assert config.options["dybgr"][name] == own[name]
    assert config.options["dybgr"]["formulation"] == "released"
    for name in ("alpha", "lr", "lr_blocks", "epochs", "resize", "batch_size", "per_class"):
        assert getattr(config, name) == own[name], name
    for name in ("head_dim", "weight_decay", "grad_clip", "curvature", "clip_radius"):
        assert getattr(config, name) == shared[name], name
    assert config.optimizer == shared["optimizer"].lower()
    assert config.loss_options == {"temperature": shared["temperature"], "reduction": "sum"}
    assert (config.distance, config.select_embedding) == ("hyperbolic", "backbone")
    assert (config.schedule, config.warmup, config.lr_head) == ("constant", 0.0, 1.0)
    classes = published()["datasets"][config.dataset]["train"][0]
    assert config.batches_per_epoch == -(-classes * config.per_class // config.batch_size)


@of("bgformer", "hyp-vit")
def test_the_published_dimension_is_what_is_measured(recipe):
    config = config_of(recipe)
    dimension = int(recipe.published.embedding.partition("-")[0])
    features = 384  # a ViT-S
    assert config.backbone.startswith("vit_small_patch16_224.")
    measured = config.head_dim if config.select_embedding == "head" else features
    assert measured == dimension
    assert (config.curvature, config.clip_radius, config.grad_clip) == (0.1, 2.3, 3.0)
    if recipe.table == "hyp-vit":
        assert (config.method, config.freeze) == ("none", ["patch_embed"])
        assert config.eval_every == config.epochs  # a fixed last epoch
        assert config.lr == (1e-5 if "dino" in config.backbone else 3e-5)


@of("iaa")
def test_iaa_has_the_published_values(recipe):
    config, dataset = config_of(recipe), recipe.published.dataset
    large = dataset in ("sop", "inshop")
    resnet = recipe.published.backbone == "ResNet-50"
    loss = recipe.path.stem.removeprefix("iaa-").split("-")[0]
    assert config.method == "none"
    assert config.backbone == ("resnet50.tv_in1k" if resnet else "torchvision:googlenet")
    assert config.augmentation == ("iaa" if "IAA" in recipe.published.system else "none")
    assert config.head_dim == RECIPE["embedding"]
    assert config.per_class == RECIPE["sop_inshop_per_class" if large else "per_class"]
    if not (large and resnet):  # whose released command has another batch
        batch = RECIPE["sop_inshop_batch_size" if large else "batch_size"]
        assert config.batch_size == batch
    if dataset in RECIPE["lr"]:
        rates = RECIPE["lr"]
        assert config.lr == rates.get(f"{dataset}_{loss}", rates[dataset])
    assert config.optimizer == RECIPE["optimizer"].lower()
    assert (config.epochs, config.schedule) == (RECIPE["epochs"], "step")
    assert config.lr_decay_epochs == RECIPE["lr_decay_epochs"]
    assert config.lr_decay == RECIPE["lr_decay"]
    assert (config.distance, config.select_embedding) == ("cosine", "head")
    if loss == "ms":
        ms = RECIPE["ms"]
        assert config.loss == "multi-similarity"
        assert config.loss_options == {name: ms[name] for name in ("alpha", "beta", "base")}
        assert config.miner_options == {"epsilon": ms["epsilon"]}
    if config.augmentation == "iaa":
        iaa = config.options["iaa"]
        assert round(iaa["start"] * config.epochs) == RECIPE["start_epoch"]
        assert iaa["update_every"] == RECIPE["update_every_epochs"]
        for name in ("momentum", "beta", "gamma", "num_neighbors"):
            assert iaa[name] == RECIPE[name]
        assert iaa["schedule"]
        if dataset in RECIPE["strength"] and not (large and resnet):
            assert iaa["strength"] == RECIPE["strength"][dataset]
        if not (large and loss == "contrastive"):  # whose released command has 2
            assert iaa["num_samples"] == RECIPE["num_samples"]


def test_a_comparison_on_a_papers_dataset_changes_the_method_alone():
    configs = parse(["--dataset", "cub", "--method", "none", "dybgr"]).configs
    for name in ("backbone", "lr", "batch_size", "loss_options", "epochs", "head_dim", "resize"):
        assert getattr(configs[0], name) == getattr(configs[1], name)
    assert configs[1].dybgr.k == 30  # configs/cub/dybgr.yaml is the method's default as well


@of(*TABLES)
def test_each_recipe_stands_beside_its_own_row(recipe):
    embedding = "backbone" if "backbone" in recipe.published.embedding else "head"
    config = recipe.configs("--protocol", "paper", "--epochs", "3", "--seed", "4")[0]
    beside = matching_published(config, embedding, {"recall@1": 0.5, "map@r": 0.25})
    assert beside is not None
    assert beside["source"] == recipe.published.source
    figure = recipe.published.figures["recall@1"]
    assert beside["figures"]["recall@1"] == figure
    assert beside["difference"]["recall@1"] == 50 - figure
    assert beside["figures"].keys() <= {"recall@1", "map@r"}


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

ONE_PER_SYSTEM = ["cub/dybgr", "cars/bgformer-384", "inshop/hyp-vit", "sop/iaa-ms-googlenet"]


@pytest.mark.parametrize("name", ONE_PER_SYSTEM)
def test_dry_run_of_one_recipe_per_system(name):
    (recipe,) = [recipe for recipe in ALL if recipe.name == name]
    said = dry_run(recipe)
    assert "random weights" in said
    assert ("test_vit" in said) == ("googlenet" not in name)


def test_dry_run_of_the_papers_protocol():
    (recipe,) = [recipe for recipe in ALL if recipe.name == "vehicleid-medium/ms-googlenet"]
    dry_run(recipe, "paper")


@pytest.mark.recipes
@of(*TABLES)
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
