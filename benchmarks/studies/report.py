"""Tables and plots: ``python -m benchmarks.studies.report STUDY RESULTS PAGE [PAGE ...]``

The pages hold the text; between ``<!-- STUDY-NAME -->`` and ``<!-- /STUDY-NAME -->``, with the
name of the study's file, stand its tables (arms, outputs, heads, readouts, controls, grid,
selection, sweeps, graphs, commands), made anew from the stored results. A page may hold tables of
several studies. The plots that the first page shows (``STUDY_gains.png``, ``STUDY_graphs.png``) go
with it. With ``--csv FILE`` every training is written as a line as well.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import re
import shlex
import statistics
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

from benchmarks.pages import fill, save, signed
from benchmarks.studies.plan import Entry, Options, Store, Study, Training, validation
from bgl.pipeline.comparison import mean_and_interval, percent
from bgl.pipeline.table import markdown_table

matplotlib.use("Agg")
METRICS = {"recall@1": "R@1", "map@r": "MAP@R"}
TITLES = list(METRICS.values())
GAINS = [f"Δ {title}" for title in TITLES]

Metrics = dict[int, dict[str, float]]  # by seed


class Results:
    """The finished runs of a study, by arm and seed."""

    def __init__(self, study: Study, store: Store) -> None:
        self.study = study
        self.untrained = store.untrained
        self.done = done = store.done
        self.chosen = {arm: study.chosen(arm, done) for arm in study.arms}
        self.arms = {
            arm: found
            for arm, options in self.chosen.items()
            if options is not None and (found := self.trained(arm, options, study.seeds))
        }
        # the embedding that counts: the readout, where every training has one
        read = (metrics_of(e, "readout").keys() == e.keys() for e in self.arms.values())
        self.embedding = "readout" if all(read) else "backbone"

    def trained(self, arm: str, options: Options, seeds: list[int]) -> dict[int, Entry]:
        """Find the finished runs with these options, by seed."""
        found = {seed: self.done.get(Training(arm, options, seed).key) for seed in seeds}
        return {seed: entry for seed, entry in found.items() if entry is not None}

    def gain(self, arm: str, metric: str, embedding: str | None = None) -> list[float]:
        """Compute paired differences to the arm's baseline, seed by seed; empty without one."""
        base = self.arms.get(self.study.baselines.get(arm, ""), {})
        embedding = embedding or self.embedding
        return paired(metrics_of(self.arms[arm], embedding), metrics_of(base, embedding), metric)


def metrics_of(entries: dict[int, Entry], embedding: str) -> Metrics:
    """Return the test metrics of one embedding, of the runs that have it."""
    rows = {seed: entry["rows"] for seed, entry in entries.items()}
    return {s: row["metrics"] for s in rows for row in rows[s] if row["embedding"] == embedding}


def paired(ours: Metrics, theirs: Metrics, metric: str) -> list[float]:
    """Compute differences seed by seed, where both have the seed."""
    return [ours[seed][metric] - theirs[seed][metric] for seed in ours if seed in theirs]


def arms_table(results: Results, embedding: str) -> str:
    """Tabulate every arm with all its seeds: test metrics, and the gain over its baseline."""
    grid = [name for name, values in results.study.grid.items() if len(values) > 1]
    lines = []
    shown = {embedding, "pixels"} if embedding == results.embedding else {embedding}
    for row in results.untrained:
        if row["embedding"] in shown:
            values = [percent([row["metrics"][metric]]) for metric in METRICS]
            lines.append([row["method"], *[""] * (len(grid) + 1), *values, "", "", ""])
    for arm, entries in results.arms.items():
        measured = metrics_of(entries, embedding).values()
        if not measured:
            continue
        options = results.chosen[arm] or {}
        line = [arm, *(f"{options[name]:g}" for name in grid), str(len(measured))]
        line += [percent([metrics[metric] for metrics in measured]) for metric in METRICS]
        line += [signed(results.gain(arm, metric, embedding)) for metric in METRICS]
        lines.append([*line, results.study.baselines.get(arm, "")])
    return markdown_table(["arm", *grid, "seeds", *TITLES, *GAINS, "Δ to"], lines)


def readouts_table(results: Results) -> str:
    """Tabulate what the readout gains over the encoder's output and the head of the same runs."""
    lines = []
    others = ("backbone", "head")
    for arm, entries in results.arms.items():
        read = metrics_of(entries, "readout")
        gains = [
            signed(paired(read, metrics_of(entries, other), metric))
            for other in others
            for metric in METRICS
        ]
        lines.append([arm, str(len(read)), *gains])
    header = [f"over {other}: {gain}" for other in others for gain in GAINS]
    return markdown_table(["arm", "seeds", *header], lines)


