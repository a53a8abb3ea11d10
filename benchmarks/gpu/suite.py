"""A part of ``pytest -m gpu`` as a part of a case."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.case import OutOfTime, Part, Scale, Target

ROOT = Path(__file__).parents[2]
LINES = 12  # of each failure that are kept


class Outcomes:
    """Counts the tests that pass, and keeps the last lines of those that fail."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be imported."""
        if report.failed:
            self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test."""
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        tail = "\n".join(report.longreprtext.splitlines()[-LINES:])
        self.failures.append(f"{report.nodeid}\n{tail}")


def suite(name: str) -> Part:
    """Run the tests of a file, and count those that fail."""

    def run(scale: Scale) -> Iterator[float]:
        words = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
        words += ["--rootdir", str(ROOT), "--device", scale.device.type]
        words += ["--small"] if scale.small else []
        outcomes = Outcomes()
        with contextlib.redirect_stdout(io.StringIO()):
            file = ROOT / "tests" / "gpu" / f"{name}.py"
            status = pytest.main([*words, str(file)], plugins=[outcomes])
        if status == pytest.ExitCode.INTERRUPTED:
            raise OutOfTime
        if outcomes.passed == 0 and not outcomes.failures:
            raise RuntimeError(f"No test of {file} ran (status {status})")
        yield len(outcomes.failures)
        if outcomes.failures:
            raise AssertionError("\n\n".join(outcomes.failures))

    return Part(run, (Target(f"failed tests of tests/gpu/{name}.py", "≤", 0),))
