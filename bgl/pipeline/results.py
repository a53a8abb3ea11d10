"""The files of a run as typed records."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from bgl.training.readout import Readout

RESULTS_FILE = "results.json"  # of a run
RESULT_FILE = "result.json"  # of one trained model
CONFIG_FILE = "config.yaml"  # of one model
COMMAND_FILE = "command.yaml"  # of a run


class Published(TypedDict):
    """The published figures of the row that a configuration repeats, in percent."""

    system: str
    source: str
    selection: str | None
    figures: dict[str, float]
    difference: dict[str, float]  # measured - published, in points


class _Measured(TypedDict):
    method: str
    seed: int | None
    embedding: str
    metrics: dict[str, float]


class OtherEpochs(TypedDict, total=False):
    """Test metrics of other epochs than the chosen one, where they were measured."""

    last_epoch: dict[str, float]
    best_on_test: dict[str, float]


class Row(_Measured, OtherEpochs, total=False):
    """One embedding of one model, measured on the test classes: a row of results.json.

    Rows of raw pixels and of the untrained encoder lack what only a trained model has.
    """

    protocol: str
    loss: str
    augmentation: str
    epoch: int
    epochs: int
    validation: float | None  # the MAP@R that the epoch was chosen by; None without such classes
    graph_at_test_time: bool
    distance: str
    dimension: int
    readout: Readout | None
    backbone: dict[str, Any]
    parameters: int
    seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float | None
    images_per_second: float | None  # of training, by all processes together
    waiting_for_data: float | None  # share of that time
    skipped_steps: int
    published: Published | None
    config: dict[str, Any]
    transductive: bool
    run: str  # only in a table of several runs


OtherEpoch = Literal["last_epoch", "best_on_test"]


class Result(TypedDict):
    """What result.json holds."""

    config: dict[str, Any]
    digest: str  # of the data
    commit: str | None
    rows: list[Row]


class Dataset(TypedDict, total=False):
    """What results.json says of the data; a part that the data lack is not there."""

    name: str
    digest: str
    train: dict[str, int]
    val: dict[str, int]
    test: dict[str, int]
    gallery: dict[str, int]
    skipped: list[str]


class About(TypedDict, total=False):
    """What a reader of results.json needs to know to trust its rows."""

    started: str
    quick: bool  # a tour, whose figures say nothing
    seconds: float
    failed: dict[str, str]  # models that the last command could not train, and why
    dataset: Dataset
    protocol: str
    selection: str
    test_evaluations: int
    backbone: str
    weights: str
    image_size: int
    device: str
    gpu: str | None
    processes: int
    precision: dict[str, str]
    machine: str
    versions: dict[str, str | None]
    commit: str | None


class Results(About):
    """What results.json holds."""

    rows: list[Row]


def model_name(method: str, seed: int | None) -> str:
    """Name a model as its folder inside the run folder; what is not trained has no seed.

    Example:
        >>> model_name("dybgr", 0), model_name("pixels", None)
        ('dybgr-seed0', 'pixels')
    """
    return method if seed is None else f"{method}-seed{seed}"


def compared(embeddings: Container[str]) -> str:
    """Name the embedding that is refined and that the page shows: the encoder's output, by its
    readout if it has one. It means something before training as well, and is compared by cosine.

    Example:
        >>> compared(["backbone", "head", "readout"]), compared(["backbone", "head"])
        ('readout', 'backbone')
    """
    return "readout" if "readout" in embeddings else "backbone"


def with_new(rows: list[Row], new: list[Row]) -> list[Row]:
    """Add rows; they replace those of the same method, seed and embedding."""

    def key(row: Row) -> tuple[object, ...]:
        return row["method"], row["seed"], row["embedding"], row.get("transductive", False)

    return list({**{key(row): row for row in rows}, **{key(row): row for row in new}}.values())


def check_about(earlier: Results, now: About, folder: Path) -> None:
    """Refuse to add rows to those of other data, another protocol or another encoder.

    Raises:
        ValueError: If they differ; the message says in what.
    """
    stored, wanted = earlier.get("dataset", {}), now["dataset"]
    if stored.get("digest") != wanted["digest"]:
        raise ValueError(
            f"Expected the data of {folder / RESULTS_FILE}, but got other data: "
            f"{_differences(stored, wanted)}. Restore them, or use another --output-dir"
        )
    names = ("quick", "protocol", "selection", "backbone", "weights", "image_size")
    before, after = ({n: v for n, v in about.items() if n in names} for about in (earlier, now))
    before = {"quick": False, **before}  # which a run of an earlier version does not say
    if before != after:
        raise ValueError(
            f"Expected the options of {folder / RESULTS_FILE}, whose rows go into one table with "
            f"the new ones, but got {_differences(before, after)}: use another --output-dir"
        )


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    names = dict.fromkeys([*before, *after])
    changed = [name for name in names if before.get(name) != after.get(name)]
    return "; ".join(f"{n} is {after.get(n)}, was {before.get(n)}" for n in changed)
