"""benchmarks/speed at tiny sizes: every case runs, its sides agree, and the page is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.speed import peers, report, step
from benchmarks.speed import run as speed

ROOT = Path(__file__).parents[2]


def run(*options: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--small", "--repeats", "1", *options],
        capture_output=True,
        check=False,
        cwd=ROOT,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_case_agrees_and_prints_a_row():
    printed = run("--markdown")
    assert "1 thread" in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    installed = {
        case.name: case for case in speed.CASES if case.library is None or find_spec(case.library)
    }
    assert [row[0] for row in rows] == list(installed)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert float(cells["CPU ratio"].rstrip("×")) > 0
        assert cells["result"] in ("met", "NOT MET", "–")
        assert (cells["result"] == "–") == (cells["target"] == "–")
        assert "results agree to" in cells["notes"]
        assert "{" not in cells["work"]
        if installed[cells["case"]].memory_measured:
            assert min(float(cells["MiB ours"]), float(cells["MiB peer"])) >= 0
        else:
            assert cells["MiB ours"] == cells["MiB peer"] == "–"


def test_stored_results_make_the_page(tmp_path):
    stored, page = tmp_path / "speed.json", tmp_path / "performance.md"
    run("--only", "conv", "update", "--json", str(stored))
    run("--only", "update", "--json", str(stored))  # takes the place of the first
    run("--step", "--growth", "--json", str(stored))
    results = json.loads(stored.read_text(encoding="utf-8"))
    assert [row["name"] for row in results["cases"]] == ["conv", "update"]
    for row in results["step"]:
        assert min(row["seconds"].values()) > 0
        assert row["flop"]["encoder"] > row["flop"]["graph"] > 0
    assert {row["axis"] for row in results["growth"]} == {"samples", "N", "k", "T", "C"}

    names = ("machine", "cases", "step", "growth")
    page.write_text("\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names))
    assert report.main([str(stored), str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for expected in ("torch ", "class statistics, 512-d", "default benchmark", "60 given"):
        assert expected in text
    assert (tmp_path / "performance_growth.png").stat().st_size > 0


def test_flop_of_a_step_are_those_of_its_products():
    """A vision transformer's operations are known: two per weight and token, and attention."""
    found = step.measure_step(step.STEPS[1], 1, small=True)
    n, c, k = found["images"], found["channels"], 27
    blocks = len(step.STEPS[1].config(small=True).block_names)
    mlp = 2 * 2 * n * c * 4 * c
    assert found["flop"]["graph"] >= 3 * blocks * mlp
    assert found["flop"]["graph"] < 3 * blocks * (mlp + k * n * n * c)
    assert found["flop"]["head"] == 3 * 2 * (2 * n) * c * 128


def test_a_wrong_result_is_reported_and_not_timed(monkeypatch, capsys):
    right = peers.pairwise_loss
    monkeypatch.setattr(peers, "pairwise_loss", lambda *given: 1.001 * right(*given))
    assert speed.main(["--small", "--repeats", "1", "--only", "pairwise-loss"]) == 1
    printed = capsys.readouterr().out
    assert "pairwise-loss: results differ by 1" in printed
    assert "0 cases" in printed


def test_list_names_every_case(capsys):
    assert speed.main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [case.name for case in speed.CASES]


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--repeats", "0"]])
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        speed.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err
