"""Fetch the archive of a public dataset, check it, and unpack it without trusting it."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from bgl.datasets.source import Archive, Source

#: Called with the number of bytes there are and the number there will be.
Progress = Callable[[int, int], None]

_CHUNK = 1 << 20


def download_source(source: Source, root: str | Path, progress: Progress | None = None) -> Path:
    """Fetch and unpack a dataset to a folder in ``root``; see :func:`bgl.datasets.download`."""
    root = Path(os.path.abspath(root))
    home = source.find_home(root)
    if home is not None:
        return home
    if source.archive is None:
        raise ValueError(f"{source.title} can't be fetched. {source.instructions()}")
    root.mkdir(parents=True, exist_ok=True)
    file = root / source.archive.filename
    with FileLock(root / f".{file.name}.lock"):
        home = source.find_home(root)  # another process may have brought it meanwhile
        if home is not None:
            return home
        target = root / source.folders[0]
        if target.exists():
            raise FileExistsError(
                f"Expected {target} to be {source.title} or not to exist, but it lacks "
                f"{source.markers[0]}; remove it to fetch the dataset again"
            )
        fetch(source.archive, file, progress)
        unpack(file, target)
        file.unlink()
        return target


def fetch(
    archive: Archive,
    path: Path,
    progress: Progress | None = None,
    attempts: int = 3,
    pause: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Fetch an archive to ``path``, which exists only once it is complete and its checksum right.

    What has come is kept in ``path`` with ``.part`` at the end. The next attempt, of this call or
    of a later one, asks for the rest only; a server that does not support that sends all of it
    again. The caller sees to it that one process does this at a time.

    Args:
        archive: Where it is, and what it has to be.
        path: Where to put it.
        progress: Called after every piece.
        attempts: How often each address is tried.
        pause: Seconds between two attempts.
        timeout: Seconds after which a silent server counts as gone.

    Raises:
        ConnectionError: If no address gave the whole file; what came is kept.
        ValueError: If the checksum is wrong; what came is removed, a file that was at ``path``
            before is left alone.
    """
    if path.exists():
        _verify(path, archive.digest)
        return
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    for url in archive.urls:
        for attempt in range(attempts):
            try:
                if _size(part) != archive.size:
                    _transfer(url, part, archive.size, progress, timeout)
                break
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {type(error).__name__}: {error}")
                refused = isinstance(error, HTTPError) and error.code < 500
                if refused or attempt + 1 == attempts:
                    break
                time.sleep(pause)
        if _size(part) == archive.size:
            try:
                _verify(part, archive.digest)
            except ValueError:
                part.unlink()
                raise
            part.replace(path)
            return
    raise ConnectionError(
        f"Expected {archive.size:,} bytes of {path.name}, but have {_size(part):,} in {part}. "
        f"Repeat the command to go on from there. What happened: {'; '.join(failures)}"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, size: int, progress: Progress | None, timeout: float) -> None:
    """Append to ``part`` what is missing from it."""
    have = _size(part)
    if have > size:
        part.unlink()
        have = 0
    headers = {"User-Agent": "bgl", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urlopen(Request(url, headers=headers), timeout=timeout) as response:
        start = response.headers.get("Content-Range", "").strip()
        resumes = response.status == 206 and start.startswith(f"bytes {have}-")
        if have and not resumes:
            have = 0  # the server sends all of it again
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > size:
                    break
                file.write(chunk)
                if progress is not None:
                    progress(have, size)
    if have > size:
        part.unlink()
        raise ConnectionError(f"the server sent more than the expected {size:,} bytes")
    if have < size:
        raise ConnectionError(f"the transfer stopped after {have:,} of {size:,} bytes")


def _verify(file: Path, digest: str) -> None:
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != expected:
        raise ValueError(
            f"Expected the {algorithm} checksum {expected} of {file}, but got "
            f"{found.hexdigest()}; this is not the original file. Remove it, if it is still "
            "there, and fetch it again"
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip or .tar (.gz, .bz2, .xz) file and put its folder ``target.name`` at ``target``.

    ``target``, which must not exist, is there as a whole or not at all. An archive with anything
    but plain files and folders (links, devices, pipes), or with a path that leads out, is refused
    before its first file is written. Other folders in it are left out.

    Raises:
        ValueError: If the archive is damaged, is refused, or has no such folder.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        try:
            _extract(archive, temporary)
        except Exception as error:  # at damaged archives Python's readers raise nearly anything
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # a full disk and the like
            raise ValueError(
                f"Expected {archive} to be a whole .zip or .tar archive of plain files, and "
                f"nothing was unpacked, as {type(error).__name__}: {error}"
            ) from error
        if not (temporary / target.name).is_dir():
            raise ValueError(f"Expected a folder {target.name} in {archive}, but it has none")
        (temporary / target.name).rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if made where files have no modes
                _check_entry(entry.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            content.extractall(folder)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            _check_entry(member.name, member.isreg() or member.isdir())
        # set like this, not passed: Python before 3.10.12 and 3.11.4 knows no filters
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)


def _check_entry(name: str, is_plain: bool) -> None:
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    if not is_plain or leads_out or PureWindowsPath(name).drive:
        raise ValueError(f"{name!r} is a link or a device, or leads out of the archive")
