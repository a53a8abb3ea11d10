"""Tiny stand-ins for the datasets, in exactly their layouts, to try a command on.

The images are noise around a colour for each class. A number measured on them means nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


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

    It is loaded with ``allow_partial=True``, as its counts are not the real ones.

    Args:
        name: A name in ``STANDINS``: those of :func:`bgl.datasets.load_dataset` but "emoji", and
            "cars-devkit" and "inshop-flat", the other layouts of these two. The table of "table"
            is ``items.csv``.
        root: The folder to write to; made if it does not exist.
        classes: Number of train classes, and as many to test; at most 98.
        images: Number of images of a class, at least 2. In-Shop has one of each test class in the
            gallery.
        image_size: Height and width of the images in pixels.
        seed: Seed of the noise.

    Returns:
        ``root``.

    Example:
        >>> import tempfile, warnings
        >>> from bgl.datasets import load_dataset
        >>> warnings.simplefilter("ignore")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_standin("sop", folder, classes=4)
        ...     load_dataset("sop", root, allow_partial=True).test
        ImageDataset(16 images, 4 classes)
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    STANDINS[name](_Writer(root, classes, images, image_size, seed))
    return root


@dataclass(frozen=True)
class _Writer:
    root: Path
    classes: int  # of each part
    images: int  # of each class
    pixels: int  # a side
    seed: int

    def items(self, first_test: int) -> Iterator[tuple[int, str, int, int]]:
        """Yield number, part, class and place in the class of every image, all but the last from 1.

        Test classes begin with ``first_test``.
        """
        number = 0
        for part, first in (("train", 1), ("test", first_test)):
            for class_id in range(first, first + self.classes):
                for i in range(self.images):
                    number += 1
                    yield number, part, class_id, i

    def image(self, path: str, class_id: int, i: int) -> None:
        colour = np.random.default_rng(class_id).integers(40, 216, 3)
        noise = np.random.default_rng([self.seed, class_id, i]).integers(
            -40, 40, (self.pixels, self.pixels, 3)
        )
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((colour + noise).astype(np.uint8)).save(file, "JPEG", quality=90)

    def lines(self, path: str, lines: list[str]) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def mat(self, path: str, entries: list[dict[str, object]], with_names: bool = False) -> None:
        from scipy.io import savemat  # takes a while to import, and nothing else here needs it

        content: dict[str, object] = {}
        if entries:
            rows = [tuple(entry.values()) for entry in entries]
            fields = [(field, np.object_) for field in entries[0]]
            content["annotations"] = np.array([rows], dtype=fields)
        if with_names:
            names = [f"Stand-in Car {class_id}" for class_id in range(1, 197)]
            content["class_names"] = np.array([names], dtype=np.object_)
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        savemat(file, content)


def _folder(to: _Writer) -> None:
    for _, part, class_id, i in to.items(101):
        to.image(f"{part}/class {class_id}/{i}.jpg", class_id, i)


def _table(to: _Writer) -> None:
    with (to.root / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "is_query", "is_gallery"])
        for _, part, class_id, i in to.items(101):
            path = f"images/{class_id}/{i}.jpg"
            to.image(path, class_id, i)
            rest = ["train", "", ""] if part == "train" else ["validation", "True", "True"]
            writer.writerow([path, f"class {class_id}", *rest])


def _cub(to: _Writer) -> None:
    images, labels = [], []
    for number, _, class_id, i in to.items(101):
        path = f"{class_id:03d}.Stand_in_{class_id}/Stand_In_{i:04d}_{number}.jpg"
        to.image(f"CUB_200_2011/images/{path}", class_id, i)
        images.append(f"{number} {path}")
        labels.append(f"{number} {class_id}")
    to.lines("CUB_200_2011/images.txt", images)
    to.lines("CUB_200_2011/image_class_labels.txt", labels)
    split = [f"{number} {i % 2}" for number, _, _, i in to.items(101)]  # of another task
    to.lines("CUB_200_2011/train_test_split.txt", split)


def _cars(to: _Writer) -> None:
    entries = []
    for number, _, class_id, i in to.items(99):
        path = f"car_ims/{number:06d}.jpg"
        to.image(path, class_id, i)
        entries.append({"relative_im_path": path, "class": class_id, "test": i % 2})
    to.mat("cars_annos.mat", entries, with_names=True)


def _cars_devkit(to: _Writer) -> None:
    entries: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for _, _, class_id, i in to.items(99):
        folder = ("train", "test")[i % 2]  # not the parts of metric learning
        name = f"{len(entries[folder]) + 1:05d}.jpg"
        to.image(f"cars_{folder}/{name}", class_id, i)
        entries[folder].append({"class": class_id, "fname": name})
    to.mat("devkit/cars_train_annos.mat", entries["train"])
    to.mat("devkit/cars_test_annos_withlabels.mat", entries["test"])
    to.mat("devkit/cars_meta.mat", [], with_names=True)


def _sop(to: _Writer) -> None:
    home = "Stanford_Online_Products"
    lines = {part: ["image_id class_id super_class_id path"] for part in ("train", "test")}
    for number, part, class_id, i in to.items(11319):
        path = f"bicycle_final/{111085122871 + class_id}_{i}.JPG"
        to.image(f"{home}/{path}", class_id, i)
        lines[part].append(f"{number} {class_id} 1 {path}")
    for part, content in lines.items():
        to.lines(f"{home}/Ebay_{part}.txt", content)


def _inshop(to: _Writer, lists: str = "Eval/", images: str = "Img/") -> None:
    home = "In-shop Clothes Retrieval Benchmark/" if lists else ""
    rows = []
    for _, part, class_id, i in to.items(4001):
        item = f"id_{class_id:08d}"
        path = f"img/WOMEN/Dresses/{item}/{i + 1:02d}_1_front.jpg"
        to.image(f"{home}{images}{path}", class_id, i)
        status = "train" if part == "train" else "gallery" if i == 0 else "query"
        rows.append(f"{path} {item} {status}")
    header = [str(len(rows)), "image_name item_id evaluation_status"]
    to.lines(f"{home}{lists}list_eval_partition.txt", header + rows)


def _vehicleid(to: _Writer) -> None:
    home = "VehicleID_V1.0"
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number, part, class_id, i in to.items(20001):
        to.image(f"{home}/image/{number:07d}.jpg", class_id, i)
        lines[part].append(f"{number:07d} {class_id}")
    to.lines(f"{home}/train_test_split/train_list.txt", lines["train"])
    for count in (800, 1600, 2400):
        to.lines(f"{home}/train_test_split/test_list_{count}.txt", lines["test"])


STANDINS: dict[str, Callable[[_Writer], None]] = {
    "folder": _folder,
    "table": _table,
    "cub": _cub,
    "cars": _cars,
    "cars-devkit": _cars_devkit,
    "sop": _sop,
    "inshop": _inshop,
    "inshop-flat": lambda to: _inshop(to, lists="", images=""),
    **dict.fromkeys(
        ("vehicleid", "vehicleid-small", "vehicleid-medium", "vehicleid-large"), _vehicleid
    ),
}
