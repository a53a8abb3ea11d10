"""The first view of a run's page: what was run, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from bgl.pipeline.comparison import (
    COMPARED,
    METRICS,
    TRANSDUCTIVE,
    arms,
    comparison,
    label,
    mean_and_interval,
    paired_difference,
)
from bgl.pipeline.results import Results, Row, compared

TOUR = "A tour, not a measurement: without --quick, the same command trains for real."


class Arm(TypedDict):
    """A line of the table; figures in percent, as the table of all results has them."""

    name: str
    trained: bool
    recall: str
    recall_gain: str
    map: str
    map_gain: str
    seeds: str
    epoch: str
    minutes: str


class Overview(TypedDict):
    """What the page shows first."""

    facts: list[tuple[str, str]]
    measured: str
    arms: list[Arm]
    remarks: list[str]


def overview(results: Results) -> Overview:
    """Collect facts, the arms by the embedding that is searched with, and what they show."""
    rows = results["rows"]
    groups = _shown(rows)
    return {
        "facts": _facts(results),
        "measured": _measured(results, groups),
        "arms": _arms(rows, groups),
        "remarks": [*([TOUR] if results.get("quick") else []), *_remarks(groups)],
    }


def _shown(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each arm, of one embedding each."""
    found: dict[str, dict[str, list[Row]]] = {}
    for (name, embedding), group in arms(rows).items():
        found.setdefault(name, {})[embedding] = group
    return {
        name: kinds.get(compared(kinds), next(iter(kinds.values())))
        for name, kinds in found.items()
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    """Say what was trained on what, and how long it took; what is unknown is left out."""
    dataset = results.get("dataset", {})
    facts = [("Data", dataset.get("name", ""))]
    for title, part in (("Trained on", "train"), ("Epoch chosen on", "val"), ("Tested on", "test")):
        counts = dataset.get(part, {})
        if isinstance(counts, dict) and {"images", "classes"} <= counts.keys():
            facts.append((title, f"{counts['images']:,} images of {counts['classes']:,} classes"))
    if "backbone" in results:
        size = f", {results['image_size']} px" if "image_size" in results else ""
        facts.append(("Encoder", results["backbone"] + size))
    if "seconds" in results:
        facts.append(
            ("Time", f"{results['seconds'] / 60:.1f} min on {results.get('gpu') or 'CPU'}")
        )
    return [(title, text) for title, text in facts if text]


def _measured(results: Results, groups: dict[str, list[Row]]) -> str:
    """Say of what the figures are."""
    trained = [group[0] for group in groups.values() if group[0].get("epoch") is not None]
    if not trained:
        return ""
    classes = results.get("dataset", {}).get("test", {}).get("classes")
    among = f"the {classes:,} test classes" if classes else "the test classes"
    text = f"Retrieval among {among} in percent, by the {trained[0]['embedding']}."
    if baseline := _baseline(groups, trained[-1]):
        text += f" Δ is the difference to “{label(baseline[0])}”, seed by seed."
    if "selection" in results:
        text += f" The epoch was chosen by {results['selection'].partition(';')[0]}."
    return text


def _arms(rows: list[Row], groups: dict[str, list[Row]]) -> list[Arm]:
    header, cells = comparison(rows)
    lines = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in cells}
    usual = {group[0]["embedding"] for group in groups.values() if "epoch" in group[0]}
    found: list[Arm] = []
    for name, group in groups.items():
        embedding = group[0]["embedding"]
        line = lines[name, embedding]
        known = name if embedding in (*usual, name) else f"{name} ({embedding})"
        found.append(
            {
                "name": known,
                "trained": group[0].get("epoch") is not None,
                "recall": line.get("R@1", ""),
                "recall_gain": _signed(line["Δ R@1"]),
                "map": line.get("MAP@R", ""),
                "map_gain": _signed(line["Δ MAP@R"]),
                "seeds": line["seeds"],
                "epoch": line["epoch"],
                "minutes": line["min"],
            }
        )
    return found


def _signed(difference: str) -> str:
    return difference if difference.startswith("-") or not difference else f"+{difference}"


def _baseline(groups: dict[str, list[Row]], row: Row) -> list[Row]:
    """Return the rows of the same training without graph and augmentation, if there are any."""
    plain = row.copy()
    plain["method"] = plain["augmentation"] = "none"
    return groups.get(label(plain).removesuffix(TRANSDUCTIVE), [])


def _remarks(groups: dict[str, list[Row]]) -> list[str]:
    """Say which differences mean something."""
    remarks = []
    chance = None
    for name, group in groups.items():
        if group[0].get("epoch") is None or group[0].get("transductive"):
            continue
        baseline = _baseline(groups, group[0])
        if not baseline:
            remarks.append(
                f"{name}: there is no such training without graph and augmentation, so what they "
                "contribute is not known (--method none adds it)."
            )
        elif baseline[0] is not group[0]:
            said = [_verdict(group, baseline, metric) for metric in COMPARED]
            if None in said and chance is None:
                chance = _chance(baseline)
            remarks += [f"{name}: {text}." for text in [", ".join(filter(None, said))] if text]
    if chance:
        remarks.append(
            f"One seed: differences of R@1 below {chance:.1f} points say nothing. Two "
            "equally good encoders differ by as much through the choice of the queries "
            "alone, and the spread between seeds comes on top (--seed 0 1 2 trains more)."
        )
    return remarks


def _verdict(group: Sequence[Row], baseline: Sequence[Row], metric: str) -> str | None:
    """Say what the interval of a difference shows; None for a single seed."""
    differences = [100 * d for d in paired_difference(group, baseline, metric)]
    if not differences:
        return ""
    mean, half = mean_and_interval(differences)
    if math.isnan(half):
        return None
    shown = "no difference shown" if abs(mean) <= half else "a gain" if mean > 0 else "a loss"
    return f"{METRICS[metric]} {mean:+.1f} ± {half:.1f}, {shown} over {len(differences)} seeds"


def _chance(rows: Sequence[Row]) -> float | None:
    """Return the 95 % bound of the difference of two equal rates on as many queries, in points."""
    share, queries = (rows[0]["metrics"].get(name) for name in ("recall@1", "num_queries"))
    if share is None or queries is None or not (0 <= share <= 1 and queries >= 1):
        return None
    return 196 * math.sqrt(2 * share * (1 - share) / queries)
