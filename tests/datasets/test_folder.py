"""Image folders: the split, broken files, and errors that say what is wrong where."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from bgl.datasets import load_dataset
from bgl.images import BrokenImageError

load_folder = partial(load_dataset, "folder")

TRAIN = tuple(f"train{i}" for i in range(8))
TEST = ("test0", "test1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, names in (("train", TRAIN), ("test", TEST)):
        for c, name in enumerate(names):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (30 * c, 80 * i, 0)).save(folder / f"{i}.PNG")
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_parts_and_items(root: Path) -> None:
    (root / "train" / "train0" / "notes.txt").write_text("no image")
    (root / "train" / "train0" / ".hidden.png").write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "readme.md").write_text("no class")
    splits = load_folder(root)
    assert splits.val.num_classes == 2
    assert splits.train.num_classes == 6
    assert sorted(splits.train.class_names + splits.val.class_names) == list(TRAIN)
    assert splits.test.class_names == list(TEST)
    assert splits.skipped == ()
    for part in splits.parts().values():
        assert len(part) == 3 * part.num_classes
        for i in range(len(part)):
            image, label = part[i]
            top, name, file = part.paths[i].split("/")
            assert part.class_names[label] == name
            assert image[0, 0, 0] == 30 * (TRAIN if top == "train" else TEST).index(name)
            assert image[1, 0, 0] == 80 * int(file[0])


def test_validation_is_seeded(root: Path) -> None:
    def drawn(seed: int) -> list[str]:
        val = load_folder(root, seed=seed).val
        return val.class_names

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1
    assert load_folder(root, seed=0).digest == load_folder(root, seed=0).digest
    assert load_folder(root, val_fraction=0).val is None
    half = load_folder(root, val_fraction=0.5).val
    assert half.num_classes == 4


def test_digest_does_not_depend_on_where_the_folder_lies(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    for part in ("train", "test"):
        shutil.copytree(root / part, moved / part)
    assert load_folder(moved).digest == load_folder(root).digest


def test_broken_image_raises_when_read(root: Path) -> None:
    cut(root / "test" / "test1" / "2.PNG")
    splits = load_folder(root)
    with pytest.raises(BrokenImageError, match=r"test1.2\.PNG"):
        splits.test[5]


def test_skip_broken(root: Path) -> None:
    bad = [root / "train" / "train3" / "0.PNG", root / "test" / "test1" / "2.PNG"]
    for path in bad:
        cut(path)
    with pytest.warns(UserWarning, match="2 images") as caught:
        splits = load_folder(root, skip_broken=True)
    assert len(caught) == 1
    assert splits.skipped == tuple(str(path) for path in bad)
    assert all(str(path) in str(caught[0].message) for path in bad)
    assert sum(len(part) for part in splits.parts().values()) == 28
    for part in splits.parts().values():
        for i in range(len(part)):
            part[i]


def test_skip_broken_with_nothing_broken_is_silent(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_folder(root, skip_broken=True).digest == load_folder(root).digest


def test_class_with_only_broken_images(root: Path) -> None:
    for path in (root / "test" / "test1").iterdir():
        cut(path)
    with pytest.raises(ValueError, match=r"test1.*all 3 are broken"):
        load_folder(root, skip_broken=True)


def test_classes_with_one_image_are_listed_once(root: Path) -> None:
    for name in ("train/train2", "test/test0"):
        for i in (0, 1):
            (root / name / f"{i}.PNG").unlink()
    with pytest.warns(UserWarning, match="2 classes .* train2, test0$") as caught:
        load_folder(root)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("gone", "error", "message"),
    [
        ("", FileNotFoundError, r"`root` \(--data-root\) to be a folder, but .*missing"),
        ("train", FileNotFoundError, r"`root` .*train/CLASS/\*\.jpg .*train is missing"),
        ("test", FileNotFoundError, r"`root` .*test/CLASS/\*\.jpg, but .*test is missing"),
    ],
)
def test_missing_folders(root: Path, gone: str, error: type[Exception], message: str) -> None:
    if gone:
        shutil.rmtree(root / gone)
    with pytest.raises(error, match=message):
        load_folder(root if gone else root / "missing")


def test_no_classes_or_no_images(root: Path) -> None:
    (root / "test" / "test2").mkdir()
    with pytest.raises(ValueError, match=r"images .*test2, but got none"):
        load_folder(root)
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match=r"a folder for each class in .*test, but got none"):
        load_folder(root)


def test_class_in_both_parts(root: Path) -> None:
    shutil.copytree(root / "train" / "train5", root / "test" / "train5")
    with pytest.raises(ValueError, match="no class name in common, but got train5"):
        load_folder(root)


def twin(root: Path, part: str, old: str, new: str) -> None:
    shutil.copytree(root / part / old, root / part / new, dirs_exist_ok=True)


def test_class_in_both_parts_in_other_unicode_characters(root: Path) -> None:
    twin(root, "train", "train5", "caf\u00e9")
    twin(root, "test", "test0", "cafe\u0301")
    with pytest.raises(ValueError, match="no class name in common, but got cafe\u0301"):
        load_folder(root)


@pytest.mark.parametrize(
    "names", [("Train5", "train5"), ("cafe\u0301", "caf\u00e9"), ("Test1", "test1")]
)
def test_classes_that_differ_in_case_or_unicode_form_are_noted(
    root: Path, names: tuple[str, str]
) -> None:
    for name in names:
        if not any((root / part / name).exists() for part in ("train", "test")):
            twin(root, "train", "train4", name)
    with pytest.warns(UserWarning, match=r"1 class names .* rename or merge") as caught:
        load_folder(root)
    assert len(caught) == 1
    assert all(ascii(name) in str(caught[0].message) for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_that_are_not_utf8_are_named_or_left_out(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(root / "train/train0/0.PNG", root / "train/train0" / name)
    with pytest.raises(ValueError, match=r"UTF-8, but got .*caf.\.png; .*--skip-broken"):
        load_folder(root)
    with pytest.warns(UserWarning, match=r"Left out 1 images .*caf.\.png"):
        splits = load_folder(root, skip_broken=True)
    digest = splits.digest
    (root / "train/train0" / name).unlink()
    assert load_folder(root).digest == digest


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_broken_images(root: Path) -> None:
    os.mkfifo(root / "test/test1/9.png")
    with pytest.raises(BrokenImageError, match="a pipe"):
        load_folder(root).test.read(6)
    with pytest.warns(UserWarning, match=r"Left out 1 images .*9\.png"):
        assert len(load_folder(root, skip_broken=True).test) == 6


@pytest.mark.parametrize("fraction", [-0.1, 1.5, 1.0, 0.9])
def test_bad_fraction(root: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="`val_fraction`"):
        load_folder(root, val_fraction=fraction)


def test_too_few_classes_to_hold_any_out(root: Path) -> None:
    for c in range(2, 8):
        shutil.rmtree(root / "train" / f"train{c}")
    with pytest.raises(ValueError, match=r"2 classes are too few to hold any out; 0 \(--val-frac"):
        load_folder(root)
    assert load_folder(root, val_fraction=0).train.num_classes == 2


def test_load_dataset_names_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"`name` .*'emoji', 'table', 'folder'.* got 'cub201'"):
        load_dataset("cub201")
    with pytest.raises(ValueError, match=r"`root` .*'folder'"):
        load_dataset("folder")
    with pytest.raises(ValueError, match=r"`root` .*'emoji'"):
        load_dataset("emoji", "somewhere")
