"""The comparison table of trained models: mean, confidence interval and paired differences."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from bgl.pipeline.results import OtherEpoch, Row

METRICS = {
    "recall@1": "R@1",
    "recall@2": "R@2",
    "recall@4": "R@4",
    "recall@8": "R@8",
    "map@r": "MAP@R",
    "r_precision": "R-Prec",
}
COMPARED = ("recall@1", "map@r")  # what differences are shown of
TRANSDUCTIVE = ", refined (transductive)"  # ends an arm's name
# parts of a row that has seen the test classes after every epoch
OTHER_EPOCHS: dict[OtherEpoch, str] = {
    "last_epoch": "last epoch",
    "best_on_test": "best on test (optimistic)",
}
# columns of the rows that repeat a published one
PUBLISHED = (" published", " - published")


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Return mean and half width of its 95 % confidence interval (Student's t; NaN for one)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(student.ppf(0.975, len(values) - 1)) * error


def label(row: Row) -> str:
    """Name a row's arm: graph, loss and augmentation, the defaults left out.

    Results that depend on the whole gallery bear it in their name.
    """
    parts = [row["method"]]
    if row.get("loss", "pairwise-ce") != "pairwise-ce":
        parts = [row["loss"]] if row["method"] == "none" else [*parts, row["loss"]]
    if row.get("augmentation", "none") != "none":
        parts.append(row["augmentation"])
    if row.get("protocol") == "paper":
        parts[-1] += " (paper-style, optimistic)"
    name = " + ".join(parts) + (f" [{row['run']}]" if "run" in row else "")
    return name + (TRANSDUCTIVE if row.get("transductive") else "")


def metrics_of(rows: list[Row]) -> dict[str, str]:
    """Return the metrics of the table and their titles; K of Recall@K depends on the dataset."""
    names = {name for row in rows for name in row["metrics"] if re.fullmatch(r"recall@\d+", name)}
    cutoffs = sorted(int(name.partition("@")[2]) for name in names)
    rest = {name: title for name, title in METRICS.items() if not name.startswith("recall@")}
    return {f"recall@{k}": f"R@{k}" for k in cutoffs} | rest


def arms(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group rows by arm and embedding, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((label(row), row["embedding"]), []).append(row)
    return groups


def percent(values: list[float]) -> str:
    """Format mean ± interval in percent."""
    mean, half = mean_and_interval([100 * v for v in values])
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def published_cells(rows: list[Row], metric: str) -> tuple[str, str]:
    """Format the published figure of an arm and the mean difference to it, in percent."""
    known = [published for row in rows if (published := row.get("published"))]
    known = [p for p in known if metric in p["figures"] and metric in p["difference"]]
    if not known:
        return "", ""
    difference = statistics.fmean(published["difference"][metric] for published in known)
    return f"{known[0]['figures'][metric]:.1f}", f"{difference:+.1f}"


def paired_difference(
    rows: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], metric: str
) -> list[float]:
    """Return the differences to the baseline, seed by seed."""
    base = {row["seed"]: row["metrics"].get(metric) for row in baseline}
    return [
        row["metrics"][metric] - before
        for row in rows
        if metric in row["metrics"] and (before := base.get(row["seed"])) is not None
    ]


def comparison(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Make header and cells of the table: percent, mean ± 95 % CI over seeds, differences.

    Transductive rows come last, and are compared with the same model's plain ones.
    """
    groups = arms(sorted(rows, key=lambda row: bool(row.get("transductive"))))
    metrics = metrics_of(rows)
    header = ["method", "embedding", *metrics.values(), "Δ R@1", "Δ MAP@R"]
    others = {part: title for part, title in OTHER_EPOCHS.items() if any(part in r for r in rows)}
    header += [f"{METRICS[m]} {title}" for title in others.values() for m in COMPARED]
    published = any(row.get("published") for row in rows)
    header += [f"{METRICS[m]}{what}" for m in COMPARED for what in PUBLISHED] if published else []
    header += ["seeds", "epoch", "min"]
    cells = []
    for (name, embedding), group in groups.items():
        line = [name, embedding]
        for metric in metrics:
            values = [r["metrics"][metric] for r in group if metric in r["metrics"]]
            line.append(percent(values) if values else "")
        plain = group[0].copy()
        if plain.get("transductive"):
            plain["transductive"] = False
        else:
            plain["method"] = plain["augmentation"] = "none"
        baseline = groups.get((label(plain), embedding), [])
        for metric in COMPARED:
            differences = paired_difference(group, baseline, metric)
            trained = group[0].get("epoch") is not None
            is_baseline = baseline and baseline[0] is group[0]
            line.append(percent(differences) if differences and trained and not is_baseline else "")
        for part in others:
            for metric in COMPARED:
                values = [r[part][metric] for r in group if metric in r.get(part, {})]
                line.append(percent(values) if values else "")
        if published:
            line += [cell for metric in COMPARED for cell in published_cells(group, metric)]
        line.append(str(len(group)) if group[0].get("epoch") is not None else "")
        line.append(" ".join(str(r["epoch"]) for r in group if r.get("epoch") is not None))
        seconds = [r["seconds"] for r in group if r.get("seconds") is not None]
        line.append(f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "")
        cells.append(line)
    return header, cells
