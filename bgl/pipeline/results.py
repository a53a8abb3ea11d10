"""The files of a run as typed records."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints
from typing import is_typeddict as is_record

from bgl._io import read_json, read_yaml
from bgl.training.readout import Readout

RESULTS_FILE = "results.json"  # of a run
RESULT_FILE = "result.json"  # of one trained model
CONFIG_FILE = "config.yaml"  # of one model
COMMAND_FILE = "command.yaml"  # of a run

Record = TypeVar("Record")


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


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """Read a JSON or YAML file that holds a record.

    Args:
        path: The file; its suffix says which of the two it is.
        kind: A TypedDict.
        remedy: What to do if it holds anything else.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it does not hold such a record; the message names the file and the entry.
    """
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from error
    if fault := misfit(content, kind):
        raise ValueError(f"Expected {path} to be written by bgl, but {fault}: {remedy}")
    return content


def misfit(value: object, hint: Any, name: str = "it") -> str | None:
    """Say what of a plain value, as JSON and YAML give it, is not of an annotated type.

    Example:
        >>> misfit({"a": [1, "x"]}, dict[str, list[int]])
        "its a.1 is 'x'"
    """
    origin, arguments = get_origin(hint), get_args(hint)
    inside: list[tuple[str, object, Any]] = []
    if hint is Any:
        return None
    if origin in (Union, UnionType):
        faults = [misfit(value, kind, name) for kind in arguments]
        return None if None in faults else faults[0]
    if is_record(hint) and isinstance(value, dict):
        if missing := sorted(hint.__required_keys__ - value.keys()):
            return f"{name} has no {missing[0]}"
        hints = get_type_hints(hint)
        inside = [(key, value[key], kind) for key, kind in hints.items() if key in value]
    elif origin is dict and isinstance(value, dict):
        inside = [(str(key), item, arguments[1]) for key, item in value.items()]
        if odd := [key for key in value if not isinstance(key, arguments[0])]:
            return f"{name} has the key {odd[0]!r}"
    elif origin is list and isinstance(value, list):
        inside = [(str(place), item, arguments[0]) for place, item in enumerate(value)]
    else:
        plain = (int, float) if hint is float else hint
        fits = not (origin or is_record(hint)) and isinstance(value, plain)
        if not fits or (isinstance(value, bool) and hint is not bool):
            return f"{name} is {str(value)[:40]!r}"
    for key, item, kind in inside:
        below = f"its {key}" if name == "it" else f"{name}.{key}"
        if fault := misfit(item, kind, below):
            return fault
    return None


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
