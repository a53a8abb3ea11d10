"""Cars-196: cars, one class a make, model and year; classes 1 to 98 to train, 99 to 196 to test.

Two layouts were given out, and either will do::

    cars_annos.mat                           relative_im_path, class
    car_ims/000001.jpg

    devkit/cars_train_annos.mat              fname, class
    cars_test_annos_withlabels.mat           fname, class (here or in devkit/)
    devkit/cars_meta.mat                     class_names, if there
    cars_train/00001.jpg   cars_test/00001.jpg

The split of the second one is of another task, with all classes on both sides; here both of its
folders count as one set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bgl.datasets.listing import Listing
from bgl.datasets.source import Figures, Source

_ALL = "cars_annos.mat"
_TRAIN = "devkit/cars_train_annos.mat"
_TEST = ("devkit/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat")


def _read(source: Source, home: Path) -> Listing:
    if (home / _ALL).is_file():
        source.find(home, "car_ims")
        files = [(home / _ALL, "relative_im_path", "")]
        origin = names_file = home / _ALL
    else:
        files = [
            (source.find(home, _TRAIN), "fname", "cars_train/"),
            (source.find(home, *_TEST), "fname", "cars_test/"),
        ]
        for _, _, folder in files:
            source.find(home, folder.rstrip("/"))
        origin = home / "devkit"
        names_file = origin / "cars_meta.mat"
    names = _class_names(names_file) if names_file.is_file() else [""] * 196
    listing = Listing(home, {"train": origin, "test": origin})
    for file, field, prefix in files:
        for number, (path, class_id) in enumerate(_annotations(file, field), start=1):
            where = f"{file} entry {number}"
            if not 1 <= class_id <= 196:
                raise ValueError(
                    f"{where}: expected the class to be from 1 to 196, but got {class_id}"
                )
            label = f"{class_id:03d} {names[class_id - 1]}".strip()
            listing.add("train" if class_id <= 98 else "test", label, prefix + path, where)
    return listing


def _load(file: Path, variable: str) -> Any:
    """One variable of a .mat file."""
    from scipy.io import loadmat  # takes a while to import, and nothing else here needs it

    try:
        content = loadmat(file, squeeze_me=True, variable_names=[variable])
    except Exception as error:  # a damaged file raises anything from OSError to zlib.error
        raise ValueError(
            f"Expected {file} to be a whole MATLAB file, but {type(error).__name__}: {error}"
        ) from error
    if variable not in content:
        raise ValueError(
            f"Expected {file} to have `{variable}`, but it has not: it is cut off or another file"
        )
    return content[variable]


def _class_names(file: Path) -> list[str]:
    names = [str(name) for name in np.atleast_1d(_load(file, "class_names"))]
    if len(names) != 196:
        raise ValueError(f"Expected {file} to have 196 `class_names`, but got {len(names)}")
    return names


def _annotations(file: Path, field: str) -> list[tuple[str, int]]:
    """Path and class of every entry of ``annotations``."""
    entries = np.atleast_1d(_load(file, "annotations"))
    for wanted in (field, "class"):
        if wanted not in (entries.dtype.names or ()):
            hint = "; the one with labels is cars_test_annos_withlabels.mat"
            raise ValueError(
                f"Expected the `annotations` of {file} to have `{wanted}`, but they have "
                f"{entries.dtype.names}{hint if wanted == 'class' else ''}"
            )
    try:
        return [
            (str(path), int(class_id))
            for path, class_id in zip(entries[field], entries["class"], strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a path and a class in every entry of {file}: {error}"
        ) from error


_HALVES = "Song et al., CVPR 2016: first half of the classes to train on, the other to test"

CARS = Source(
    name="cars",
    title="Cars-196",
    access="Its original site (https://ai.stanford.edu/~jkrause/cars/car_dataset.html) no longer "
    "offers the files, so there is no download with a checksum; use a copy that you or your group "
    "have.",
    folders=("stanford_cars", "CARS196", "cars196"),
    markers=(_ALL, _TRAIN),
    layout=(
        "cars_annos.mat and car_ims/",
        "or devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (here or in devkit/), "
        "cars_train/ and cars_test/",
    ),
    figures={"train": (Figures(98, 8054, _HALVES),), "test": (Figures(98, 8131, _HALVES),)},
    read=_read,
)
