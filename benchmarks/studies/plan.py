"""A study as its YAML file tells it: which trainings there are, and what of them is done."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import yaml
from filelock import FileLock

from bgl._checks import check_choice
from bgl._io import write_text
from bgl.pipeline import parse
from bgl.pipeline.options import as_word, option_words
from bgl.training import TrainConfig
from bgl.training.config import CIRCUMSTANCES

Options = dict[str, Any]  # options of run.py without their dashes
MEASURES = ("test", "validation")


class Entry(TypedDict):
    """What is kept of a finished training."""

    command: str
    commit: str | None
    device: str  # the GPU's name, or "cpu"; missing from older entries, which are of CPUs
    epoch: int  # the one that was chosen
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # as run.py has them, without the configuration
    before: dict[str, float]  # the graphs before training
    history: list[dict[str, float]]  # of metrics.csv


@dataclass(frozen=True)
class Training:
    """One training: an arm, what differs from run.py's defaults, and the seed."""

    arm: str
    options: Options
    seed: int

    @property
    def words(self) -> tuple[str, ...]:
        """The words after ``run.py``, without the seed."""
        words = [option_words(name, value) for name, value in self.options.items()]
        return tuple(itertools.chain(*words))

    @property
    def command(self) -> list[str]:
        """The words that repeat it alone."""
        return ["benchmarks/run.py", *self.words, "--seed", str(self.seed)]

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return dataclasses.replace(resolve(*self.words), seed=self.seed)

    @property
    def key(self) -> str:
        """The same for trainings that differ in nothing that could change their result."""
        return key_of(self.seed, *self.words)

    @property
    def slug(self) -> str:
        """A name for its folder: short, whatever its options."""
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:8]
        name = f"{self.arm}-{digest}-seed{self.seed}"
        return "".join(c if c.isalnum() or c in "-+._" else "_" for c in name)

    def __str__(self) -> str:
        given = " ".join(f"{name}={as_word(value)}" for name, value in self.options.items())
        return f"{self.arm}, seed {self.seed} ({given})"


@cache
def resolve(*words: str) -> TrainConfig:
    """Resolve the configuration of a run, given the words after ``run.py``."""
    configs = parse(list(words)).configs
    if len(configs) != 1:
        raise ValueError(f"Expected the options of an arm to name one `method`, got {words}")
    return configs[0]


@cache
def key_of(seed: int, *words: str) -> str:
    """Return :func:`config_key` of the configuration that the words name, with a seed."""
    return config_key(dataclasses.replace(resolve(*words), seed=seed).to_dict())


def config_key(values: dict[str, Any]) -> str:
    """Write all of a configuration that can change a result as text.

    Options that ``values`` lack are newer than them, and had their defaults then. Data are known by
    the name of their folder or table, so that results of another machine are found.
    """
    config = TrainConfig.from_dict(values).to_dict()
    data = {name: Path(config[name]).name for name in ("data_root", "table") if config[name]}
    config |= data
    unused = {*CIRCUMSTANCES} - data.keys()
    if config["method"] == "none":
        unused.add("alpha")
    return json.dumps({name: value for name, value in config.items() if name not in unused})


@dataclass
class Sweep:
    """Other values of one option of some arms."""

    arms: list[str]
    option: str
    values: list[Any]
    seeds: list[int]

    def __post_init__(self) -> None:
        if not isinstance(self.arms, list):
            raise TypeError(f"`arms` of a sweep is a list of names, got {self.arms!r}")


