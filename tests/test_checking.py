"""The report on a folder: what is broken, there twice, in two parts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bgl.checking import CONTRAST, NEAR, check_images, near_pairs, write_page
from bgl.cli import main


def picture(seed: int, side: int = 96) -> Image.Image:
    """Smooth coloured blobs, each seed others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for c in range(6):
        folder = root / ("test" if c in (2, 3) else "train") / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(3):
            picture(10 * c + i).save(folder / f"{i}.png")
    return root


def kinds(root: Path) -> dict[str, list[list[str]]]:
    found = check_images(root).findings()
    return {
        kind: [[file.relative_to(root).as_posix() for *_, file in g.files] for g in groups]
        for kind, groups in found.items()
    }


def test_nothing_wrong(photos: Path, capsys) -> None:
    assert main(["check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "train: 4 classes with 12 images, 3 to 3 each" in out
    assert "96 to 96 px" in out
    assert out.endswith("fit to train on\n")
    assert kinds(photos) == {}


def test_the_same_pixels_in_two_parts_are_a_leak(photos: Path, capsys) -> None:
    picture(0).save(photos / "test/class2/copy.bmp")  # another file with the same pixels
    assert kinds(photos) == {
        "the same image in two parts (a leak: remove it from one of them)": [
            ["train/class0/0.png", "test/class2/copy.bmp"]
        ]
    }
    assert main(["check", str(photos)]) == 1
    assert "train/class0/0.png = test/class2/copy.bmp" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["compressed", "scaled"])
def test_nearly_the_same_image(photos: Path, change: str) -> None:
    image = picture(0)
    if change == "scaled":
        image = image.resize((57, 57), Image.Resampling.BILINEAR)
    image.save(photos / "train/class1/again.jpg", quality=90 if change == "scaled" else 60)
    assert kinds(photos) == {
        "nearly the same image in two classes (is one of them wrong?)": [
            ["train/class0/0.png", "train/class1/again.jpg"]
        ]
    }
    shutil.move(photos / "train/class1/again.jpg", photos / "train/class0/again.jpg")
    assert list(kinds(photos)) == ["nearly the same image twice in a class"]
    assert check_images(photos).fit


def test_unreadable_images_empty_folders_and_shared_names(photos: Path, capsys) -> None:
    (photos / "train/class0/0.png").write_bytes(b"no image")
    (photos / "train/empty").mkdir()
    shutil.copytree(photos / "test/class2", photos / "train/Class2")
    (photos / "test/class1").mkdir()
    picture(99).save(photos / "test/class1/0.png")
    assert main(["check", str(photos)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"unreadable: 1; --skip-broken .*\n  train/class0/0.png: ", out)
    assert "note: Class folders" in out
    assert "'Class2' and 'class2'" in out
    assert "class names in more than one part: " in out
    assert "not fit to train on as it is" in out


def test_names_that_training_takes_for_one_are_shared(photos: Path) -> None:
    """é as one character in train, as a letter and an accent in test."""
    (photos / "train/class0").rename(photos / "train/\u00e9")
    (photos / "test/class2").rename(photos / "test/e\u0301")
    (reason,) = check_images(photos).refused
    assert reason.startswith("class names in more than one part: ")


def test_pairs_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (20, 48), generator=generator).float()
    noise = torch.randn(20, 48, generator=generator) * torch.linspace(0, 12, 20)[:, None]
    flat = torch.full((3, 48), 200.0) + torch.arange(3)[:, None]
    x = torch.cat([base, base + noise, flat])
    expected = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            limit = min(NEAR, CONTRAST * float(x[i].std(correction=0)))
            if float((x[i] - x[j]).square().mean().sqrt()) < limit:
                expected.append((i, j))
    assert 5 < len(expected) < 20
    for chunk in (7, 1024):
        assert sorted(near_pairs(x, chunk)) == expected


def test_page_shows_the_copies(photos: Path, tmp_path: Path, capsys) -> None:
    picture(0).save(photos / "test/class2/copy.png")
    assert main(["check", str(photos), "--page", str(tmp_path / "deep/check.html")]) == 1
    text = (tmp_path / "deep/check.html").read_text()
    assert text.count("<img ") == 2
    assert "a leak" in text
    assert "http:" not in text
    assert write_page(check_images(photos), tmp_path / "again.html").read_text() == text


def test_a_table(photos: Path, capsys) -> None:
    table = photos / "items.csv"
    table.write_text(f"path;label\n{'train/class0/0.png;a'}\ntrain/class0/1.png;b\n")
    assert main(["check", str(table)]) == 1
    out = capsys.readouterr().out
    assert "train: 2 classes with 2 images" in out
    assert "training refuses these classes: Expected 6 classes or more" in out
    assert main(["check", str(table), "--data-root", str(photos / "test")]) == 1
    assert "unreadable: 2" in capsys.readouterr().out


def test_paths_may_be_relative(photos: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "train/class0/0.png").write_bytes(b"no image")
    picture(10).save(photos / "test/class2/copy.png")
    assert main(["check", "photos", "--page", "check.html"]) == 1
    assert "  train/class0/0.png: " in capsys.readouterr().out
    assert Path("check.html").read_text().count("<img ") == 2
    assert main(["check", "phtos"]) == 2
    assert "there is no phtos" in capsys.readouterr().err
