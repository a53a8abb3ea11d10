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


def test_a_relative_path_gives_the_same(root: Path, monkeypatch) -> None:
    expected = load_dataset("folder", root)
    monkeypatch.chdir(root.parent)
    assert load_dataset("folder", root.name).digest == expected.digest


def test_broken_images_are_all_named_at_once(root: Path, monkeypatch) -> None:
    for name in ("train/train3/0.PNG", "test/test1/2.PNG"):
        cut(root / name)
    with pytest.raises(ValueError, match=r"2 of 30 .*train3.0\.PNG.*test1.2\.PNG.*--skip-broken$"):
        load_folder(root)
    monkeypatch.setattr("bgl.datasets.splits.CHECKED", 29)  # too many to look at each
    splits = load_folder(root)
    with pytest.raises(BrokenImageError, match=r"test1.2\.PNG"):
        splits.test[5]


def test_cut_jpeg_files_are_found(root: Path) -> None:
    """Also where they are decoded at an eighth of their size."""
    folder = root / "train/train0"
    noise = Image.effect_noise((640, 480), 90)
    for name, cut_off in (("good", 0), ("cut", 20_000), ("late", 600)):
        noise.save(folder / f"{name}.jpg", quality=90)
        data = (folder / f"{name}.jpg").read_bytes()
        (folder / f"{name}.jpg").write_bytes(data[: len(data) - cut_off])
    with pytest.raises(ValueError, match=r"2 of 33 .*cut\.jpg.*late\.jpg") as caught:
        load_folder(root)
    assert "good" not in str(caught.value)


@pytest.mark.skipif(".heic" in Image.registered_extensions(), reason="pillow-heif is installed")
def test_formats_without_a_decoder_name_what_to_install(root: Path) -> None:
    for name in ("a.heic", "b.HEIC"):
        (root / "train/train0" / name).write_bytes(b"....ftypheic")
    with pytest.raises(ValueError, match=r"a\.heic, \S+b\.HEIC \(\w+: cannot .*'bgl\[heic\]'"):
        load_folder(root)


def test_one_report_names_all_problems_and_what_goes_on(root: Path) -> None:
    cut(root / "train/train3/0.PNG")
    shutil.copytree(root / "train/train5", root / "test/train5")
    with pytest.raises(ValueError, match=r"^Found 2 problems: \(1\) .*no class name in common.*"):
        load_folder(root)
    with pytest.raises(ValueError, match=r"\(2\) .*train3.0\.PNG.* --resplit --skip-broken$"):
        load_folder(root)
    with pytest.warns(UserWarning, match="6 to train on, 2 for validation and 2 for test"):
        splits = load_folder(root, resplit=True, skip_broken=True)
    assert len(splits.skipped) == 1
    names = [name for part in splits.parts().values() for name in part.class_names]
    assert sorted(names) == sorted([*TRAIN, *TEST])
    assert sum(len(part) for part in splits.parts().values()) == 32  # train5 has both parts' images


def flat(root: Path) -> Path:
    for part in ("train", "test"):
        for folder in (root / part).iterdir():
            shutil.move(folder, root / folder.name)
        (root / part).rmdir()
    return root


def test_flat_folder_is_split_by_class(root: Path) -> None:
    with pytest.warns(
        UserWarning, match="6 to train on, 2 for validation and 2 for test$"
    ) as notes:
        splits = load_folder(flat(root))
    assert len(notes) == 1
    names = [name for part in splits.parts().values() for name in part.class_names]
    assert len(names) == 10
    assert sorted(names) == sorted([*TRAIN, *TEST])
    assert all(len(part) == 3 * part.num_classes for part in splits.parts().values())
    with pytest.warns(UserWarning, match="8 to train on, 0 for validation and 2 for test"):
        assert load_folder(root, val_fraction=0).val is None
    with pytest.warns(UserWarning, match="for test"):
        assert load_folder(root).digest == splits.digest
    with pytest.warns(UserWarning, match="for test"):
        assert load_folder(root, seed=1).digest != splits.digest


