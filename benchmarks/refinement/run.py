"""Label-free refinement against its peers: ``python -m benchmarks.refinement RUN [RUN ...]``

RUN is a run folder of ``run.py``, or the folder of one training. The models embed the validation
and the test classes, and every image is looked up among all others. Each method has eight settings;
for each kind of training, its first two models choose the one with the best mean MAP@R on
*validation* classes among those that lose no Recall@1 there, and every model shows it the *test*
classes once. All results are transductive: they depend on the whole gallery.

Embeddings, validation results and results.json land in the output folder, and what is there is not
computed again. Without RUN, only the table of stored results is made.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.pages import make_parser, show, signed
from benchmarks.refinement import peers
from benchmarks.refinement.peers import Ranking, ranking_metrics
from bgl import RefinedGallery, models
from bgl._io import write_tensors, write_text
from bgl._memory import peak_memory_mb
from bgl.datasets import ImageDataset
from bgl.metrics import retrieval_metrics
from bgl.models import create_backbone
from bgl.pipeline import load_splits, read_config
from bgl.pipeline.comparison import METRICS, paired_difference, percent
from bgl.pipeline.table import markdown_table

Row = dict[str, Any]
Method = Callable[..., Ranking]

PLAIN = "plain"
OURS = "refined"
SHOWN = {name: title for name, title in METRICS.items() if name != "r_precision"}


def grid(**values: list[Any]) -> list[dict[str, Any]]:
    """List all combinations."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


# Eight settings each; the published ones of k-reciprocal are among them.
SETS = [(6, 2), (8, 3), (12, 4), (20, 6)]
METHODS: dict[str, tuple[Method, list[dict[str, Any]]]] = {
    PLAIN: (peers.plain, [{}]),
    "AQE": (peers.query_expansion, grid(k=[1, 2, 3, 4, 5, 7, 10, 20])),
    "αQE": (peers.query_expansion, grid(k=[1, 2, 3, 5], alpha=[3.0, 8.0])),
    "DBA": (peers.database_augmentation, grid(k=[1, 2, 3, 5], alpha=[3.0, 8.0])),
    "k-reciprocal": (
        peers.k_reciprocal,
        [{"k1": a, "k2": b, "lam": lam} for (a, b), lam in product(SETS, [0.3, 0.5])],
    ),
    "whitening + k-reciprocal": (
        peers.whitened_k_reciprocal,
        [{"k1": a, "k2": b, "shrinkage": s} for (a, b), s in product(SETS, [0.1, 0.3])],
    ),
    "refined, metric alone": (
        peers.refined,
        grid(k=[5, 7], epsilon=[0.0], shrinkage=[0.03, 0.1, 0.3, 1.0]),
    ),
    "refined, cosine": (peers.refined, grid(k=[5, 7], epsilon=[0.2, 0.35, 0.5, 0.65])),
    OURS: (peers.refined, grid(k=[5, 7], epsilon=[0.35, 0.5], shrinkage=[0.1, 0.3])),
}
CHOOSING = 2  # models of a kind that choose


