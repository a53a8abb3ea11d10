"""Adapting to unlabelled images against its peers: ``python -m benchmarks.adapting DATA``

The classes of one part of a dataset are halved. Encoders adapt to the images of the first half
without their labels, and both halves are measured: the other classes, and the gallery's own, which
is transductive. Settings are chosen on *validation* or training classes; *test* classes are for the
last look.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapting import peers
from benchmarks.pages import signed
from benchmarks.refinement.peers import (
    Ranking,
    diffusion,
    k_reciprocal,
    ranking_metrics,
    refined,
)
from bgl import gallery_readout
from bgl._io import write_text
from bgl.datasets import ImageDataset, Splits, load_dataset
from bgl.metrics import retrieval_metrics
from bgl.pipeline.comparison import METRICS, paired_difference, percent
from bgl.pipeline.table import markdown_table
from bgl.readout import fit_readout
from bgl.training import TrainConfig, build_encoder
from bgl.training.adapting import AdaptConfig, Relations, adapt_encoder

ARMS = ("graph", "STML-like", "k-means", "SimCLR", "labels")
START = "start"  # the encoder as it comes
METRIC = "gallery's metric"  # the readout that adapting gives
TRANSDUCTIVE: dict[str, Callable[[Tensor], Ranking]] = {  # in their usual settings, no training
    "refined": partial(refined, k=7, shrinkage=0.1),
    "k-reciprocal": k_reciprocal,
    "diffusion": partial(diffusion, k=10),
}
SHOWN = {name: METRICS[name] for name in ("recall@1", "recall@8", "map@r")}
Row = dict[str, Any]
Halves = tuple[ImageDataset, ImageDataset]


def arms_of(labels: Tensor) -> dict[str, Callable[..., Relations]]:
    """Where each arm has its relations from; the labels are those of the last one."""
    made = (
        Relations,
        peers.SelfTaught,
        peers.PseudoLabels,
        peers.TwoViews,
        partial(peers.Labels, labels),
    )
    return dict(zip(ARMS, made, strict=True))


def load(data: str) -> Splits:
    """Load the packaged emoji, or a folder of classes."""
    return load_dataset("emoji") if data == "emoji" else load_dataset("folder", data)


def halves_of(images: ImageDataset, per_class: int | None) -> Halves:
    """Every other class, and the rest; of each class at most so many images."""
    classes = range(images.num_classes)
    rows = [(images.labels == c).nonzero().flatten().tolist()[:per_class] for c in classes]
    images = images.subset(sorted(itertools.chain(*rows)))
    return images.select_classes(classes[::2]), images.select_classes(classes[1::2])


def measure(x: Sequence[Tensor], halves: Halves, about: Row, config: AdaptConfig) -> list[Row]:
    """Measure an encoder's output on both halves, and readouts fitted to the first one."""
    readouts = {
        "output": torch.nn.Identity(),
        "whitened": fit_readout(x[0]),
        METRIC: gallery_readout(x[0], k=config.k, shrinkage=config.shrinkage),
    }
    found = [
        (name, half, retrieval_metrics(readout(features), data.labels, k=(1, 8)))
        for name, readout in readouts.items()
        for half, features, data in zip(("own", "other"), x, halves, strict=True)
    ]
    if about["arm"] == START:
        found += [
            (name, "own", ranking_metrics(rank(x[0]), halves[0].labels, k=(1, 8)))
            for name, rank in TRANSDUCTIVE.items()
        ]
    return [
        {**about, "readout": name, "half": half, "metrics": metrics}
        for name, half, metrics in found
    ]


