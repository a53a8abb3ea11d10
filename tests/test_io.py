"""atomic_path: the old content or the complete new one, and nothing left lying about."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bgl._io import atomic_path, write_text


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


def test_file_can_be_read_by_others(target: Path) -> None:
    target.chmod(0o600)
    write_text(target, "new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "λ ± 😀\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ ± 😀\n".encode()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a.txt", "text")
