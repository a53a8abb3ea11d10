"""Datasets with class-disjoint parts, and the transforms for them."""

from bgl._extras import extra

with extra("train"):
    from bgl.datasets.base import ImageDataset, Splits
    from bgl.datasets.cars import load_cars
    from bgl.datasets.cub import load_cub
    from bgl.datasets.downloading import download
    from bgl.datasets.emoji import load_emoji
    from bgl.datasets.figures import KNOWN_FIGURES, Figures
    from bgl.datasets.folder import load_folder
    from bgl.datasets.inshop import load_inshop
    from bgl.datasets.pixels import raw_pixels
    from bgl.datasets.registry import dataset_names, load_dataset
    from bgl.datasets.sop import load_sop
    from bgl.datasets.standin import standin_names, write_standin
    from bgl.datasets.table import load_table
    from bgl.datasets.vehicleid import load_vehicleid
    from bgl.images import (
        IMAGE_SUFFIXES,
        BrokenImageError,
        Transform,
        eval_transform,
        read_image,
        train_transform,
    )

__all__ = [
    "IMAGE_SUFFIXES",
    "KNOWN_FIGURES",
    "BrokenImageError",
    "Figures",
    "ImageDataset",
    "Splits",
    "Transform",
    "dataset_names",
    "download",
    "eval_transform",
    "load_cars",
    "load_cub",
    "load_dataset",
    "load_emoji",
    "load_folder",
    "load_inshop",
    "load_sop",
    "load_table",
    "load_vehicleid",
    "raw_pixels",
    "read_image",
    "standin_names",
    "train_transform",
    "write_standin",
]
