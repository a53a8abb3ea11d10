"""Fit and test ``bgl.forecast``: ``python -m benchmarks.refinement.forecast FEATURES``

FEATURES holds ``DATA-PART.ENCODER.safetensors`` with ``x`` and ``y``, as ``features.py`` writes
them. A case is a subset of one file's classes, refined in one setting: the estimate's signals are
computed without labels, the change of each metric with them. :data:`FIT` fits the rule by weighted
ridge regression; its error is that of a fit without the case's data set. :data:`TEST` has other
classes and encoders, and a data set of its own. The rule is printed as it stands in
``bgl/forecasting.json``.

Embeddings are reduced to 128 directions first, so that a case takes under a second; cases land in
``forecast.json`` of the output folder, and what is there is not computed again.
"""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.pages import make_parser, show
from benchmarks.refinement.peers import whitened
from bgl import refine
from bgl._io import write_text
from bgl.forecasting import NAMES, SETTINGS, Forecast, Setting, estimate, recommended, signals
from bgl.metrics import retrieval_metrics
from bgl.pipeline.table import markdown_table
from bgl.readout import fit_readout

Case = dict[str, Any]

# Classes that are kept: all, of very different sizes, of few images, two thirds of one image.
KINDS = [("all", "raw"), ("mixed", "raw"), ("few", "raw"), ("all", "white"), ("single", "white")]
FIT = ["emoji-val.pixels", "emoji-val.lite0", "emoji-val.tuned", "emoji-val.random"]
FIT += ["birds-train.pixels", "birds-train.lite0", "birds-train.lite0-72", "birds-train.random"]
FIT += [f"butterflies-test.{name}" for name in ("mobilenet", "pixels", "lda")]
TEST = ["digits.pixels", "emoji-test.dybgr", "birds-test.mobilenet", "emoji-test.pixels"]
TEST += ["emoji-test.mobilenet", "birds-test.lda", "birds-test.pixels"]
# What refine's default is compared with in a forecast, and three ways to do harm.
TRIED = (*SETTINGS, Setting(7, 0.5, None), Setting(20, 0.9), Setting(30, 1.0, None))
DIRECTIONS = 128
ITEMS = 1000  # of a case at most
RIDGE = 10.0
# What each metric's change is explained by, chosen on FIT alone.
MAIN = ["nearest_change", "order", "order_change", "mixed_reciprocity", "mean_cosine"]
TERMS = {"recall@1": MAIN, "recall@8": [*MAIN, "hubs", "log_k"], "map@r": MAIN}
CAUGHT = 0.95  # share of the losses above a point, in FIT, that the warning shall catch


def read(features: Path, name: str) -> tuple[Tensor, Tensor]:
    """Read embeddings; "lda": the pretrained ones under a readout fitted to the train classes."""
    data, kind = name.split(".")
    if kind == "lda":
        train = read(features, f"{data.split('-')[0]}-train.lite0")
        x, y = read(features, f"{data}.lite0")
        return fit_readout(*train, shrinkage=1.0)(x), y
    stored = load_file(features / f"{name}.safetensors")
    return stored["x"], stored["y"]


def subset(y: Tensor, kind: str, seed: int) -> Tensor:
    """Draw classes, and images of each, until there are enough."""
    draw = random.Random(seed)
    classes = [(y == c).nonzero().flatten().tolist() for c in y.unique()]
    draw.shuffle(classes)
    rows: list[int] = []
    for i, own in enumerate(classes):
        draw.shuffle(own)
        if kind == "mixed":
            own = own[: 1 + int(len(own) * draw.random() ** 3)]
        elif kind == "few":
            own = own[: 40 if len(classes) <= 10 else 3 if len(own) <= 8 else 8]
        elif kind == "single" and i % 3 > 0:
            own = own[:1]
        if len(rows) + len(own) > ITEMS:
            break
        rows += own
    return torch.tensor(sorted(rows))


@cache
def reduced(features: Path, name: str) -> tuple[Tensor, Tensor]:
    """Read unit embeddings in their leading directions, and labels."""
    x, y = read(features, name)
    keep = x.abs().amax(1) > 0
    x, y = normalize(x[keep]), y[keep]
    return x @ torch.linalg.eigh(x.t() @ x)[1][:, -DIRECTIONS:], y


def measure(features: Path, names: list[str], output: Path) -> list[Case]:
    """Refine every case, with its signals and the change of each metric."""
    path = output / "forecast.json"
    cases: list[Case] = json.loads(path.read_text())["cases"] if path.exists() else []
    done = {(case["features"], case["classes"], case["how"]) for case in cases}
    for seed, ((kind, how), name) in enumerate(product(KINDS, names)):
        if (name, kind, how) in done:
            continue
        x, y = reduced(features, name)
        rows = subset(y, kind, seed)
        x, y = x[rows], y[rows]
        x = whitened(x, 0.1) if how == "white" else x
        before = retrieval_metrics(x, y)
        for setting in TRIED:
            options = setting._asdict()
            after = retrieval_metrics(refine(x, **options), y)
            case = {"features": name, "classes": kind, "how": how, "n": len(x), "setting": setting}
            change = {metric: round(after[metric] - before[metric], 5) for metric in NAMES}
            found = {key: round(value, 5) for key, value in signals(x, **options).items()}
            cases.append({**case, "change": change, "signals": found})
        lines = ",\n".join(json.dumps(case) for case in cases)
        write_text(path, f'{{"cases": [\n{lines}\n]}}\n')
        print(name, kind, how, len(x), flush=True)
    return cases


def columns(cases: list[Case], metric: str) -> NDArray[np.float64]:
    """The signals of each case, a column of ones first."""
    terms = TERMS[metric]
    return np.array([[1.0, *(case["signals"][term] for term in terms)] for case in cases])


