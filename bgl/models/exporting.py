"""A trained encoder as one file for other programs: ONNX or ``torch.export``."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from bgl._checks import check_choice
from bgl._extras import extra
from bgl._io import atomic_path
from bgl.models.batch_graph_model import BatchGraphModel
from bgl.models.files import CONFIG_FILE, locate
from bgl.models.storage import describe_config, load

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    folder: str | Path, path: str | Path, format: str = "onnx", output: str = "default"
) -> Path:
    """Write the encoder of a saved model as one file that runs without this library.

    The file takes ``images`` [N, 3, S, S] (float32, any N ≥ 1) as ``Encoder.transform`` gives
    them: the shorter side resized (bicubic, antialiased; see :func:`bgl.images.eval_transform`),
    the centre S × S, in [0, 1], minus ``mean``, divided by ``std``. It does none of that itself.
    It gives ``embeddings`` [N, D] (``output``) and ``features`` [N, C] (the backbone's), equal to
    those of :meth:`bgl.models.Encoder.embed`. The model's description, with S, ``resize``,
    ``mean`` and ``std``, is inside under ``model.json``: in an ONNX file's metadata, or in the
    extra files of ``torch.export.load``.

    Args:
        folder: The model, as :func:`bgl.models.load` takes it.
        path: File to write, atomically; ends in ``.onnx`` or, for "torch", in ``.pt2``.
        format: "onnx", or "torch" for ``torch.export``.
        output: As :meth:`bgl.models.Encoder.embed` takes it; the description inside has it as its
            ``embedding``.

    Returns:
        The file's path.

    Raises:
        ImportError: For ONNX, without ``pip install bgl[export]``.
        FileNotFoundError: If there is no such model.
        ValueError: If the format is not known, the path does not end as it should, or the model
            has no such output.

    Example:
        >>> import tempfile
        >>> from bgl.models import ModelConfig, assemble_model, create_backbone, save
        >>> backbone, info = create_backbone("test_resnet", weights="none")
        >>> config = ModelConfig("test_resnet", 32, info.mean, info.std, head_dim=4)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save(assemble_model(backbone, info.num_features, config), run, config)
        ...     program = torch.export.load(export(run, run + "/model.pt2", "torch"))
        >>> embeddings, features = program.module()(torch.zeros(3, 3, 32, 32))
        >>> embeddings.shape
        torch.Size([3, 4])
    """
    check_choice(format, "format", tuple(_SUFFIXES))
    path = Path(path)
    if path.suffix != _SUFFIXES[format]:
        raise ValueError(f"Expected argument `path` to end in {_SUFFIXES[format]}, got {path}")
    folder = locate(folder)
    encoder = load(folder)
    if output != "default":
        encoder.config = dataclasses.replace(encoder.config, embedding=output)
    description = describe_config(encoder.config)
    size = encoder.config.image_size
    images = torch.zeros(2, 3, size, size)  # 1 would be kept fixed
    program = torch.export.export(
        _Embed(encoder.model, encoder.config.embedding).eval(),
        (images,),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _onnx(program, description) if format == "onnx" else _torch(program, description)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


class _Embed(nn.Module):
    """What is left of a model without its blocks, with plain tensors as output."""

    def __init__(self, model: BatchGraphModel, embedding: str) -> None:
        super().__init__()
        self.backbone = model.backbone
        maps: dict[str, nn.Module] = {"head": model.head, "backbone": _Copy()}
        if model.readout is not None:
            maps["readout"] = model.readout
        self.last = maps[embedding]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.backbone(images)
        return self.last(features), features


class _Copy(nn.Module):
    """The same as an output of its own: two names of one tensor are not exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _torch(program: torch.export.ExportedProgram, description: str) -> bytes:
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={CONFIG_FILE: description})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, description: str) -> bytes:
    with extra("export"):
        import onnx  # noqa: F401  # torch's exporter needs both
        import onnxscript  # noqa: F401
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["embeddings", "features"],
        external_data=False,
        verbose=False,
    )
    assert exported is not None  # None only with the old exporter
    model = exported.model_proto
    model.metadata_props.add(key=CONFIG_FILE, value=description)
    return bytes(model.SerializeToString())
