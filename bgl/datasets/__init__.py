"""Datasets with class-disjoint parts."""

from bgl._extras import extra

with extra("train"):
    from bgl.datasets.base import ImageDataset, Splits
    from bgl.datasets.listing import Listing
    from bgl.datasets.pixels import raw_pixels
    from bgl.datasets.registry import (
        READERS,
        RECALL_AT,
        dataset_names,
        download,
        load_dataset,
        recall_at,
    )
    from bgl.datasets.splits import split_by_class

__all__ = [
    "READERS",
    "RECALL_AT",
    "ImageDataset",
    "Listing",
    "Splits",
    "dataset_names",
    "download",
    "load_dataset",
    "raw_pixels",
    "recall_at",
    "split_by_class",
]
