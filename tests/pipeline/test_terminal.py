"""Progress where there is no terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from tiny_training import tiny

from bgl.pipeline import terminal
from bgl.training.progress import TrainingRun


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_now_and_then_with_rate_and_time_left(clock: list[float]) -> None:
    out = io.StringIO()
    progress = terminal.TerminalProgress(Console(file=out, width=200))
    with progress.bars:
        progress.start("embedding 4000 images", 4000)
        for _ in range(5):
            clock[0] += 8
            progress.advance(400)
        assert out.getvalue() == (
            "embedding 4000 images: 1,600 of 4,000, 50 images/s, 0:00:48 left\n"
        )
        out.truncate(0)
        out.seek(0)
        config = tiny(epochs=4, batch_size=16)
        progress.begin(TrainingRun(config, encoder=None), 1)  # type: ignore[arg-type]
        progress.start("epoch 2/4", 10)
        clock[0] += 60
        progress.advance(0)
        assert out.getvalue() == ""  # nothing is done yet
        clock[0] -= 60
        for _ in range(10):
            clock[0] += 6
            progress.advance(1)
        # three epochs at 6 s a batch take 180 s
        lines = out.getvalue().splitlines()
        assert len(lines) == 2
        found = re.fullmatch(
            r"epoch 2/4: (\d+) of 10, 3 images/s, (.*) left for this model", lines[0]
        )
        assert found is not None
        done = int(found[1])
        assert found[2] == f"0:0{(180 - 6 * done) // 60}:{(180 - 6 * done) % 60:02}"


def test_validation_and_test_are_named(clock: list[float]) -> None:
    out = io.StringIO()
    progress = terminal.TerminalProgress(Console(file=out, width=200))
    row = {"epoch": 1, "loss": 1.5}
    for part, value in (("val", 0.5), ("test", 0.25)):
        for embedding in ("backbone", "head"):
            row |= {f"{part}_{embedding}_{m}": value for m in ("recall@1", "map@r")}
    progress.epoch(row)
    figures = re.findall(r"(\w+) (backbone|head): R@1 ([\d.]+)%, MAP@R", out.getvalue())
    assert figures == [
        ("validation", "backbone", "50.0"),
        ("validation", "head", "50.0"),
        ("test", "backbone", "25.0"),
        ("test", "head", "25.0"),
    ]
