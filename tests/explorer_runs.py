"""A small run folder as bgl train leaves it, for the tests of the explorer page."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from helpers import write_noisy_classes

from bgl.datasets import Splits, load_dataset
from bgl.pipeline.recorder import Recorder
from bgl.training import Evaluator, TrainConfig, build_encoder, train


def make_images(root: Path) -> Path:
    """A folder dataset: 8 train classes, 4 of them for validation, and 6 test classes."""
    name = "{part} <b>{number} & co"  # as people give them
    return write_noisy_classes(root, {"train": 8, "test": 6}, 4, name)


def make_splits() -> Splits:
    return load_dataset("folder", make_images(Path(tempfile.mkdtemp())), val_fraction=0.5)


def make_run(root: Path) -> Path:
    """Two epochs of "none" and "dybgr"; the results tell of a second seed that left no folder."""
    images = make_images(root / "images")
    splits = load_dataset("folder", images, val_fraction=0.5)
    run = root / "run"
    rows = []
    for method in ("none", "dybgr"):
        config = small(data_root=str(images), val_fraction=0.5, method=method)
        folder = run / f"{method}-seed0"
        recorder = Recorder(folder, splits)
        result = train(config, splits, folder, recorder)
        recorder.finish()
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
        rows += [
            {"method": method, "seed": seed, "embedding": e, "metrics": m, "epoch": 2}
            for e, m in result.metrics.items()
            for seed in (0, 1)
        ]
    encoder, _ = build_encoder(dataclasses.replace(config, method="none"))
    recorder = Recorder(run, splits)
    Evaluator(encoder, progress=recorder).measure(splits.test)
    recorder.finish()
    (run / "results.json").write_text(json.dumps({"started": "today", "rows": rows}))
    return run


def payload(path: Path, run: int = 0) -> dict[str, Any]:
    """What a page holds of a run."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    shown: dict[str, Any] = content["runs"][run]
    return shown


def numbers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<" + kind)


def small(**options: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "dataset": "folder",
            "method": "dybgr",
            "backbone": "test_resnet",
            "weights": "none",
            "image_size": 32,
            "head_dim": 8,
            "epochs": 2,
            "batch_size": 8,
            "per_class": 2,
            "device": "cpu",
            "workers": 0,
            "options": {"dybgr": {"k": 3, "num_iterations": 2}},
            **options,
        }
    )


def change_recorded(file: Path, **changed: np.ndarray) -> None:
    """Put other arrays into an explorer.npz."""
    with np.load(file) as arrays:
        kept = dict(arrays)
    np.savez_compressed(file, **{**kept, **changed})


def with_errors(run: Path) -> Path:
    """A run whose models answer some queries the wrong way round."""
    for name, every in (("none-seed0", 4), ("dybgr-seed0", 3)):
        file = run / name / "explorer.npz"
        with np.load(file) as arrays:
            nearest = arrays["nearest"].copy()
        nearest[::every] = nearest[::every, ::-1]
        change_recorded(file, nearest=nearest)
    return run


def without_edges(run: Path) -> Path:
    """A run whose graphs have no edges and whose batch is of one class."""
    file = run / "dybgr-seed0" / "explorer.npz"
    with np.load(file) as arrays:
        none = {name: np.zeros_like(arrays[name]) for name in ("edges", "total", "batch_labels")}
        none |= {name: arrays[name][:0] for name in ("source", "target", "weight")}
    change_recorded(file, **none)
    return run


def without_images(run: Path) -> Path:
    """A run whose images are gone."""
    for folder in ("none-seed0", "dybgr-seed0"):
        file = run / folder / "config.yaml"
        config = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**config, "data_root": str(run / "gone")}))
    return run


def without_files(run: Path) -> Path:
    """A run of which only the graphs are left."""
    for name in ("results.json", "explorer.npz", "none-seed0/explorer.npz"):
        (run / name).unlink()
    for folder in ("none-seed0", "dybgr-seed0"):
        (run / folder / "metrics.csv").unlink()
        (run / folder / "config.yaml").write_text("[broken")
    return run
