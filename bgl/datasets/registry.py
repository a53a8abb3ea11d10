"""All datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bgl._checks import check_choice
from bgl.datasets.base import Splits
from bgl.datasets.cars import load_cars
from bgl.datasets.cub import load_cub
from bgl.datasets.emoji import load_emoji
from bgl.datasets.folder import load_folder
from bgl.datasets.inshop import load_inshop
from bgl.datasets.sop import load_sop
from bgl.datasets.sources import SOURCES, instructions
from bgl.datasets.table import load_table
from bgl.datasets.vehicleid import load_vehicleid

# Called with root, val_fraction, seed, skip_broken, allow_partial.
_PUBLIC: dict[str, Callable[[str | Path, float, int, bool, bool], Splits]] = {
    "cub": load_cub,
    "cars": load_cars,
    "sop": load_sop,
    "inshop": load_inshop,
    "vehicleid": load_vehicleid,
    "vehicleid-small": partial(load_vehicleid, size="small"),
    "vehicleid-medium": partial(load_vehicleid, size="medium"),
    "vehicleid-large": partial(load_vehicleid, size="large"),
}


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`load_dataset` knows.

    >>> dataset_names()
    ('emoji', 'folder', 'table', 'cub', 'cars', 'sop', 'inshop', 'vehicleid',
     'vehicleid-small', 'vehicleid-medium', 'vehicleid-large')
    """
    return ("emoji", "folder", "table", *_PUBLIC)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.25,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
    table: str | Path | None = None,
) -> Splits:
    """Load a dataset by name.

    Args:
        name: one of :func:`dataset_names`; "vehicleid" is "vehicleid-medium", the one that papers
            on metric learning report.
        root: the folder it lies in; None for a packaged dataset ("emoji"). For "table", what its
            paths are relative to; None for the table's own folder.
        val_fraction: share of the train classes held out for validation.
        seed: seed of that draw, and of VehicleID's gallery. Packaged datasets have fixed parts and
            need neither.
        skip_broken: leave out images that can't be decoded; see :func:`load_folder`.
        allow_partial: go on with one warning where a table lists images that are missing, or a
            public dataset is not complete. Nothing is known to be missing of "folder" or "emoji",
            so that it changes nothing there.
        table: the CSV file of "table"; see :func:`load_table`.

    Raises:
        ValueError: if the name is unknown, ``root`` or ``table`` is missing where it is needed or
            given where it is not, or the files are not as expected.
        FileNotFoundError: if ``root`` or a part of it does not exist.
    """
    check_choice(name, "name", dataset_names())
    if name == "table" and table is None:
        raise ValueError("Expected argument `table` to be the CSV file of 'table', got None")
    if name != "table" and table is not None:
        raise ValueError(
            f"Expected argument `table` to be None for the dataset {name!r}, got {str(table)!r}; "
            "it goes with 'table'"
        )
    if name == "emoji":
        if root is not None:
            raise ValueError(
                f"Expected argument `root` to be None for the packaged dataset {name!r}, "
                f"got {str(root)!r}"
            )
        return load_emoji()
    if table is not None:
        return load_table(table, root, val_fraction, seed, skip_broken, allow_partial)
    if root is None:
        raise ValueError(
            f"Expected argument `root` to be the folder of the dataset {name!r}, got None"
            + (f". {instructions(name)}" if name in SOURCES else "")
        )
    if name == "folder":
        return load_folder(root, val_fraction, seed, skip_broken)
    return _PUBLIC[name](root, val_fraction, seed, skip_broken, allow_partial)
