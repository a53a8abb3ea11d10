"""An index of embedded images in a store, searched by the model that embedded them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bgl._checks import check_choice, check_finite, check_int, check_matrix
from bgl.embedding.about import About
from bgl.embedding.embedder import width
from bgl.forecasting import Forecast, Setting, forecast
from bgl.hyperbolic import paired_distance
from bgl.images import BrokenImageError
from bgl.images.finding import find_images
from bgl.models import Encoder, load, model_digest
from bgl.models.files import address
from bgl.search.approximate import candidates
from bgl.search.folder import FolderStore
from bgl.search.store import Rows, Store, create_store, open_store

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Hit:
    """An image of the index, how near it is to the query, and its label ("" for none)."""

    path: Path
    score: float
    label: str = ""


class SearchIndex:
    r"""Search images for those nearest to another, by a trained model.

    The index is in a *store*, named by an address:

    - a folder, the default: one file, which every change replaces atomically. Whoever reads it
      meanwhile has the old index or the new one, whole. Vectors are compared exactly, on the
      model's device; more than :math:`2^{26}` numbers of them by a faiss index, whose recall is
      measured when it is built (:attr:`engine` tells it);
    - ``milvus:FILE.db``, Milvus Lite in a file, or ``milvus:http://HOST:PORT``, a cluster of
      Milvus; for embeddings that are compared by cosine.

    A store finds twice as many and ten more images than are asked for, in float32: by cosine, or,
    on the ball of curvature :math:`-c`, in the order of :func:`bgl.hyperbolic.rank_factors`. Such
    products lose digits where points are close to each other or to the boundary. So the scores
    of these candidates are computed again in float64 from the stored embeddings, and the best of
    them are returned. A score is the cosine similarity, at most 1, or the distance of
    ``encoder.distance``, and is the same from every store.

    Make one with :meth:`build` or :meth:`load`.

    Args:
        encoder: The model.
        store: Where the index is.
        address: Its address.
        broken: The files that could not be read when the index was built.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: Store,
        address: str,
        broken: Sequence[BrokenImageError] = (),
    ) -> None:
        self.encoder, self.store, self.address = encoder, store, address
        self.broken = list(broken)

    @classmethod
    def build(
        cls,
        run: str | Path,
        images: Sequence[str | Path],
        store: str | Path,
        output: str = "default",
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        progress: Progress = _silent,
        workers: int = 0,
    ) -> SearchIndex:
        """Embed images and index them; files that cannot be read are left out, in ``broken``.

        Args:
            run: The folder of a model, or its name on the Hugging Face hub
                (:func:`bgl.models.load`).
            images: Files, and folders to search for images. Or one folder that ``bgl embed``
                wrote, whose vectors are taken.
            store: The address of the index, in the place of the one that is there.
            output: Which of the model's embeddings to compare, as
                :meth:`bgl.models.Encoder.embed` takes it.
            batch_size: Images at a time.
            device: Where to compute.
            progress: Called after each batch with the number of files done and of all files.
            workers: Processes that load the images; 0: this process does.

        Raises:
            ImportError: If the store needs a package that is missing.
            FileNotFoundError: If the model or an image is missing.
            ValueError: If no image can be read, the model cannot be loaded, or the vectors are
                another model's.
            OSError: If the store cannot be written or reached.
        """
        model, encoder = model_digest(run), load(run, device)
        config = encoder.config
        output = config.embedding if output == "default" else output
        check_choice(output, "output", config.embeddings)
        curvature = config.curvature if output == "head" else None
        rows: Iterable[Rows]
        broken: list[BrokenImageError] = []
        if _is_embedded(images):
            rows = _embedded_rows(images[0], model, output)
        else:
            new, broken = _embed(
                encoder, find_images(images), output, batch_size, workers, progress
            )
            rows = [new]
        about = About(address(run), model, output, curvature, width(encoder, output))
        return cls(encoder, create_store(store, about, rows, encoder.device), str(store), broken)

    @classmethod
    def load(
        cls, store: str | Path, run: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> SearchIndex:
        """Open an index that :meth:`build` wrote, with its model.

        Args:
            store: The address of the index.
            run: Where the model is now; default: where it was.
            device: Where to compute.

        Raises:
            ImportError: If the store needs a package that is missing.
            FileNotFoundError: If the index or the model is missing.
            ValueError: If the index was built with another model, or is damaged.
            OSError: If the store cannot be reached.
        """
        opened = open_store(store, device)
        about = opened.about
        run = str(run or about.run)
        if model_digest(run) != about.model:
            raise ValueError(
                f"Expected the index {store} to be built with the model {run}, but it was built "
                "with another one: build it again, or name the model it was built with"
            )
        encoder = load(run, device)
        columns = width(encoder, about.output)
        if about.dim != columns:
            raise ValueError(
                f"Expected {store} to hold embeddings with the {columns} columns of the model "
                f"{run}, but got {about.dim}: build the index again"
            )
        return cls(encoder, opened, str(store))

    @property
    def measure(self) -> str:
        """What a hit's score is: "cosine similarity" or "hyperbolic distance"."""
        hyperbolic = self.store.about.curvature is not None
        return "hyperbolic distance" if hyperbolic else "cosine similarity"

    @property
    def engine(self) -> str:
        """What finds the nearest, with the measured recall where it is approximate."""
        return self.store.engine

    def forecast(self) -> Forecast:
        """Estimate what :func:`bgl.refine` would change among the images (:func:`bgl.forecast`).

        Raises:
            ValueError: If the index is not in a folder or not compared by cosine, or as
                :func:`bgl.forecast`.
        """
        if not isinstance(self.store, FolderStore) or self.store.about.curvature is not None:
            raise ValueError(
                "Expected an index in a folder that is compared by cosine, whose vectors can be "
                f"refined, got {self.address}, compared by {self.measure}: pass embeddings to "
                "bgl.forecast"
            )
        x = self.store.vectors
        return forecast(x, **Setting().lowered(len(x))._asdict())

    def add(
        self,
        images: Sequence[str | Path],
        batch_size: int = 64,
        progress: Progress = _silent,
        workers: int = 0,
    ) -> tuple[int, list[BrokenImageError]]:
        """Embed the images that the index does not have yet, and add them.

        Args:
            images: Files, and folders to search for images.
            batch_size, progress, workers: As :meth:`build` takes them.

        Returns:
            How many were added, and an error for each of those that could not be read.

        Raises:
            FileNotFoundError: If an image does not exist.
            ValueError: If there are new images and none can be read.
        """
        paths = find_images(images)
        known = set(self.store.find([str(path) for path in paths]).keys)
        new = [path for path in paths if str(path) not in known]
        return self._put(new, batch_size, progress, workers)

    def update(
        self,
        images: Sequence[str | Path],
        batch_size: int = 64,
        progress: Progress = _silent,
        workers: int = 0,
    ) -> tuple[int, list[BrokenImageError]]:
        """Embed images that have changed, and put them in the place of what the index has.

        Images that it does not have are added. Arguments, results and errors are those of
        :meth:`add`.
        """
        return self._put(find_images(images), batch_size, progress, workers)

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Remove images by path; the files need not exist.

        Returns:
            How many were removed.

        Raises:
            FileNotFoundError: If the index lacks one of them.
            ValueError: If none would be left.
        """
        keys = self._found(paths).keys
        self.store.change(removed=keys)
        return len(keys)

    def query(
        self, images: Sequence[str | Path], k: int = 10, label: str | None = None
    ) -> tuple[dict[Path, list[Hit]], list[BrokenImageError]]:
        """Find the ``k`` images of the index nearest to each of some images, nearest first.

        Args:
            images: Files, and folders to search for images. A path that no longer exists is
                looked up in the index.
            k: How many to find; all where the index has fewer.
            label: Only images with this label are found.

        Returns:
            The hits of every image that could be read, and an error for each of the others.

        Raises:
            FileNotFoundError: If an image neither exists nor is in the index.
            ValueError: If no image can be read, ``k`` is not an integer of at least 1, or there
                is no image with the label.
        """
        check_int(k, "k", 1)
        gone = [image for image in images if not Path(image).exists()]
        known = self._found(gone)
        files = find_images([image for image in images if image not in gone])
        x, keys = known.vectors, known.keys
        broken: list[BrokenImageError] = []
        if files:
            new, broken = _embed(self.encoder, files, self.store.about.output)
            x, keys = torch.cat([x, new.vectors]), [*keys, *new.keys]
        return dict(zip(map(Path, keys), self.nearest(x, k, label), strict=True)), broken

    @torch.no_grad()
    def nearest(self, x: Tensor, k: int = 10, label: str | None = None) -> list[list[Hit]]:
        """Find the ``k`` images nearest to each of some embeddings, nearest first.

        Args:
            x: The model's output [Q, D] for the queries.
            k: How many to find; all where the index has fewer.
            label: Only images with this label are found.

        Raises:
            ValueError: If ``x`` is no such matrix, ``k`` is not an integer of at least 1, or
                there is no image with the label.
        """
        check_matrix(x, "x", f"[Q, {self.store.about.dim}]")
        if x.size(1) != self.store.about.dim:
            raise ValueError(
                f"Expected argument `x` to have {self.store.about.dim} columns, as the index "
                f"has, got {x.size(1)}"
            )
        check_int(k, "k", 1)
        x = x.cpu()
        found = self.store.search(x, candidates(k), label) if len(x) else []
        if label is not None and found and not found[0].keys:
            raise ValueError(
                f"Expected argument `label` (--label) to be one that images of the index have, "
                f"got {label!r}: labels are the names of their folders, or of the label column"
            )
        return [self._best(query, rows, k) for query, rows in zip(x, found, strict=True)]

    def _best(self, query: Tensor, rows: Rows, k: int) -> list[Hit]:
        """The best of some candidates by their exact scores."""
        c = self.store.about.curvature
        queries, entries = query.double().expand(len(rows.keys), -1), rows.vectors.double()
        if c is None:
            scores = cosine_similarity(queries, entries).clamp(-1, 1)
        else:
            scores = paired_distance(queries, entries, c=c)
        # Stable: where distances are capped, the order of the products tells which is farther.
        scores, order = scores.sort(descending=c is None, stable=True)
        return [
            Hit(Path(rows.keys[i]), score, rows.labels[i])
            for i, score in zip(order[:k].tolist(), scores[:k].tolist(), strict=True)
        ]

    def _found(self, paths: Sequence[str | Path]) -> Rows:
        """Look up paths in the index, as they are written or made absolute."""
        written = list(map(str, paths))
        known = set(self.store.find(written).keys)
        places = (key if key in known else str(Path(key).absolute()) for key in written)
        keys = list(dict.fromkeys(places))
        found = self.store.find(keys)
        there = set(found.keys)
        missing = [key for key in keys if key not in there]
        if missing:
            raise FileNotFoundError(
                "Expected argument `images` to be files and folders, or paths in the index, but "
                f"there is no {missing[0]}"
            )
        return found

    def _put(
        self, paths: Sequence[Path], batch_size: int, progress: Progress, workers: int
    ) -> tuple[int, list[BrokenImageError]]:
        if not paths:
            return 0, []
        output = self.store.about.output
        rows, broken = _embed(self.encoder, paths, output, batch_size, workers, progress)
        self.store.change([rows])
        return len(rows.keys), broken

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        about = self.store.about
        return f"{type(self).__name__}({len(self)} images, output={about.output!r}, {about.run})"


def _embed(
    encoder: Encoder,
    files: Sequence[Path],
    output: str,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress = _silent,
) -> tuple[Rows, list[BrokenImageError]]:
    """Embed the files that can be read; their labels are the names of their folders."""
    broken: dict[int, BrokenImageError] = {}
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        done += images
        progress(done, len(files))

    x = encoder.embed(files, batch_size, output, workers, on_batch, broken.__setitem__)
    check_finite(x, "the embeddings")
    read = [path for i, path in enumerate(files) if i not in broken]
    rows = Rows([str(path) for path in read], [path.parent.name for path in read], x)
    return rows, list(broken.values())


def _is_embedded(images: Sequence[str | Path]) -> bool:
    """Return whether this is a folder that ``bgl embed`` wrote, finished or not."""
    return len(images) == 1 and any(Path(images[0]).glob("part-*.parquet"))


def _embedded_rows(folder: str | Path, model: str, output: str) -> Iterator[Rows]:
    """Read what ``bgl embed`` wrote with a model."""
    from bgl.embedding import ShardFolder

    shards = ShardFolder(folder)
    for name, expected in (("model", model), ("output", output)):
        if getattr(shards.manifest, name) != expected:
            raise ValueError(
                f"Expected {folder} to hold the {output} embeddings of this model, but its "
                f"manifest has another `{name}`: name the model and the output that it was "
                "written with, or embed the images again"
            )
    for block in shards.blocks():
        labels = [label or "" for label in block.labels]
        yield Rows(block.keys, labels, torch.from_numpy(block.vectors).float())
