"""Embed images once: ``python -m benchmarks.refinement.features FOLDER --data … --encoder …``

Writes ``FOLDER/DATA-PART.ENCODER.safetensors`` with ``x`` and ``y`` for each pair that is missing.

--data NAME[=ROOT]           "emoji", "digits" (of scikit-learn), or a folder with train/ and test/
--encoder NAME[=MODEL]       "pixels", a run folder, or BACKBONE[:WEIGHTS] ("…:none" is untrained)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from bgl import models
from bgl._io import write_tensors
from bgl.datasets import ImageDataset, load_dataset, raw_pixels
from bgl.models import Encoder, ModelConfig, assemble_model, create_backbone


def parts(name: str, root: str, most: int) -> dict[str, ImageDataset]:
    """Load the parts of a dataset, at most so many images of each class."""
    splits = (
        load_dataset("emoji") if name == "emoji" else load_dataset("folder", root, val_fraction=0)
    )
    found = {part: getattr(splits, part) for part in ("train", "val", "test")}
    return {
        f"{name}-{part}": data.subset(few(data.labels, most))
        for part, data in found.items()
        if data is not None
    }


def few(labels: Tensor, most: int) -> list[int]:
    """Draw at most so many items of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept: dict[int, list[int]] = {}
    for row in order.tolist():
        own = kept.setdefault(int(labels[row]), [])
        if len(own) < most:
            own.append(row)
    return sorted(row for own in kept.values() for row in own)


def encoder(model: str, image_size: int) -> Encoder:
    """Load a run's encoder, or make one of a backbone."""
    if Path(model).is_dir():
        return models.load(model)
    name, _, weights = model.partition(":")
    torch.manual_seed(0)
    backbone, info = create_backbone(name, weights or "auto")
    config = ModelConfig(name, image_size, info.mean, info.std, 8)
    return Encoder(assemble_model(backbone, info.num_features, config), config)


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1,797 digits: their 8 × 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.data).float(), torch.from_numpy(found.target)


def main() -> None:
    """Embed what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--encoder", nargs="+", default=[])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--per-class", type=int, default=30)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for data in options.data:
        name, _, root = data.partition("=")
        if name == "digits":
            x, y = digits()
            write_tensors(options.folder / "digits.pixels.safetensors", {"x": x, "y": y})
            continue
        for part, images in parts(name, root, options.per_class).items():
            for word in options.encoder:
                short, _, model = word.partition("=")
                path = options.folder / f"{part}.{short}.safetensors"
                if path.exists():
                    continue
                if short == "pixels":
                    x = raw_pixels(images)
                else:
                    x = encoder(model, options.image_size).embed(images, output="backbone")
                write_tensors(path, {"x": x, "y": images.labels})
                print(f"{path}: {list(x.shape)}", flush=True)


if __name__ == "__main__":
    main()
