"""Batches that follow the data where nobody sets them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny_training import make_splits

from bgl.datasets import ImageDataset, Splits
from bgl.pipeline import options
from bgl.pipeline.data import at_most, fit_batch, fit_batches
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


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([9] * 10, 90, {9: 10}),
        ([9] * 10, 64, {8: 8}),  # classes go first, down to eight images of each
        ([100] * 5, 200, {40: 5}),  # then images
        ([100] * 50, 60, {8: 7}),
        ([3] * 20 + [50] * 20, 110, {3: 10, 8: 10}),
        ([9] * 10, 1, {8: 2}),  # two classes are the least
    ],
)
def test_some_images_of_many(sizes: list[int], most: int, expected: dict[int, int]) -> None:
    data = named(sizes)
    kept = at_most(Splits("d", data, None, named([2, 2], "t")), most).train
    found = kept.labels.bincount().tolist()
    assert {n: found.count(n) for n in found} == expected
    places = [data.class_names.index(name) for name in kept.class_names]
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] >= len(sizes) - 2  # spread over all
    for name in kept.paths:  # the same images in the same classes
        old, new = data.paths.index(name), kept.paths.index(name)
        assert data.class_names[data.labels[old]] == kept.class_names[kept.labels[new]]


def named(sizes: list[int], prefix: str = "c") -> ImageDataset:
    data = dataset(*sizes)
    names = [f"{prefix}{i}" for i in range(len(sizes))]
    return ImageDataset(data.images, data.labels, names)


def test_some_images_of_query_and_gallery_have_the_same_classes() -> None:
    parts = [named([2] * 4, "c"), None, named([9] * 10, "t"), named([5, 0] + [30] * 8, "t")]
    splits = at_most(Splits("d", *parts), 40)
    assert splits.gallery is not None
    assert splits.test.class_names == splits.gallery.class_names
    assert "t1" not in splits.test.class_names  # nothing to find
    assert len(splits.test) <= 40
    assert at_most(Splits("d", *parts), None) == Splits("d", *parts)
