"""Datasets of other libraries, and images in every form that people hold."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from bgl.datasets import ImageDataset, split_by_class
from bgl.images import BrokenImageError
from bgl.images.converting import as_image

NAMES = ["red", "green", "blue"]


def pixels(i: int) -> np.ndarray:
    return np.full((6, 8, 3), 10 * i, dtype=np.uint8)


def encoded(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


FORMS = {
    "array": pixels,
    "pillow": lambda i: Image.fromarray(pixels(i)),
    "bytes": encoded,
    "tensor": lambda i: torch.from_numpy(pixels(i)).permute(2, 0, 1),
    "float": lambda i: torch.from_numpy(pixels(i)).permute(2, 0, 1) / 255,
    "undecoded": lambda i: {"bytes": encoded(i), "path": None},
    "grey": lambda i: pixels(i)[:, :, :1],
}


class HuggingFace:
    """What bgl uses of ``datasets.Dataset``."""

    column_names = ("image", "fine_label")
    features = {"fine_label": SimpleNamespace(names=NAMES)}  # noqa: RUF012

    def __init__(self, form: str) -> None:
        self.form, self.reads = form, 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: int | str) -> Any:
        if key == "fine_label":
            return [i // 2 for i in range(6)]
        assert isinstance(key, int)
        self.reads += 1
        return {"image": FORMS[self.form](key), "fine_label": key // 2}


class Torchvision(Dataset[tuple[Any, int]]):
    classes = NAMES
    targets = (0, 0, 2, 2)

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        return FORMS["pillow"](index), self.targets[index]


def check(data: ImageDataset, labels: list[int], names: list[str]) -> None:
    assert data.labels.tolist() == labels
    assert data.class_names == names
    for i in range(len(data)):
        image, label = data[i]
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(pixels(i)).permute(2, 0, 1))
        assert label == labels[i]


@pytest.mark.parametrize("form", FORMS)
def test_a_hugging_face_dataset(form: str) -> None:
    source = HuggingFace(form)
    data = ImageDataset.from_items(source, label="fine_label")
    assert source.reads == 0  # the labels are a column of their own
    check(data, [0, 0, 1, 1, 2, 2], NAMES)


def test_a_torchvision_dataset_and_a_subset() -> None:
    source = Torchvision()
    data = ImageDataset.from_items(source)
    assert source.reads == 0
    check(data, [0, 0, 1, 1], ["red", "blue"])  # classes without images are left out
    part = ImageDataset.from_items(Subset(source, [0, 1]))
    check(part, [0, 0], ["0"])


def test_pairs_with_labels_of_text() -> None:
    pairs = [(pixels(i), name) for i, name in enumerate(["b", "a", "b"])]
    check(ImageDataset.from_items(pairs), [1, 0, 1], ["a", "b"])


def test_classes_of_one_name_stay_apart() -> None:
    pairs = [(pixels(i), i % 3) for i in range(6)]
    data = ImageDataset.from_items(pairs, class_names=["crane", "owl", "crane"])
    check(data, [0, 1, 2, 0, 1, 2], ["crane (0)", "owl", "crane (2)"])
    with pytest.raises(ValueError, match=r"`class_names` to have every name once, .*'crane'"):
        ImageDataset(["a.png"], torch.tensor([0]), ["crane", "crane"])


def test_parts_of_one_dataset() -> None:
    pairs = [(pixels(i % 20), f"class{i // 3}") for i in range(24)]
    splits = split_by_class(ImageDataset.from_items(pairs))
    assert [part.num_classes for part in splits.parts().values()] == [4, 2, 2]
    for part in splits.parts().values():
        for i in range(len(part)):
            place = int(part.paths[i])
            assert part.class_names[part.labels[i]] == f"class{place // 3}"
            assert int(part.read(i)[0, 0, 0]) == 10 * (place % 20)
    assert splits.digest == split_by_class(ImageDataset.from_items(pairs)).digest
    with pytest.raises(ValueError, match="6 classes or more"):
        split_by_class(ImageDataset.from_items(pairs[:15]))


def test_what_is_no_dataset_is_named() -> None:
    with pytest.raises(ValueError, match=r"`items` to be a dataset with a length.*got generator"):
        ImageDataset.from_items(x for x in range(3))
    with pytest.raises(ValueError, match=r"'label' is not among .*fine_label.*name them"):
        ImageDataset.from_items(HuggingFace("array"))
    normalised = [(torch.randn(3, 4, 4), 0)]
    with pytest.raises(BrokenImageError, match=r"item 0: it holds a float32 tensor.*without a tr"):
        ImageDataset.from_items(normalised).read(0)
    with pytest.raises(BrokenImageError, match="item 0: it holds None"):
        ImageDataset.from_items([(None, 0)]).read(0)


def test_bytes_that_are_no_image() -> None:
    with pytest.raises(BrokenImageError, match="the content of a file: UnidentifiedImageError"):
        as_image(b"no image")


@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("float", "undecoded")])
def test_the_encoder_takes_every_form(form: str) -> None:
    from torch import nn

    from bgl.models import BatchGraphModel, Encoder, ModelConfig, make_head

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8))
    config = ModelConfig("mine", 4, (0.5,) * 3, (1.0,) * 3, head_dim=2)
    encoder = Encoder(BatchGraphModel(backbone, [], make_head(8, 2)), config)
    batch: Tensor = torch.stack([torch.from_numpy(pixels(i)).permute(2, 0, 1) for i in range(3)])
    expected = encoder.embed(batch)
    assert torch.equal(encoder.embed([FORMS[form](i) for i in range(3)]), expected)
    one = FORMS[form](0)
    if form != "tensor":  # whose rows could be images
        with pytest.raises(ValueError, match="in a list"):
            encoder.embed(one)
    with pytest.raises(ValueError, match=r"float32 tensor of shape \[3, 4, 4\] at index 1"):
        encoder.embed([one, torch.rand(3, 4, 4)])
