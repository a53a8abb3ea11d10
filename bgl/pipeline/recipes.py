"""Recipes: which file under configs/ repeats which published row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bgl.pipeline.options import CONFIGS, parse
from bgl.pipeline.published import PublishedRow, published_rows
from bgl.pipeline.results import Published
from bgl.training import TrainConfig

# table -> file in configs/DATASET/ -> (system, a part of its backbone or embedding)
TABLES: dict[str, dict[str, tuple[str, str]]] = {
    "dybgr": {"dybgr": ("DyBGR", "768-d")},
    "bgformer": {
        "bgformer-384": ("BGFormer", "384-d"),
        "bgformer-128": ("BGFormer", "128-d"),
    },
    "hyp-vit": {
        "hyp-vit": ("Hyp-ViT", "vit_small"),
        "hyp-dino": ("Hyp-DINO", "dino"),
    },
    "iaa": {
        "ms-googlenet": ("MS", "GoogLeNet"),
        "iaa-ms-googlenet": ("MS + IAA", "GoogLeNet"),
        "contrastive-googlenet": ("Contrastive", "GoogLeNet"),
        "iaa-contrastive-googlenet": ("Contrastive + IAA", "GoogLeNet"),
        "triplet-googlenet": ("Triplet", "GoogLeNet"),
        "iaa-triplet-googlenet": ("Triplet + IAA", "GoogLeNet"),
        "iaa-ms-resnet50": ("MS + IAA", "ResNet-50"),
    },
}


@dataclass(frozen=True)
class Recipe:
    """A published row and the file that trains it."""

    table: str
    path: Path
    published: PublishedRow

    @property
    def name(self) -> str:
        """Dataset and file, for instance "cub/dybgr"."""
        return f"{self.published.dataset}/{self.path.stem}"

    @property
    def title(self) -> str:
        """System and what distinguishes its rows."""
        system, detail = TABLES[self.table][self.path.stem]
        return f"{system}, {detail}"

    def configs(self, *words: str) -> list[TrainConfig]:
        """Its configurations, one for each seed, with further options of ``bgl train``."""
        return parse(["--config", str(self.path), *words]).configs


def recipes(table: str, datasets: list[str] | None = None) -> list[Recipe]:
    """Return the recipes of a table, by dataset."""
    return [
        Recipe(table, CONFIGS / row.dataset / f"{stem}.yaml", row)
        for stem, (system, detail) in TABLES[table].items()
        for row in published_rows(system)
        if detail in f"{row.backbone} {row.embedding}"
        and (datasets is None or row.dataset in datasets)
    ]


# what has to agree before a row is compared with a published one
_SAME = ("method", "backbone", "image_size", "head_dim", "distance", "loss", "augmentation")


@cache
def _recipes_of(dataset: str) -> list[tuple[Recipe, TrainConfig]]:
    found = [recipe for table in TABLES for recipe in recipes(table, [dataset])]
    return [(recipe, recipe.configs()[0]) for recipe in found]


def matching_published(
    config: TrainConfig, embedding: str, metrics: dict[str, float]
) -> Published | None:
    """Find the published row that a configuration repeats, and the difference to its figures.

    It repeats a row if dataset, method, backbone, image size, embedding, distance, loss and
    augmentation are those of the row's recipe.

    Returns:
        System, source, selection, figures (percent) and ``difference`` (measured - published, in
        points) of the metrics both have; None if no published row is like it.
    """
    for recipe, original in _recipes_of(config.dataset):
        row = recipe.published
        measured = "backbone" if row.embedding.startswith("backbone") else "head"
        alike = all(getattr(config, name) == getattr(original, name) for name in _SAME)
        if alike and embedding == measured:
            common = [name for name in row.figures if name in metrics]
            return {
                "system": row.system,
                "source": row.source,
                "selection": row.selection,
                "figures": {name: row.figures[name] for name in common},
                "difference": {name: 100 * metrics[name] - row.figures[name] for name in common},
            }
    return None
