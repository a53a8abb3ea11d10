"""Stanford Online Products: one class a product, photographed by its seller.

Layout::

    Ebay_train.txt, Ebay_test.txt    image_id class_id super_class_id path   (the first line)
                                     1 1 1 bicycle_final/111085122871_0.JPG
    bicycle_final/111085122871_0.JPG

The parts are the authors'; classes are named by their id.
"""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.listing import Listing, check_header, read_rows, to_int
from bgl.datasets.source import Archive, Figures, Source

_COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def _read(source: Source, home: Path) -> Listing:
    files = {part: source.find(home, f"Ebay_{part}.txt") for part in ("train", "test")}
    listing = Listing(home, files)
    for part, file in files.items():
        check_header(file, 1, _COLUMNS)
        for where, _, class_id, _, path in read_rows(file, _COLUMNS, skip=1):
            listing.add(part, str(to_int(class_id, "the class id", where, 1)), path, where)
    return listing


_SONG = "Song et al., CVPR 2016"

SOP = Source(
    name="sop",
    title="Stanford Online Products",
    access="It is public at Stanford's CVGL, https://cvgl.stanford.edu/projects/lifted_struct/ "
    "(Stanford_Online_Products.zip, 3.1 GB).",
    folders=("Stanford_Online_Products",),
    markers=("Ebay_train.txt", "Ebay_test.txt"),
    layout=("Ebay_train.txt", "Ebay_test.txt", "bicycle_final/ and the other 11 image folders"),
    figures={"train": (Figures(11318, 59551, _SONG),), "test": (Figures(11316, 60502, _SONG),)},
    read=_read,
    # Size and checksum as pinned by TensorFlow Datasets (stanford_online_products); the second
    # address is the one in the README of the dataset's authors.
    archive=Archive(
        (
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "https://drive.usercontent.google.com/download"
            "?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
        ),
        "Stanford_Online_Products.zip",
        3_083_860_082,
        "sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
    ),
    recall_at=(1, 10, 100, 1000),
)
