"""benchmarks/gpu at tiny sizes on the CPU: every part runs, and the page is filled."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from forks import program

from benchmarks.gpu import run as gpu
from benchmarks.gpu.case import Case, Part, Scale, Target
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.run import NOT_RUN, run_case, table


def run(output: Path, *words: str) -> dict[str, dict[str, list[object]]]:
    small = ["--device", "cpu", "--small", "--output", str(output)]
    done = program(gpu.main, output.parent, *small, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    cases: dict[str, dict[str, list[object]]] = json.loads(output.read_text())["cases"]
    return cases


@pytest.mark.slow
def test_parts_run_and_fill_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- machine -->\nkept\n<!-- /machine -->\n<!-- gpu -->\n<!-- /gpu -->\n")
    names = ["step", "retrieval"]
    cases = run(tmp_path / "gpu.json", "--page", str(page), "--only", *names)
    for case in CASES:
        expected = sum(len(part.targets) for part in case.parts) if case.name in names else 0
        assert len(cases[case.name]["figures"]) == expected, case.name
    text = page.read_text()
    assert "kept" in text
    lines = text.splitlines()
    assert sum(NOT_RUN in line for line in lines) == sum(
        len(part.targets) for case in CASES if case.name not in names for part in case.parts
    )


@pytest.mark.reliability  # as long as all others of this file together
def test_all_cases_run(tmp_path: Path) -> None:
    cases = run(tmp_path / "gpu.json", "--budget", "10000")
    assert all(result["status"] == "done" for result in cases.values())


def test_what_fails_or_hangs_leaves_the_figures_before(tmp_path: Path) -> None:
    def raises(scale: Scale):
        yield 1.0
        raise ValueError("no such kernel")

    def hangs(scale: Scale):
        yield 3.0
        signal.raise_signal(signal.SIGALRM)  # as if its time were over

    parts = [Part(f, (Target("one", "≤", 2), Target("two", "≤", 2))) for f in (raises, hangs)]
    result = {"figures": [], "errors": []}
    written = []
    case = Case("broken", "Broken", 60, tuple(parts))
    run_case(case, Scale(torch.device("cpu"), True), 600, result, lambda: written.append(True))
    assert [f["value"] for f in result["figures"]] == [1, 3]
    assert [f["pass"] for f in result["figures"]] == [True, False]
    assert "no such kernel" in result["errors"][0]
    assert len(result["errors"]) == 2
    assert result["status"] == "ended early"
    assert len(written) == 4


def test_a_page_without_figures_says_so() -> None:
    text = table({"machine": None, "cases": {}})
    assert text.startswith("No GPU")
    assert text.count(NOT_RUN) == sum(len(part.targets) for case in CASES for part in case.parts)
