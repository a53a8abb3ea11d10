"""benchmarks/speed.py at tiny sizes: every case runs and its two sides agree."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed.py"

pytest.importorskip("faiss")
pytest.importorskip("timm")


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("speed")


def test_every_case_agrees_and_prints_a_row(speed):
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--repeats", "1", "--markdown"],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 thread" in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert [row[0] for row in rows] == [case.name for case in speed.CASES]
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert float(cells["CPU ratio"].rstrip("×")) > 0
        assert cells["result"] in ("met", "NOT MET", "–")
        assert (cells["result"] == "–") == (cells["target"] == "–")
        assert "results agree to" in cells["notes"]
        assert min(float(cells["MiB ours"]), float(cells["MiB peer"])) >= 0


def test_a_wrong_result_is_reported_and_not_timed(speed, monkeypatch, capsys):
    peers = importlib.import_module("peers")
    right = peers.pairwise_loss
    monkeypatch.setattr(peers, "pairwise_loss", lambda *given: 1.001 * right(*given))
    assert speed.main(["--small", "--repeats", "1", "--only", "pairwise-loss"]) == 1
    printed = capsys.readouterr().out
    assert "pairwise-loss: results differ by 1" in printed
    assert "0 cases" in printed


def test_list_names_every_case(speed, capsys):
    assert speed.main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [case.name for case in speed.CASES]


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_wrong_options_are_refused(speed, arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        speed.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err
