"""An index of embedded images in one file: the embeddings, the images and the model's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bgl._checks import check_choice, check_finite, check_int, describe
from bgl._io import atomic_path
from bgl._neighbors import exact_search
from bgl.hyperbolic import HyperbolicDistance, paired_distance, rank_factors
from bgl.images import BrokenImageError
from bgl.images.finding import find_images
from bgl.models import Encoder, load, model_digest
from bgl.models.config import EMBEDDINGS
from bgl.models.files import HUB
from bgl.search.images import embed_files

INDEX_FILE = "index.safetensors"


@dataclass(frozen=True)
class Hit:
    """An image of the index and how near it is to the query."""

    path: Path
    score: float


class SearchIndex:
    r"""Search images for those nearest to another, by a trained model.

    The nearest are found in float32 on the model's device, as the largest inner products:

    - cosine: of the embeddings divided by their norms;
    - hyperbolic, on the ball of curvature :math:`-c`: of :func:`bgl.hyperbolic.rank_factors`,
      in the order of the distances.

    These products lose digits where points are close to each other or to the boundary. So twice
    as many and ten more are found than asked for, their scores are computed again in float64 from
    the embeddings, and the best of them are returned. A score is the cosine similarity, at most
    1, or the distance of ``encoder.distance``.

    Make one with :meth:`build` or :meth:`load`.

    Args:
        run: Where the model is, as :func:`bgl.models.load` takes it.
        model: The model's digest, :func:`bgl.models.model_digest`.
        encoder: That model.
        output: Which of its embeddings is compared: "readout", "backbone" or "head".
        paths: The images, in the order of the embeddings.
        embeddings: That output [N, D] for each image, in float32.
        broken: The files that could not be read when the index was built.
    """

    def __init__(
        self,
        run: str,
        model: str,
        encoder: Encoder,
        output: str,
        paths: Sequence[Path],
        embeddings: Tensor,
        broken: Sequence[BrokenImageError] = (),
    ) -> None:
        self.run = run
        self.model = model
        self.encoder = encoder
        self.output = output
        self.paths = list(paths)
        self.embeddings = embeddings
        self.broken = list(broken)
        distance = encoder.config.distance_of(output)
        hyperbolic = isinstance(distance, HyperbolicDistance)
        self._curvature: float | None = distance.c if hyperbolic else None
        entries = normalize(embeddings)
        if self._curvature is not None:
            entries = rank_factors(embeddings, c=self._curvature)[1]
        self._entries = entries.to(encoder.device)

    @classmethod
    def build(
        cls,
        run: str | Path,
        images: Sequence[str | Path],
        output: str = "default",
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
            output: Which of the model's embeddings to compare, as
                :meth:`bgl.models.Encoder.embed` takes it.
            batch_size: Images at a time.
            device: Where to compute.
            progress: Called after each batch with the number of files done and of all files.
            workers: Processes that load the images; 0: this process does.

        Raises:
            FileNotFoundError: If the model or an image is missing.
            ValueError: If no image can be read, or the model cannot be loaded.
        """
        model, encoder = model_digest(run), load(run, device)
        output = encoder.config.embedding if output == "default" else output
        check_choice(output, "output", encoder.config.embeddings)
        files = find_images(images)
        x, paths, broken = embed_files(encoder, files, output, batch_size, workers, progress)
        run = run if str(run).startswith(HUB) else Path(run).absolute()
        return cls(str(run), model, encoder, output, paths, x, broken)

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, as one file that is replaced atomically.

        Whoever loads it meanwhile gets the old index or the new one, whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        entries: _Entries = {
            "run": self.run,
            "model": self.model,
            "output": self.output,
            "digest": _digest(self.embeddings),
            "images": [str(path) for path in self.paths],
        }
        content = save({"embeddings": self.embeddings}, {"index": json.dumps(entries)})
        with atomic_path(folder / INDEX_FILE) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(
        cls, folder: str | Path, run: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> SearchIndex:
        """Read an index that :meth:`save` wrote, with its model.

        Args:
            folder: Where the index is.
            run: Where the model is now; default: where it was.
            device: Where to compute.

        Raises:
            FileNotFoundError: If the index or the model is missing.
            ValueError: If the index was built with another model, or its file is damaged.
        """
        path = Path(folder) / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected argument `folder` to hold an index ({INDEX_FILE}), but found none: "
                f"{folder}: build it, or pass the folder it is in"
            )
        entries, embeddings = _read(path)
        run, model, output = str(run or entries["run"]), entries["model"], entries["output"]
        if model_digest(run) != model:
            raise ValueError(
                f"Expected the index {folder} to be built with the model {run}, but it was built "
                "with another one: build it again, or name the model it was built with"
            )
        encoder = load(run, device)
        side = encoder.config.image_size
        sample = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        width = encoder.embed(sample, output=output).size(1)
        if embeddings.size(1) != width:
            raise ValueError(
                f"Expected {path} to hold embeddings with the {width} columns of the model {run}, "
                f"but got {embeddings.size(1)}: build the index again"
            )
        paths = [Path(image) for image in entries["images"]]
        return cls(run, model, encoder, output, paths, embeddings)

    @property
    def measure(self) -> str:
        """What a hit's score is: "cosine similarity" or "hyperbolic distance"."""
        return "cosine similarity" if self._curvature is None else "hyperbolic distance"

    def query(
        self, images: Sequence[str | Path], k: int = 10
    ) -> tuple[dict[Path, list[Hit]], list[BrokenImageError]]:
        """Find the ``k`` images of the index nearest to each of some images, nearest first.

        Returns:
            The hits of every image that could be read, and an error for each of the others.

        Raises:
            FileNotFoundError: If an image does not exist.
            ValueError: If no image can be read, or ``k`` is not an integer of at least 1.
        """
        check_int(k, "k", 1)
        x, paths, broken = embed_files(self.encoder, find_images(images), self.output)
        scores, rows = self.nearest(x, k)
        hits = {
            path: [Hit(self.paths[row], score) for row, score in zip(*pair, strict=True)]
            for path, *pair in zip(paths, rows.tolist(), scores.tolist(), strict=True)
        }
        return hits, broken

    @torch.no_grad()
    def nearest(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the entries nearest to embeddings.

        Args:
            x: The model's output [Q, D] for the queries.
            k: How many to find; all where the index has fewer.

        Returns:
            Scores in float64 and rows of ``paths``, both [Q, min(k, N)], nearest first.
        """
        c, k = self._curvature, min(k, len(self))
        asked = normalize(x) if c is None else -rank_factors(x, c=c)[0]
        rows = exact_search(asked.to(self._entries), self._entries, 2 * k + 10).cpu()
        queries = x.double().repeat_interleave(rows.size(1), dim=0)
        entries = self.embeddings[rows.flatten()].double()
        if c is None:
            scores = cosine_similarity(queries, entries).clamp(-1, 1)
        else:
            scores = paired_distance(queries, entries, c=c)
        # Stable: where distances are capped, the order of the products tells which is farther.
        scores, order = scores.view_as(rows).sort(dim=1, descending=c is None, stable=True)
        return scores[:, :k], rows.gather(1, order[:, :k])

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, output={self.output!r}, {self.run})"


class _Entries(TypedDict):
    """What an index file says besides its embeddings."""

    run: str
    model: str
    output: str
    digest: str
    images: list[str]


def _digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()


def _read(path: Path) -> tuple[_Entries, Tensor]:
    """Read an index file and check that its parts belong together."""
    try:
        with safe_open(path, "pt") as file:
            embeddings: Tensor = file.get_tensor("embeddings").clone()
            entries: _Entries = json.loads(file.metadata()["index"])
        for name in ("run", "model", "output", "digest"):
            if not isinstance(entries[name], str):
                raise TypeError(f"`{name}` is no text")
        check_choice(entries["output"], "output", EMBEDDINGS)
        images = entries["images"]
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise TypeError("`images` is no list of paths")
        if embeddings.dtype != torch.float32 or embeddings.shape[:-1] != (len(images),):
            raise ValueError(f"{len(images)} images have {describe(embeddings)}")
        if not images:
            raise ValueError("there are no images")
        if _digest(embeddings) != entries["digest"]:
            raise ValueError("the embeddings are not those that were written")
        check_finite(embeddings, "embeddings")
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"Expected {path} to be a whole index, but got {type(error).__name__}: {error}: "
            "build the index again"
        ) from error
    return entries, embeddings
