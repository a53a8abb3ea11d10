"""Stanford Online Products: one class a product, photographed by its seller."""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing, read_lines, read_rows, to_int
from bgl.datasets.sources import find, find_home

_COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def load_sop(
    root: str | Path,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Load Stanford Online Products with the parts that its authors made.

    Layout of ``root``, or of ``root/Stanford_Online_Products``::

        Ebay_train.txt, Ebay_test.txt    image_id class_id super_class_id path   (the first line)
                                         1 1 1 bicycle_final/111085122871_0.JPG
        bicycle_final/111085122871_0.JPG

    The archive is public (see :func:`~bgl.datasets.download`). Classes are named by their id.

    pytorch-metric-learning has a reader of the same layout, with which the tests compare. It checks
    neither columns nor files nor that train and test share no class, and leaves grey images grey.

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
        ValueError: if a line is damaged, a class or an image is in both parts, or the dataset is
            not complete.
    """
    home = find_home("sop", root)
    sources = {part: find("sop", home, f"Ebay_{part}.txt") for part in ("train", "test")}
    listing = Listing("sop", home, sources)
    for part, file in sources.items():
        header = read_lines(file)[0]
        if tuple(header.split()) != _COLUMNS:
            raise ValueError(
                f"{file} line 1: expected {' '.join(_COLUMNS)}, but got {header!r}; the file is "
                "damaged or not the original one"
            )
        for where, _, class_id, _, path in read_rows(file, _COLUMNS, skip=1):
            listing.add(part, str(to_int(class_id, "the class id", where, 1)), path, where)
    return listing.splits(val_fraction, seed, skip_broken, allow_partial)
