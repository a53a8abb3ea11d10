"""Fetch one file, going on where an earlier attempt stopped, and check what came."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

#: Called with the number of bytes there are and the number there will be.
Progress = Callable[[int, int], None]

_CHUNK = 1 << 20


def fetch(
    urls: tuple[str, ...],
    path: Path,
    size: int,
    digest: str,
    progress: Progress | None = None,
    attempts: int = 3,
    pause: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Fetch a file to ``path``, which exists only once it is complete and its checksum is right.

    What has come is kept in ``path`` with ``.part`` at the end. The next attempt, of this call or
    of a later one, asks for the rest only; a server that does not support that sends all of it
    again. One process at a time: two would write to the same file.

    Args:
        urls: addresses of the same file; the next is tried where one fails for good.
        path: where to put it.
        size: number of bytes it has to have.
        digest: algorithm and hexadecimal checksum with a colon between.
        progress: called after every piece.
        attempts: how often each address is tried.
        pause: seconds between two attempts.
        timeout: seconds after which a silent server counts as gone.

    Raises:
        ConnectionError: if no address gave the whole file; what came is kept.
        ValueError: if the checksum is wrong; what came is removed, a file that was at ``path``
            before is left alone.
    """
    if path.exists():
        _verify(path, digest)
        return
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    for url in urls:
        for attempt in range(attempts):
            try:
                if _size(part) != size:
                    _transfer(url, part, size, progress, timeout)
                break
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {type(error).__name__}: {error}")
                refused = isinstance(error, HTTPError) and error.code < 500
                if refused or attempt + 1 == attempts:
                    break
                time.sleep(pause)
        if _size(part) == size:
            try:
                _verify(part, digest)
            except ValueError:
                part.unlink()
                raise
            part.replace(path)
            return
    raise ConnectionError(
        f"Expected {size:,} bytes of {path.name}, but have {_size(part):,} in {part}. Repeat the "
        f"command to go on from there. What happened: {'; '.join(failures)}"
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
