"""PKU VehicleID: one class a vehicle, with a gallery of one image each."""

from __future__ import annotations

from pathlib import Path

from bgl._checks import check_choice
from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing, read_rows
from bgl.datasets.sources import find, find_home

_SIZES = {"small": 800, "medium": 1600, "large": 2400}


def load_vehicleid(
    root: str | Path,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
    size: str = "medium",
) -> Splits:
    """Load VehicleID with its small, medium or large test set.

    Layout of ``root``, or of ``root/VehicleID_V1.0``::

        train_test_split/train_list.txt                      IMAGE VEHICLE
        train_test_split/test_list_800.txt, 1600, 2400       IMAGE VEHICLE
        image/IMAGE.jpg

    The benchmark fixes the test images, not which of them are queries: one image of every vehicle
    is drawn for the gallery (once, with ``seed``; the draw does not depend on the order of the
    lines) and the others are queries. Papers average over ten draws, so compare over several
    seeds. Broken images are left out before the draw.

    The owners give the data out on request. pytorch-metric-learning has no reader of it.

    Args:
        root: the dataset's folder or the one that it lies in.
        val_fraction: share of the train classes held out for validation; see
            :func:`~bgl.datasets.load_folder`.
        seed: seed of that draw and of the gallery's.
        skip_broken: leave out images that can't be decoded; see :func:`~bgl.datasets.load_folder`.
        allow_partial: go on with one warning if images are missing or the numbers of classes and
            images are none of the known ones.
        size: "small" (800 vehicles), "medium" (1,600) or "large" (2,400).

    Raises:
        FileNotFoundError: if a list or all images are missing; it says where to get them.
        ValueError: if a line is damaged, a vehicle or an image is in both lists, or the dataset is
            not complete.
    """
    check_choice(size, "size", tuple(_SIZES))
    name = f"vehicleid-{size}"
    files = {"train": "train_list.txt", "test": f"test_list_{_SIZES[size]}.txt"}
    home = find_home(name, root)
    sources = {part: find(name, home, f"train_test_split/{file}") for part, file in files.items()}
    find(name, home, "image")
    listing = Listing(name, home, sources)
    for part, file in sources.items():
        for where, image, vehicle in read_rows(file, ("image", "vehicle")):
            listing.add(part, vehicle, f"image/{image}.jpg", where)
    return listing.splits(val_fraction, seed, skip_broken, allow_partial, draw_gallery=True)
