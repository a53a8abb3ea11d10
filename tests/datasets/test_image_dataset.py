"""ImageDataset and Splits: items, subsets and the digest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import write_pngs

from bgl.datasets import ImageDataset, Splits, raw_pixels


def in_memory(names: tuple[str, ...] = ("a", "b", "c"), per_class: int = 3) -> ImageDataset:
    labels = torch.arange(len(names)).repeat(per_class)
    images = torch.randint(0, 256, (len(labels), 3, 20, 24), dtype=torch.uint8)
    paths = [f"{names[c]}/{i}" for i, c in enumerate(labels.tolist())]
    return ImageDataset(images, labels, names, paths=paths)


def test_items_and_transform() -> None:
    data = in_memory()
    image, label = data[4]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 20, 24)
    assert label == 1
    assert type(label) is int
    doubled = data.with_transform(lambda x: x.float() * 2)
    torch.testing.assert_close(doubled[4][0], image.float() * 2)
    assert data[4][0].dtype == torch.uint8  # the first one has kept its own
    assert doubled.images is data.images


def test_subset_numbers_classes_again() -> None:
    data = in_memory()
    part = data.subset([8, 0, 5])  # classes c, a, c
    assert part.class_names == ["a", "c"]
    assert part.labels.tolist() == [1, 0, 1]
    assert part.paths == ["c/8", "a/0", "c/5"]
    assert torch.equal(part[0][0], data[8][0])


def test_select_classes_keeps_all_their_images() -> None:
    data = in_memory()
    part = data.select_classes([2, 0])
    assert part.class_names == ["a", "c"]
    expected = [i for i, label in enumerate(data.labels.tolist()) if label in (0, 2)]
    assert part.paths == [data.paths[i] for i in expected]
    for k, i in enumerate(expected):
        assert part.class_names[part[k][1]] == data.class_names[data[i][1]]


def test_files_and_memory_subset_alike(tmp_path: Path) -> None:
    data = in_memory()
    files = write_pngs(tmp_path, data.images)
    from_files = ImageDataset(files, data.labels, data.class_names)
    assert from_files.paths == [str(file) for file in files]
    for one, other in ((from_files, data), (from_files.subset([7, 2]), data.subset([7, 2]))):
        for i in range(len(other)):
            assert torch.equal(one[i][0], other[i][0])
            assert one[i][1] == other[i][1]
    torch.testing.assert_close(raw_pixels(from_files), raw_pixels(data))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, "images"),
        ({"images": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}, "images"),
        ({"images": "a.png"}, "images"),
        ({"labels": torch.tensor([0, 2])}, "labels"),
        ({"labels": torch.tensor([0, -1])}, "labels"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels"),
        ({"labels": torch.tensor([0])}, "labels"),
        ({"paths": ["x"]}, "paths"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], name: str) -> None:
    good = {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "class_names": ["a", "b"],
    }
    with pytest.raises(ValueError, match=f"`{name}`"):
        ImageDataset(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [[], [9], [-1], torch.ones(9, dtype=torch.bool), [0.5]])
def test_bad_indices_are_named(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="`indices`"):
        in_memory().subset(indices)


def test_bad_class_ids_are_named() -> None:
    with pytest.raises(ValueError, match="`ids`"):
        in_memory().select_classes([3])


def test_splits_share_no_class() -> None:
    train, test = in_memory(("a", "b")), in_memory(("c", "d"))
    splits = Splits("x", train, None, test)
    assert list(splits.parts()) == ["train", "test"]
    with pytest.raises(ValueError, match=r"`test`.*`train`.*'b'"):
        Splits("x", train, None, in_memory(("b", "c")))
    with pytest.raises(ValueError, match="`val`"):
        Splits("x", train, in_memory(("a", "e")), test)
    with pytest.raises(ValueError, match="`gallery`"):
        Splits("x", train, None, test, gallery=in_memory(("d", "c")))
    assert list(Splits("x", train, None, test, gallery=test).parts())[-1] == "gallery"


def test_digest_sees_parts_classes_and_items_but_not_their_order() -> None:
    a, b, c = in_memory(("a",)), in_memory(("b",)), in_memory(("c",))
    digest = Splits("x", a, b, c).digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert Splits("y", a.subset([2, 0, 1]), b, c).digest == digest
    renamed = ImageDataset(a.images, a.labels, ["z"], paths=a.paths)
    others = [
        Splits("x", b, a, c),
        Splits("x", a.subset([0, 1]), b, c),
        Splits("x", renamed, b, c),
        Splits("x", a, None, c),
    ]
    assert len({digest, *(other.digest for other in others)}) == 5


def test_digest_of_names_that_are_not_utf8() -> None:
    a, b = in_memory(("a",)), in_memory(("caf\udce9",))
    assert Splits("x", a, None, b).digest != Splits("x", b, None, a).digest


def test_raw_pixels_are_centred_area_means() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    pixels = raw_pixels(ImageDataset(images, torch.zeros(3, dtype=torch.int64), ["x"]))
    assert pixels.shape == (3, 768)
    cells = images.double().div(255).reshape(3, 3, 16, 2, 16, 3).mean(dim=(3, 5)).flatten(1)
    expected = (cells - cells.mean(dim=1, keepdim=True)).float()
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
