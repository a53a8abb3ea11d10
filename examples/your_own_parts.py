"""Put a block, a loss and a dataset of your own into the whole pipeline.

Each part is registered under a name. Training, checkpoints, several processes, the table, the
explorer page and ``bgl.models.load`` then treat it like the library's own. On the command line,
``--plugin`` imports this file first:

    bgl train --plugin your_own_parts --dataset shapes --data-root DIR --method none classmean

Run as a program, this file draws a small dataset, trains one encoder with the block and one
without it, and prints the table (a few minutes on a CPU):

    python examples/your_own_parts.py          # --short: a few seconds
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import normalize

import bgl
from bgl.datasets import READERS, Listing
from bgl.layers import LabelGraph
from bgl.losses import LOSSES
from bgl.models import BLOCKS


@BLOCKS.register("classmean")
class ClassMeanBlock(nn.Module):
    """Add a learned projection of the class mean. The parameters after ``channels`` are options
    with defaults: ``--classmean.share 0.3`` sets one."""

    def __init__(self, channels: int, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,
        *,
        y: Tensor | None = None,
        batch: Tensor | None = None,
        return_graph: bool = False,
    ) -> Tensor | tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        assert y is not None  # training passes labels, but no `batch`
        edge_index, edge_weight = LabelGraph()(y)
        messages = edge_weight[:, None] * self.norm(x)[edge_index[0]]
        mean = torch.zeros_like(x).index_add(0, edge_index[1], messages.to(x.dtype))
        x = x + self.share * self.proj(mean)
        return (x, [(edge_index, edge_weight)]) if return_graph else x


@LOSSES.register("nca")
class NCALoss(nn.Module):
    """Neighbourhood components analysis: the probability that a neighbour by cosine has the same
    class. The parameters after the first three, which every loss gets, are options."""

    def __init__(
        self, num_classes: int, embedding_dim: int, distance: nn.Module, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        z = normalize(embeddings)
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        scores = (z @ z.t() / self.temperature).masked_fill(~others, -1e9)
        same = (labels[:, None] == labels) & others
        return -scores.softmax(1).mul(same).sum(1).clamp(min=1e-6).log().mean()


@READERS.register("shapes")
def read_shapes(root: str | Path) -> Listing:
    """List the images with their class and part; the class is the start of the file name."""
    listing = Listing(Path(root), {part: Path(root) for part in ("train", "test")})
    for file in sorted(Path(root).glob("*.png")):
        polygons, corners, _ = file.stem.split("-")
        part = "train" if int(corners) % 2 else "test"
        listing.add(part, f"{polygons}-{corners}", file.name, where=str(root))
    return listing


def draw_shapes(root: Path) -> None:
    """Draw images of one to four polygons of the same kind, in random colours."""
    random = np.random.default_rng(0)
    for polygons in range(1, 5):
        for corners in range(3, 9):
            for number in range(12):
                image = Image.new("RGB", (48, 48), "white")
                for _ in range(polygons):
                    x, y, radius = random.integers((8, 8, 5), (40, 40, 12)).tolist()
                    turn, colour = int(random.integers(360)), tuple(random.integers(0, 200, 3))
                    pen = ImageDraw.Draw(image)
                    pen.regular_polygon((x, y, radius), corners, turn, tuple(map(int, colour)))
                image.save(root / f"{polygons}-{corners}-{number}.png")


def main(short: bool) -> None:
    """Train with the loss on the dataset, and compare the block with ``none``."""
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes(Path(folder))
        trained = bgl.train(
            "shapes",
            ["none", "classmean"],
            data_root=folder,
            output_dir=Path(folder) / "run",
            backbone="test_resnet" if short else "tf_efficientnet_lite0",
            weights="none" if short else "auto",
            loss="nca",
            image_size=32 if short else 64,
            epochs=1 if short else 5,
            batch_size=16,
            classmean={"share": 0.3},
        )
        print(trained)
        print(tuple(trained.encoder.embed(sorted(Path(folder).glob("*.png"))[:3]).shape))


if __name__ == "__main__":
    main("--short" in sys.argv[1:])