def controls_table(results: Results) -> str:
    """Tabulate paired differences between arms and controls, first by the embedding that counts."""
    lines = []
    embeddings = list(dict.fromkeys([results.embedding, "backbone", "head"]))
    for arm, others in results.study.controls.items():
        for other in others:
            pair = results.arms.get(arm, {}), results.arms.get(other, {})
            if not (seeds := pair[0].keys() & pair[1].keys()):
                continue
            line = [arm, other, str(len(seeds))]
            for embedding in embeddings:
                ours, theirs = (metrics_of(entries, embedding) for entries in pair)
                line += [signed(paired(ours, theirs, metric)) for metric in METRICS]
            lines.append(line)
    further = [f"{embedding}: {gain}" for embedding in embeddings[1:] for gain in GAINS]
    return markdown_table(["arm", "against", "seeds", *GAINS, *further], lines, left=(0, 1))


def grid_table(results: Results) -> str:
    """Tabulate validation MAP@R at every point of the grid."""
    study = results.study
    names: list[str] = []
    lines = []
    for arm in study.arms:
        cells: dict[str, str] = {}
        for options in study.combinations(arm):
            name = ", ".join(f"{n} = {options[n]:g}" for n in study.grid)
            entries = results.trained(arm, options, study.grid_seeds)
            value = [study.validation(entry) for entry in entries.values()]
            mark = "**" if options == results.chosen[arm] else ""
            cells[name] = f"{mark}{percent(value)}{mark}" if value else ""
            names += [name] if name not in names else []
        if any(cells.values()):
            lines.append([arm, *(cells.get(name, "") for name in names)])
    return markdown_table(["arm", *names], lines)


def selection_table(results: Results) -> str:
    """Tabulate what the choice of the epoch is worth, for arms that were tested every epoch."""
    lines = []
    for arm, entries in results.arms.items():
        looked = [e for e in entries.values() if "test_backbone_recall@1" in e["history"][-1]]
        for metric, title in METRICS.items():
            if looked:
                curves = [[row[f"test_backbone_{metric}"] for row in e["history"]] for e in looked]
                picked = [c[e["epoch"] - 1] for c, e in zip(curves, looked, strict=True)]
                columns = (picked, [c[-1] for c in curves], [max(c) for c in curves])
                lines.append([arm, title, str(len(looked)), *map(percent, columns)])
    by = ["best validation", "last epoch", "best on test (optimistic)"]
    return markdown_table(["arm", "metric", "seeds", *by], lines, left=(0, 1))


def sweeps_table(results: Results) -> str:
    """Tabulate every swept value and the arm's own, on the same seeds."""
    lines = []
    # where the validation classes are measured, R@1 and MAP@R say it already
    tested = results.study.measure == "test"
    chosen_by = ["validation MAP@R", "of the arm"] if tested else []
    for name, sweep in results.study.sweeps.items():
        for arm, value in itertools.product(sweep.arms, sweep.values):
            options = results.chosen[arm]
            if options is None:
                continue
            own = results.arms.get(arm, {})
            entries = results.trained(arm, {**options, sweep.option: value}, sweep.seeds)
            ours, theirs = (metrics_of(some, results.embedding) for some in (entries, own))
            if ours:
                cells = [percent([row[metric] for row in ours.values()]) for metric in METRICS]
                gains = [signed(paired(ours, theirs, metric)) for metric in METRICS]
                if tested:
                    both = (entries.values(), [own[s] for s in entries if s in own])
                    chosen = [percent([results.study.validation(e) for e in some]) for some in both]
                    cells = [*chosen, *cells]
                lines.append([name, arm, str(value), str(len(entries)), *cells, *gains])
    header = ["sweep", "arm", "value", "seeds", *chosen_by, *TITLES, *GAINS]
    return markdown_table(header, lines, left=(0, 1))


def graph_figures(entries: dict[int, Entry]) -> dict[str, float]:
    """Average over seeds: purity before training and in the last epoch, and the two losses."""
    rows = [(e["before"], e["history"][-1]) for e in entries.values()]
    rows = [(before, last) for before, last in rows if "loss_graph" in last]
    figures: dict[str, list[float]] = {}
    for before, last in rows:
        for name in ("same_class_edges", "same_class_weight"):
            for when, row in (("before", before), ("after", last)):
                if name in row:
                    figures.setdefault(f"{name} {when}", []).append(row[name])
        for name in ("loss_plain", "loss_graph"):
            figures.setdefault(name, []).append(last[name])
    return {name: statistics.fmean(values) for name, values in figures.items()}


