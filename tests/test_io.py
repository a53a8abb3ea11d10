"""Files: written whole or not at all, and read with every fault named."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bgl._io import (
    atomic_path,
    read_json,
    read_yaml,
    remove_leftovers,
    write_pickle,
    write_tensors,
    write_text,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_half_way(path: Path, error: BaseException | type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_success_replaces_the_content_at_the_end(target: Path) -> None:
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent  # a rename across file systems is not atomic
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(target.parent) == ["result.json"]


def test_a_new_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"123")
        assert not path.exists()
    assert path.read_bytes() == b"123"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_exception_leaves_the_old_content_and_no_litter(
    target: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fail_half_way(target, error)
    assert target.read_text() == "old"
    assert names(target.parent) == ["result.json"]


def test_exception_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        fail_half_way(tmp_path / "new", OSError("disk is full"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_what_the_umask_says(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "text")
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
        write_pickle(tmp_path / "a.pt", {"x": 1})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_folder_in_the_place_of_the_file_is_named(target: Path) -> None:
    target.unlink()
    target.mkdir()
    with pytest.raises(IsADirectoryError, match=r"result\.json to be a file.*move the folder"):
        write_text(target, "new")
    assert names(target.parent) == ["result.json"]


def test_leftovers_are_ours_alone(target: Path) -> None:
    (target.parent / ".result.json.01234567.bgl-tmp").touch()
    (target.parent / ".mine.tmp").touch()
    remove_leftovers(target.parent)
    assert names(target.parent) == [".mine.tmp", "result.json"]


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"[1", b"{a: {b: [}}"])
def test_what_cannot_be_read_is_one_line_that_names_the_file(
    target: Path, read: Callable[[Path], Any], content: bytes
) -> None:
    target.write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json to hold (JSON|YAML)") as caught:
        read(target)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text", ["a: &a [1]\nb: *a", "a: !!int x", "a: !!timestamp x", "? [1]\n: 2", "9" * 5000]
)
def test_yaml_that_is_not_plain(target: Path, text: str) -> None:
    target.write_text(text)
    with pytest.raises(ValueError, match=r"result\.json to hold YAML"):
        read_yaml(target)


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "λ ± 😀\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ ± 😀\n".encode()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/a\.txt'$"):
        write_text(tmp_path / "missing" / "a.txt", "text")
