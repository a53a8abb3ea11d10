"""Where each public dataset comes from, and what its folder has to look like."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """A public archive whose checksum is known.

    Attributes:
        urls: where it lies; the next one is tried if one does not answer.
        filename: its name on disk while it is fetched.
        size: number of bytes.
        digest: algorithm and hexadecimal checksum, with a colon between.
        folder: the folder inside it that becomes the dataset's.
    """

    urls: tuple[str, ...]
    filename: str
    size: int
    digest: str
    folder: str


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Attributes:
        title: the name people know it by.
        access: who gives it to whom, for an error message.
        marks: files by any of which its folder is known.
        layout: what has to be there, in words.
        folders: names of the folder that the archives unpack to; it may be the root itself, too.
        archive: the public archive, or None where there is none with a checksum we know.
    """

    title: str
    access: str
    marks: tuple[str, ...]
    layout: tuple[str, ...]
    folders: tuple[str, ...] = ()
    archive: Archive | None = None


_CUB = Source(
    "CUB-200-2011",
    "It is public at CaltechDATA, https://data.caltech.edu/records/65de6-vp158 "
    "(CUB_200_2011.tgz, 1.2 GB).",
    ("images.txt", "image_class_labels.txt"),
    ("images.txt", "image_class_labels.txt", "images/"),
    ("CUB_200_2011",),
    # The checksum that the record itself shows.
    Archive(
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        "CUB_200_2011.tgz",
        1_150_585_339,
        "md5:97eceeb196236b17998738112f37df78",
        "CUB_200_2011",
    ),
)
_CARS = Source(
    "Cars-196",
    "Its original site (https://ai.stanford.edu/~jkrause/cars/car_dataset.html) no longer offers "
    "the files, so there is no download with a checksum; use a copy that you or your group have.",
    ("cars_annos.mat", "devkit/cars_train_annos.mat"),
    (
        "cars_annos.mat and car_ims/",
        "or devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (here or in devkit/), "
        "cars_train/ and cars_test/",
    ),
    ("stanford_cars", "CARS196", "cars196"),
)
_SOP = Source(
    "Stanford Online Products",
    "It is public at Stanford's CVGL, https://cvgl.stanford.edu/projects/lifted_struct/ "
    "(Stanford_Online_Products.zip, 3.1 GB).",
    ("Ebay_train.txt", "Ebay_test.txt"),
    ("Ebay_train.txt", "Ebay_test.txt", "bicycle_final/ and the other 11 image folders"),
    ("Stanford_Online_Products",),
    # Size and checksum as pinned by TensorFlow Datasets (stanford_online_products); the second
    # address is the one in the README of the dataset's authors.
    Archive(
        (
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "https://drive.usercontent.google.com/download"
            "?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
        ),
        "Stanford_Online_Products.zip",
        3_083_860_082,
        "sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
        "Stanford_Online_Products",
    ),
)
_INSHOP = Source(
    "In-Shop Clothes Retrieval (DeepFashion)",
    "MMLab gives it on request, https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html (sign the "
    "agreement; take Eval/list_eval_partition.txt and Img/img.zip of the In-shop benchmark), so "
    "there is no download.",
    ("Eval/list_eval_partition.txt", "list_eval_partition.txt"),
    ("Eval/list_eval_partition.txt or list_eval_partition.txt", "img/ or Img/img/"),
    ("In-shop Clothes Retrieval Benchmark",),
)
_VEHICLEID = Source(
    "PKU VehicleID",
    "Peking University gives it on request, https://pkuml.org/resources/pku-vehicleid.html (sign "
    "the agreement), so there is no download.",
    ("train_test_split/train_list.txt",),
    ("train_test_split/train_list.txt", "train_test_split/test_list_*.txt", "image/"),
    ("VehicleID_V1.0",),
)

#: By the names of :func:`bgl.datasets.load_dataset`.
SOURCES: dict[str, Source] = {
    "cub": _CUB,
    "cars": _CARS,
    "sop": _SOP,
    "inshop": _INSHOP,
    "vehicleid": _VEHICLEID,
    "vehicleid-small": _VEHICLEID,
    "vehicleid-medium": _VEHICLEID,
    "vehicleid-large": _VEHICLEID,
}


def instructions(name: str) -> str:
    """Where to get a dataset, what to put where, and whether it can be fetched."""
    source = SOURCES[name]
    fetch = (
        f" bgl.datasets.download({name!r}, root), on the command line --download, fetches it."
        if source.archive is not None
        else ""
    )
    return (
        f"{source.access}{fetch} Its folder, or a folder that has it as "
        f"`{source.folders[0]}`, is the root and needs {'; '.join(source.layout)}."
    )


def missing(name: str, path: Path) -> FileNotFoundError:
    """The error for a file or folder that should be there: where it comes from, where it goes."""
    title = SOURCES[name].title
    return FileNotFoundError(
        f"Expected {title} with {path}, which is missing. {instructions(name)}"
    )


def find_home(name: str, root: str | Path) -> Path:
    """The folder that has one of the dataset's marks: ``root``, or the archive's folder in it.

    Raises:
        FileNotFoundError: if neither has; it says where the dataset comes from.
    """
    root = Path(os.path.abspath(root))
    source = SOURCES[name]
    for home in (root, *(root / folder for folder in source.folders)):
        if any((home / mark).is_file() for mark in source.marks):
            return home
    raise missing(name, root / source.marks[0])


def find(name: str, home: Path, *candidates: str) -> Path:
    """The first of the files or folders ``candidates`` in ``home`` that exists.

    Raises:
        FileNotFoundError: if none does; it says where the dataset comes from.
    """
    for candidate in candidates:
        if (home / candidate).exists():
            return home / candidate
    raise missing(name, home / candidates[0])
