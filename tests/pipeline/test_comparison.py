"""The arithmetic behind every table: intervals, names of arms, differences seed by seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import result_row as row
from scipy.stats import t as student

from bgl.pipeline.comparison import comparison, label, mean_and_interval, paired_difference, percent


@pytest.mark.parametrize("n", [2, 3, 10])
def test_interval_equals_scipy(n):
    values = torch.rand(n, dtype=torch.float64).tolist()
    mean, half = mean_and_interval(values)
    error = float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(n)
    low, high = student.interval(0.95, n - 1, loc=sum(values) / n, scale=error)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def test_one_value_has_no_interval():
    mean, half = mean_and_interval([0.25])
    assert mean == 0.25
    assert math.isnan(half)
    assert percent([0.25]) == "25.0"
    assert percent([0.25, 0.25]) == "25.0 ± 0.0"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (row("none", 0, 0.5), "none"),
        (row("dybgr", 0, 0.5), "dybgr"),
        (row("pretrained", None, 0.5), "pretrained"),
        (row("none", 0, 0.5, loss="contrastive"), "contrastive"),
        (row("dybgr", 0, 0.5, loss="contrastive"), "dybgr + contrastive"),
        (row("none", 0, 0.5, augmentation="iaa"), "none + iaa"),
        (row("none", 0, 0.5, loss="triplet", augmentation="iaa"), "triplet + iaa"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_label(entry, expected):
    assert label(entry) == expected


def test_differences_are_paired_by_seed():
    plain = [row("none", 0, 0.5), row("none", 1, 0.7), row("none", 5, 0.9)]
    graph = [row("dybgr", 1, 0.8), row("dybgr", 0, 0.55), row("dybgr", 2, 0.1)]
    differences = paired_difference(graph, plain, "map@r")
    assert differences == pytest.approx([0.1, 0.05])
    del plain[0]["metrics"]["map@r"]
    assert paired_difference(graph, plain, "map@r") == pytest.approx([0.1])


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    header, cells = comparison(rows)
    return {line[0]: dict(zip(header, line, strict=True)) for line in cells}


def test_comparison():
    rows = [row("pixels", None, 0.1), row("pretrained", None, 0.4)]
    rows += [row("none", s, 0.5 + s / 10) for s in range(3)]
    rows += [row("dybgr", s, 0.52 + s / 10, epoch=s + 1) for s in range(3)]
    rows += [row("none", s, 0.6 + s / 10, loss="contrastive") for s in range(2)]
    rows += [row("none", 0, 0.7, loss="contrastive", augmentation="iaa")]
    lines = table(rows)
    names = ["pixels", "pretrained", "none", "dybgr", "contrastive", "contrastive + iaa"]
    assert list(lines) == names
    assert lines["pretrained"]["R@1"] == "40.0"
    assert lines["pretrained"]["seeds"] == lines["pretrained"]["Δ R@1"] == ""
    assert lines["none"]["MAP@R"] == "60.0 ± 24.8"  # t(0.975, 2) · 10 / √3
    assert lines["none"]["Δ MAP@R"] == ""
    assert lines["dybgr"]["Δ MAP@R"] == "2.0 ± 0.0"
    assert lines["dybgr"]["epoch"] == "1 2 3"
    assert lines["dybgr"]["seeds"] == "3"
    assert lines["dybgr"]["min"] == "1.5"
    assert lines["contrastive"]["Δ R@1"] == ""  # another loss is another baseline
    assert lines["contrastive + iaa"]["Δ R@1"] == "10.0"


def test_embeddings_are_compared_with_their_own_kind():
    rows = [row("none", 0, 0.5), row("none", 0, 0.2, embedding="backbone")]
    rows += [row("dybgr", 0, 0.6), row("dybgr", 0, 0.25, embedding="backbone")]
    header, cells = comparison(rows)
    column = header.index("Δ R@1")
    assert [line[column] for line in cells] == ["", "", "10.0", "5.0"]


def test_transductive_rows_stand_apart():
    rows = [row("none", 0, 0.5), row("none", 0, 0.6, transductive=True), row("dybgr", 0, 0.55)]
    rows.append(row("dybgr", 0, 0.57, transductive=True))
    lines = table(rows)
    refined = [f"{method}, refined (transductive)" for method in ("none", "dybgr")]
    assert list(lines) == ["none", "dybgr", *refined]
    assert [lines[name]["Δ MAP@R"] for name in refined] == ["10.0", "2.0"]
    assert lines["dybgr"]["Δ MAP@R"] == "5.0"
