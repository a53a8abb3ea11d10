"""The dry run of a published row's recipe, on stand-in data."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from pathlib import Path

from benchmarks.standin import write_standin
from bgl.pipeline import load_splits, trained_rows
from bgl.pipeline.recipes import Recipe
from bgl.training import Progress, TrainConfig


def shrink(config: TrainConfig) -> tuple[TrainConfig, str]:
    """A configuration for one step on stand-in data, and what of it is not the recipe's own.

    ViTs, which are large, give way to timm's ``test_vit``.
    """
    vit = config.backbone.startswith("vit_")
    size = 64
    per_class = max(n for n in (1, 2, 4, 8) if n <= min(4, config.per_class))
    small = dataclasses.replace(
        config,
        backbone="test_vit" if vit else config.backbone,
        weights="none",
        image_size=size,
        resize=None if config.resize is None else round(config.resize * size / config.image_size),
        epochs=1,
        batch_size=8,
        per_class=per_class,
        batches_per_epoch=1,
        allow_partial=True,
        device="cpu",
        workers=0,
    )
    replaced = f"{config.backbone} → {small.backbone}, " if vit else ""
    replaced += f"random weights, {size} pixels, 1 step of 8 images in {8 // per_class} classes"
    return small, replaced


def dry_run(recipe: Recipe, protocol: str = "honest") -> str:
    """Load, train and measure a recipe on stand-in data in the dataset's own layout.

    Returns:
        What was replaced for it.
    """
    (config,) = recipe.configs("--protocol", protocol)
    small, replaced = shrink(config)
    trained = small.batch_size // small.per_class
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not the whole dataset, and k too large for it
        classes = trained + 2 if protocol == "honest" else trained
        write_standin(config.dataset, Path(folder) / "data", classes=classes)
        small = dataclasses.replace(small, data_root=str(Path(folder) / "data"))
        rows = trained_rows(small, load_splits(small), Path(folder) / "run", Progress())
    wanted = recipe.published.figures.keys()
    for row in rows:
        if missing := sorted(wanted - row["metrics"].keys()):
            raise ValueError(f"Expected the metrics {sorted(wanted)}, but {missing} are missing")
    return replaced
