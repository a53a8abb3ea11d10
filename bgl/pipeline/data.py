"""Load the data that a configuration names, for training, measuring and pages alike."""

from __future__ import annotations

import dataclasses

from bgl.datasets import Splits, download, load_dataset
from bgl.training import TrainConfig


def load_splits(config: TrainConfig) -> Splits:
    """Load the data a configuration names; without validation classes in the protocol "paper".

    With ``config.download`` they are fetched first if need be; processes that want the same data
    wait for each other.

    Raises:
        ValueError: If the configuration and the files do not fit.
        FileNotFoundError: If the folder or a part of it does not exist.
        ConnectionError: If a download breaks off.
    """
    if config.download and config.data_root is not None:
        download(config.dataset, config.data_root)
    paper = config.protocol == "paper"
    splits = load_dataset(
        config.dataset,
        config.data_root,
        val_fraction=0.0 if paper else config.val_fraction,
        skip_broken=config.skip_broken,
        allow_partial=config.allow_partial,
        resplit=config.resplit,
        table=config.table,
    )
    # packaged data have fixed validation classes, which are not used then
    return dataclasses.replace(splits, val=None) if paper else splits