def test_too_few_classes_to_split(root: Path) -> None:
    flat(root)
    for name in TRAIN[:5]:
        shutil.rmtree(root / name)
    with pytest.raises(ValueError, match=r"6 classes or more.*got 5; .*--val-fraction 0"):
        load_folder(root)
    with pytest.warns(UserWarning, match="3 to train on, 0 for validation and 2 for test"):
        load_folder(root, val_fraction=0)
    shutil.rmtree(root / TRAIN[5])
    shutil.rmtree(root / TRAIN[6])
    with pytest.raises(ValueError, match=r"4 classes or more, .* got 3: add classes$"):
        load_folder(root, val_fraction=0)
    for name in TRAIN[7:]:
        shutil.rmtree(root / name)
    shutil.rmtree(root / "test1")
    with pytest.raises(ValueError, match=r"but got test0 alone: pass the folder above"):
        load_folder(root)


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_validation_classes_of_a_folder_of_their_own(root: Path, name: str) -> None:
    (root / name).mkdir()
    for moved in TRAIN[:4]:
        shutil.move(root / "train" / moved, root / name / moved)
    splits = load_folder(root)
    assert splits.val is not None
    assert splits.val.class_names == list(TRAIN[:4])
    assert splits.train.class_names == list(TRAIN[4:])
    shutil.copytree(root / name / TRAIN[0], root / "test" / TRAIN[0])
    with pytest.raises(ValueError, match=r"no class name in common, but got train0"):
        load_folder(root)
    shutil.rmtree(root / "test")  # the four classes that are left do for training and test
    with pytest.warns(UserWarning, match="2 to train on, 4 for validation and 2 for test"):
        load_folder(root)


def test_images_of_folders_inside_a_class_folder_are_its_own(root: Path) -> None:
    deep = root / "train/train0/2024/may"
    deep.mkdir(parents=True)
    shutil.move(root / "train/train0/0.PNG", deep / "0.PNG")
    with_deep = load_folder(root, val_fraction=0).train
    assert with_deep.class_names == list(TRAIN)
    assert sum(path.startswith("train/train0/") for path in with_deep.paths) == 3


def test_what_is_left_out_is_named(root: Path) -> None:
    (root / "train/empty").mkdir()
    shutil.copy(root / "train/train0/0.PNG", root / "test/loose.jpg")
    shutil.copytree(root / "train/train0", root / "spare/train0")
    with pytest.warns(UserWarning, match="left out") as caught:
        splits = load_folder(root)
    notes = [str(note.message) for note in caught]
    assert len(notes) == 3
    assert [note.rsplit(": ", 1)[1] for note in notes] == ["spare", "test/loose.jpg", "train/empty"]
    assert sum(len(part) for part in splits.parts().values()) == 30


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
    with pytest.warns(UserWarning, match=r"Left out 1 classes .*test1$"):
        assert load_folder(root, skip_broken=True).test.class_names == ["test0"]
    for path in (root / "test" / "test0").iterdir():
        cut(path)
    with pytest.raises(ValueError, match="test to have images for test, but got none"):
        load_folder(root, skip_broken=True)


def test_classes_with_one_image_are_listed_once(root: Path) -> None:
    for name in ("train/train2", "test/test0"):
        for i in (0, 1):
            (root / name / f"{i}.PNG").unlink()
    with pytest.warns(UserWarning, match="2 classes .* train2, test0$") as caught:
        load_folder(root)
    assert len(caught) == 1


def test_missing_folders(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`root` \(--data-root\) to be a folder, .*miss"):
        load_folder(root / "missing")
    shutil.rmtree(root / "train")
    with pytest.raises(FileNotFoundError, match=r"train is missing: add it, or pass the folder ab"):
        load_folder(root)


def test_no_classes_or_no_images(root: Path) -> None:
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match=r"a folder with images for each class in .*test, but got"):
        load_folder(root)
    shutil.copy(root / "train/train0/0.PNG", root / "test/a.png")
    with pytest.raises(ValueError, match=r"a\.png, lie in no class folder: put those of e"):
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
    with pytest.raises(ValueError, match=r"caf.\.png .its name is not UTF-8.; .*--skip-broken"):
        load_folder(root)
    with pytest.warns(UserWarning, match=r"Left out 1 images .*caf.\.png"):
        splits = load_folder(root, skip_broken=True)
    digest = splits.digest
    (root / "train/train0" / name).unlink()
    assert load_folder(root).digest == digest


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_broken_images(root: Path) -> None:
    os.mkfifo(root / "test/test1/9.png")
    with pytest.raises(ValueError, match="a pipe"):
        load_folder(root)
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
