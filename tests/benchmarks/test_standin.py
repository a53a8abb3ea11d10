"""write_standin: every dataset has one, of the size asked for, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.standin import STANDINS, write_standin
from bgl.datasets import dataset_names


def test_every_dataset_has_one() -> None:
    others = {"cars-devkit", "inshop-flat"}
    assert set(STANDINS) - others == set(dataset_names()) - {"emoji"}


@pytest.mark.parametrize("name", STANDINS)
def test_size_and_repeat(name: str, tmp_path: Path) -> None:
    one, other = (
        write_standin(name, tmp_path / folder, classes=3, images=2, image_size=6)
        for folder in ("a", "b")
    )
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert sum(path.suffix in (".jpg", ".JPG") for path in files) == 12
    for path in files:
        if path.suffix != ".mat":  # these have the time in their header
            assert (one / path).read_bytes() == (other / path).read_bytes(), path
