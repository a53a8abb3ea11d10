"""Transforms: shapes, ranges, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from bgl.images import eval_transform, train_transform

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (image.float() / 255 - mean) / std


@pytest.mark.parametrize("shape", [(64, 64), (20, 90), (200, 100)])
def test_train_shape_and_range(shape: tuple[int, int]) -> None:
    transform = train_transform(48, MEAN, STD)
    image = noise(*shape)
    out = transform(image)
    assert out.shape == (3, 48, 48)
    assert out.dtype == torch.float32
    plain = out * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert plain.min() > -1e-5
    assert plain.max() < 1 + 1e-5
    assert not torch.equal(transform(image), out)


def test_train_flip_alone() -> None:
    image = noise(64, 64)
    for flip, expected in ((0.0, image), (1.0, image.flip(-1))):
        transform = train_transform(64, MEAN, STD, crop_scale=(1.0, 1.0), flip=flip)
        # A crop of the whole area may still change the aspect ratio; take a draw that didn't.
        outs = [transform(image) for _ in range(30)]
        for side, found in ((expected, True), (expected.flip(-1), False)):
            distance = min(float((out - normalised(side)).abs().max()) for out in outs)
            assert (distance < 1e-5) is found


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (200, 20), (7, 300)])
def test_train_draws_boxes_as_torchvision_does(shape: tuple[int, int]) -> None:
    """Means of top, left, height and width agree to four standard errors, and so do deviations."""
    crop = train_transform(48, MEAN, STD, crop_scale=(0.3, 0.8)).crop
    theirs = RandomResizedCrop(48, (0.3, 0.8))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    numbers = torch.rand(4000, 40, generator=generator).tolist()
    found = torch.tensor([crop._box(*shape, row) for row in numbers]).double()
    image = noise(*shape)
    expected = torch.tensor(
        [theirs.get_params(image, [0.3, 0.8], [3 / 4, 4 / 3]) for _ in numbers]
    ).double()
    assert (found >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= torch.tensor(shape)).all()
    for moment in (1, 2):
        a, b = found**moment, expected**moment
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 4 * error + 1e-9).all()


def test_eval_leaves_an_image_that_fits_alone() -> None:
    image = noise(64, 64)
    torch.testing.assert_close(eval_transform(64, MEAN, STD)(image), normalised(image))


def test_eval_crops_the_centre() -> None:
    image = noise(64, 100)
    out = eval_transform(64, MEAN, STD)(image)
    torch.testing.assert_close(out, normalised(image[:, :, 18:82]))


def test_eval_margin() -> None:
    """A photo's shorter side becomes 256, of which 224 are seen; a small image is seen whole."""
    frame = torch.full((3, 512, 512), 255, dtype=torch.uint8)
    frame[:, 28:-28, 28:-28] = 0  # 14 of 256 at each edge; the crop takes 16
    assert (eval_transform(224, MEAN, STD)(frame) == normalised(frame)[:, 99:100, 99:100]).all()
    whole = eval_transform(224, MEAN, STD, resize=224)(frame)
    assert (whole[:, 0] > 0).all()
    small = torch.zeros(3, 32, 32, dtype=torch.uint8)
    small[:, 0] = 255
    assert (eval_transform(224, MEAN, STD)(small)[:, 0] > 0).all()


@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (500, 100), (90, 33), (8, 256)])
def test_eval_is_a_plain_resize_and_crop(shape: tuple[int, int]) -> None:
    """Bit for bit, up to the ratio of sides at which an image loses its ends beforehand."""
    image = noise(*shape)
    side = 64 if min(shape) <= 64 else 73
    resized = v2.functional.resize(
        image, [side], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    cropped = v2.functional.center_crop(resized, [64])
    expected = v2.functional.to_dtype(cropped, torch.float32, scale=True)
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    assert torch.equal(
        eval_transform(64, MEAN, STD)(image), v2.functional.normalize(expected, mean, std)
    )


@pytest.mark.parametrize("thin", [(1, 20_000), (20_000, 1), (2, 30_000)])
def test_a_thin_image_is_not_blown_up(thin: tuple[int, int], monkeypatch: Any) -> None:
    sizes: list[int] = []
    resize = v2.functional.resize

    def watched(image: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        sizes.append(max(image.numel(), (out := resize(image, *args, **options)).numel()))
        return out

    monkeypatch.setattr(v2.functional, "resize", watched)
    image = torch.linspace(0, 255, max(thin)).to(torch.uint8).expand(3, min(thin), -1)
    image = image.transpose(1, 2) if thin[0] > thin[1] else image
    out = eval_transform(64, (0.0,) * 3, (1.0,) * 3)(image.contiguous())
    assert out.shape == (3, 64, 64)
    assert (out - 0.5).abs().max() < 0.01  # the middle
    assert sizes
    assert max(sizes) <= 3 * 64 * 64 * 32
    assert train_transform(64, MEAN, STD)(image).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image_size": 0}, "image_size"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.8, 0.5)}, "crop_scale"),
        ({"flip": 1.5}, "flip"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}"):
        train_transform(**{"image_size": 64, "mean": MEAN, "std": STD, **arguments})


def test_resize_below_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="`resize`"):
        eval_transform(64, MEAN, STD, resize=32)


def test_halves_of_a_transform_are_the_whole() -> None:
    images = [noise(50, 70), noise(90, 60)]
    transform = eval_transform(32, MEAN, STD)
    crops = torch.stack([transform.crop(image) for image in images])
    assert crops.dtype == torch.uint8
    batch = transform.normalize(crops.contiguous(memory_format=torch.channels_last))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack([transform(image) for image in images]))
    torch.testing.assert_close(batch, normalised(crops))
