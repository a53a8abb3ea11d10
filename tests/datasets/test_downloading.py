"""Fetching from a server on this machine, and unpacking archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.standin import write_standin
from bgl.datasets import download, load_dataset
from bgl.datasets.downloading import fetch, unpack
from bgl.datasets.registry import SOURCES
from bgl.datasets.source import Archive

CONTENT = os.urandom(3000) * 10
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves one file; ``drops`` says after how many bytes each answer in turn breaks off."""

    content = CONTENT
    drops: list[int]
    ranges: list[str | None]
    supports_range = True
    status = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = 0
        if asked and self.server.supports_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            total = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        drop = self.server.drops.pop(0) if self.server.drops else len(body)
        self.wfile.write(body[:drop])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.drops, running.ranges = [], []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)


def get(server: Server, path: Path, attempts: int = 1, port: int = 0, **archive: Any) -> None:
    ports = [port, server.server_port] if port else [server.server_port]
    urls = tuple(f"http://127.0.0.1:{number}/file" for number in ports)
    known = {"size": len(server.content), "digest": DIGEST, **archive}
    fetch(Archive(urls, path.name, **known), path, attempts=attempts, pause=0.01, timeout=5)


def test_fetch(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    url = f"http://127.0.0.1:{server.server_port}/file"
    archive = Archive((url,), "x", len(CONTENT), DIGEST)
    fetch(archive, tmp_path / "x", lambda *at: seen.append(at))
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(tmp_path) == ["x"]
    get(server, tmp_path / "x")  # there already: nothing is asked
    assert server.ranges == [None]


def test_interrupted_transfer_goes_on(server: Server, tmp_path: Path) -> None:
    server.drops = [10_000, 5_000]
    with pytest.raises(ConnectionError, match=r"30,000 bytes of x, but have 10,000 .*go on"):
        get(server, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    get(server, tmp_path / "x", attempts=2)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=10000-", "bytes=15000-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.supports_range = False
    server.drops = [10_000]
    get(server, tmp_path / "x", attempts=2)
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize(("more", "asked"), [(b"", []), (b"more", [None])])
def test_only_a_part_that_is_too_long_is_fetched_again(
    server: Server, tmp_path: Path, more: bytes, asked: list[None]
) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT + more)
    get(server, tmp_path / "x")
    assert server.ranges == asked
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"md5 checksum 0{32} of .*x.part, but got"):
        get(server, tmp_path / "x", digest="md5:" + "0" * 32)
    assert os.listdir(tmp_path) == []
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(ValueError, match="not the original file"):
        get(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_server_that_sends_too_much(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="more than the expected 100 bytes"):
        get(server, tmp_path / "x", size=100)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, 3)])
def test_refusals(server: Server, tmp_path: Path, status: int, asked: int) -> None:
    server.status = status
    with pytest.raises(ConnectionError, match=f"HTTP Error {status}"):
        get(server, tmp_path / "x", attempts=3)
    assert len(server.ranges) == asked


def test_next_address(server: Server, tmp_path: Path) -> None:
    with Server(("127.0.0.1", 0), Handler) as other:
        closed = other.server_port
    get(server, tmp_path / "x", attempts=2, port=closed)
    assert (tmp_path / "x").read_bytes() == CONTENT


