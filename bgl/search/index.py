"""An index of embedded images in a folder: ``index.faiss`` with the vectors, ``index.json``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bgl._checks import check_choice, check_int
from bgl._io import atomic_path, write_text
from bgl.hyperbolic import HyperbolicDistance, rank_factors
from bgl.images import BrokenImageError
from bgl.models import Encoder, load, model_digest
from bgl.search.images import embed_files, find_images

VECTORS_FILE = "index.faiss"
ENTRIES_FILE = "index.json"


@dataclass(frozen=True)
class Hit:
    """An image of the index and how near it is to the query."""

    path: Path
    score: float


class SearchIndex:
    r"""Images that can be searched for those nearest to another, by a trained model.

    The search is exact, in one faiss ``IndexFlatIP``, whose score is an inner product:

    - cosine: the product of the embeddings divided by their norms;
    - hyperbolic, on the ball of curvature :math:`-c`: the distance
      :math:`\frac{2}{\sqrt c} \operatorname{arsinh} \sqrt s` grows with
      :math:`s = c\,|x - y|^2 / ((1 - c|x|^2)(1 - c|y|^2))`, which is the inner product of
      :func:`bgl.hyperbolic.rank_factors`.

    Make one with :meth:`build` or :meth:`load`.

    Args:
        run: Where the model is, as :func:`bgl.models.load` takes it.
        model: What tells it from any other: :func:`bgl.models.model_digest`.
        encoder: That model.
        output: Which of its outputs is compared: "head" or "backbone".
        paths: The images, in the order of the vectors.
        vectors: What faiss searches.
        broken: The files that could not be read when the index was built.
    """

    def __init__(
        self,
        run: str,
        model: str,
        encoder: Encoder,
        output: str,
        paths: Sequence[Path],
        vectors: faiss.Index,
        broken: Sequence[BrokenImageError] = (),
    ) -> None:
        self.run = run
        self.model = model
        self.encoder = encoder
        self.output = output
        self.paths = list(paths)
        self.vectors = vectors
        self.broken = list(broken)

    @classmethod
    def build(
        cls,
        run: str | Path,
        images: Sequence[str | Path],
        output: str = "head",
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
        workers: int = 0,
    ) -> SearchIndex:
        """Embed images and index them; files that cannot be read are left out, in ``broken``.

        Args:
            run: The folder of a model, or its name on the Hugging Face hub
                (:func:`bgl.models.load`).
            images: Files, and folders to search for images.
            output: Which of the model's outputs to compare: "head" or "backbone".
            batch_size: Images at a time.
            device: Where to compute.
            progress: Called after each batch with the number of files done and of all files.
            workers: Processes that load the images; 0: this process does.

        Raises:
            FileNotFoundError: If the model or an image is missing.
            ValueError: If no image can be read, or the model cannot be loaded.
        """
        check_choice(output, "output", ("head", "backbone"))
        model, encoder = model_digest(run), load(run, device)
        files = find_images(images)
        x, paths, broken = embed_files(encoder, files, output, batch_size, workers, progress)
        curvature = _curvature(encoder, output)
        stored = _entries(x, curvature)
        vectors = faiss.IndexFlatIP(stored.shape[1])
        vectors.add(stored)
        run = run if str(run).startswith("hf-hub:") else Path(run).absolute()
        return cls(str(run), model, encoder, output, paths, vectors, broken)

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder; each file is written atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = faiss.serialize_index(self.vectors).tobytes()
        about = {
            "run": self.run,
            "model": self.model,
            "output": self.output,
            "vectors": hashlib.sha256(content).hexdigest(),
            "images": [str(path) for path in self.paths],
        }
        with atomic_path(folder / VECTORS_FILE) as temporary:
            temporary.write_bytes(content)
        write_text(folder / ENTRIES_FILE, json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        run: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> SearchIndex:
        """An index that :meth:`save` wrote, with its model.

        Args:
            folder: Where the index is.
            run: Where the model is now; default: where it was.
            device: Where to compute.

        Raises:
            FileNotFoundError: If the index or the model is missing.
            ValueError: If the index was built with another model, or a file is broken.
        """
        folder = Path(folder)
        for name in (ENTRIES_FILE, VECTORS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"Expected argument `folder` to hold an index ({name}), but found none: "
                    f"{folder}"
                )
        content = (folder / VECTORS_FILE).read_bytes()
        try:
            about = json.loads((folder / ENTRIES_FILE).read_text(encoding="utf-8"))
            paths = [Path(path) for path in about["images"]]
            run, model, output = str(run or about["run"]), about["model"], about["output"]
            whole = about["vectors"] == hashlib.sha256(content).hexdigest()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Expected {folder / ENTRIES_FILE} to describe an index, but got "
                f"{type(error).__name__}: {error}"
            ) from error
        if not whole:
            raise ValueError(
                f"Expected {ENTRIES_FILE} and {VECTORS_FILE} in {folder} to belong together, but "
                "they do not: build the index again"
            )
        if model_digest(run) != model:
            raise ValueError(
                f"Expected the index {folder} to be built with the model {run}, but it was built "
                "with another one: build it again, or name the model it was built with"
            )
        vectors = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
        return cls(run, model, load(run, device), output, paths, vectors)

    @property
    def measure(self) -> str:
        """What a hit's score is: "cosine similarity" or "hyperbolic distance"."""
        hyperbolic = _curvature(self.encoder, self.output) is not None
        return "hyperbolic distance" if hyperbolic else "cosine similarity"

    def query(
        self, images: Sequence[str | Path], k: int = 10
    ) -> tuple[dict[Path, list[Hit]], list[BrokenImageError]]:
        """The ``k`` images of the index nearest to each of some images, nearest first.

        Returns:
            The hits of every image that could be read, and an error for each of the others.

        Raises:
            FileNotFoundError: If an image does not exist.
            ValueError: If no image can be read, or ``k`` is no integer ≥ 1.
        """
        k = min(check_int(k, "k", 1), len(self))
        x, paths, broken = embed_files(self.encoder, find_images(images), self.output)
        curvature = _curvature(self.encoder, self.output)
        products, rows = self.vectors.search(_queries(x, curvature), k)
        scores = _scores(torch.from_numpy(products), curvature)
        hits = {
            path: [Hit(self.paths[row], score) for row, score in zip(*pair, strict=True)]
            for path, *pair in zip(paths, rows.tolist(), scores.tolist(), strict=True)
        }
        return hits, broken

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, output={self.output!r}, {self.run})"


def _curvature(encoder: Encoder, output: str) -> float | None:
    """The curvature of the ball in which an output is compared; None: by cosine."""
    hyperbolic = isinstance(encoder.distance, HyperbolicDistance) and output == "head"
    return encoder.distance.c if hyperbolic else None


def _entries(y: Tensor, c: float | None) -> np.ndarray:
    """Embeddings [N, D] as faiss stores them."""
    stored = normalize(y) if c is None else rank_factors(y, c=c)[1]
    return np.ascontiguousarray(stored.numpy())


def _queries(x: Tensor, c: float | None) -> np.ndarray:
    """Embeddings [Q, D] whose largest inner products with the stored ones are the nearest."""
    asked = normalize(x) if c is None else -rank_factors(x, c=c)[0]
    return np.ascontiguousarray(asked.numpy())


def _scores(products: Tensor, c: float | None) -> Tensor:
    """Inner products [Q, k] as cosine similarities or hyperbolic distances."""
    if c is None:
        return products
    return 2 / math.sqrt(c) * (-products).clamp_min(0).sqrt().asinh()
