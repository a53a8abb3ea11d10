"""High-dimensional points on a plane."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from bgl._checks import check_choice, check_matrix

METHODS = ("auto", "tsne", "umap", "pca")


def project(
    x: Tensor, method: str = "auto", seed: int = 0, start: np.ndarray | None = None
) -> np.ndarray:
    """Map rows to a plane in which near rows of ``x`` by cosine lie near each other.

    Rows are brought to length 1 first. The result depends on ``seed`` alone; no global random
    generator is read or changed.

    Args:
        x: Features [N, C].
        method: "tsne" (scikit-learn), "umap" (umap-learn), "pca", or "auto": UMAP where it is
            installed, else t-SNE. Fewer than five points go by PCA.
        seed: Seed of the method.
        start: Where the points begin [N, 2], for instance an earlier result; so two maps of the
            same items can be compared.

    Returns:
        [N, 2] in float32, centred.

    Raises:
        ValueError: If ``x`` is no matrix or the method is unknown.
        ModuleNotFoundError: If UMAP is asked for by name and umap-learn is not installed.

    Example:
        >>> project(torch.eye(4), "pca").shape
        (4, 2)
    """
    check_matrix(x)
    check_choice(method, "method", METHODS)
    if method == "auto":
        method = _usual()
    elif method == "umap" and not find_spec("umap"):
        raise ModuleNotFoundError('method="umap" needs umap-learn: `pip install umap-learn`')
    rows = torch.nn.functional.normalize(x.detach().float().cpu().nan_to_num())
    reduced = pca(rows, 2) if start is None else start
    spread = float(np.std(reduced)) or 1.0
    if method == "pca" or len(rows) < 5:
        plane = pca(rows, 2)
    elif method == "umap":
        from umap import UMAP

        near = min(15, len(rows) - 1)
        plane = UMAP(n_neighbors=near, init=10 * reduced / spread, random_state=seed).fit_transform(
            rows.numpy()
        )
    else:
        from sklearn.manifold import TSNE

        plane = TSNE(
            perplexity=min(30.0, (len(rows) - 1) / 3),
            init=np.asarray(1e-4 * reduced / spread, dtype=np.float32),
            random_state=seed,
        ).fit_transform(rows.numpy())
    plane = np.asarray(plane, dtype=np.float32)
    return plane - plane.mean(axis=0)


def describe_method(n: int) -> str:
    """Name the method by which :func:`project` maps ``n`` rows unless it is told another."""
    return "PCA" if n < 5 else {"umap": "UMAP", "tsne": "t-SNE"}[_usual()]


def _usual() -> str:
    return "umap" if find_spec("umap") else "tsne"


def pca(x: Tensor, dim: int) -> np.ndarray:
    """Project rows on their ``dim`` main components (PCA), padded with zeros where there are fewer.

    scikit-learn fixes the signs, so the result is the same on every machine.
    """
    from sklearn.decomposition import PCA

    rows = x.detach().double().cpu().numpy()
    if len(rows) < 2:  # nothing varies
        return np.zeros((len(rows), dim), dtype=np.float32)
    parts = PCA(min(dim, *rows.shape), svd_solver="full").fit_transform(rows)
    return np.pad(parts, ((0, 0), (0, dim - parts.shape[1]))).astype(np.float32)