class Model(NamedTuple):
    """Embeddings of the validation and test classes, stored once."""

    kind: str
    seed: int | None
    path: Path

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Backbone embeddings and labels of "val" or "test"."""
        stored = load_file(self.path)
        return stored[f"{name}_embeddings"], stored[f"{name}_labels"]


def key(row: Row) -> str:
    """Name a row by what it measures."""
    return json.dumps([row[name] for name in ("kind", "seed", "method", "options")])


def trainings(runs: list[Path]) -> list[Path]:
    """Find the folders with a trained model in or under those given."""
    folders = [place.parent for run in runs for place in sorted(run.glob("**/model.safetensors"))]
    if runs and not folders:
        raise ValueError(f"Expected a model.safetensors in or under {', '.join(map(str, runs))}")
    return folders


def embed_all(folders: list[Path], output: Path) -> list[Model]:
    """Embed with every model, and with the pretrained encoder the first of them started from."""
    (output / "embeddings").mkdir(parents=True, exist_ok=True)
    configs = [read_config(folder) for folder in folders]
    first = configs[0]
    if any(config.dataset != first.dataset for config in configs):
        raise ValueError("Expected all trainings to be on one dataset")
    found: list[Model] = []
    splits = None
    for config, folder in zip([*configs, first], [*folders, None], strict=True):
        kind = "pretrained" if folder is None else config.method
        seed = None if folder is None else config.seed
        name = kind if folder is None else f"{kind}-seed{seed}"
        path = output / "embeddings" / f"{name}.safetensors"
        if any(model.path == path for model in found):
            raise ValueError(f"Expected one training of each method and seed, got two of {name}")
        found.append(Model(kind, seed, path))
        if path.exists():
            continue
        splits = splits or load_splits(config)
        encoder = models.load(folder or folders[0])
        if folder is None:
            backbone, _ = create_backbone(config.backbone, config.weights, config.image_size)
            encoder.model.backbone.load_state_dict(backbone.state_dict())
        tensors: dict[str, Tensor] = {}
        for part in ("val", "test"):
            data: ImageDataset = getattr(splits, part)
            vectors = encoder.embed(data, batch_size=128, output="backbone")
            tensors |= {f"{part}_embeddings": vectors, f"{part}_labels": data.labels}
        write_tensors(path, tensors)
        print(f"embedded {name}", flush=True)
    return found


def validate(found: list[Model], output: Path) -> list[Row]:
    """Measure every setting of every method on the validation classes."""
    path = output / "validation.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    done = {key(row) for row in rows}
    kinds = list(dict.fromkeys(model.kind for model in found))
    for model in (m for k in kinds for m in [m for m in found if m.kind == k][:CHOOSING]):
        x, y = model.part("val")
        for method, (rank, settings) in METHODS.items():
            for options in settings:
                row = {"kind": model.kind, "seed": model.seed, "method": method, "options": options}
                if key(row) not in done:
                    rows.append({**row, "metrics": ranking_metrics(rank(x, **options), y)})
            write_text(path, json.dumps(rows))
        print(f"validated {model.path.stem}", flush=True)
    return rows


def choose(validation: list[Row], kind: str) -> dict[str, Row]:
    """Choose each method's setting for a kind: best MAP@R of those that keep plain's R@1."""

    def mean(rows: list[Row], metric: str) -> float:
        return statistics.fmean(row["metrics"][metric] for row in rows)

    mine = [row for row in validation if row["kind"] == kind]
    floor = mean([row for row in mine if row["method"] == PLAIN], "recall@1")
    chosen = {}
    for method, (_, settings) in METHODS.items():
        tried: list[Row] = []
        for options in settings:
            rows = [r for r in mine if r["method"] == method and r["options"] == options]
            shown = ("recall@1", "recall@8", "map@r")
            tried.append({"options": options, **{name: mean(rows, name) for name in shown}})
        keep = [t for t in tried if t["recall@1"] >= floor]
        # where every setting loses some, the one that loses least
        by = "map@r" if keep else "recall@1"
        chosen[method] = {**max(keep or tried, key=lambda t: t[by]), "tried": tried}
    return chosen


def measure(x: Tensor, y: Tensor, rank: Callable[[Tensor], Ranking]) -> Row:
    """Metrics, processor seconds to rank everything, and memory beyond the embeddings in MB."""
    with multiprocessing.get_context("fork").Pool(1) as pool:  # a peak of its own
        return pool.apply(_measure, (x, y, rank))


def _measure(x: Tensor, y: Tensor, rank: Callable[[Tensor], Ranking]) -> Row:
    before = psutil.Process().memory_info().rss / 2**20
    started = time.process_time()
    ranking = rank(x)
    for items in torch.arange(len(x)).split(128):
        ranking(items).topk(8, largest=False)
    seconds = time.process_time() - started
    return {
        "seconds": seconds,
        "memory_mb": peak_memory_mb() - before,
        "metrics": ranking_metrics(ranking, y),
    }


def test(found: list[Model], validation: list[Row], output: Path) -> dict[str, Any]:
    """Show the test classes to the chosen settings, once per model; the stored results."""
    path = output / "results.json"
    choices = {kind: choose(validation, kind) for kind in {r["kind"]: None for r in validation}}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {key(row): row for row in old}
    rows: list[Row] = []
    new: list[Row] = []
    results = {"embedding": "backbone", "choices": choices, "rows": rows, "newcomers": new}
    for model in found:
        x, y = model.part("test")
        for method, choice in choices[model.kind].items():
            row = {"kind": model.kind, "seed": model.seed, "method": method}
            row |= {"options": choice["options"], "transductive": method != PLAIN}
            rank = partial(METHODS[method][0], **choice["options"])
            rows.append(known.get(key(row)) or {**row, **measure(x, y, rank)})
        write_text(path, json.dumps(results, indent=1, ensure_ascii=False))
        print(f"tested {model.path.stem}", flush=True)
    for model in (m for m in found if m.kind == found[0].kind):
        options = choices[model.kind][OURS]["options"]
        measured = newcomers(*model.part("test"), options)
        new.append({"kind": model.kind, "seed": model.seed, **measured})
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False))
    return results


def newcomers(x: Tensor, y: Tensor, options: Row) -> Row:
    """Measure a fifth of the test images as queries to the others, then added to them."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    old, new = order[len(x) // 5 :], order[: len(x) // 5]
    gallery = RefinedGallery(x[old], **options)
    labels = y[new], y[old]
    plain = retrieval_metrics(x[new], labels[0], x[old], labels[1])
    refined = retrieval_metrics(gallery.refine(x[new]), labels[0], gallery.embeddings, labels[1])
    gallery.add(x[new])
    together = torch.cat([old, new])
    whole = RefinedGallery(x[together], **options).embeddings
    return {
        "similarity": float((gallery.embeddings * whole).sum(1).mean()),
        "metrics": {
            "queries, plain": plain,
            "queries, refined": refined,
            "all, a fifth added": retrieval_metrics(gallery.embeddings, y[together]),
            "all, refined at once": retrieval_metrics(whole, y[together]),
        },
    }


