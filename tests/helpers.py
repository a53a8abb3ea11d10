"""What tests of several parts share; those of the layers run without any extra."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from bgl.training import TrainConfig


def assert_close(actual: Tensor, expected: Tensor, tol: float = 1e-8) -> None:
    """Equal to ``tol`` relative to the largest expected magnitude (1e-8: the golden tolerance)."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol * scale)


def write_noisy_classes(
    root: Path, classes: dict[str, int], per_class: int, name: str = "{part}{number}"
) -> Path:
    """A folder dataset: classes of one colour each, under noise; how many of them by part."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part, count in classes.items():
        for number in range(count):
            folder = root / part / name.format(part=part, number=number)
            folder.mkdir(parents=True)
            colour = torch.randint(40, 216, (1, 1, 3), generator=generator)
            for i in range(per_class):
                noise = torch.randint(-40, 41, (40, 36, 3), generator=generator)
                Image.fromarray((colour + noise).to(torch.uint8).numpy()).save(folder / f"{i}.png")
    return root


def clusters(classes: int = 12, size: int = 6, channels: int = 16, noise: float = 1.0) -> Tensor:
    """Noisy members of ``classes`` classes, one class after the other."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, channels, generator=generator)
    spread = torch.randn(classes * size, channels, generator=generator)
    return (centers.repeat_interleave(size, 0) + noise * spread).double()


def make_run(folder: Path, curvature: float | None = None) -> Path:
    """A model as a run leaves it, with random weights."""
    from bgl.models import ModelConfig, assemble_model, create_backbone, save

    backbone, info = create_backbone("test_resnet", "none")
    config = ModelConfig("test_resnet", 16, (0.5,) * 3, (0.5,) * 3, 6, curvature=curvature)
    save(assemble_model(backbone, info.num_features, config), folder, config)
    return folder


def result_row(method: str, seed: int | None, value: float, **more: Any) -> dict[str, Any]:
    """A row of results.json; without a seed that of an encoder that was not trained."""
    from bgl.pipeline.comparison import METRICS

    trained = {} if seed is None else {"epoch": 4, "seconds": 90.0, "loss": "pairwise-ce"}
    return {
        "method": method,
        "seed": seed,
        "embedding": "head",
        "metrics": dict.fromkeys(METRICS, value),
        **trained,
        **more,
    }


def assert_as_written(config: TrainConfig, written: dict[str, Any]) -> None:
    """The configuration has the values of a YAML file."""
    from bgl.augment import AUGMENTATIONS
    from bgl.models import BLOCKS

    resolved = config.to_dict()
    for name, value in written.items():
        if name in BLOCKS or name in AUGMENTATIONS:  # kept where it is used
            assert value.items() <= resolved.get(name, value).items()
        elif isinstance(value, dict):
            assert value.items() <= resolved[name].items()
        else:
            assert resolved[name] == value


def write_pngs(folder: Path, images: Iterable[Tensor]) -> list[Path]:
    """Write uint8 images [3, H, W] as 0.png, 1.png, …; their paths."""
    from PIL import Image

    paths = []
    for i, image in enumerate(images):
        paths.append(folder / f"{i}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes, in elements."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor) and not any(tensor is given for given in args):
                self.numel = max(self.numel, tensor.numel())
        return out


def without_values(module: nn.Module) -> nn.Module:
    """The module with fake parameters and buffers."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(torch.empty(value.shape)))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(value.shape, dtype=value.dtype))
    return module
