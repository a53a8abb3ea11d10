"""write_standin: every dataset has one, of the size asked for, the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bgl.datasets import dataset_names, standin_names, write_standin


def test_every_dataset_has_one() -> None:
    others = {"cars-devkit", "inshop-flat"}
    assert set(standin_names()) - others == set(dataset_names()) - {"emoji"}


@pytest.mark.parametrize("name", standin_names())
def test_size_and_repeat(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        root = write_standin(name, tmp_path / folder, classes=3, images=2, image_size=6)
        assert root == tmp_path / folder
    files = {
        path.relative_to(tmp_path / "a"): path.read_bytes()
        for path in (tmp_path / "a").rglob("*")
        if path.is_file()
    }
    assert sum(path.suffix in (".jpg", ".JPG") for path in files) == 12
    for path, content in files.items():
        if path.suffix != ".mat":  # these have the time in their header
            assert (tmp_path / "b" / path).read_bytes() == content, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "emoji"}, "`name`"),
        ({"classes": 0}, "`classes`"),
        ({"classes": 99}, "`classes`"),
        ({"images": 1}, "`images`"),
        ({"image_size": 0}, "`image_size`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_standin(**{"name": "cub", "root": tmp_path, **options})
