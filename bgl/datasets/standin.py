"""Tiny stand-ins for the public datasets, in exactly their layouts, to try a command on.

The images are noise around a colour for each class. A number measured on them means nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bgl._checks import check_choice, check_int


@dataclass(frozen=True)
class _Size:
    """How many classes a part, images a class, pixels a side; and the seed of the noise."""

    classes: int
    images: int
    pixels: int
    seed: int


def standin_names() -> tuple[str, ...]:
    """The names that :func:`write_standin` knows.

    >>> standin_names()[:4]
    ('folder', 'table', 'cub', 'cars')
    """
    return tuple(_WRITERS)


def write_standin(
    name: str,
    root: str | Path,
    *,
    classes: int = 8,
    images: int = 4,
    image_size: int = 32,
    seed: int = 0,
) -> Path:
    """Write a tiny dataset in the original layout, for dry runs and tests.

    It is loaded with ``allow_partial=True``, as its counts are not the real ones, and with one
    warning that says so. Nothing of it is real data.

    Args:
        name: A name of :func:`~bgl.datasets.load_dataset` other than "emoji", or "cars-devkit" or
            "inshop-flat", the other layouts in which these two were given out. "table" gets its
            table as ``items.csv``.
        root: The folder to write to; made if it does not exist.
        classes: Number of train classes, and as many to test; at most 98.
        images: Number of images of a class, at least 2. In-Shop has one of each test class in the
            gallery.
        image_size: Height and width of the images in pixels.
        seed: Seed of the noise.

    Returns:
        ``root``.

    Raises:
        ValueError: If the name is unknown or a number is out of its range.

    Example:
        >>> import tempfile, warnings
        >>> from bgl.datasets import load_dataset
        >>> warnings.simplefilter("ignore")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_standin("sop", folder, classes=4)
        ...     load_dataset("sop", root, allow_partial=True).test
        ImageDataset(16 images, 4 classes)
    """
    check_choice(name, "name", standin_names())
    check_int(classes, "classes", 1)
    if classes > 98:
        raise ValueError(f"Expected argument `classes` to be at most 98, got {classes}")
    check_int(images, "images", 2)
    check_int(image_size, "image_size", 1)
    check_int(seed, "seed", 0)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](root, _Size(classes, images, image_size, seed))
    return root


def _each(size: _Size, first_test: int) -> Iterator[tuple[str, int, int]]:
    """Part, class and image number: train classes from 1 on, test classes from ``first_test``."""
    for part, first in (("train", 1), ("test", first_test)):
        for class_id in range(first, first + size.classes):
            for i in range(size.images):
                yield part, class_id, i


def _save(path: Path, class_id: int, i: int, size: _Size) -> None:
    colour = np.random.default_rng(class_id).integers(40, 216, 3)
    noise = np.random.default_rng([size.seed, class_id, i]).integers(
        -40, 40, (size.pixels, size.pixels, 3)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path, "JPEG", quality=90)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _folder(root: Path, size: _Size) -> None:
    for part, class_id, i in _each(size, 101):
        _save(root / part / f"class {class_id}" / f"{i}.jpg", class_id, i, size)


def _table(root: Path, size: _Size) -> None:
    with (root / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "is_query", "is_gallery"])
        for part, class_id, i in _each(size, 101):
            path = f"images/{class_id}/{i}.jpg"
            _save(root / path, class_id, i, size)
            rest = ["train", "", ""] if part == "train" else ["validation", "True", "True"]
            writer.writerow([path, f"class {class_id}", *rest])


def _cub(root: Path, size: _Size) -> None:
    home = root / "CUB_200_2011"
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    names: dict[int, str] = {}
    for number, (_, class_id, i) in enumerate(_each(size, 101), start=1):
        names[class_id] = f"{class_id:03d}.Stand_in_{class_id}"
        path = f"{names[class_id]}/Stand_In_{i:04d}_{number}.jpg"
        _save(home / "images" / path, class_id, i, size)
        lines["images"].append(f"{number} {path}")
        lines["image_class_labels"].append(f"{number} {class_id}")
        lines["train_test_split"].append(f"{number} {i % 2}")
    lines["classes"] = [f"{class_id} {name}" for class_id, name in names.items()]
    for file, content in lines.items():
        _write_lines(home / f"{file}.txt", content)


def _cars(root: Path, size: _Size) -> None:
    entries: list[tuple[object, ...]] = []
    for number, (_, class_id, i) in enumerate(_each(size, 99), start=1):
        path = f"car_ims/{number:06d}.jpg"
        _save(root / path, class_id, i, size)
        entries.append((path, 1, 1, size.pixels, size.pixels, class_id, i % 2))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    _save_mat(root / "cars_annos.mat", fields, entries, with_names=True)


def _cars_devkit(root: Path, size: _Size) -> None:
    entries: dict[str, list[tuple[object, ...]]] = {"train": [], "test": []}
    for _, class_id, i in _each(size, 99):
        folder = ("train", "test")[i % 2]  # not the parts of metric learning
        name = f"{len(entries[folder]) + 1:05d}.jpg"
        _save(root / f"cars_{folder}" / name, class_id, i, size)
        entries[folder].append((1, 1, size.pixels, size.pixels, class_id, name))
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    _save_mat(root / "devkit" / "cars_train_annos.mat", fields, entries["train"])
    _save_mat(root / "devkit" / "cars_test_annos_withlabels.mat", fields, entries["test"])
    _save_mat(root / "devkit" / "cars_meta.mat", [], [], with_names=True)


def _save_mat(
    path: Path, fields: list[str], entries: list[tuple[object, ...]], with_names: bool = False
) -> None:
    from scipy.io import savemat  # takes a while to import, and nothing else here needs it

    content: dict[str, object] = {}
    if fields:
        content["annotations"] = np.array(
            [entries], dtype=[(field, np.object_) for field in fields]
        )
    if with_names:
        names = [f"Stand-in Car {class_id}" for class_id in range(1, 197)]
        content["class_names"] = np.array([names], dtype=np.object_)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def _sop(root: Path, size: _Size) -> None:
    home = root / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    lines = {"train": [header], "test": [header]}
    for number, (part, class_id, i) in enumerate(_each(size, 11319), start=1):
        path = f"bicycle_final/{111085122871 + class_id}_{i}.JPG"
        _save(home / path, class_id, i, size)
        lines[part].append(f"{number} {class_id} 1 {path}")
    for part, content in lines.items():
        _write_lines(home / f"Ebay_{part}.txt", content)


def _inshop(root: Path, size: _Size) -> None:
    home = root / "In-shop Clothes Retrieval Benchmark"
    _write_inshop(home / "Eval", home / "Img", size)


def _inshop_flat(root: Path, size: _Size) -> None:
    _write_inshop(root, root, size)


def _write_inshop(list_folder: Path, image_folder: Path, size: _Size) -> None:
    rows = []
    for part, class_id, i in _each(size, 4001):
        item = f"id_{class_id:08d}"
        path = f"img/WOMEN/Dresses/{item}/{i + 1:02d}_1_front.jpg"
        _save(image_folder / path, class_id, i, size)
        status = "train" if part == "train" else "gallery" if i == 0 else "query"
        rows.append(f"{path} {item} {status}")
    header = [str(len(rows)), "image_name item_id evaluation_status"]
    _write_lines(list_folder / "list_eval_partition.txt", header + rows)


def _vehicleid(root: Path, size: _Size) -> None:
    home = root / "VehicleID_V1.0"
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number, (part, class_id, i) in enumerate(_each(size, 20001), start=1):
        _save(home / "image" / f"{number:07d}.jpg", class_id, i, size)
        lines[part].append(f"{number:07d} {class_id}")
    _write_lines(home / "train_test_split" / "train_list.txt", lines["train"])
    for count in (800, 1600, 2400):
        _write_lines(home / "train_test_split" / f"test_list_{count}.txt", lines["test"])


_WRITERS: dict[str, Callable[[Path, _Size], None]] = {
    "folder": _folder,
    "table": _table,
    "cub": _cub,
    "cars": _cars,
    "cars-devkit": _cars_devkit,
    "sop": _sop,
    "inshop": _inshop,
    "inshop-flat": _inshop_flat,
    "vehicleid": _vehicleid,
    "vehicleid-small": _vehicleid,
    "vehicleid-medium": _vehicleid,
    "vehicleid-large": _vehicleid,
}