def graphs_table(results: Results) -> str:
    """Tabulate how pure the learned graphs are, how hard the graph branch has it, and the gain."""
    lines = []
    for arm, entries in results.arms.items():
        figures = graph_figures(entries)
        if figures:
            shares = [
                f"{100 * figures[key]:.0f}" if (key := f"{name} {when}") in figures else ""
                for name in ("same_class_edges", "same_class_weight")
                for when in ("before", "after")
            ]
            losses = [f"{figures[name]:.2f}" for name in ("loss_plain", "loss_graph")]
            lines.append([arm, *shares, *losses, signed(results.gain(arm, "map@r"))])
    header = ["arm", "same-class edges before", "after", "weight on them before", "after"]
    return markdown_table([*header, "plain loss", "graph loss", "Δ MAP@R"], lines)


def commands_table(results: Results) -> str:
    """List a command for every row of the arms."""
    lines = []
    seeds = " ".join(map(str, results.study.seeds))
    for arm in results.arms:
        words = Training(arm, results.chosen[arm] or {}, 0).command[:-2]
        lines.append([arm, f"`python {shlex.join(words)} --seed {seeds}`"])
    return markdown_table(["arm", "command"], lines, left=(0, 1))


def plot_gains(results: Results, path: Path) -> None:
    """Plot paired gains with their intervals, an arm a line."""
    arms = [arm for arm in results.arms if results.gain(arm, "map@r")][::-1]
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.32 * len(arms) + 1.2), sharey=True)
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for height, arm in enumerate(arms):
            gains = [100 * g for g in results.gain(arm, metric)]
            mean, half = mean_and_interval(gains)
            axis.errorbar(mean, height, xerr=half, fmt="o", color="#0072B2", capsize=3)
            axis.plot(gains, [height] * len(gains), "|", color="#999999", markersize=7)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"Δ {title} in points (95 % interval; ticks: seeds)")
    axes[0].set_yticks(range(len(arms)), arms)
    figure.tight_layout()
    save(figure, path)


def plot_purity(results: Results, path: Path) -> None:
    """Plot the gain against the share of edge weight within classes."""
    points = [
        (arm, share, gains)
        for arm, entries in results.arms.items()
        if (share := graph_figures(entries).get("same_class_weight after")) is not None
        and (gains := results.gain(arm, "map@r"))
    ]
    figure, axis = plt.subplots(figsize=(8, 4))
    for number, (arm, share, gains) in enumerate(points, start=1):
        mean, half = mean_and_interval([100 * g for g in gains])
        at, label = (100 * share, mean), f"{number}  {arm}"
        axis.errorbar(*at, yerr=half, fmt="o", color="#D55E00", capsize=3, label=label)
        axis.annotate(str(number), at, (5, 4), textcoords="offset points")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel("edge weight within classes, last epoch, percent")
    axis.set_ylabel("Δ MAP@R in points")
    if points:
        axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=0)
    figure.tight_layout()
    save(figure, path)


def as_csv(results: Results) -> str:
    """Write a line per run and embedding."""
    text = io.StringIO()
    writer = csv.writer(text)
    metrics = ["recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"]
    writer.writerow(["command", "method", "seed", "embedding", "epoch", "val_map@r", *metrics])
    for entry in results.done.values():
        for row in entry["rows"]:
            given = [entry["command"], row["method"], row["seed"], row["embedding"], row["epoch"]]
            writer.writerow([*given, validation(entry), *(row["metrics"][m] for m in metrics)])
    return text.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Make tables and plots; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("results", type=Path, help="its results.json")
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown pages with markers")
    parser.add_argument("--csv", type=Path, help="write every training as a line")
    options = parser.parse_args(argv)
    try:
        study = Study.load(options.study)
        results = Results(study, Store(options.results, study.measure))
        tables = {
            "arms": arms_table(results, results.embedding),
            "outputs": arms_table(results, "backbone"),
            "heads": arms_table(results, "head"),
            "readouts": readouts_table(results),
            "controls": controls_table(results),
            "grid": grid_table(results),
            "selection": selection_table(results),
            "sweeps": sweeps_table(results),
            "graphs": graphs_table(results),
            "commands": commands_table(results),
        }
        name = options.study.stem
        tables = {f"{name}-{table}": text for table, text in tables.items()}
        markers = f"{re.escape(name)}-[a-z]+"
        filled = {
            page: fill(page.read_text(encoding="utf-8"), tables, markers) for page in options.pages
        }
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page, text in filled.items():
        page.write_text(text, encoding="utf-8")
    first = options.pages[0]
    for kind, draw in {"gains": plot_gains, "graphs": plot_purity}.items():
        picture = first.with_name(f"{name}_{kind}.png")
        if picture.name in filled[first]:
            draw(results, picture)
    if options.csv:
        options.csv.write_text(as_csv(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
