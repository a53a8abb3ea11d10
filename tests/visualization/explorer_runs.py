"""A small run folder as benchmarks/run.py leaves it, for the tests of the explorer page."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
import yaml
from PIL import Image

from bgl.datasets import Splits, load_dataset
from bgl.training import TrainConfig, View, build_model, make_accelerator, train
from bgl.training.config import DyBGROptions
from bgl.visualization.recorder import Recorder


def make_images(root: Path) -> Path:
    """A folder dataset: 8 train classes, 4 of them for validation, and 6 test classes."""
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 8), ("test", 6)):
        for c in range(number):
            # names as people give them
            folder = root / part / f"{part} <b>{c} & co"
            folder.mkdir(parents=True)
            colour = torch.randint(40, 216, (1, 1, 3), generator=generator)
            for i in range(4):
                noise = torch.randint(-40, 41, (40, 36, 3), generator=generator)
                Image.fromarray((colour + noise).to(torch.uint8).numpy()).save(folder / f"{i}.png")
    return root


def make_splits() -> Splits:
    return load_dataset("folder", make_images(Path(tempfile.mkdtemp())), val_fraction=0.5)


def make_run(root: Path) -> Path:
    """Two epochs of "none" and "dybgr"."""
    images = make_images(root / "images")
    splits = load_dataset("folder", images, val_fraction=0.5)
    run = root / "run"
    rows = []
    for method in ("none", "dybgr"):
        config = TrainConfig(
            dataset="folder",
            data_root=str(images),
            val_fraction=0.5,
            method=method,
            backbone="test_resnet",
            weights="none",
            image_size=32,
            head_dim=8,
            epochs=2,
            batch_size=8,
            per_class=2,
            device="cpu",
            workers=0,
            dybgr=DyBGROptions(k=3, num_iterations=2),
        )
        folder = run / f"{method}-seed0"
        recorder = Recorder(folder, splits)
        result = train(config, splits, folder, recorder)
        recorder.finish()
        (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
        rows += [
            {"method": method, "seed": 0, "embedding": e, "metrics": m, "epoch": 2}
            for e, m in result.metrics.items()
        ]
    assert recorder.tested is not None
    torch.save(recorder.tested[0], run / "vectors.pt")
    model, info = build_model(dataclasses.replace(config, method="none"))
    recorder = Recorder(run, splits)
    View(model, config, info, make_accelerator("cpu"), recorder).measure(splits.test)
    recorder.finish()
    (run / "results.json").write_text(json.dumps({"started": "today", "rows": rows}))
    return run
