"""How many classes and images each public dataset has, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from bgl.datasets.splits import Classes


@dataclass(frozen=True)
class Figures:
    """Number of classes and of images of a part, and who says so."""

    classes: int
    images: int
    source: str

    def __str__(self) -> str:
        return f"{self.classes:,} classes with {self.images:,} images"


_SOP = "Song et al., CVPR 2016"
_INSHOP = "Liu et al., CVPR 2016 (DeepFashion)"
_DRDL = "Liu et al., CVPR 2016 (VehicleID)"
_LISTS = "the released lists, as counted by FastReID"
_HALVES = "Song et al., CVPR 2016: first half of the classes to train on, the other to test"

_VEHICLEID_TRAIN = (Figures(13164, 113346, _LISTS), Figures(13134, 110178, _DRDL))

#: What each part may have; "test" is the queries where the dataset has a gallery of its own, and
#: all test images where the gallery is drawn. VehicleID's paper and its released lists disagree,
#: so both are taken.
KNOWN_FIGURES: dict[str, dict[str, tuple[Figures, ...]]] = {
    "cub": {"train": (Figures(100, 5864, _HALVES),), "test": (Figures(100, 5924, _HALVES),)},
    "cars": {"train": (Figures(98, 8054, _HALVES),), "test": (Figures(98, 8131, _HALVES),)},
    "sop": {"train": (Figures(11318, 59551, _SOP),), "test": (Figures(11316, 60502, _SOP),)},
    "inshop": {
        "train": (Figures(3997, 25882, _INSHOP),),
        "test": (Figures(3985, 14218, _INSHOP),),
        "gallery": (Figures(3985, 12612, _INSHOP),),
    },
    "vehicleid-small": {
        "train": _VEHICLEID_TRAIN,
        "test": (Figures(800, 6493, _LISTS), Figures(800, 7332, _DRDL)),
    },
    "vehicleid-medium": {
        "train": _VEHICLEID_TRAIN,
        "test": (Figures(1600, 13377, _LISTS), Figures(1600, 12995, _DRDL)),
    },
    "vehicleid-large": {
        "train": _VEHICLEID_TRAIN,
        "test": (Figures(2400, 19777, _LISTS), Figures(2400, 20038, _DRDL)),
    },
}


def mismatches(name: str, parts: dict[str, Classes]) -> dict[str, str]:
    """For each part whose counts are none of the known ones, what was expected and found.

    Args:
        name: the dataset's name; nothing is known, and nothing found, of one not in
            ``KNOWN_FIGURES``.
        parts: the classes of every part.
    """
    wrong = {}
    for part, known in KNOWN_FIGURES.get(name, {}).items():
        classes = parts[part]
        images = sum(len(files) for files in classes.values())
        if not any((len(classes), images) == (one.classes, one.images) for one in known):
            expected = " or ".join(str(one) for one in known)
            wrong[part] = f"expected {expected}, found {len(classes):,} with {images:,} images"
    return wrong