def solve(cases: list[Case], metric: str) -> NDArray[np.float64]:
    """Ridge regression on standardised signals, weighted by the number of images."""
    a = columns(cases, metric)
    y = np.array([case["change"][metric] for case in cases])
    w = np.array([case["n"] for case in cases]) / ITEMS
    mean, spread = a.mean(0), a.std(0) + 1e-9
    mean[0], spread[0] = 0.0, 1.0
    z = (a - mean) / spread
    penalty = np.diag([0.0, *[RIDGE] * (a.shape[1] - 1)])
    found = np.linalg.solve((z * w[:, None]).T @ z + penalty, (z * w[:, None]).T @ y) / spread
    found[0] -= found[1:] @ mean[1:]
    return found


def fit(cases: list[Case]) -> dict[str, dict[str, Any]]:
    """Fit each metric's rule, its error, and where the warning begins."""
    data = [case["features"].split("-")[0] for case in cases]
    result: dict[str, dict[str, Any]] = {"RULE": {}, "ERROR": {}, "WARN_BELOW": {}}
    weight = np.array([case["n"] for case in cases])
    for metric in NAMES:
        found = solve(cases, metric)
        names = ["constant", *TERMS[metric]]
        result["RULE"][metric] = {n: round(float(c), 4) for n, c in zip(names, found, strict=True)}
        true = np.array([case["change"][metric] for case in cases])
        guess = np.zeros(len(cases))
        for left_out in sorted(set(data)):
            out = np.array([name == left_out for name in data])
            rest = [case for case, gone in zip(cases, out, strict=True) if not gone]
            guess[out] = columns(cases, metric)[out] @ solve(rest, metric)
        error = np.sqrt((weight * (guess - true) ** 2).sum() / weight.sum())
        result["ERROR"][metric] = round(float(error), 4)
        if metric != "recall@8" and (true < -0.01).any():
            below = float(np.quantile(guess[true < -0.01], CAUGHT))
            result["WARN_BELOW"][metric] = round(min(max(below, 0.0), 0.01), 3)
    return result


def forecast_of(case: Case) -> Forecast:
    """The estimate for a case."""
    found = case["signals"]
    return Forecast(Setting(*case["setting"]), estimate(found), None, found)


def report(cases: list[Case]) -> str:
    """Tabulate how often the estimate has the right sign, and what the warning avoids."""
    forecasts = [forecast_of(case) for case in cases]
    header = ["metric"]
    for some in ("cases", "changes > 1", "estimates > 1", "clear estimates"):
        header += [some, "right sign", "always +"]
    header += ["error", "losses > 1", "warned"]
    warned = np.array([each.harmful for each in forecasts])
    lines = []
    for metric, title in NAMES.items():
        true = np.array([case["change"][metric] for case in cases])
        guess = np.array([each.changes[metric].change for each in forecasts])
        line = [title]
        size, clear = np.abs(guess), np.abs(guess) > forecasts[0].changes[metric].error
        for some in (true != 0, np.abs(true) > 0.01, size > 0.01, clear):
            some = some & (true != 0)
            signs = ((guess > 0) == (true > 0), true > 0)
            line += [
                str(some.sum()),
                *(f"{x[some].mean():.0%}" if some.any() else "" for x in signs),
            ]
        lost = true < -0.01
        line.append(f"{100 * np.sqrt(((guess - true) ** 2).mean()):.1f}")
        lines.append([*line, str(lost.sum()), f"{(lost & warned).sum()}"])
    harmless = np.array(
        [min(c["change"]["recall@1"], c["change"]["map@r"]) >= -0.01 for c in cases]
    )
    table = markdown_table(header, lines)
    harmless_too = (warned & harmless).sum()
    return f"{table}\n\nWarned in {warned.sum()} cases, of which {harmless_too} lost less."


def chosen(cases: list[Case]) -> str:
    """Tabulate what the recommended settings change, and what the default does."""
    groups: dict[tuple[str, ...], dict[Setting, Case]] = {}
    for case in cases:
        key = (case["features"], case["classes"], case["how"])
        groups.setdefault(key, {})[Setting(*case["setting"])] = case
    names = ("default", "metric alone", "recommended")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    nothing = dict.fromkeys(NAMES, 0.0)
    for group in groups.values():
        found["default"].append(group[Setting()]["change"])
        found["metric alone"].append(group[Setting(epsilon=0.0)]["change"])
        best = recommended(forecast_of(group[setting]) for setting in SETTINGS)
        found["recommended"].append(nothing if best is None else group[best]["change"])
    lines = []
    for name, changes in found.items():
        line = [name, str(len(changes))]
        for metric in NAMES:
            values = np.array([change[metric] for change in changes])
            line += [f"{100 * values.mean():+.1f}", f"{(values < -0.01).sum()}"]
        lines.append(line)
    header = ["setting", "data × encoder"]
    header += [word for title in NAMES.values() for word in (f"Δ {title}", "losses > 1")]
    return markdown_table(header, lines)


def main() -> None:
    """Measure what is missing, print the fitted rule and the report."""
    parser = make_parser(__doc__, "runs/refine")
    parser.add_argument("features", nargs="?", type=Path, help="default: stored cases only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.features is not None:
        measure(options.features, [*FIT, *TEST], options.output_dir)
    cases = json.loads((options.output_dir / "forecast.json").read_text())["cases"]
    print(json.dumps(fit([case for case in cases if case["features"] in FIT]), indent=1))
    unseen = [case for case in cases if case["features"] in TEST]
    show(f"{report(unseen)}\n\n{chosen(unseen)}", "forecast-table", options.page)


if __name__ == "__main__":
    main()
