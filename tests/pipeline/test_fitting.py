"""Batches that follow the data where nobody sets them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny_training import make_splits

from bgl.datasets import ImageDataset
from bgl.pipeline import options
from bgl.pipeline.data import fit_batch, fit_batches
from bgl.training import TrainConfig

BOTH = {"batch_size", "per_class"}


def dataset(*sizes: int) -> ImageDataset:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return ImageDataset(images, labels, [str(i) for i in range(len(sizes))])


@pytest.mark.parametrize(
    ("sizes", "given", "expected"),
    [
        ([9] * 40, {}, (128, 4)),
        ([9] * 12, {}, (48, 4)),  # few classes
        ([3] * 100, {}, (126, 3)),  # small ones
        ([1] * 100, {}, (128, 2)),  # no pairs without two
        ([2] * 9 + [50] * 8, {}, (34, 2)),  # by the middle one
        ([9] * 12, {"per_class": 5}, (60, 5)),
        ([3] * 100, {"batch_size": 64}, (64, 4)),  # 3 is no divisor
        ([3] * 100, {"batch_size": 66}, (66, 3)),
        ([9] * 12, {"batch_size": 64, "per_class": 4}, (64, 4)),  # does not fit: an error later
    ],
)
def test_the_largest_batch_that_the_data_can_fill(
    sizes: list[int], given: dict[str, int], expected: tuple[int, int]
) -> None:
    free = BOTH - given.keys()
    values: dict[str, Any] = {"batch_size": 128, "per_class": 4, **given}
    config = TrainConfig(**values | options.matching_batch(**values, free=free))
    fitted = fit_batch(config, free, dataset(*sizes))
    assert (fitted.batch_size, fitted.per_class) == expected


def test_one_line_says_so_and_what_was_given_stays() -> None:
    splits = make_splits()
    command = options.parse(
        ["--dataset", "folder", "--method", "none", "dybgr", "--seed", "0", "1"]
    )
    with pytest.warns(
        UserWarning, match="^Batches have 32 images, 4 of each of 8 classes"
    ) as notes:
        fitted = fit_batches(command, splits)
    assert len(notes) == 1
    assert {(config.batch_size, config.per_class) for config in fitted.configs} == {(32, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_batches(fitted, splits) == fitted
        words = ["--dataset", "folder", "--batch-size", "128", "--per-class", "4"]
        command = options.parse(words)
        assert fit_batches(command, splits).configs == command.configs


def test_values_of_files_are_given_as_well() -> None:
    assert set(options.parse(["--dataset", "emoji"]).free) == {frozenset()}
    assert set(options.parse(["--dataset", "folder"]).free) == {frozenset(BOTH)}
    command = options.parse(["--dataset", "folder", "--per-class", "3"])
    assert set(command.free) == {frozenset({"batch_size"})}
    assert command.configs[0].batch_size == 126
