"""Cars-196: cars, one class a make, model and year."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing
from bgl.datasets.sources import find, find_home

_ALL = "cars_annos.mat"
_TRAIN = "devkit/cars_train_annos.mat"
_TEST = ("devkit/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat")


def load_cars(
    root: str | Path,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Load Cars-196: classes 1 to 98 to train, 99 to 196 to test.

    Two layouts of ``root`` (or of ``stanford_cars``, ``CARS196`` or ``cars196`` in it) were
    given out, and either will do::

        cars_annos.mat                           relative_im_path, class
        car_ims/000001.jpg

        devkit/cars_train_annos.mat              fname, class
        cars_test_annos_withlabels.mat           fname, class (here or in devkit/)
        devkit/cars_meta.mat                     class_names, if there
        cars_train/00001.jpg   cars_test/00001.jpg

    The split of the second one is of another task, with all classes on both sides; here both of
    its folders count as one set. The original site no longer offers the files.

    pytorch-metric-learning reads neither layout but that of a third party's upload (``names.csv``,
    ``anno_train.csv``, a folder a class), so nothing of it is used here.

    Args:
        root: the dataset's folder or the one that it lies in.
        val_fraction: share of the train classes held out for validation; see
            :func:`~bgl.datasets.load_folder`. Both layouts give the same classes.
        seed: seed of that draw.
        skip_broken: leave out images that can't be decoded; see :func:`~bgl.datasets.load_folder`.
        allow_partial: go on with one warning if images are missing or the numbers of classes and
            images are not the known ones.

    Raises:
        FileNotFoundError: if a file or all images are missing; it says where they came from.
        ValueError: if a .mat file can't be read or lacks the labels, or the dataset is not
            complete.
    """
    home = find_home("cars", root)
    if (home / _ALL).is_file():
        find("cars", home, "car_ims")
        files = [(home / _ALL, "relative_im_path", "")]
        names_file = home / _ALL
    else:
        files = [
            (find("cars", home, _TRAIN), "fname", "cars_train/"),
            (find("cars", home, *_TEST), "fname", "cars_test/"),
        ]
        for _, _, folder in files:
            find("cars", home, folder.rstrip("/"))
        names_file = home / "devkit" / "cars_meta.mat"
    names = _class_names(names_file) if names_file.is_file() else [""] * 196
    source = files[0][0] if len(files) == 1 else files[0][0].parent
    listing = Listing("cars", home, {"train": source, "test": source})
    for file, field, prefix in files:
        rows = _annotations(file, field)
        for number, (path, class_id) in enumerate(rows, start=1):
            where = f"{file} entry {number}"
            if not 1 <= class_id <= 196:
                raise ValueError(
                    f"{where}: expected the class to be from 1 to 196, but got {class_id}"
                )
            label = f"{class_id:03d} {names[class_id - 1]}".strip()
            listing.add("train" if class_id <= 98 else "test", label, prefix + path, where)
    return listing.splits(val_fraction, seed, skip_broken, allow_partial)


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
            f"Expected {file} to have `{variable}`, but it has not; it is cut off or another file"
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
