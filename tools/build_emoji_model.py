"""Train and package the model ``bgl.models.load("emoji")``: ``python -m tools.build_emoji_model``

A small network of timm, trained from scratch on the packaged emoji, so that no one else's weights
are in it. Blocks are left out and weights stored in half precision; the card has the figures of the
run. Takes about half an hour of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

from bgl._io import write_text
from bgl.cli import main as bgl
from bgl.models import BatchGraphModel, load, save
from bgl.models.files import MODELS
from bgl.pipeline.files import read_results
from bgl.pipeline.table import markdown

TRAIN = (
    "train --method none --backbone test_byobnet --weights none --train-batch-norm --image-size 64 "
    "--crop-ratio 1 --crop-scale 0.5 --class-neighbors 0 --epochs 50 --lr 4e-3 --lr-head 1 "
    "--weight-decay 0.05 --ema 0.99 --seed 0"
)
CARD = """# emoji

Embeds small drawings so that those of the same thing lie close together: {backbone} at {size} px
with {parameters:,} parameters, trained from scratch on {train} classes of the packaged emoji. It is
a model to try things with: for photographs, train your own.

```python
import bgl.models

encoder = bgl.models.load("emoji")
embeddings = encoder.embed(["image.png"])
```

Retrieval among the {test} emoji that were not trained on, in percent (the first row, raw 16 × 16
pixels, is what a model of drawings has to be compared with; what is loaded is the last):

{table}

Made by `python -m tools.build_emoji_model` (bgl {version}, torch {torch}), which runs

    bgl {command}

and stores the weights in half precision.

The weights are ours, under bgl's MIT licence. The drawings that they were learned from are the icon
sets in `bgl/datasets/data/NOTICE`, under Apache-2.0, CC-BY-4.0 and MIT.
"""


def package(run: Path, folder: Path) -> None:
    """Write the model of a run with its card, for use alone: without blocks, in float16."""
    trained = run / "none-seed0"
    encoder = load(trained)
    model = BatchGraphModel(encoder.model.backbone, [], encoder.model.head, encoder.model.readout)
    config = dataclasses.replace(encoder.config, blocks=())
    save(model.half().state_dict(), folder, config)

    results = read_results(run)
    data, versions = results["dataset"], results["versions"]
    card = CARD.format(
        backbone=config.backbone,
        size=config.image_size,
        parameters=sum(p.numel() for p in model.parameters()),
        train=data["train"]["classes"],
        test=f"{data['test']['images']:,} drawings of {data['test']['classes']}",
        table=markdown(results["rows"]),
        command=TRAIN,
        version=versions["bgl"],
        torch=versions["torch"],
    )
    write_text(folder / "README.md", card)


def main(argv: list[str] | None = None) -> None:
    """Train, unless that is done, and package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/emoji-model"))
    parser.add_argument("--folder", type=Path, default=Path(MODELS["emoji"]))
    options = parser.parse_args(argv)
    words = [*shlex.split(TRAIN), "--output-dir", str(options.run)]
    print("bgl", *words)
    if status := bgl(words):
        raise SystemExit(status)
    package(options.run, options.folder)


if __name__ == "__main__":
    main()