def make_tar(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in ("data/images/a.txt", "._data", "attributes.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def make_zip(path: Path, **entries: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/", b"")
        archive.writestr("data/images/a.txt", b"hello")
        for name, mode in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"/etc/passwd")
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = 3 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_unpack(make: Callable[[Path], Path], tmp_path: Path) -> None:
    archive = make(tmp_path / "archive")
    (tmp_path / ".data.unpacking/images").mkdir(parents=True)  # of a process that was killed
    unpack(archive, tmp_path / "data")
    assert (tmp_path / "data/images/a.txt").read_text() == "hello"
    assert sorted(os.listdir(tmp_path)) == ["archive", "data"]
    with pytest.raises(ValueError, match="Expected a folder other in"):
        unpack(archive, tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["archive", "data"]


def test_unpack_where_python_has_no_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extractall(
        tar: tarfile.TarFile, path: Path, members: None = None, *, numeric_owner: bool = False
    ) -> None:  # the signature before 3.10.12 and 3.11.4
        for entry in tar:
            tar.extract(entry, path)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    unpack(make_tar(tmp_path / "archive"), tmp_path / "data")
    assert (tmp_path / "data/images/a.txt").read_text() == "hello"


def assert_refused(make: Callable[[Path], Path], root: Path) -> None:
    folder = root / "in" / "here"
    folder.mkdir(parents=True)
    archive = make(folder / "archive")
    with pytest.raises(ValueError, match=r"nothing was unpacked.* leads out of the archive"):
        unpack(archive, folder / "data")
    assert sorted(path.name for path in root.rglob("*")) == ["archive", "here", "in"]


@pytest.mark.parametrize(
    "entry",
    [
        *(member(name) for name in ("../evil.txt", "data/../../evil.txt", "/evil.txt")),
        *(member(name) for name in ("data\\..\\evil.txt", "C:/evil.txt")),
        member("data/link", tarfile.SYMTYPE, "/etc"),
        member("data/link", tarfile.LNKTYPE, "data/images/a.txt"),
        member("data/pipe", tarfile.FIFOTYPE),
        member("data/device", tarfile.CHRTYPE),
    ],
    ids=lambda entry: f"{entry.name}-{entry.type!r}",
)
def test_harmful_tar(entry: tarfile.TarInfo, tmp_path: Path) -> None:
    assert_refused(lambda path: make_tar(path, entry), tmp_path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../evil.txt", 0o100644),
        ("/evil.txt", 0o100644),
        ("data/../../evil.txt", 0),
        ("C:/evil.txt", 0),
        ("data/link", 0o120777),
        ("data/device", 0o020644),
    ],
)
def test_harmful_zip(name: str, mode: int, tmp_path: Path) -> None:
    assert_refused(lambda path: make_zip(path, **{name: mode}), tmp_path)


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_damaged_archive(make: Callable[[Path], Path], tmp_path: Path) -> None:
    archive = make(tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"to be a whole \.zip or \.tar archive"):
        unpack(archive, tmp_path / "data")
    assert os.listdir(tmp_path) == ["archive"]


def serve_standin(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let ``name`` be fetched from the server, which has an archive of a stand-in."""
    write_standin(name, tmp_path / "made", classes=4, images=2, image_size=8)
    source = SOURCES[name]
    packed = tmp_path / "packed"
    if name == "cub":
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(tmp_path / "made" / source.folders[0], source.folders[0])
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            for path in sorted((tmp_path / "made").rglob("*")):
                archive.write(path, path.relative_to(tmp_path / "made"))
    server.content = packed.read_bytes()
    here = Archive(
        (f"http://127.0.0.1:{server.server_port}/file",),
        "archive",
        len(server.content),
        f"md5:{hashlib.md5(server.content).hexdigest()}",
    )
    monkeypatch.setitem(SOURCES, name, replace(source, archive=here))


@pytest.mark.parametrize("name", ["cub", "sop"])
def test_download(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_standin(server, name, tmp_path, monkeypatch)
    root = tmp_path / "data" / "sets"
    with ThreadPoolExecutor(4) as pool:  # as several processes would at once
        homes = set(pool.map(lambda _: download(name, root), range(4)))
    assert homes == {root / SOURCES[name].folders[0]}
    (home,) = homes
    assert sorted(os.listdir(root)) == [".archive.lock", home.name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = load_dataset(name, root, allow_partial=True)
        made = load_dataset(name, tmp_path / "made", allow_partial=True)
    assert splits.digest == made.digest
    assert download(name, root) == download(name, home) == home
    assert len(server.ranges) == 1
    (home / SOURCES[name].markers[0]).unlink()
    (home / SOURCES[name].markers[1]).unlink()
    with pytest.raises(FileExistsError, match="remove it to fetch"):
        download(name, root)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cars", "no longer offers"),
        ("inshop", "on request"),
        ("vehicleid", "on request"),
        ("vehicleid-large", "on request"),
    ],
)
def test_no_public_archive(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"can't be fetched.*{reason}.*the root and needs"):
        download(name, tmp_path)
    write_standin(name, tmp_path, classes=4, images=2, image_size=8)
    assert download(name, tmp_path).is_dir()  # there already


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`name`"):
        download("folder", tmp_path)


def test_archives_are_pinned() -> None:
    for source in SOURCES.values():
        if source.archive is not None:
            algorithm, _, digest = source.archive.digest.partition(":")
            assert len(digest) == 2 * hashlib.new(algorithm).digest_size
