"""Refinement and its peers on several data sets:
``python -m benchmarks.refinement.datasets FEATURES``

FEATURES is a folder that ``features.py`` has filled; up to 1,000 images of whole classes are taken
of each file. Every method has the setting that emoji validation classes chose (``run.py``; for
diffusion :data:`VALIDATION` does). "refined, as forecast" takes the setting that ``bgl.forecast``
recommends for the gallery, without labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.pages import make_parser, show, signed
from benchmarks.refinement import peers
from benchmarks.refinement.forecast import read, subset
from benchmarks.refinement.peers import Ranking, ranking_metrics
from bgl import forecast, refine
from bgl._io import write_text
from bgl.forecasting import NAMES
from bgl.pipeline.table import markdown_table

Method = Callable[[Tensor], Ranking]
DATA = {
    "digits.pixels": "digits, pixels",
    "emoji-test.lite0": "emoji, pretrained",
    "emoji-test.tuned": "emoji, fine-tuned",
    "birds-test.lite0": "birds, pretrained",
    "birds-test.lda": "birds, trained readout",
    "butterflies-test.lite0": "butterflies, pretrained",
    "butterflies-test.lda": "butterflies, trained readout",
}
VALIDATION = "emoji-val.lite0"
WALKS: list[dict[str, Any]] = [
    {"k": k, "alpha": alpha} for k in (5, 10, 20) for alpha in (0.8, 0.95)
]


def as_forecast(x: Tensor) -> Ranking:
    """Refine in the recommended setting; the plain cosine where refining isn't."""
    setting = forecast(x).recommended
    result = normalize(x) if setting is None else refine(x, **setting._asdict())
    return peers.plain(result)


def methods(walk: dict[str, Any]) -> dict[str, Method]:
    """Name the methods, in their settings."""
    return {
        "plain": peers.plain,
        "whitening": partial(peers.whitening, shrinkage=0.1),
        "αQE": partial(peers.query_expansion, k=2, alpha=3.0),
        "k-reciprocal": partial(peers.k_reciprocal, k1=6, k2=2, lam=0.5),
        "whitening + k-reciprocal": partial(peers.whitened_k_reciprocal, k1=6, k2=2, shrinkage=0.1),
        "diffusion": partial(peers.diffusion, **walk),
        "refined, metric alone": partial(peers.refined, k=7, epsilon=0.0, shrinkage=0.1),
        "refined": partial(peers.refined, k=7, epsilon=0.5, shrinkage=0.1),
        "refined, as forecast": as_forecast,
    }


def some(features: Path, name: str) -> tuple[Tensor, Tensor]:
    """Read up to a thousand embeddings of whole classes, and their labels."""
    x, y = read(features, name)
    rows = subset(y, "all", 0)
    return x[rows], y[rows]


def measure(features: Path, output: Path) -> dict[str, Any]:
    """Measure every method on every data set; what is stored is not measured again."""
    path = output / "datasets.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    if "walk" not in found:
        x, y = some(features, VALIDATION)
        scored = [ranking_metrics(peers.diffusion(x, **walk), y)["map@r"] for walk in WALKS]
        found["walk"] = WALKS[max(range(len(WALKS)), key=scored.__getitem__)]
    for name in DATA:
        rows = found["rows"].setdefault(name, {})
        for method, rank in methods(found["walk"]).items():
            if method not in rows:
                x, y = some(features, name)
                rows[method] = ranking_metrics(rank(x), y)
                write_text(path, json.dumps(found, indent=1, ensure_ascii=False))
                print(name, method, flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Tabulate the change of each metric by each method."""
    header = ["data, embeddings", "method", *NAMES.values(), *(f"Δ {n}" for n in NAMES.values())]
    lines = []
    for name, title in DATA.items():
        rows = found["rows"][name]
        for method, metrics in rows.items():
            line = [title, method, *(f"{100 * metrics[m]:.1f}" for m in NAMES)]
            changes = [signed([metrics[m] - rows["plain"][m]]) for m in NAMES]
            lines.append(line + (["", "", ""] if method == "plain" else changes))
    walk = ", ".join(f"{key} {value:g}" for key, value in found["walk"].items())
    return f"{markdown_table(header, lines, (0, 1))}\n\nDiffusion: {walk}."


def main() -> None:
    """Measure what is missing and print the table."""
    parser = make_parser(__doc__, "runs/refine")
    parser.add_argument("features", nargs="?", type=Path, help="default: stored results only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.features is None:
        found = json.loads((options.output_dir / "datasets.json").read_text())
    else:
        found = measure(options.features, options.output_dir)
    show(table(found), "datasets-table", options.page)


if __name__ == "__main__":
    main()
