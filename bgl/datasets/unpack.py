"""Unpack an archive without trusting it, and all of it or nothing."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

# What Python's readers raise, one time or another, at an archive that is damaged or encrypted.
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OverflowError, RuntimeError, UnicodeDecodeError),
)


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpack a .zip or .tar (.gz, .bz2, .xz) file and put its top folder ``folder`` at ``target``.

    It is unpacked to a temporary folder beside ``target``, which is renamed at the end: ``target``
    is there as a whole or not at all. An archive with anything but plain files and folders in it
    (links, devices, pipes), or with a path that is absolute or leads out, is refused before its
    first file is written. Other top folders in it are left out.

    Raises:
        FileExistsError: if ``target`` exists.
        ValueError: if the archive is damaged, is refused, or has no folder ``folder``.
    """
    if target.exists():
        raise FileExistsError(
            f"Expected {target} not to exist yet, but it does; remove it to unpack {archive.name}"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        try:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, temporary)
            else:
                _unpack_tar(archive, temporary)
        except (*_DAMAGED, OSError) as error:
            # the system's own errors, such as a full disk, say enough
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise ValueError(
                f"Expected {archive} to be a whole .zip or .tar archive, but "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (temporary / folder).is_dir():
            raise ValueError(f"Expected a folder {folder} in {archive}, but it has none")
        (temporary / folder).rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if made where files have no modes
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_entry(archive, entry.filename, plain)
        content.extractall(folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as content:
        entries = content.getmembers()
        for entry in entries:
            _check_entry(archive, entry.name, entry.isreg() or entry.isdir())
        # Python's own filter looks at the same things again, and at modes and owners.
        content.extractall(folder, entries, filter="data")


def _check_entry(archive: Path, name: str, plain: bool) -> None:
    if not plain:
        raise ValueError(
            f"Expected {archive} to have files and folders only, but {name!r} is a link or a "
            "device; nothing was unpacked"
        )
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    if leads_out or PureWindowsPath(name).drive:
        raise ValueError(
            f"Expected the paths in {archive} to stay inside, but got {name!r}; nothing was "
            "unpacked"
        )
