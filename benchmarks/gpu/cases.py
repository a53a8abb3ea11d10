"""The cases, the most telling ones first."""

from __future__ import annotations

from benchmarks.gpu.case import Case
from benchmarks.gpu.data import DATA
from benchmarks.gpu.growth import GROWTH
from benchmarks.gpu.retrieval import RETRIEVAL
from benchmarks.gpu.step import COMPILED, DETERMINISTIC, STEP
from benchmarks.gpu.suite import suite

CASES = [
    Case("no-sync", "No waiting for the device", 30, (suite("test_no_waiting"),)),
    Case("step", "A training step", 60, STEP),
    Case("equality", "The same as a CPU in float64", 60, (suite("test_equality"),)),
    Case("growth", "Growth with the batch", 80, GROWTH),
    Case("retrieval", "Retrieval", 70, RETRIEVAL),
    Case("data", "Loading images", 60, DATA),
    Case("resume", "Resuming", 40, (suite("test_resume"),)),
    Case(
        "deterministic",
        "The same bits every time",
        50,
        (suite("test_deterministic"), *DETERMINISTIC),
    ),
    Case("compiled", "A training step, compiled", 90, COMPILED),
]