def table(rows: list[Row]) -> str:
    """Compare the arms in the gallery's metric with the start under its best readout.

    ± is a 95 % interval over seeds; the last lines are the differences of the graph to its peers,
    seed by seed.
    """
    halves = ("other", "own")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["readout"], row["half"]), []).append(row)
    best = {
        half: max(
            groups[START, name, half][0]["metrics"]["map@r"]
            for arm, name, part in groups
            if arm == START and part == half and name not in TRANSDUCTIVE
        )
        for half in halves
    }
    lines = []
    for arm, readout in dict.fromkeys(key[:2] for key in groups):
        if arm != START and readout != METRIC:
            continue
        line = [arm, str(len(groups[arm, readout, "own"]))]
        if arm == START:
            line = [f"{arm}, {readout}", ""]
        for half in halves:
            if (arm, readout, half) not in groups:  # transductive
                line += [""] * (len(SHOWN) + 1)
                continue
            found = [row["metrics"] for row in groups[arm, readout, half]]
            line += [percent([row[metric] for row in found]) for metric in SHOWN]
            line.append(signed([row["map@r"] - best[half] for row in found]))
        lines.append(line)
    for arm in ARMS:
        line, ours = [f"graph − {arm}", ""], [groups.get(("graph", METRIC, h), []) for h in halves]
        theirs = [groups.get((arm, METRIC, half), []) for half in halves]
        if arm == "graph" or not all((*ours, *theirs)):
            continue
        for mine, other in zip(ours, theirs, strict=True):
            line += [signed(paired_difference(mine, other, metric)) for metric in SHOWN] + [""]
        lines.append(line)
    header = ["arm", "seeds"]
    for half in halves:
        header += [f"{half}: R@1" if name == "recall@1" else SHOWN[name] for name in SHOWN]
        header.append("Δ MAP@R")
    return markdown_table(header, lines)


def make_parser(
    description: str | None, epochs: int, lr: float, batch_size: int
) -> argparse.ArgumentParser:
    """Make the parser of a comparison of arms."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", help="'emoji', or a folder of classes.")
    parser.add_argument("--part", default="val", choices=("train", "val", "test"))
    parser.add_argument("--per-class", type=int, help="Only so many images of each class.")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--results", type=Path, help="JSON file to write, or to go on with.")
    return parser


def config_of(options: argparse.Namespace, seed: int) -> AdaptConfig:
    """How an arm adapts, with a seed: in all epochs, whatever the agreement is."""
    return AdaptConfig(
        epochs=options.epochs,
        patience=options.epochs,
        lr=options.lr,
        batch_size=options.batch_size,
        seed=seed,
    )


def compare(
    options: argparse.Namespace, halves: Halves, embed: Callable[[str, AdaptConfig], list[Tensor]]
) -> None:
    """Measure the encoder as it comes and every arm with every seed; each row is kept at once.

    Args:
        options: Those of :func:`make_parser`.
        halves: The data, whose first half is adapted to.
        embed: Adapts as an arm does, or not at all, and embeds both halves.
    """
    rows: list[Row] = []
    if options.results and options.results.exists():
        rows = json.loads(options.results.read_text())
    done = {(row["seed"], row["arm"]) for row in rows}
    for seed, arm in [(None, START), *itertools.product(options.seeds, options.arms)]:
        if (seed, arm) in done:
            continue
        config = config_of(options, options.seeds[0] if seed is None else seed)
        rows += measure(embed(arm, config), halves, {"arm": arm, "seed": seed}, config)
        print(f"{arm}, seed {seed}", flush=True)
        if options.results:
            lines = ",\n".join(json.dumps(row) for row in rows)
            write_text(options.results, f"[\n{lines}\n]\n")
    print(table(rows))


def main() -> None:
    parser = make_parser(__doc__, AdaptConfig.epochs, AdaptConfig.lr, AdaptConfig.batch_size)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # an image is drawn twice for two views of it
    halves = halves_of(getattr(load(options.data), options.part), options.per_class)
    size, arms = options.image_size, arms_of(halves[0].labels)

    def embed(arm: str, config: AdaptConfig) -> list[Tensor]:
        encoder, _ = build_encoder(
            TrainConfig(image_size=size, resize=size, method="none", seed=config.seed)
        )
        if arm != START:
            with tempfile.TemporaryDirectory() as out:
                encoder, history = adapt_encoder(
                    encoder, halves[0], out, config, make_relations=arms[arm]
                )
            print(arm, config.seed, [round(row["agreement"], 4) for row in history], flush=True)
        return [encoder.embed(half, output="backbone") for half in halves]

    compare(options, halves, embed)
