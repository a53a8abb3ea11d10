"""In-Shop Clothes Retrieval of DeepFashion: one class an item, with queries and a gallery."""

from __future__ import annotations

import warnings
from pathlib import Path

from bgl.datasets.base import Splits
from bgl.datasets.listing import Listing, read_lines, read_rows, to_int
from bgl.datasets.sources import find, find_home
from bgl.datasets.splits import listed

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_COLUMNS = ("image_name", "item_id", "evaluation_status")
_PARTS = {"train": "train", "query": "test", "gallery": "gallery"}


def load_inshop(
    root: str | Path,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
) -> Splits:
    """Load In-Shop Clothes Retrieval: train, queries (``test``) and ``gallery``.

    Layout of ``root``, or of ``root/In-shop Clothes Retrieval Benchmark``::

        Eval/list_eval_partition.txt, or without Eval/:
            52712
            image_name item_id evaluation_status
            img/WOMEN/Dresses/id_00000002/02_1_front.jpg id_00000002 train
        img/WOMEN/Dresses/id_00000002/02_1_front.jpg, or the same in Img/

    The owners give the data out on request. pytorch-metric-learning has no reader of it.

    Args:
        root: the dataset's folder or the one that it lies in.
        val_fraction: share of the train classes held out for validation; see
            :func:`~bgl.datasets.load_folder`.
        seed: seed of that draw.
        skip_broken: leave out images that can't be decoded; see :func:`~bgl.datasets.load_folder`.
        allow_partial: go on with one warning if images or lines are missing or the numbers of
            classes and images are not the known ones.

    Warns:
        UserWarning: with the lines whose item is not the folder that the image is in.

    Raises:
        FileNotFoundError: if the list or all images are missing; it says where to get them.
        ValueError: if a line is damaged, an item is in train and in another part, an image is in
            two parts, or the dataset is not complete.
    """
    home = find_home("inshop", root)
    file = find("inshop", home, *_LISTS)
    images = find("inshop", home, "img", "Img/img").parent
    prefix = "" if images == home else "Img/"
    lines = read_lines(file)
    count = to_int(lines[0].strip(), "the number of images", f"{file} line 1", 1)
    if len(lines) < 2 or tuple(lines[1].split()) != _COLUMNS:
        raise ValueError(
            f"{file} line 2: expected {' '.join(_COLUMNS)}, but got {lines[1:2]}; the file is "
            "damaged or not the original one"
        )
    listing = Listing("inshop", home, dict.fromkeys(_PARTS.values(), file))
    found = 0
    odd: list[str] = []
    for where, path, item, status in read_rows(file, _COLUMNS, skip=2):
        found += 1
        if status not in _PARTS:
            raise ValueError(
                f"{where}: expected evaluation_status to be one of {tuple(_PARTS)}, got {status!r}"
            )
        if item not in path.split("/")[:-1]:
            odd.append(f"{where} ({item}, {path})")
        listing.add(_PARTS[status], item, prefix + path, where)
    if found != count:
        listing.shortfalls.append(f"{file} says it has {count} images, but lists {found}")
    if odd:
        warnings.warn(
            f"{len(odd)} images are in the folder of another item than their line says; the line "
            f"counts, but check them: {listed(odd)}",
            UserWarning,
            stacklevel=2,
        )
    return listing.splits(val_fraction, seed, skip_broken, allow_partial)
