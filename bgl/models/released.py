"""Checkpoints that the authors' code saves, as our models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bgl.layers import BGFormerBlock, DyBGRBlock
from bgl.layers.block import BatchBlock
from bgl.models.backbone import create_backbone
from bgl.models.batch_graph_model import BatchGraphModel, make_head
from bgl.models.weights import load_strictly, read_state_dict, unwrap_state_dict

_EXPECTED = "Expected argument `checkpoint`"
_UNUSED = "glp.norm."  # a LayerNorm that the released code creates and never calls
_BGFORMER_NAMES = {  # the semantic branch has values only, under the name of all three
    "vg.qkv": "visual.qkv",
    "vg.proj": "visual.proj",
    "sg.qkv": "semantic.value",
    "sg.proj": "semantic.proj",
}


def load_released_checkpoint(
    checkpoint: str | Path | Mapping[str, Any],
    backbone: str | nn.Module = "vit_base_patch16_224.augreg_in21k",
    *,
    k: int = 30,
    num_iterations: int = 3,
    lam: float | None = None,
    beta: float = 0.5,
    epsilon: float = 0.5,
    heads: int = 8,
    curvature: float | None = 0.1,
    clip_radius: float | None = 2.3,
) -> BatchGraphModel:
    r"""Load a checkpoint of the released DyBGR code, or of its BGFormer predecessor.

    The state dict, on its own or under ``params`` or ``state_dict``, with or without ``module.``
    before its names, holds

    - ``body.*``: the encoder, by the names of the backbone that is loaded into;
    - ``head.0.weight`` [D, C], ``head.0.bias`` [D]: the linear part of the shared head;
    - ``blocks.N.norm1.*``, ``norm2.*``, ``mlp.fc1.*``, ``mlp.fc2.*``: DyBGR's blocks
      (``glp.norm.*``, which nothing uses, is dropped); those with ``vg.qkv``, ``vg.proj``,
      ``sg.qkv`` and ``sg.proj`` as well are BGFormer's. There may be none (Hyp-ViT).

    Number of blocks, channels C, hidden width of the FFN, embedding dimension D and precision
    (float32 at least) follow from these tensors; what they do not tell are arguments, by default
    as released. No weights are downloaded, and pickled code is refused, never run.

    Args:
        checkpoint: The file, or what it holds.
        backbone: A model name of timm, or the module itself (images [N, 3, H, W] -> features
            [N, C]), which is loaded into in place.
        k: Number of neighbours; in BGFormer blocks per head.
        num_iterations: DyBGR's T.
        lam: λ; None: 0.3 for DyBGR blocks, 0.5 for BGFormer blocks.
        beta: DyBGR's weight β of the label correlation.
        epsilon: DyBGR's share ε of the neighbours in the mix.
        heads: BGFormer's number of attention heads.
        curvature: Curvature c of the Poincaré ball; None: a Euclidean head, for the code's
            spherical mode (``hyp_c`` 0, where embeddings are compared by cosine).
        clip_radius: Features are clipped to this norm before the ball, or None.

    Returns:
        The model in evaluation mode on the CPU. To embed images, give it to an
        :class:`bgl.models.Encoder` (mean and std are 0.5 for ViT, ImageNet's otherwise).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, is of another form, or tensors are missing,
            unexpected or of another shape; the message names them.

    Example:
        >>> state = {"head.0.weight": torch.eye(2, 4), "head.0.bias": torch.zeros(2)}
        >>> model = load_released_checkpoint({"params": state}, nn.Flatten())
        >>> model(torch.zeros(3, 1, 2, 2)).embeddings.shape
        torch.Size([3, 2])
    """
    if isinstance(checkpoint, Mapping):
        state = unwrap_state_dict(checkpoint, _EXPECTED)
    else:
        state = read_state_dict(checkpoint, "checkpoint")
    body, head, numbered = _split(state)
    dim, channels = head["0.weight"].shape
    blocks = []
    for tensors in numbered:
        width = _matrix(tensors, "mlp.fc1.weight").size(0)
        # The block takes the integer part of their product, which then is the width again.
        ratio = (width + 0.5) / channels
        block: BatchBlock
        if "visual.qkv.weight" in tensors:
            block = BGFormerBlock(channels, heads, k, 0.5 if lam is None else lam, ratio)
            tensors.setdefault("visual.qkv.bias", torch.zeros(3 * channels))
            tensors.setdefault("semantic.value.bias", torch.zeros(channels))
        else:
            dybgr_lam = 0.3 if lam is None else lam
            block = DyBGRBlock(channels, k, num_iterations, dybgr_lam, beta, epsilon, ratio)
        blocks.append(block)
    if isinstance(backbone, str):
        backbone, _ = create_backbone(backbone, weights="none")
    model = BatchGraphModel(backbone, blocks, make_head(channels, dim, curvature, clip_radius))
    model.to(torch.promote_types(head["0.weight"].dtype, torch.float32))
    load_strictly(model.backbone, body, f"{_EXPECTED} to fit the backbone", "body.")
    load_strictly(model.head, head, f"{_EXPECTED} to fit the head", "head.")
    for i, (block, tensors) in enumerate(zip(blocks, numbered, strict=True)):
        expected = f"{_EXPECTED} to fit a {type(block).__name__}"
        load_strictly(block, tensors, expected, f"blocks.{i}.")
    return model.eval()


def _split(
    state: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    """Tensors of body, head and each block, by our names."""
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if part == "body":
            body[rest] = tensor
        elif part == "head":
            head[rest] = tensor
        elif part == "blocks" and number.isdecimal():
            tensors = blocks.setdefault(number, {})
            if not inner.startswith(_UNUSED):
                module, _, kind = inner.rpartition(".")
                tensors[f"{_BGFORMER_NAMES.get(module, module)}.{kind}"] = tensor
        else:
            raise ValueError(
                f"{_EXPECTED} to hold body.*, head.0.* and blocks.N.*, but got {name!r}"
            )
    _matrix(head, "0.weight", "head.")
    if sorted(map(int, blocks)) != list(range(len(blocks))):
        raise ValueError(f"{_EXPECTED} to number its blocks from 0, but got {sorted(blocks)}")
    return body, head, [blocks[str(i)] for i in range(len(blocks))]


def _matrix(tensors: dict[str, Tensor], name: str, prefix: str = "blocks.N.") -> Tensor:
    """Return the matrix of that name, which others take their shape from."""
    if name not in tensors or tensors[name].dim() != 2:
        found = list(tensors[name].shape) if name in tensors else "none"
        raise ValueError(f"{_EXPECTED} to hold a matrix {prefix}{name}, but got {found}")
    return tensors[name]
