"""Fetch and unpack the datasets that are public."""

from __future__ import annotations

import os
from pathlib import Path

from bgl._checks import check_choice
from bgl.datasets.fetch import Progress, fetch
from bgl.datasets.sources import SOURCES, find_home, instructions
from bgl.datasets.unpack import unpack


def download(name: str, root: str | Path, progress: Progress | None = None) -> Path:
    """Fetch a public dataset to a folder in ``root``, unless it is there already.

    "cub" and "sop" have a public archive whose checksum is known. The owners of "inshop" and
    "vehicleid-…" give them out on request only, and "cars" is no longer at its original site: for
    these the error says where to ask and what to put where.

    A transfer that breaks off goes on where it stopped when repeated; the archive is checked
    before it is unpacked, unpacked as a whole or not at all, and removed then. It needs room for
    both. Let one process do it.

    Args:
        name: the dataset's name.
        root: folder to put it in; made if it does not exist.
        progress: called with the number of bytes fetched so far and the total.

    Returns:
        The dataset's folder, for :func:`~bgl.datasets.load_dataset`, which takes ``root`` as well.

    Raises:
        ValueError: if the dataset can't be fetched, or the archive is not the original one.
        ConnectionError: if the transfer breaks off or no server answers.
        FileExistsError: if there is a folder of that name which is not the dataset.
    """
    check_choice(name, "name", tuple(SOURCES))
    root = Path(os.path.abspath(root))
    source = SOURCES[name]
    try:
        return find_home(name, root)
    except FileNotFoundError:
        if source.archive is None:
            raise ValueError(f"{source.title} can't be fetched. {instructions(name)}") from None
    archive = source.archive
    target = root / archive.folder
    if target.exists():
        raise FileExistsError(
            f"Expected {target} to be {source.title} or not to exist, but it lacks "
            f"{source.marks[0]}; remove it to fetch the dataset again"
        )
    root.mkdir(parents=True, exist_ok=True)
    file = root / archive.filename
    fetch(archive.urls, file, archive.size, archive.digest, progress)
    unpack(file, archive.folder, target)
    file.unlink()
    return target
