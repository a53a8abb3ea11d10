"""Measure a run as rows of results.json, and describe what a reader needs to trust them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch_geometric
import yaml
from torch import Tensor

import bgl
from bgl._io import write_text
from bgl._records import read_record
from bgl.datasets import ImageDataset, Splits, raw_pixels, recall_at
from bgl.metrics import retrieval_metrics
from bgl.pipeline.files import read_config
from bgl.pipeline.folder import locked
from bgl.pipeline.recipes import matching_published
from bgl.pipeline.recorder import Recorder
from bgl.pipeline.results import (
    CONFIG_FILE,
    RESULT_FILE,
    About,
    Dataset,
    OtherEpochs,
    Result,
    Row,
)
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
from bgl.training.checkpoint import CHECKPOINT_FILE, check_digest
from bgl.training.distributed import (
    gather_rows,
    num_processes,
    on_first_process,
    process_index,
    shares,
)
from bgl.training.readout import add_readout
from bgl.training.step import choose_precision

# Images to measure, up to which their raw pixels are a row by default: half a minute's decoding.
FEW_IMAGES = 5000


def pixel_rows(config: TrainConfig, splits: Splits, wanted: bool | None = None) -> list[Row]:
    """Measure raw pixels, which need no encoder.

    Args:
        config: Where to compute.
        splits: The data.
        wanted: Whether to measure them, for which all images are decoded once more; None: where
            there are few.

    Returns:
        One row in the first of several processes, nothing in the others.
    """
    test, gallery = splits.test, splits.gallery
    if wanted is None:
        wanted = len(test) + (0 if gallery is None else len(gallery)) <= FEW_IMAGES
    if not wanted:
        return []
    accelerator = make_accelerator(config.device, config.deterministic)
    queries = shared_pixels(test)
    others = None if gallery is None else shared_pixels(gallery)
    if not accelerator.is_main_process:
        return []
    labels = None if gallery is None else gallery.labels
    k = recall_at(config.dataset)
    metrics = retrieval_metrics(queries, test.labels, others, labels, k=k)
    return [{"method": "pixels", "seed": None, "embedding": "pixels", "metrics": metrics}]


def baseline_rows(config: TrainConfig, splits: Splits, progress: Progress) -> list[Row]:
    """Measure the encoder before the first step.

    Args:
        config: The encoder, and where to compute.
        splits: The data.
        progress: Told about the images embedded.

    Returns:
        The rows in the first of several processes, nothing in the others.
    """
    accelerator = make_accelerator(config.device, config.deterministic)
    encoder, info = build_encoder(dataclasses.replace(config, method="none"), accelerator.device)
    evaluator = Evaluator(encoder, recall_at(config.dataset), config.workers, progress=progress)
    readout = None
    if config.readout != "none":
        features = evaluator.embed(splits.train)["backbone"]
        readout = add_readout(config, evaluator, splits, features)
    measured = evaluator.measure(splits.test, splits.gallery)
    measured.pop("head")  # which is random
    if not accelerator.is_main_process:
        return []
    return [
        {
            "method": "untrained" if config.weights == "none" else "pretrained",
            "seed": None,
            "embedding": embedding,
            "metrics": metrics,
            "backbone": dataclasses.asdict(info),
            "readout": readout if embedding == "readout" else None,
        }
        for embedding, metrics in measured.items()
    ]


def shared_pixels(data: ImageDataset) -> Tensor:
    """Compute the raw pixels of every image, each process those of a share."""
    own = shares(len(data), num_processes())
    mine = raw_pixels(data.subset(own[process_index()]))
    return gather_rows(mine, [len(share) for share in own])


def trained_rows(
    config: TrainConfig,
    splits: Splits,
    folder: Path,
    progress: Progress,
    trackers: Sequence[str] = (),
) -> list[Row]:
    """Train one configuration (or take its finished result) and describe each embedding.

    The first of several processes alone looks into the folder, and gets the rows of a training.

    Raises:
        ValueError: If the folder belongs to another configuration or to other data, or another
            process uses it.
    """
    accelerator = make_accelerator(config.device, config.deterministic)

    def finished() -> list[Row] | None:
        check_folder(config, folder, splits)
        return read_result(folder)["rows"] if (folder / RESULT_FILE).exists() else None

    rows = on_first_process(finished)
    if rows is not None:
        return rows
    if not accelerator.is_main_process:
        train(config, splits, folder, progress)
        return []
    with locked(folder):
        return _train_alone(config, splits, folder, progress, trackers)


def _train_alone(
    config: TrainConfig,
    splits: Splits,
    folder: Path,
    progress: Progress,
    trackers: Sequence[str],
) -> list[Row]:
    resolved = config.to_dict()
    write_text(folder / CONFIG_FILE, yaml.safe_dump(resolved, sort_keys=False))
    recorder = Recorder(folder, splits)
    tracked = [Trackers(trackers, folder / "logs", recorder)] if trackers else []
    try:
        trained = train(config, splits, folder, ProgressList(recorder, *tracked, progress))
    finally:
        for listener in tracked:
            listener.finish()
    recorder.finish()
    chosen = trained.history[trained.chosen_epoch - 1]
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
            "validation": chosen.get(f"val_{config.select_embedding}_map@r"),
            "graph_at_test_time": False,
            "distance": config.distance if embedding == "head" else "cosine",
            "dimension": trained.dimensions[embedding],
            "readout": trained.readout if embedding == "readout" else None,
            "backbone": dataclasses.asdict(trained.backbone),
            "parameters": trained.num_parameters,
            "seconds": trained.seconds,
            "peak_memory_mb": trained.peak_memory_mb,
            "peak_gpu_memory_mb": trained.peak_gpu_memory_mb,
            "images_per_second": trained.images_per_second,
            "waiting_for_data": trained.waiting_for_data,
            "skipped_steps": sum(row.get("skipped_steps", 0) for row in trained.history),
            **other_epochs(trained.history, embedding),  # type: ignore[typeddict-item]
            "published": matching_published(config, embedding, metrics),
            "config": resolved,
        }
        for embedding, metrics in trained.metrics.items()
    ]
    result = Result(config=resolved, digest=splits.digest, commit=commit(), rows=rows)
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1))
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return rows


def other_epochs(history: list[dict[str, Any]], embedding: str) -> OtherEpochs:
    """Return the test metrics of the last epoch, and each metric's best over the epochs.

    The latter are optimistic. Empty unless the test classes were measured after every epoch.
    """
    start = f"test_{embedding}_"
    tested = [
        {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
        for row in history
    ]
    if not all(tested):
        return {}
    best = {name: max(metrics[name] for metrics in tested) for name in tested[0]}
    return {"last_epoch": tested[-1], "best_on_test": best}


def read_result(folder: Path) -> Result:
    """Read the result of a finished training.

    Raises:
        OSError: If there is none, or it cannot be opened.
        ValueError: If the file holds anything else.
    """
    return read_record(folder / RESULT_FILE, Result, "remove it to train again")


def check_folder(config: TrainConfig, folder: Path, splits: Splits) -> None:
    """Refuse a folder that belongs to another configuration or to other data.

    Raises:
        ValueError: If there is one; the message says what differs.
    """
    if (folder / RESULT_FILE).exists():
        result = read_result(folder)
        config.check_stored(result["config"], folder)
        check_digest(splits.digest, result["digest"], folder)
    elif (folder / CHECKPOINT_FILE).exists():
        config.check_stored(read_config(folder).to_dict(), folder / CONFIG_FILE)


def describe(config: TrainConfig, splits: Splits) -> About:
    """Describe what a reader needs to know to trust the numbers."""
    sizes = {
        part: {"classes": images.num_classes, "images": len(images)}
        for part, images in splits.parts().items()
    }
    skipped = list(splits.skipped)
    about = {"name": splits.name, "digest": splits.digest, **sizes, "skipped": skipped}
    accelerator = make_accelerator(config.device, config.deterministic)
    cuda = accelerator.device.type == "cuda"
    nccl = cuda and torch.distributed.is_nccl_available()
    precision = choose_precision(config.precision, accelerator.device)
    return {
        "dataset": cast(Dataset, about),
        **selection(config, splits),
        "backbone": config.backbone,
        "weights": config.weights,
        "image_size": config.image_size,
        "device": str(accelerator.device),
        "gpu": torch.cuda.get_device_name(accelerator.device) if cuda else None,
        "processes": accelerator.num_processes,
        "precision": {"training": precision, "evaluation": "fp32"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": {
            "bgl": bgl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()) if cuda else None,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl else None,
            "torch_geometric": torch_geometric.__version__,
            "timm": timm.__version__,
        },
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the code, if it runs in a clone."""
    root = Path(bgl.__file__).parents[1]
    if not (root / ".git").exists():  # an installed copy in somebody's repository
        return None
    words = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def selection(config: TrainConfig, splits: Splits) -> About:
    """Describe how the epoch is chosen, and how many epochs are measured on the test classes."""
    readout = ""
    if config.readout != "none":
        by = "default" if splits.val is None else "best validation MAP@R"
        readout = f"; shrinkage of the readout: {by}"
    if config.protocol == "paper":
        tested = -(-config.epochs // config.eval_every)
        how = f"best of {tested} by test Recall@1 of the {config.select_embedding} embedding"
        return {
            "protocol": "paper-style, optimistic: trained on all train classes",
            "selection": (how if tested > 1 else "last epoch") + readout,
            "test_evaluations": tested,
        }
    how = f"best validation MAP@R of the {config.select_embedding} embedding"
    return {
        "protocol": "honest",
        "selection": (how if splits.val is not None else "last epoch") + readout,
        "test_evaluations": 1 + (config.epochs if config.test_every_epoch else 0),
    }
