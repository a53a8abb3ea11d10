"""What a GPU must reach: ``python -m benchmarks.gpu [--only CASE ...] [--output FILE]``

What is measured is printed and written at once. A case that fails leaves the others alone, one that
no longer fits into ``--budget`` is not run, and one that takes twice its time is ended.

``--device cpu --small`` tries everything at tiny sizes without a GPU, where targets mean nothing.
``--read FILE --page PAGE`` fills the table of a page with what an earlier call has written.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu.case import Case, OutOfTime, Scale, Target
from benchmarks.gpu.cases import CASES
from benchmarks.pages import fill
from bgl._io import write_text
from bgl.pipeline.table import markdown_table

LIBRARIES = ("torch", "torchvision", "triton", "timm", "torch-geometric", "accelerate", "numpy")
LINES = 8  # of a traceback that are kept
NOT_RUN = "not run"
Report = dict[str, Any]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=names, help=", ".join(names))
    parser.add_argument("--budget", type=float, default=480, help="seconds for all cases (480)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(cuda)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, read this")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown file to fill")
    options = parser.parse_args(argv)
    if options.device == "cpu" and not options.small:
        parser.error("--device cpu needs --small")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 1 if a part failed or, at full size, a target is missed."""
    options = parse(argv)
    if options.read:
        report = json.loads(options.read.read_text(encoding="utf-8"))
    else:
        report = measure(options)
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        write_text(options.page, fill(page, {"gpu": table(report)}, markers="gpu"))
    cases = report["cases"].values()
    missed = [f for case in cases for f in case["figures"] if f["pass"] is False]
    return int(any(case["errors"] for case in cases) or (bool(missed) and not options.small))


def measure(options: argparse.Namespace) -> Report:
    """Run the cases in turn."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    scale = Scale(torch.device(options.device), options.small)
    report: Report = {"machine": None, "small": options.small, "cases": {}}

    def write() -> None:
        report["seconds"] = round(time.perf_counter() - started, 1)
        if options.output:
            write_text(options.output, json.dumps(report, indent=1, ensure_ascii=False))

    if scale.cuda and not torch.cuda.is_available():
        raise SystemExit("No GPU to measure on: try everything with --device cpu --small")
    report["machine"] = machine(scale)
    print("; ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for case in CASES:
        result: Report = {"status": NOT_RUN, "figures": [], "errors": []}
        report["cases"][case.name] = result
        left = options.budget - (time.perf_counter() - started)
        if (options.only is None or case.name in options.only) and left >= case.seconds:
            run_case(case, scale, min(left, 2 * case.seconds), result, write)
        elif options.only is None:
            print(f"{case.name}: {NOT_RUN}, {left:.0f} s left", flush=True)
        write()
    passed = [f["pass"] for case in report["cases"].values() for f in case["figures"]]
    print(f"{sum(passed)} of {len(passed)} targets met, {report['seconds']:.0f} s")
    return report


def run_case(
    case: Case, scale: Scale, seconds: float, result: Report, write: Callable[[], None]
) -> None:
    """Run the parts of a case, and note every figure as soon as it is known."""

    def fail(reason: str) -> None:
        result["errors"].append(reason)
        print(f"{case.name}: FAILED {reason}", flush=True)
        write()

    def note(target: Target, value: float) -> None:
        good = target.met(value)
        result["figures"].append(
            {"name": target.name, "value": value, "target": str(target), "pass": good}
        )
        met = "pass" if good else "MISS"
        print(f"{case.name} | {target.name} | {value:.4g} | {target} | {met}", flush=True)
        write()

    started = time.perf_counter()
    result["status"] = "running"
    try:
        with time_limit(seconds):
            for part in case.parts:
                try:
                    for value, target in zip(part.measure(scale), part.targets, strict=True):
                        note(target, float(value))
                except Exception:
                    fail("\n".join(traceback.format_exc().splitlines()[-LINES:]))
                gc.collect()
                if scale.cuda:
                    with contextlib.suppress(RuntimeError):  # of a context that a part has broken
                        torch.cuda.empty_cache()
        result["status"] = "done"
    except OutOfTime:
        result["status"] = "ended early"
        fail(f"ended after {seconds:.0f} s")
    result["seconds"] = round(time.perf_counter() - started, 1)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside after so many seconds, between two lines of Python."""

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def machine(scale: Scale) -> dict[str, Any]:
    """Name the device and the versions of everything."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if not scale.cuda:
        return found
    about = torch.cuda.get_device_properties(0)
    found |= {
        "GPU": about.name,
        "GPUs": torch.cuda.device_count(),
        "GB": round(about.total_memory / 1e9, 1),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
    }
    for name, query in {"driver": "driver_version", "MHz": "clocks.max.sm"}.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
            out = subprocess.run(words, capture_output=True, check=True, timeout=5, text=True)
            found[name] = out.stdout.splitlines()[0].strip()
    return found


def table(report: Report) -> str:
    """Format what was measured, and what was not, with the machine above it."""
    lines = []
    for case in CASES:
        result = report["cases"].get(case.name, {"figures": []})
        figures = {figure["name"]: figure for figure in result["figures"]}
        for target in (target for part in case.parts for target in part.targets):
            figure = figures.get(target.name)
            value = NOT_RUN if figure is None else f"{figure['value']:,.4g} {target.unit}".rstrip()
            met = "–" if figure is None else "yes" if figure["pass"] else "**no**"
            lines.append([case.title, target.name, value, str(target), met])
    about = "No GPU has been measured yet."
    if report["machine"]:
        about = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    header = ["case", "figure", "value", "target", "met"]
    return f"{about}\n\n{markdown_table(header, lines, (0, 1))}"
