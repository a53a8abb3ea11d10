"""Adapting to unlabelled images against its peers: ``python -m benchmarks.adapting DATA``

The classes of one part of a dataset are halved. Encoders adapt to the images of the first half
without their labels, and both halves are measured: the other classes, and the gallery's own, which
is transductive. Settings are chosen on *validation* classes; *test* classes are for the last look.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapting import peers
from bgl import gallery_readout
from bgl._io import write_text
from bgl.datasets import ImageDataset, load_dataset
from bgl.metrics import retrieval_metrics
from bgl.pipeline.comparison import METRICS, percent
from bgl.pipeline.table import markdown_table
from bgl.readout import fit_readout
from bgl.training import TrainConfig, build_encoder
from bgl.training.adapting import AdaptConfig, Relations, adapt_encoder

ARMS: dict[str, Callable[..., Relations]] = {
    "graph": Relations,
    "STML-like": peers.SelfTaught,
    "k-means": peers.PseudoLabels,
    "SimCLR": peers.TwoViews,
}
PRETRAINED = "pretrained"  # the encoder as it comes
SHOWN = {name: METRICS[name] for name in ("recall@1", "recall@8", "map@r")}
Row = dict[str, Any]


Halves = tuple[ImageDataset, ImageDataset]


def halves_of(data: str, part: str, classes: int | None) -> Halves:
    """Every other class of a part, and the rest."""
    splits = load_dataset("emoji") if data == "emoji" else load_dataset("folder", data)
    images: ImageDataset = getattr(splits, part)
    chosen = list(range(images.num_classes))[:classes]
    return images.select_classes(chosen[::2]), images.select_classes(chosen[1::2])


def measure(x: Sequence[Tensor], halves: Halves, about: Row, config: AdaptConfig) -> list[Row]:
    """Measure an encoder's output on both halves, and readouts fitted to the first one."""
    readouts = {
        "output": torch.nn.Identity(),
        "whitened": fit_readout(x[0]),
        "gallery's metric": gallery_readout(x[0], k=config.k, shrinkage=config.shrinkage),
    }
    return [
        {
            **about,
            "readout": name,
            "half": half,
            "metrics": retrieval_metrics(readout(features), data.labels, k=(1, 8)),
        }
        for name, readout in readouts.items()
        for half, features, data in zip(("own", "other"), x, halves, strict=True)
    ]


def table(rows: list[Row]) -> str:
    """Format the rows, one for each arm, readout and half, over seeds."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["half"], row["arm"], row["readout"]), []).append(row)
    lines = []
    for key, found in sorted(groups.items(), key=lambda item: item[0][0]):
        figures = [percent([row["metrics"][metric] for row in found]) for metric in SHOWN]
        lines.append([*key, *figures, str(len(found))])
    header = ["classes", "arm", "readout", *SHOWN.values(), "seeds"]
    return markdown_table(header, lines, left=(0, 1, 2))


def make_parser(
    description: str | None, epochs: int, lr: float, batch_size: int
) -> argparse.ArgumentParser:
    """Make the parser of a comparison of arms."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", help="'emoji', or a folder of classes.")
    parser.add_argument("--part", default="val", choices=("val", "test"))
    parser.add_argument("--classes", type=int, help="Only so many classes of it.")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--results", type=Path, help="JSON file to write.")
    return parser


def compare(
    options: argparse.Namespace, halves: Halves, embed: Callable[[str, AdaptConfig], list[Tensor]]
) -> None:
    """Measure the pretrained encoder and every arm with every seed; each row is kept at once.

    Args:
        options: Those of :func:`make_parser`.
        halves: The data, whose first half is adapted to.
        embed: Adapts as an arm does, or not at all, and embeds both halves.
    """
    rows: list[Row] = []
    for seed, arm in [(None, PRETRAINED), *product(options.seeds, options.arms)]:
        config = AdaptConfig(
            epochs=options.epochs,
            patience=options.epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            seed=options.seeds[0] if seed is None else seed,
        )
        rows += measure(embed(arm, config), halves, {"arm": arm, "seed": seed}, config)
        print(table(rows[-6:]), flush=True)
        if options.results:
            write_text(options.results, json.dumps(rows, indent=1))
    print(table(rows))


def main() -> None:
    parser = make_parser(__doc__, AdaptConfig.epochs, AdaptConfig.lr, AdaptConfig.batch_size)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # an image is drawn twice for two views of it
    halves, size = halves_of(options.data, options.part, options.classes), options.image_size

    def embed(arm: str, config: AdaptConfig) -> list[Tensor]:
        encoder, _ = build_encoder(
            TrainConfig(image_size=size, resize=size, method="none", seed=config.seed)
        )
        if arm != PRETRAINED:
            with tempfile.TemporaryDirectory() as out:
                encoder, history = adapt_encoder(
                    encoder, halves[0], out, config, make_relations=ARMS[arm]
                )
            print(arm, config.seed, [round(row["agreement"], 4) for row in history], flush=True)
        return [encoder.embed(half, output="backbone") for half in halves]

    compare(options, halves, embed)
