"""Parts of somebody else's module go through the whole pipeline, from outside the package."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import program
from helpers import write_noisy_classes

import bgl
from bgl._registry import Registry
from bgl.cli import main
from bgl.models import BLOCKS, load

MODULE = '''
import torch
from timm.models import register_model
from torch import nn

from bgl.augment import AUGMENTATIONS, AugmentationPlan
from bgl.datasets import READERS, Listing
from bgl.losses import LOSSES, MINERS
from bgl.models import BLOCKS
from bgl.samplers import SAMPLERS, ClassBalancedSampler


@BLOCKS.register("shift")
class Shift(nn.Module):
    def __init__(self, channels, step: float = 1.0, twice: bool = False):
        super().__init__()
        self.step = nn.Parameter(torch.full((channels,), float(step)))
        self.twice = twice

    def forward(self, x, *, y=None, batch=None, return_graph=False):
        x = x + (2 if self.twice else 1) * self.step
        edges = torch.arange(len(x)).expand(2, -1), torch.ones(len(x))
        return (x, [edges]) if return_graph else x


@LOSSES.register("spread")
class Spread(nn.Module):
    def __init__(self, num_classes, embedding_dim, distance, weight: float = 1.0):
        super().__init__()
        self.proxies = nn.Parameter(torch.zeros(num_classes, embedding_dim))
        self.weight = weight

    def forward(self, embeddings, labels, indices_tuple=None):
        return self.weight * (embeddings - self.proxies[labels]).square().mean()


@MINERS.register("nothing")
class Nothing(nn.Module):
    def __init__(self, distance):
        super().__init__()

    def forward(self, embeddings, labels):
        return tuple(torch.empty(0, dtype=torch.long) for _ in range(3))


@AUGMENTATIONS.register("copies")
def copies(num_classes, channels, curvature, number: int = 1):
    class Copies(nn.Module):
        def forward(self, z, y):
            return z.repeat(number, 1), y.repeat(number)

    return AugmentationPlan(Copies())


@SAMPLERS.register("backwards")
class Backwards(ClassBalancedSampler):
    def __init__(self, labels, batch_size, per_class, seed, batches_per_epoch):
        super().__init__(labels, batch_size, per_class, seed, batches_per_epoch)

    def __iter__(self):
        return iter([batch[::-1] for batch in super().__iter__()])


@READERS.register("halves")
def halves(root):
    """Classes a-m are trained on."""
    from pathlib import Path

    listing = Listing(Path(root), {"train": Path(root), "test": Path(root)})
    for file in sorted(Path(root).rglob("*.png")):
        name = str(file.relative_to(root))
        part = "train" if file.parent.name < "m" else "test"
        listing.add(part, file.parent.name, name, where=name)
    return listing


@register_model
def tiny_mean(pretrained=False, num_classes=0, **options):
    class Mean(nn.Module):
        num_features = 6
        default_cfg = pretrained_cfg = {}

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 6)

        def forward(self, images):
            return self.linear(images.mean((2, 3)))

    return Mean()
'''


command = partial(program, main)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody who has images and a module, and bgl installed."""
    (tmp_path / "my_parts.py").write_text(MODULE)
    write_noisy_classes(tmp_path / "images", {"a": 6, "z": 3}, per_class=4)
    return tmp_path


