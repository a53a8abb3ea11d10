"""CUB-200-2011: birds, one class a species; classes 1 to 100 to train, 101 to 200 to test.

Layout::

    images.txt               IMAGE_ID 001.Black_footed_Albatross/NAME.jpg
    image_class_labels.txt   IMAGE_ID CLASS_ID
    images/001.Black_footed_Albatross/NAME.jpg

``train_test_split.txt`` belongs to another task, with all classes in both parts, and is not read.
"""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.listing import Listing, read_rows, to_int
from bgl.datasets.source import Archive, Figures, Source


def _read(source: Source, home: Path) -> Listing:
    images_file = source.find(home, "images.txt")
    labels_file = source.find(home, "image_class_labels.txt")
    source.find(home, "images")
    images = _by_id(images_file, "path")
    labels = _by_id(labels_file, "class id")
    listing = Listing(home, {"train": images_file, "test": images_file})
    for image_id, (where, file) in images.items():
        if image_id not in labels:
            continue
        label_where, class_text = labels[image_id]
        class_id = to_int(class_text, "the class id", label_where, 1, 200)
        folder = file.split("/")[0]
        listing.add("train" if class_id <= 100 else "test", folder, f"images/{file}", where)
        number = folder.split(".")[0]
        if not number.isdecimal() or int(number) != class_id:
            raise ValueError(
                f"{label_where}: expected the class whose number the image's folder bears, but "
                f"got {class_id} for {file}; get the two files from the same archive"
            )
    for name, absent in (
        (labels_file, images.keys() - labels.keys()),
        (images_file, labels.keys() - images.keys()),
    ):
        if absent:
            listing.problems.append(
                f"{name} has no line for {len(absent)} images of the other list"
            )
    return listing


def _by_id(file: Path, column: str) -> dict[int, tuple[str, str]]:
    """Read where each image's line is, and what it says."""
    lines: dict[int, tuple[str, str]] = {}
    for where, text, value in read_rows(file, ("image id", column)):
        image_id = to_int(text, "the image id", where, 1)
        if image_id in lines:
            raise ValueError(f"{where}: expected one line an image, but {image_id} has two")
        lines[image_id] = where, value
    return lines


_HALVES = "Song et al., CVPR 2016: first half of the classes to train on, the other to test"

CUB = Source(
    name="cub",
    title="CUB-200-2011",
    access="It is public at CaltechDATA, https://data.caltech.edu/records/65de6-vp158 "
    "(CUB_200_2011.tgz, 1.2 GB).",
    folders=("CUB_200_2011",),
    markers=("images.txt", "image_class_labels.txt"),
    layout=("images.txt", "image_class_labels.txt", "images/"),
    figures={"train": (Figures(100, 5864, _HALVES),), "test": (Figures(100, 5924, _HALVES),)},
    read=_read,
    archive=Archive(
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        "CUB_200_2011.tgz",
        1_150_585_339,
        "md5:97eceeb196236b17998738112f37df78",  # the one that the record itself shows
    ),
)
