"""CUB-200-2011: birds, one class a species."""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing, read_rows, to_int
from bgl.datasets.sources import find, find_home


def load_cub(
    root: str | Path,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Load CUB-200-2011: classes 1 to 100 to train, 101 to 200 to test.

    Layout of ``root``, or of ``root/CUB_200_2011``::

        images.txt               IMAGE_ID 001.Black_footed_Albatross/NAME.jpg
        image_class_labels.txt   IMAGE_ID CLASS_ID
        images/001.Black_footed_Albatross/NAME.jpg

    The archive is public (see :func:`~bgl.datasets.download`). ``train_test_split.txt`` belongs
    to another task, with all classes in both parts, and is not read.

    pytorch-metric-learning has a reader of the same layout, with which the tests compare. It pairs
    the two files line by line, stops silently at the end of the shorter one, drops lines whose
    ids differ and leaves grey images grey, so it can't tell a damaged copy from a whole one.

    Args:
        root: the dataset's folder or the one that it lies in.
        val_fraction: share of the train classes held out for validation; see
            :func:`~bgl.datasets.load_folder`.
        seed: seed of that draw.
        skip_broken: leave out images that can't be decoded; see :func:`~bgl.datasets.load_folder`.
        allow_partial: go on with one warning if images are missing or the numbers of classes and
            images are not the known ones.

    Raises:
        FileNotFoundError: if a file or all images are missing; it says where to get them.
        ValueError: if a line is damaged, a class does not fit the image's folder, or the dataset
            is not complete.
    """
    home = find_home("cub", root)
    images_file = find("cub", home, "images.txt")
    labels_file = find("cub", home, "image_class_labels.txt")
    find("cub", home, "images")
    labels: dict[int, tuple[str, int]] = {}
    for where, image_text, class_text in read_rows(labels_file, ("image id", "class id")):
        image_id = to_int(image_text, "the image id", where, 1)
        if image_id in labels:
            raise ValueError(f"{where}: expected one line an image, but {image_id} has two")
        labels[image_id] = (where, to_int(class_text, "the class id", where, 1, 200))
    listing = Listing("cub", home, {"train": images_file, "test": images_file})
    seen: set[int] = set()
    unlabelled = 0
    for where, image_text, file in read_rows(images_file, ("image id", "path")):
        image_id = to_int(image_text, "the image id", where, 1)
        if image_id in seen:
            raise ValueError(f"{where}: expected one line an image, but {image_id} has two")
        seen.add(image_id)
        if image_id not in labels:
            unlabelled += 1
            continue
        label_where, class_id = labels[image_id]
        folder = file.split("/")[0]
        listing.add("train" if class_id <= 100 else "test", folder, f"images/{file}", where)
        number = folder.split(".")[0]
        if not number.isdecimal() or int(number) != class_id:
            raise ValueError(
                f"{label_where}: expected the class whose number the image's folder bears, but "
                f"got {class_id} for {file}; get the two files from the same archive"
            )
    if unlabelled:
        listing.shortfalls.append(
            f"{labels_file} has no line for {unlabelled} images of {images_file.name}"
        )
    unlisted = len(labels.keys() - seen)
    if unlisted:
        listing.shortfalls.append(
            f"{images_file} has no line for {unlisted} images of {labels_file.name}"
        )
    return listing.splits(val_fraction, seed, skip_broken, allow_partial)