def test_every_kind_of_part_goes_through_the_pipeline(outside: Path) -> None:
    words = [
        *("--dataset", "halves", "--data-root", "images", "--backbone", "tiny_mean"),
        *("--weights", "none", "--method", "shift+dybgr", "--shift.step", "0.5", "--shift.twice"),
        *("--loss", "spread", "--loss-options", '{"weight": 2.0}', "--miner", "nothing"),
        *("--augmentation", "copies", "--copies.number", "2", "--sampler", "backwards"),
        *("--epochs", "2", "--image-size", "16", "--batch-size", "8", "--head-dim", "4"),
        *("--output-dir", "run", "--workers", "0"),
    ]
    done = command(outside, "train", "--plugin", "my_parts", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    (row, _) = json.loads((outside / "run" / "results.json").read_text())["rows"][-2:]
    assert row["method"] == "shift+dybgr"
    assert row["config"]["shift"] == {"step": 0.5, "twice": True}
    assert row["config"]["copies"] == {"number": 2}
    assert row["config"]["loss_options"] == {"weight": 2.0}
    assert (outside / "run" / "explorer.html").exists()

    again = command(outside, "train", "--resume", "run", "--plugin", "my_parts")
    assert "finished before" in again.stdout, again.stderr + again.stdout
    measured = command(outside, "eval", "run/shift+dybgr-seed0", "--plugin", "my_parts")
    assert f"recall@1 {row['metrics']['recall@1']:.4f}" in measured.stdout, measured.stderr

    without = command(outside, "eval", "run/shift+dybgr-seed0")
    assert without.returncode == 2
    assert "--plugin" in without.stderr
    assert "Traceback" not in without.stderr


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = command(tmp_path, "train", "--plugin", "no_such_module")
    assert done.returncode == 2
    assert "error: Expected --plugin" in done.stderr
    assert "no_such_module" in done.stderr
    (tmp_path / "broken.py").write_text("import not_installed_here\n")
    done = command(tmp_path, "datasets", "--plugin", "broken")
    assert done.returncode == 2
    assert "not_installed_here" in done.stderr


def test_no_file_names_a_module_to_import(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('was-imported', 'w')\n")
    (tmp_path / "own.yaml").write_text("plugin: evil\n")
    done = command(tmp_path, "train", "--config", "own.yaml")
    assert done.returncode == 2
    assert "plugin" in done.stdout + done.stderr
    assert not (tmp_path / "was-imported").exists()


def test_one_call_from_python_trains_and_returns_the_encoder(tmp_path: Path) -> None:
    write_noisy_classes(tmp_path / "photos", {"train": 6, "test": 3}, per_class=4)
    options = {
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": 32,
        "batch_size": 8,
        "epochs": 1,
        "workers": 0,
    }
    trained = bgl.train(
        tmp_path / "photos",
        ["none", "dybgr"],
        output_dir=tmp_path / "run",
        quiet=True,
        seed=[3],
        dybgr={"k": 3},
        skip_broken=True,
        **options,
    )
    assert [row["method"] for row in trained.rows][-2:] == ["dybgr", "dybgr"]
    assert trained.rows[-1]["config"]["dybgr"]["k"] == 3
    assert trained.rows[-1]["seed"] == 3
    assert str(trained).startswith("| method")
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    stored = load(trained.folder / "dybgr-seed3").embed(images)
    assert torch.equal(trained.encoder.embed(images).cpu(), stored)

    splits = bgl.pipeline.load_splits(bgl.pipeline.read_config(trained.folder / "none-seed3"))
    own = bgl.train(splits, "none", output_dir=tmp_path / "own", quiet=True, seed=[3], **options)
    assert own.rows[-1]["metrics"] == trained.rows[-3]["metrics"]
    with pytest.raises(ValueError, match="lrate"):
        bgl.train(tmp_path / "photos", lrate=1.0)


def test_names_that_are_wrong_or_taken_are_refused() -> None:
    def one(channels: int, k: int = 3) -> None: ...
    def bare(channels: int, k: int) -> None: ...

    parts: Registry[Callable[..., None]] = Registry("part", 1, {"one": one}, grouped=True)
    for name in ("", "Two", "two-three", "two_three", "2", "zwei\u00e4", 3):
        with pytest.raises(ValueError, match="name of a part"):
            parts.register(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'one' is .*one: choose another"):
        parts.register("one")(bare)
    assert parts.register("one")(one) is one
    with pytest.raises(ValueError, match="'bare' to have a default, but k has none"):
        parts.register("bare")(bare)
    with pytest.raises(ValueError, match="did you mean 'one'"):
        parts["oen"]
    assert "oen" not in parts
    assert parts.resolve("one", {}) == {"k": 3}


@pytest.mark.parametrize("name", ["seed", "loss", "refine", "none", "iaa", "wide"])
def test_a_block_is_not_named_like_an_option_or_another_part(name: str) -> None:
    importlib.import_module("bgl.pipeline")  # as the command does before it imports a module
    with pytest.raises(ValueError, match=f"'{name}' is .*: choose another"):
        BLOCKS.register(name)(lambda channels: None)
    assert name not in BLOCKS
