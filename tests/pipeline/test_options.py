"""The command line of a run: what wins, what is refused, what every file under configs/ means."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from helpers import assert_as_written

from bgl._usage import RUN_OPTIONS
from bgl.models import BLOCKS
from bgl.pipeline import CONFIGS, api, options
from bgl.pipeline.recipes import TABLES, recipes
from bgl.training import TrainConfig


def configuration(*argv: str) -> TrainConfig:
    """The only configuration of a command line."""
    configs = options.parse(list(argv)).configs
    assert len(configs) == 1
    return configs[0]


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """configs/ with a dataset "emoji" of our own."""
    folder = tmp_path / "configs" / "emoji"
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("lr: 1.0\nlr_head: 1.0\nlr_blocks: 1.0\nwarmup: 0.1\n")
    (folder / "dybgr.yaml").write_text("lr_head: 2.0\nlr_blocks: 2.0\nwarmup: 0.2\n")
    (folder / "bgformer.yaml").write_text("warmup: 0.25\n")
    (tmp_path / "own.yaml").write_text("lr_blocks: 3.0\nwarmup: 0.3\ndybgr:\n  k: 7\n")
    monkeypatch.setattr(options, "CONFIGS", tmp_path / "configs")
    return tmp_path


@pytest.mark.parametrize(
    "order",
    [
        ["--config", "OWN", "--warmup", "0.4"],
        ["--warmup", "0.4", "--config", "OWN"],
        ["--warmup=0.4", "--config=OWN"],
    ],
    ids=["config first", "config last", "with ="],
)
def test_later_wins(sets, order):
    words = [word.replace("OWN", str(sets / "own.yaml")) for word in order]
    config = configuration("--method", "dybgr", *words)
    assert (config.lr, config.lr_head, config.lr_blocks, config.warmup) == (1.0, 2.0, 3.0, 0.4)
    assert config.options["dybgr"]["k"] == 7
    assert (
        config.options["dybgr"]["num_iterations"] == 3
    )  # what the file does not name keeps its default
    assert config.head_dim == TrainConfig.head_dim  # what no file names as well


def test_every_method_gets_its_own_file(sets):
    words = ["--method", "none", "dybgr", "dybgr+bgformer", "--seed", "3", "4"]
    configs = options.parse(words).configs
    assert [(c.method, c.seed, c.warmup) for c in configs] == [
        ("none", 3, 0.1),
        ("none", 4, 0.1),
        ("dybgr", 3, 0.2),
        ("dybgr", 4, 0.2),
        ("dybgr+bgformer", 3, 0.25),
        ("dybgr+bgformer", 4, 0.25),
    ]


def test_without_arguments():
    command = options.parse([])
    configs = command.configs
    assert (command.trackers, command.folder) == ([], None)
    assert [(c.method, c.seed) for c in configs] == [("none", 0), ("dybgr", 0)]
    assert configs[0].dataset == "emoji"
    assert configs[0].image_size == 80  # from configs/emoji/base.yaml


FOLDER = ["--dataset", "folder", "--data-root", "photos"]


def test_the_default_is_the_recipe_plain():
    assert configuration(*FOLDER) == configuration(*FOLDER, "--recipe", "plain")
    plain = dataclasses.asdict(configuration("--dataset", "cub", "--recipe", "plain"))
    recipe = yaml.safe_load((CONFIGS / "recipes" / "plain.yaml").read_text())
    for name, value in (recipe | {"method": "none"}).items():
        assert plain[name] == getattr(TrainConfig(), name) == value


def test_the_emoji_compare_plain_and_graph():
    assert options.parse([]).configs == [
        configuration("--recipe", name) for name in ("plain", "graph")
    ]


def test_a_comparison_changes_the_method_alone():
    configs = options.parse(["--method", "none", "dybgr", "bgformer", "batchformer"]).configs
    common = [
        {
            name: value
            for name, value in config.to_dict().items()
            if name not in ("method", "dybgr", "bgformer", "batchformer")
        }
        for config in configs
    ]
    assert common == [common[0]] * 4


@pytest.mark.parametrize("dash", ["-", "_"], ids=["dashes", "underscores"])
def test_dashes_and_underscores_are_the_same(dash):
    words = ["--batch_size", "64", "--dybgr.num_iterations", "2", "--skip_broken"]
    config = configuration("--method", "dybgr", *[w.replace("_", dash) for w in words])
    assert config.batch_size == 64
    assert config.options["dybgr"]["num_iterations"] == 2
    assert config.skip_broken is True


def test_flags_can_be_taken_back(tmp_path):
    (tmp_path / "own.yaml").write_text("skip_broken: true\ntrain_batch_norm: true\n")
    words = ["--method", "none", "--config", str(tmp_path / "own.yaml")]
    assert configuration(*words).skip_broken is True
    config = configuration(*words, "--no-skip-broken")
    assert (config.skip_broken, config.train_batch_norm) == (False, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: dybgr\nseed: 3", [("dybgr", 3)]),
        ("method: [none]\nseed: [1, 2]", [("none", 1), ("none", 2)]),
    ],
    ids=["one", "list"],
)
def test_methods_and_seeds_from_a_file(text, expected, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    configs = options.parse(["--config", str(tmp_path / "own.yaml")]).configs
    assert [(c.method, c.seed) for c in configs] == expected
    configs = options.parse(["--seeds", "7", "--config", str(tmp_path / "own.yaml")]).configs
    assert {c.seed for c in configs} == {7}


def test_a_recipe_works_on_any_dataset():
    plain = configuration("--recipe", "plain")
    assert (plain.method, plain.ema) == ("none", 0.99)
    assert (plain.dataset, plain.image_size) == ("emoji", 80)  # from its base.yaml
    for words in ([], FOLDER):
        graph = configuration(*words, "--recipe", "graph")
        assert graph == configuration(*words, "--method", "dybgr")
        changed = configuration(*words, "--recipe", "graph", "--dybgr.k", "5")
        assert changed.options["dybgr"]["k"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", options.recipe_names())
def test_a_published_recipe_is_that_of_its_row(name):
    text = re.sub(r"[-\s]+", "", RUN_OPTIONS["recipe"])
    assert name.replace("-", "") in text
    if (CONFIGS / "recipes" / f"{name}.yaml").is_file():
        return
    elsewhere = configuration("--recipe", name)
    row = configuration("--config", str(CONFIGS / "cub" / f"{name}.yaml"))
    assert elsewhere == dataclasses.replace(row, dataset="emoji")
    for dataset in ("cub", "sop"):
        row = configuration("--config", str(CONFIGS / dataset / f"{name}.yaml"))
        assert configuration("--recipe", name, "--dataset", dataset) == row


def test_the_batch_of_a_recipe_follows_the_data():
    words = ["--dataset", "folder", "--recipe", "dybgr"]
    assert options.parse(words).free == ({"batch_size", "per_class"},)
    assert options.parse([*words, "--batch-size", "90"]).free == ({"per_class"},)


def test_a_tour_is_short_whatever_the_recipe():
    command = options.parse(["--quick", "--recipe", "plain", "--image-size", "32"])
    (config,) = command.configs
    assert command.quick
    assert not options.parse([]).quick
    assert (config.epochs, config.batches_per_epoch, config.image_size) == (2, 10, 32)
    assert config.max_images == 1000
    assert (config.method, config.ema) == ("none", 0.99)


def test_a_tour_shows_a_graph_unless_a_method_or_recipe_is_named():
    def methods(*words):
        return [c.method for c in options.parse(["--dataset", "folder", "--quick", *words]).configs]

    assert methods() == ["none", "dybgr"]
    assert methods("--recipe", "plain") == methods("--method", "none") == ["none"]


def test_a_recipe_in_python_keeps_its_method(monkeypatch):
    seen = []

    def stop(config):
        seen.append(config)
        raise LookupError

    monkeypatch.setattr(api, "load_splits", stop)
    for given in ({"recipe": "plain", "quick": True}, {"recipe": "plain", "method": "dybgr"}):
        with pytest.raises(LookupError):
            api.train("emoji", **given)
    assert [(c.method, c.ema, c.epochs) for c in seen] == [("none", 0.99, 2), ("dybgr", 0.99, 10)]


def test_paths_are_stored_whole(tmp_path, monkeypatch):
    """So that a run can be measured again, and continued, from another folder."""
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "table", "--data-root", "photos", "--table", "../items.csv"]
    config = configuration("--method", "none", *words, "--cache", str(tmp_path / "cache"))
    assert config.data_root == str(tmp_path / "photos")
    assert Path(config.table).resolve() == tmp_path.parent / "items.csv"
    assert config.cache == str(tmp_path / "cache")


def test_nested_options_and_loss_options():
    config = configuration(
        *("--method", "dybgr", "--dybgr.k", "5"),
        *("--augmentation", "iaa", "--iaa.strength", "0.5"),
        *("--loss", "contrastive", "--loss-options", '{"pos_margin": 0.7}'),
    )
    assert config.options["dybgr"] == {**BLOCKS.options("dybgr"), "k": 5}
    assert config.options["iaa"]["strength"] == 0.5
    assert config.loss_options == {"pos_margin": 0.7}


def test_options_from_python_are_read_back():
    given = {
        **{"augmentation": "iaa", "lr": 0.5, "resize": None, "download": False, "freeze": ["stem"]},
        **{"loss_options": {"pos_margin": 0.7}, "iaa": {"schedule": True, "covariance": "full"}},
    }
    words = [word for name, value in given.items() for word in options.option_words(name, value)]
    found = configuration("--method", "none", *words).to_dict()
    assert found.pop("iaa").items() >= given.pop("iaa").items()
    assert found.items() >= given.items()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lrate", "1"], "lrate"),
        (["--dybgr.kk", "3"], "kk"),
        (["--epochs", "many"], "epochs"),
        (["--epochs", "1.5"], "epochs"),
        (["--seed", "one"], "seed"),
        (["--seed", "0", "1.5"], "seed"),
        (["--seed"], "seed"),
        (["--method", "--epochs", "1"], "method"),
        (["extra"], "extra"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config"], "config"),
        (["--recipe", "plane"], "recipe.*plain"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_option_is_named(words, named):
    with pytest.raises((ValueError, OSError), match=named):
        options.parse(words)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lrate: 1.0", "lrate"),
        ("dybgr: {kk: 3}", "kk"),
        ("epochs: many", "epochs"),
        ("iaa: {strenght: 0.5}", "strenght"),
        ("method: []", "--method"),
    ],
)
def test_wrong_key_in_a_file_is_named(text, named, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=named):
        options.parse(["--config", str(tmp_path / "own.yaml")])


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 9))])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dybgr: evil_module.Name", "dybgr"),
        ("dybgr: {class_path: evil_module.Name}", "class_path"),
        ("iaa: {class_path: evil_module.Name, init_args: {}}", "class_path"),
        ("loss_options: {class_path: {evil_module.Name: 1}}", "loss.options"),
        ("config: secret.yaml", "config"),
        ("recipe: plain", "recipe"),
        ("resume: secret.yaml", "resume"),
        (BOMB, "own.yaml.*aliases"),
        (f"lr: {'[' * 5000}", "own.yaml.*nested"),
        (f"weights: '{'[' * 5000}'", None),
        ("- 1", "own.yaml.*list"),
        ("lr: [", "own.yaml"),
        ("lr: !!python/name:evil_module.Name", "own.yaml"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_file_of_somebody_else_imports_nothing_and_ends_in_one_line(
    text, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise SystemError('imported')\nName = int\n")
    (tmp_path / "secret.yaml").write_text("lr: top secret\n")
    (tmp_path / "own.yaml").write_text(text)
    words = ["--method", "none", "--config", "own.yaml"]
    if named is None:  # a value is text, whatever is in it
        assert options.parse(words).configs[0].weights == "[" * 5000
        return
    with pytest.raises(ValueError, match=named) as caught:
        options.parse(words)
    assert "secret" not in str(caught.value).replace("secret.yaml", "")
    assert len(str(caught.value)) < 2000


def test_small_numbers_in_a_file(tmp_path):
    (tmp_path / "own.yaml").write_text("lr: 1e-4\nloss_options: {margin: 1e-3}\n")
    config = configuration("--method", "none", "--config", str(tmp_path / "own.yaml"))
    assert (config.lr, config.loss_options) == (1e-4, {"margin": 1e-3})


RECIPES = {recipe.path for table in TABLES for recipe in recipes(table)}


@pytest.mark.parametrize(
    "file",
    sorted({*CONFIGS.rglob("*.yaml")} - {*CONFIGS.glob("studies/*")} - RECIPES),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_packaged_config(file):
    """Every YAML file is accepted as it is, and means what it says; recipes: test_reproduce.py."""
    configs = options.parse(["--config", str(file)]).configs
    written = yaml.safe_load(file.read_text())
    wanted = written.pop("method", None)
    if wanted is not None:
        assert [c.method for c in configs] == wanted
    for config in configs:
        assert_as_written(config, written)


def test_the_resolved_configuration_can_be_used_again(tmp_path):
    config = configuration("--method", "dybgr", "--seed", "5", "--dybgr.k", "4", "--lr", "0.01")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert configuration("--config", str(tmp_path / "config.yaml")) == config


def test_every_field_has_an_option_with_help(capsys):
    with pytest.raises(SystemExit) as caught:
        options.parse(["--help-all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"options"}
    names |= {f"{block}.{key}" for block in BLOCKS for key in BLOCKS.options(block)}
    for name in names:
        assert re.search(rf"^ +{re.escape(options.dashes('--' + name))}\b", text, re.MULTILINE)
