"""Our own models in a folder: ``model.safetensors`` with the weights, ``model.json`` with the
rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bgl._checks import check_device
from bgl._io import write_tensors, write_text
from bgl.models.backbone import create_backbone
from bgl.models.batch_graph_model import BatchGraphModel
from bgl.models.config import BlockConfig, ModelConfig, assemble_model
from bgl.models.encoder import Encoder
from bgl.models.files import CONFIG_FILE, WEIGHTS_FILE, check_files, locate
from bgl.models.weights import load_strictly, read_state_dict


def save(
    model: BatchGraphModel | Mapping[str, Tensor], folder: str | Path, config: ModelConfig
) -> None:
    """Write a model so that :func:`load` can build it again; each file is written atomically.

    Args:
        model: The model, or its ``state_dict()``; weights of any device.
        folder: Where to; made if needed.
        config: What the model was built from.

    Example:
        >>> import tempfile
        >>> from bgl.models import assemble_model, create_backbone, load
        >>> backbone, info = create_backbone("test_resnet", weights="none")
        >>> config = ModelConfig("test_resnet", 32, info.mean, info.std, head_dim=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(assemble_model(backbone, info.num_features, config), folder, config)
        ...     encoder = load(folder)
        >>> encoder.embed(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)).shape
        torch.Size([2, 4])
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, describe_config(config))
    state = model.state_dict() if isinstance(model, BatchGraphModel) else dict(model)
    write_tensors(folder / WEIGHTS_FILE, state)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load a saved model, ready to embed images: ``load("runs/x/none-seed0").embed(paths)``.

    A folder needs no network: pretrained weights are not looked for. The model itself, with its
    blocks, is the result's ``model``.

    Args:
        folder: Where :func:`save` or a run wrote ``model.json`` and ``model.safetensors``;
            ``"emoji"``, for the small encoder that comes with this package; or
            ``"hf-hub:USER/NAME"``, with or without ``@REVISION``, for a model that
            :func:`push_to_hub` put on the Hugging Face hub.
        device: Where to compute; "auto": on a GPU if there is one.

    Raises:
        FileNotFoundError: If the folder or a file of it is missing.
        ValueError: If a file cannot be read, the two do not belong together, weights are not
            finite, or there is no such device.
    """
    device = check_device(device)
    folder = locate(folder)
    check_files(folder)
    config = read_config(folder)
    model = empty_model(config)
    path = folder / WEIGHTS_FILE
    load_strictly(
        model, read_state_dict(path, "folder"), f"Expected {path} to fit {folder / CONFIG_FILE}"
    )
    return Encoder(model, config, device)


def empty_model(config: ModelConfig) -> BatchGraphModel:
    """Build the model that ``config`` describes, without the weights that it had."""
    backbone, info = create_backbone(config.backbone, "none", config.image_size, config.pool)
    return assemble_model(backbone, info.num_features, config)


def describe_config(config: ModelConfig) -> str:
    """Write the description of a model as ``model.json`` holds it."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def read_config(folder: str | Path) -> ModelConfig:
    """Read the description of the model in a folder that :func:`save` wrote.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it does not describe a model.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("mean", "std"):
            values[name] = tuple(values[name])
        values["blocks"] = tuple(BlockConfig(**block) for block in values["blocks"])
        return ModelConfig(**values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"Expected {path} to describe a model, but got {type(error).__name__}: {error}: save "
            "the model again"
        ) from error
