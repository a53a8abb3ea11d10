"""What a run measures, as rows of results.json, and what a reader needs to know to trust them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch_geometric
import yaml

import bgl
from bgl._io import write_text
from bgl.datasets import Splits, download, load_dataset, raw_pixels, recall_at
from bgl.metrics import retrieval_metrics
from bgl.pipeline.options import CONFIGS
from bgl.pipeline.recipes import published_beside
from bgl.pipeline.recorder import Recorder
from bgl.pipeline.tracking import Trackers
from bgl.training import (
    Evaluator,
    Progress,
    ProgressList,
    TrainConfig,
    build_encoder,
    make_accelerator,
    train,
)
from bgl.training.checkpoint import CHECKPOINT_FILE

Row = dict[str, Any]
RESULT_FILE = "result.json"  # in the folder of a finished training


def load_splits(config: TrainConfig) -> Splits:
    """The data a configuration names; without validation classes in the protocol "paper"."""
    if config.download and config.data_root is not None:
        download(config.dataset, config.data_root)
    paper = config.protocol == "paper"
    splits = load_dataset(
        config.dataset,
        config.data_root,
        val_fraction=0.0 if paper else config.val_fraction,
        skip_broken=config.skip_broken,
        allow_partial=config.allow_partial,
        table=config.table,
    )
    # packaged data have fixed validation classes, which nothing looks at then
    return dataclasses.replace(splits, val=None) if paper else splits


def baseline_rows(config: TrainConfig, splits: Splits, progress: Progress) -> list[Row]:
    """What no training is needed for: raw pixels, and the encoder as training starts from it."""
    gallery = splits.gallery
    accelerator = make_accelerator(config.device)
    encoder, info = build_encoder(dataclasses.replace(config, method="none"), accelerator.device)
    k = recall_at(config.dataset)
    evaluator = Evaluator(encoder, k, config.workers, progress=progress)
    measured = evaluator.measure(splits.test, gallery)
    if not accelerator.is_main_process:
        return []
    pixels = retrieval_metrics(
        raw_pixels(splits.test),
        splits.test.labels,
        None if gallery is None else raw_pixels(gallery),
        None if gallery is None else gallery.labels,
        k=k,
    )
    return [
        {"method": "pixels", "seed": None, "embedding": "pixels", "metrics": pixels},
        {
            "method": "untrained" if config.weights == "none" else "pretrained",
            "seed": None,
            "embedding": "backbone",
            "metrics": measured["backbone"],
            "backbone": dataclasses.asdict(info),
        },
    ]


def trained_rows(
    config: TrainConfig,
    splits: Splits,
    folder: Path,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> list[Row]:
    """Train one configuration (or take its finished result) and describe each embedding."""
    resolved = dataclasses.asdict(config)
    finished = folder / RESULT_FILE
    if finished.exists():
        return list(json.loads(finished.read_text())["rows"])
    if not make_accelerator(config.device).is_main_process:
        train(config, splits, folder)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    recorder = Recorder(folder, splits)
    listeners: list[Progress] = [recorder, progress]
    tracked = Trackers(trackers, folder / "logs", recorder) if trackers else None
    if tracked is not None:
        listeners.insert(1, tracked)
    try:
        trained = train(config, splits, folder, ProgressList(*listeners))
    finally:
        if tracked is not None:
            tracked.finish()
    recorder.finish()
    rows: list[Row] = [
        {
            "method": config.method,
            "seed": config.seed,
            "embedding": embedding,
            "metrics": metrics,
            "protocol": config.protocol,
            "loss": config.loss,
            "augmentation": config.augmentation,
            "epoch": trained.chosen_epoch,
            "epochs": config.epochs,
            "graph_at_test_time": False,
            "distance": config.distance if embedding == "head" else "cosine",
            "dimension": trained.dimensions[embedding],
            "backbone": dataclasses.asdict(trained.backbone),
            "parameters": trained.num_parameters,
            "seconds": trained.seconds,
            "peak_memory_mb": trained.peak_memory_mb,
            "peak_gpu_memory_mb": trained.peak_gpu_memory_mb,
            "skipped_steps": sum(row.get("skipped_steps", 0) for row in trained.history),
            **other_epochs(trained.history, embedding),
            "published": published_beside(config, embedding, metrics),
            "config": resolved,
        }
        for embedding, metrics in trained.metrics.items()
    ]
    result = {"config": resolved, "commit": commit(), "rows": rows}
    write_text(finished, json.dumps(result, indent=1))
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return rows


def other_epochs(history: list[Row], embedding: str) -> dict[str, dict[str, float]]:
    """Test metrics of the last epoch, and each metric's best over the epochs (optimistic), where
    the test classes were looked at after every epoch."""
    start = f"test_{embedding}_"
    looks = [
        {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
        for row in history
    ]
    if not all(looks):
        return {}
    best = {name: max(look[name] for look in looks) for name in looks[0]}
    return {"last_epoch": looks[-1], "best_on_test": best}


def check_folder(config: TrainConfig, folder: Path) -> None:
    """Refuse a folder with the result or the checkpoint of another configuration.

    Raises:
        ValueError: If there is one; the message names the fields that differ.
    """
    if (folder / RESULT_FILE).exists():
        stored = json.loads((folder / RESULT_FILE).read_text())["config"]
    elif (folder / CHECKPOINT_FILE).exists():
        stored = yaml.safe_load((folder / "config.yaml").read_text())
    else:
        return
    config.check_stored(stored, folder)


def describe(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """What a reader needs to know to trust the numbers."""
    parts = {
        name: {"classes": part.num_classes, "images": len(part)}
        for name in ("train", "val", "test", "gallery")
        if (part := getattr(splits, name)) is not None
    }
    return {
        "dataset": {
            "name": splits.name,
            "digest": splits.digest,
            **parts,
            "skipped": list(splits.skipped),
        },
        **selection(config, splits),
        "image_size": config.image_size,
        **hardware(config),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": {
            "bgl": bgl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "torch_geometric": torch_geometric.__version__,
            "timm": timm.__version__,
        },
        "commit": commit(),
    }


def hardware(config: TrainConfig) -> dict[str, Any]:
    """Describe where a run computes, and in which precision."""
    accelerator = make_accelerator(config.device)
    cuda = accelerator.device.type == "cuda"
    training = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return {
        "device": str(accelerator.device),
        "gpu": torch.cuda.get_device_name(accelerator.device) if cuda else None,
        "processes": accelerator.num_processes,
        "precision": {"training": training, "evaluation": "float32"},
    }


def commit() -> str | None:
    """The commit of the code, if it runs in a clone."""
    if not (CONFIGS.parents[1] / ".git").exists():  # an installed copy in somebody's repository
        return None
    words = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(words, cwd=CONFIGS, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def selection(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """How the epoch is chosen, and how many epochs' weights the test classes are shown."""
    if config.protocol == "paper":
        looks = -(-config.epochs // config.eval_every)
        how = f"best of {looks} by test Recall@1 of the {config.select_embedding} embedding"
        how = how if looks > 1 else "last epoch"
        return {
            "protocol": "paper-style, optimistic: trained on all train classes",
            "selection": how,
            "test_evaluations": looks,
        }
    how = f"best validation MAP@R of the {config.select_embedding} embedding"
    how = how if splits.val is not None else "last epoch"
    looks = 1 + config.epochs * config.test_every_epoch
    return {"protocol": "honest", "selection": how, "test_evaluations": looks}
