"""All datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bgl._checks import check_choice
from bgl._registry import Registry
from bgl.datasets.base import Splits
from bgl.datasets.cars import CARS
from bgl.datasets.cub import CUB
from bgl.datasets.downloading import Progress, download_source
from bgl.datasets.emoji import load_emoji
from bgl.datasets.folder import read_folder
from bgl.datasets.inshop import INSHOP
from bgl.datasets.listing import Listing
from bgl.datasets.sop import SOP
from bgl.datasets.source import Source
from bgl.datasets.splits import VAL_SHARE, build_splits
from bgl.datasets.table import read_table
from bgl.datasets.vehicleid import VEHICLEID_LARGE, VEHICLEID_MEDIUM, VEHICLEID_SMALL

#: The public datasets. To add one, write its file and add a line here.
SOURCES: dict[str, Source] = {
    "cub": CUB,
    "cars": CARS,
    "sop": SOP,
    "inshop": INSHOP,
    "vehicleid": VEHICLEID_MEDIUM,  # the one that papers on metric learning report
    "vehicleid-small": VEHICLEID_SMALL,
    "vehicleid-medium": VEHICLEID_MEDIUM,
    "vehicleid-large": VEHICLEID_LARGE,
}

#: Readers of a folder, for datasets of your own: called with the folder, they return a
#: :class:`Listing` of its images.
READERS: Registry[Callable[[str | Path], Listing]] = Registry("dataset", 1, {"folder": read_folder})

#: The K of Recall@K where a dataset has no others of its own.
RECALL_AT = (1, 2, 4, 8)


def dataset_names() -> tuple[str, ...]:
    """List the names that :func:`load_dataset` takes.

    Example:
        >>> dataset_names()
        ('emoji', 'table', 'folder', 'cub', 'cars', 'sop', 'inshop', 'vehicleid',
         'vehicleid-small', 'vehicleid-medium', 'vehicleid-large')
    """
    return ("emoji", "table", *READERS, *SOURCES)


def recall_at(dataset: str) -> tuple[int, ...]:
    """Give the K of Recall@K that are usual for a dataset.

    Example:
        >>> recall_at("sop"), recall_at("cub"), recall_at("vehicleid-large")
        ((1, 10, 100, 1000), (1, 2, 4, 8), (1, 5))
    """
    return SOURCES[dataset].recall_at if dataset in SOURCES else RECALL_AT


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    val_fraction: float = VAL_SHARE,
    seed: int = 0,
    skip_broken: bool = False,
    allow_partial: bool = False,
    resplit: bool = False,
    table: str | Path | None = None,
) -> Splits:
    """Load a dataset by name.

    Your own images are "folder", which has ``root/CLASS/*`` or, without a class in common,
    ``root/train/CLASS/*``, ``root/test/CLASS/*`` and perhaps ``root/val/CLASS/*``; or "table", a
    CSV file with the columns path and label. Where nothing says which classes are the test set, a
    quarter of them is drawn. The public datasets are read as their owners give them out; layouts
    and sources are in the guide to datasets.

    Args:
        name: One of :func:`dataset_names`; "vehicleid" is "vehicleid-medium".
        root: The folder it lies in; None for a packaged dataset ("emoji"). For a public dataset,
            its own folder or the one above. For "table", what its paths are relative to; None for
            the table's own folder.
        val_fraction: Share of the train classes held out for validation, drawn with ``seed``: at
            least 2 classes, and at least 2 stay. 0 leaves ``val`` None.
        seed: A non-negative integer; also draws VehicleID's gallery. Packaged datasets have fixed
            parts and need neither.
        skip_broken: Decode every image once at the start and leave out those that fail or whose
            name is not UTF-8, with one warning and in ``skipped`` of the result. Otherwise they
            are an error: at the start for up to 10,000 images of your own, else when one is read.
        allow_partial: Go on with one warning if listed images are missing, or the sizes are not
            the published ones.
        resplit: Pool the images of all parts of "folder" or "table" and split them anew by class.
        table: The CSV file of "table".

    Warns:
        UserWarning: With the images that were left out or are missing, if that is allowed; the
            images in no class folder, and the class folders without images; how many classes
            were drawn for test; the lines that repeat another; the classes with one image only,
            those with queries but nothing in the gallery, and those whose names differ in case or
            Unicode form only.

    Raises:
        FileNotFoundError: If ``root``, ``table``, a list or all images are missing. For a public
            dataset the message says where to get it.
        ValueError: If the name is unknown, ``root`` or ``table`` is missing where it is needed or
            given where it is not, a line or a value is damaged (file and line are named), a class
            is in train and in another part, an image is in two, all images of a part are broken,
            the dataset is not complete, or there are too few classes to draw from.
    """
    if name not in dataset_names():
        raise ValueError(
            f"Expected argument `name` (--dataset) to be one of {dataset_names()}, but got "
            f"{name!r}; images of your own are 'folder' (--dataset folder --data-root DIR)"
        )
    if (name == "table") != (table is not None):
        raise ValueError(
            "Expected argument `table` to be the CSV file of the dataset 'table', and None for "
            f"others, but for {name!r} got {None if table is None else str(table)!r}"
        )
    if name == "emoji":
        if root is not None:
            raise ValueError(
                "Expected argument `root` (--data-root) to be None for the packaged dataset "
                f"{name!r}, got {str(root)!r}; images of your own are the dataset 'folder' "
                "(--dataset folder)"
            )
        return load_emoji()
    source = SOURCES.get(name)
    if resplit and source is not None:
        raise ValueError(
            f"Expected argument `resplit` to be False for the public dataset {name!r}, whose parts "
            "are fixed"
        )
    if table is not None:
        listing = read_table(table, root)
    elif root is None:
        raise ValueError(
            f"Expected argument `root` (--data-root) to be the folder of the dataset {name!r}, but "
            f"got None. {'Pass it' if source is None else source.instructions()}"
        )
    else:
        listing = READERS[name](root) if source is None else source.load(root)
    return build_splits(
        source.name if source is not None else name,
        listing,
        source,
        val_fraction=val_fraction,
        seed=seed,
        skip_broken=skip_broken,
        allow_partial=allow_partial,
        resplit=resplit,
    )


def download(name: str, root: str | Path, progress: Progress | None = None) -> Path:
    """Fetch a public dataset to a folder in ``root``, unless it is there already.

    "cub" and "sop" have a public archive whose checksum is known. The owners of "inshop" and
    "vehicleid-…" give them out on request only, and "cars" is no longer at its original site: for
    these the error says where to ask and what to put where.

    A transfer that breaks off goes on where it stopped when repeated; the archive is checked
    before it is unpacked, unpacked as a whole or not at all, and removed then. It needs room for
    both. Of several processes one does this and the others wait.

    Args:
        name: The dataset's name.
        root: Folder to put it in; made if it does not exist.
        progress: Called with the number of bytes fetched so far and the total.

    Returns:
        The dataset's folder, for :func:`load_dataset`, which takes ``root`` as well.

    Raises:
        ValueError: If the dataset can't be fetched, or the archive is not the original one.
        ConnectionError: If the transfer breaks off or no server answers.
        FileExistsError: If there is a folder of that name which is not the dataset.
    """
    check_choice(name, "name", tuple(SOURCES))
    return download_source(SOURCES[name], root, progress)
