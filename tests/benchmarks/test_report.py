"""benchmarks/report.py: the table of stored runs."""

from __future__ import annotations

import json
import sys

import pytest
from helpers import result_row

from benchmarks import report


def test_rows_of_two_runs(tmp_path):
    shared = [result_row("pretrained", None, 0.4)]
    runs = {"a": [*shared, result_row("none", 0, 0.5)], "b": [*shared, result_row("none", 1, 0.6)]}
    for name, own in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": own}))
    loaded = report.load_rows([tmp_path / "a", tmp_path / "b"])
    assert loaded == [*shared, result_row("none", 0, 0.5), result_row("none", 1, 0.6)]


@pytest.mark.parametrize(
    ("words", "separator"), [(["--markdown"], "|"), (["--csv"], ","), ([], None)]
)
def test_report_of_a_run(words, separator, tmp_path, monkeypatch, capsys):
    rows = [result_row("pretrained", None, 0.4), result_row("none", 0, 0.5)]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(sys, "argv", ["report.py", *words, str(tmp_path)])
    report.main()
    out = capsys.readouterr().out
    assert "Δ MAP@R" in out
    cells = [line.strip("|").split(separator) for line in out.splitlines() if "head" in line]
    assert [line[0].strip() for line in cells] == ["pretrained", "none"]