def table(results: dict[str, Any]) -> str:
    """Write the comparison in Markdown: mean ± 95 % interval over seeds, paired differences."""
    header = ["embeddings", "method", *SHOWN.values(), "Δ R@1", "Δ R@8", "Δ MAP@R"]
    header += [f"{OURS}: MAP@R above it", "seeds", "CPU s", "MB", "chosen"]
    lines: list[list[str]] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault((row["kind"], row["method"]), []).append(row)
    for (kind, method), rows in groups.items():
        base, ours = groups[kind, PLAIN], groups[kind, OURS]
        line = [kind, method, *(percent([r["metrics"][name] for r in rows]) for name in SHOWN)]
        gains = [paired_difference(rows, base, m) for m in ("recall@1", "recall@8", "map@r")]
        line += ["" if method == PLAIN else signed(gain) for gain in gains]
        line.append("" if method == OURS else signed(paired_difference(ours, rows, "map@r")))
        line.append("" if rows[0]["seed"] is None else str(len(rows)))
        line.append(f"{statistics.fmean(r['seconds'] for r in rows):.1f}")
        line.append(f"{statistics.fmean(r['memory_mb'] for r in rows):.0f}")
        line.append(", ".join(f"{k} {v:g}" for k, v in rows[0]["options"].items()))
        lines.append(line)
    left = (0, 1, len(header) - 1)
    added = newcomers_table(results["newcomers"])
    return f"{markdown_table(header, lines, left)}\n\n{added}"


def newcomers_table(found: list[Row]) -> str:
    """Tabulate queries against a refined gallery, and items added to it."""
    header = [f"embeddings: {found[0]['kind']}", *SHOWN.values()]
    lines = []
    for case in found[0]["metrics"]:
        rows = [row["metrics"][case] for row in found]
        lines.append([case, *(percent([row[name] for row in rows]) for name in SHOWN)])
    return markdown_table(header, lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = make_parser(__doc__, "runs/refine")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of trainings")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for times that compare, and processes that fork
    if options.runs:
        found = embed_all(trainings(options.runs), options.output_dir)
        results = test(found, validate(found, options.output_dir), options.output_dir)
    else:
        results = json.loads((options.output_dir / "results.json").read_text())
    show(table(results), "refined-table", options.page)
