"""In-Shop Clothes Retrieval of DeepFashion: one class an item, with queries and a gallery.

Layout::

    Eval/list_eval_partition.txt, or without Eval/:
        52712
        image_name item_id evaluation_status
        img/WOMEN/Dresses/id_00000002/02_1_front.jpg id_00000002 train
    img/WOMEN/Dresses/id_00000002/02_1_front.jpg, or the same in Img/
"""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.listing import Listing, check_header, counted, read_lines, read_rows, to_int
from bgl.datasets.source import Figures, Source

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_COLUMNS = ("image_name", "item_id", "evaluation_status")
_PARTS = {"train": "train", "query": "test", "gallery": "gallery"}


def _read(source: Source, home: Path) -> Listing:
    file = source.find(home, *_LISTS)
    prefix = "" if source.find(home, "img", "Img/img").parent == home else "Img/"
    count = to_int(read_lines(file)[0].strip(), "the number of images", f"{file} line 1", 1)
    check_header(file, 2, _COLUMNS)
    listing = Listing(home, dict.fromkeys(_PARTS.values(), file))
    found = 0
    misplaced: list[str] = []
    for where, path, item, status in read_rows(file, _COLUMNS, skip=2):
        found += 1
        if status not in _PARTS:
            raise ValueError(
                f"{where}: expected evaluation_status to be one of {tuple(_PARTS)}, got {status!r}"
            )
        if item not in path.split("/")[:-1]:
            misplaced.append(f"{where} ({item}, {path})")
        listing.add(_PARTS[status], item, prefix + path, where)
    if found != count:
        listing.problems.append(f"{file} says it has {count} images, but lists {found}")
    listing.notes += counted(
        misplaced,
        "images are in the folder of another item than their line says; the line counts, but check "
        "them",
    )
    return listing


_LIU = "Liu et al., CVPR 2016 (DeepFashion)"

INSHOP = Source(
    name="inshop",
    title="In-Shop Clothes Retrieval (DeepFashion)",
    access="MMLab gives it on request, https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html "
    "(sign the agreement; take Eval/list_eval_partition.txt and Img/img.zip of the In-shop "
    "benchmark), so there is no download.",
    folders=("In-shop Clothes Retrieval Benchmark",),
    markers=_LISTS,
    layout=(" or ".join(_LISTS), "img/ or Img/img/"),
    figures={
        "train": (Figures(3997, 25882, _LIU),),
        "test": (Figures(3985, 14218, _LIU),),
        "gallery": (Figures(3985, 12612, _LIU),),
    },
    read=_read,
    recall_at=(1, 10, 20, 30),
)
