"""The files of a saved model: in a folder, in this package or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

CONFIG_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
HUB = "hf-hub:"  # timm's mark of a name on the hub
HUB_TIMEOUT = 5.0  # seconds; a hub that answers does so in a fraction

# Models to start from: name -> a folder of this package, or a model on the hub
MODELS = {"emoji": str(Path(__file__).with_name("emoji"))}


def is_name(model: str | Path) -> bool:
    """Whether that is a model's name, here or on the hub, and not a folder."""
    return model in MODELS or str(model).startswith(HUB)


def address(model: str | Path) -> str:
    """What a record keeps of a model's place: its name, or its absolute folder."""
    return str(model) if is_name(model) else str(Path(model).absolute())


def locate(model: str | Path) -> Path:
    """Find the local folder of a model; one on the hub is downloaded if needed.

    Args:
        model: A folder; as text, a name in ``MODELS``, which wins over a folder of that name
            (``"./emoji"`` is the folder); or ``"hf-hub:USER/NAME"`` with or without ``@REVISION``.

    Raises:
        FileNotFoundError: If the hub has no such model, or cannot be reached and the model was not
            downloaded before.
    """
    if model in MODELS:
        model = MODELS[str(model)]
    if not str(model).startswith(HUB):
        return Path(model)
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    name, _, revision = str(model).removeprefix(HUB).partition("@")
    try:
        files = [CONFIG_FILE, WEIGHTS_FILE]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except (OSError, ValueError) as error:  # the hub's own errors are kinds of these
        raise FileNotFoundError(
            f"Expected argument `folder` to be a model on the Hugging Face hub, but cannot get "
            f"{model} ({type(error).__name__}: {error}): check the name and the network"
        ) from error


def check_files(folder: Path) -> None:
    """Raise unless a folder holds the files of a model; models in its own folders are named.

    Raises:
        FileNotFoundError: If one is missing.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            inside = sorted(file.parent.name for file in folder.glob(f"*/{name}"))
            hint = f"; it holds models in {', '.join(inside)}" if inside else ""
            raise FileNotFoundError(
                f"Expected argument `folder` to hold a {name}, but found none: {folder}{hint}"
            )


def model_digest(model: str | Path) -> str:
    """Compute the fingerprint of a saved model: the SHA-256 of its files.

    Args:
        model: As :func:`locate` takes it.

    Raises:
        FileNotFoundError: If the model or a file of it is missing.
    """
    folder = locate(model)
    check_files(folder)
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())  # a length each
    return digest.hexdigest()
