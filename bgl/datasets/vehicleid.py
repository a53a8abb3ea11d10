"""PKU VehicleID: one class a vehicle, with a gallery of one image each.

Layout::

    train_test_split/train_list.txt                      IMAGE VEHICLE
    train_test_split/test_list_800.txt, 1600, 2400       IMAGE VEHICLE
    image/IMAGE.jpg

The benchmark fixes the test images, not which of them are queries: one image of every vehicle is
drawn for the gallery (once, by the seed) and the others are queries. Papers average over ten
draws, so compare over several seeds. Broken images are left out before the draw.
"""

from __future__ import annotations

from pathlib import Path

from bgl.datasets.listing import Listing, read_rows
from bgl.datasets.source import Figures, Source

_DRDL = "Liu et al., CVPR 2016 (VehicleID)"
_LISTS = "the released lists, as counted by FastReID"


def _source(size: str, vehicles: int, listed: int, published: int) -> Source:
    """Describe the dataset with one of its test sets; the paper and the released lists disagree."""
    files = {"train": "train_list.txt", "test": f"test_list_{vehicles}.txt"}

    def read(source: Source, home: Path) -> Listing:
        lists = {
            part: source.find(home, f"train_test_split/{file}") for part, file in files.items()
        }
        source.find(home, "image")
        listing = Listing(home, lists)
        for part, file in lists.items():
            for where, image, vehicle in read_rows(file, ("image", "vehicle")):
                listing.add(part, vehicle, f"image/{image}.jpg", where)
        return listing

    return Source(
        name=f"vehicleid-{size}",
        title="PKU VehicleID",
        access="Peking University gives it on request, "
        "https://pkuml.org/resources/pku-vehicleid.html (sign the agreement), so there is no "
        "download.",
        folders=("VehicleID_V1.0",),
        markers=("train_test_split/train_list.txt",),
        layout=("train_test_split/train_list.txt", "train_test_split/test_list_*.txt", "image/"),
        figures={
            "train": (Figures(13164, 113346, _LISTS), Figures(13134, 110178, _DRDL)),
            "test": (Figures(vehicles, listed, _LISTS), Figures(vehicles, published, _DRDL)),
        },
        read=read,
        recall_at=(1, 5),
        draws_gallery=True,
    )


VEHICLEID_SMALL = _source("small", 800, 6493, 7332)
VEHICLEID_MEDIUM = _source("medium", 1600, 13377, 12995)
VEHICLEID_LARGE = _source("large", 2400, 19777, 20038)