@dataclass
class Study:
    """What a study's YAML file says.

    Args:
        arms: Options of run.py by the arm's name.
        seeds: Seeds of every arm.
        baselines: By arm, the arm it is compared with.
        controls: By arm, further arms it is compared with.
        base: Options of all arms.
        grid: Values by option; each arm is trained with every combination.
        grid_seeds: Seeds the combination is chosen with, by mean validation MAP@R.
        sweeps: By name, see :class:`Sweep`; they keep what the grid chose for each arm.
        measure: "test": the test classes, once per training. "validation": they are not looked at,
            and the figures are those of the validation classes.
    """

    arms: dict[str, Options]
    seeds: list[int]
    baselines: dict[str, str] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)
    base: Options = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    grid_seeds: list[int] = field(default_factory=list)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    measure: str = "test"

    def __post_init__(self) -> None:
        check_choice(self.measure, "measure", MEASURES)

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a file.

        What it leaves out, options of ``base`` too, it takes from the file named by ``like``.

        Raises:
            ValueError: If a field is unknown or missing, or names no arm or option.
        """
        values = read_fields(path)
        try:
            sweeps = {n: Sweep(**v) for n, v in (values.pop("sweeps", None) or {}).items()}
            study = cls(**values, sweeps=sweeps)
        except TypeError as error:
            raise ValueError(f"Expected {path} to hold the fields of a study: {error}") from None
        named = [*study.baselines.items(), *study.controls.items()]
        others = [name for _, given in named for name in ([given] if type(given) is str else given)]
        swept = [arm for sweep in sweeps.values() for arm in sweep.arms]
        for arm in (*dict(named), *others, *swept):
            if arm not in study.arms:
                raise ValueError(f"Expected `arm` to be one of {list(study.arms)}, but got {arm!r}")
        for training in study.possible():
            _ = training.config  # refuses unknown options and values
        return study

    def combinations(self, arm: str) -> list[Options]:
        """List the options of an arm for every point of the grid."""
        points = itertools.product(*self.grid.values())
        # an arm's own options win, so that an arm can be kept off a part of the grid
        arms = [
            {**self.base, **dict(zip(self.grid, p, strict=True)), **self.arms[arm]} for p in points
        ]
        return [options for i, options in enumerate(arms) if options not in arms[:i]]

    def validation(self, entry: Entry) -> float:
        """Return the validation MAP@R of a finished run, in the epoch it chose.

        It is that of the encoder's output, or of the readout where a study measures it.
        """
        if self.measure == "validation":
            rows = {row["embedding"]: row["metrics"] for row in entry["rows"]}
            return float(rows.get("readout", rows["backbone"])["map@r"])
        return validation(entry)

    def chosen(self, arm: str, done: dict[str, Entry]) -> Options | None:
        """Choose the point of the grid with the best mean validation MAP@R, None while unknown."""
        points = self.combinations(arm)
        if len(points) == 1:
            return points[0]
        scores = []
        for options in points:
            trained = [done.get(Training(arm, options, seed).key) for seed in self.grid_seeds]
            if any(entry is None for entry in trained):
                return None
            scores.append(statistics.fmean(self.validation(entry) for entry in trained if entry))
        return points[scores.index(max(scores))]

    def wanted(self, done: dict[str, Entry]) -> Iterator[Training]:
        """Yield the runs that are known to be needed, the most telling first."""
        for seed in self.grid_seeds:
            for arm in self.arms:
                points = self.combinations(arm)
                if len(points) > 1:
                    yield from (Training(arm, options, seed) for options in points)
        chosen = {arm: self.chosen(arm, done) for arm in self.arms}
        for seed in self.seeds:
            for arm, options in chosen.items():
                if options is not None:
                    yield Training(arm, options, seed)
        yield from self.swept(chosen)

    def swept(self, chosen: Mapping[str, Options | None]) -> Iterator[Training]:
        """Yield the runs of the sweeps, of every arm whose options are known."""
        for sweep in self.sweeps.values():
            for arm in sweep.arms:
                if (options := chosen[arm]) is not None:
                    values = [{**options, sweep.option: value} for value in sweep.values]
                    yield from (Training(arm, v, seed) for seed in sweep.seeds for v in values)

    def possible(self) -> Iterator[Training]:
        """Yield one run of every combination and swept value."""
        for arm in self.arms:
            yield from (Training(arm, options, 0) for options in self.combinations(arm))
        yield from self.swept({arm: self.combinations(arm)[0] for arm in self.arms})


def wanted(studies: Iterable[Study], done: dict[str, Entry]) -> dict[str, Training]:
    """Collect the runs that are known to be needed by any of the studies, by key."""
    return {training.key: training for study in studies for training in study.wanted(done)}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a study's file, and of the file that it is like."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"Expected {path} to hold the fields of a study, got {values!r}")
    other = values.pop("like", None)
    if other is None:
        return values
    like = read_fields(path.parent / other)
    return {**like, **values, "base": {**like.get("base", {}), **values.get("base", {})}}


def validation(entry: Entry) -> float:
    """Return the validation MAP@R of a finished run, in the epoch it chose."""
    column = f"val_{entry['config']['select_embedding']}_map@r"
    return float(entry["history"][entry["epoch"] - 1][column])


class Store:
    """What is finished of a study, in one JSON file: the rows that need no training, and a line
    for each training.

    Raises:
        ValueError: If the file holds figures of other classes than ``measure`` names.
    """

    def __init__(self, path: Path, measure: str = "test") -> None:
        self.path = path
        self.measure = measure
        self.untrained: list[dict[str, Any]] = []
        self.done: dict[str, Entry] = {}
        self.read()

    def read(self) -> None:
        """Take what the file holds, which another study may have added to."""
        if not self.path.exists():
            return
        content = json.loads(self.path.read_text(encoding="utf-8"))
        if (found := content.get("measure", "test")) != self.measure:
            raise ValueError(
                f"Expected {self.path} to hold figures of the {self.measure} classes, but they "
                f"are of the {found} classes: name another file with --results"
            )
        self.untrained = content["untrained"]
        self.done |= {config_key(entry["config"]): entry for entry in content["trainings"]}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Add to the file, whatever other studies write to it meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self.read()
            yield
            self.write()

    def add(self, entry: Entry) -> None:
        """Keep a run."""
        with self.changing():
            self.done[config_key(entry["config"])] = entry

    def write(self) -> None:
        """Write the file anew."""
        parts = (self.untrained, list(self.done.values()))
        untrained, trainings = (",\n".join(map(json.dumps, part)) for part in parts)
        text = f'"untrained": [\n{untrained}\n],\n"trainings": [\n{trainings}\n]}}\n'
        text = f'{{"measure": "{self.measure}",\n{text}'
        write_text(self.path, text)
