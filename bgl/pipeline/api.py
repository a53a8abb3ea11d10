"""The pipeline from Python: train and measure in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bgl import models
from bgl.datasets import ImageDataset, Splits, dataset_names, split_by_class
from bgl.models import Encoder
from bgl.pipeline.data import at_most, load_splits
from bgl.pipeline.options import option_words, parse
from bgl.pipeline.results import Row, model_name
from bgl.pipeline.run import claimed
from bgl.pipeline.table import markdown
from bgl.pipeline.terminal import TerminalProgress


@dataclass(frozen=True)
class Trained:
    """What :func:`train` returns; printed, it is the table.

    Args:
        encoder: The model of the last method and seed.
        rows: One row for each method, seed and embedding, as in ``results.json``.
        folder: The run folder.
    """

    encoder: Encoder
    rows: list[Row]
    folder: Path

    def __str__(self) -> str:
        return markdown(self.rows)


def train(
    data: str | Path | Splits | ImageDataset | Any = "emoji",
    method: str | Sequence[str] | None = None,
    *,
    output_dir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Trained:
    """Train and measure on a dataset, as ``bgl train`` does.

    A call that was interrupted is resumed by repeating it with its ``output_dir``.

    Args:
        data: The name of a dataset; a folder with ``CLASS/*`` or ``train/CLASS/*`` …; a CSV file
            with the columns path and label; parts of your own; or one dataset, of Hugging Face or
            PyTorch as well (see :meth:`bgl.datasets.ImageDataset.from_items`), whose classes are
            split by :func:`bgl.datasets.split_by_class`.
        method: Blocks joined by "+", or "none"; several are trained in turn and compared.
            Default: that of the ``recipe``, else "none"; on the emoji "none" and "dybgr".
        output_dir: The run folder; None: a new one in ``runs/``.
        quiet: Print nothing.
        options: Everything else that :class:`bgl.training.TrainConfig` holds, options of blocks
            by their name, and ``recipe`` and ``quick`` as on the command line:
            ``epochs=20, seed=[0, 1], dybgr={"k": 10}``.

    Raises:
        ValueError: If an option is unknown or does not fit the data.
        FileNotFoundError: If the folder or a part of it does not exist.

    Example:
        >>> trained = bgl.train("photos", epochs=20)  # doctest: +SKIP
        >>> print(trained)  # doctest: +SKIP
        >>> trained.encoder.embed(["new.jpg"])  # doctest: +SKIP
    """
    if not isinstance(data, str | Path | Splits):
        images = data if isinstance(data, ImageDataset) else ImageDataset.from_items(data)
        share = 0.0 if options.get("protocol") == "paper" else options.get("val_fraction", 0.25)
        data = split_by_class(images, val_fraction=share)
    if isinstance(data, Splits):
        options["dataset"] = data.name
    elif str(data) in dataset_names():
        options["dataset"] = str(data)  # and its folder, if it has one, as `data_root`
    elif Path(data).is_file():
        options |= {"dataset": "table", "table": str(data)}
    else:
        options |= {"dataset": "folder", "data_root": str(data)}
    if method is not None:
        options["method"] = [method] if isinstance(method, str) else list(method)
    if output_dir is not None:
        options["output_dir"] = str(output_dir)
    command = parse([word for name, value in options.items() for word in option_words(name, value)])
    config = command.configs[0]
    splits = at_most(data, config.max_images) if isinstance(data, Splits) else load_splits(config)
    console = Console(quiet=quiet or int(os.environ.get("RANK", "0")) > 0)
    progress = TerminalProgress(console)
    with claimed(command, splits) as run, progress.bars:
        if failed := run.measure(progress, progress.say):
            raise next(iter(failed.values()))
        last = command.configs[-1]
        encoder = models.load(run.folder / model_name(last.method, last.seed), device="auto")
    return Trained(encoder, run.rows, run.folder)
