"""The lines of Python in the guide run as they stand, and its tables say what the code says."""

from __future__ import annotations

import importlib
import inspect
import random
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bgl import layers
from bgl._usage import RUN_OPTIONS, option, train_fields
from bgl.cli import COMMANDS, main
from bgl.datasets import dataset_names
from bgl.datasets.registry import SOURCES
from bgl.losses import LOSSES
from bgl.training import TEACHERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/combine.md"])
def test_the_code_on_a_page_runs(page: str) -> None:
    """All blocks in turn, as one reader would; not those about a training's folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    blocks = [block for block in blocks if "runs/" not in block]
    assert blocks
    random.seed()  # PyG names the code of a `Sequential` by it, and takes that of an equal name
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


@pytest.fixture(scope="module")
def known_options() -> Callable[[str], set[str]]:
    """The options of a command, as its help names them."""

    @cache
    def options(command: str) -> set[str]:
        words = [*command.split(), "--help"]
        if command == "train":
            return {"--help", *map(option, [*RUN_OPTIONS, *train_fields()]), "--help-all"}
        with pytest.raises(SystemExit), redirect_stdout(StringIO()) as out:
            main(words)
        return set(re.findall(r"--[a-z][\w-]*", out.getvalue()))

    return options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_a_page_are_there(page: Path, known_options: Callable[[str], set[str]]) -> None:
    text = page.read_text()
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in re.findall(r"^bgl (.*)$", block, re.M):
            words = shlex.split(line, comments=True)
            if words[0] in ("--help", "..."):
                continue
            assert words[0] in COMMANDS, line
            command = " ".join(words[: 2 if words[0] == "search" else 1])
            given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            given = {re.sub("^--no-", "--", word) for word in given if "." not in word}
            assert given <= {*known_options(command), "--plugin"}, line


@pytest.mark.skipif(not (ROOT / "docs/results").is_dir(), reason="needs a clone")
def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def section(title: str) -> dict[str, dict[str, str]]:
    """Read a table of docs/parts.md: its lines by their first cell, cells by their column."""
    text = (ROOT / "docs" / "parts.md").read_text().partition(f"\n## {title}\n")[2]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.partition("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    return {
        name: dict(zip(rows[0], row, strict=True))
        for row in rows[2:]
        for name in re.findall(r"[\w-]+(?=`)", row[0])
    }


X, Y, QUERY = torch.randn(16, 8), torch.arange(16) // 4, torch.randn(16, 2, 4)
EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])
#: How each layer is made, and what it is called with.
CALLS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "AdaptiveGraph": ({"k": 3}, (X,)),
    "AttentionGraph": ({"k": 3}, (QUERY, QUERY)),
    "LabelGraph": ({}, (Y,)),
    "RandomGraph": ({"k": 3}, (X,)),
    "BatchGraphConv": ({}, (X, EDGES)),
    "DyBGR": ({"k": 3}, (X,)),
    "FeatureMemory": ({"size": 16}, (X, Y)),
    "DyBGRBlock": ({"channels": 8, "k": 3}, (X,)),
    "BGFormerBlock": ({"channels": 8, "k": 3}, (X,)),
    "BatchFormerBlock": ({"channels": 8}, (X,)),
    "RandomGraphBlock": ({"channels": 8, "k": 3}, (X,)),
}


def test_every_layer_is_in_the_table() -> None:
    assert set(section("Layers")) == set(layers.__all__) == {*CALLS, "BatchBlock"}


def labels_needed(layer: nn.Module, arguments: tuple[Any, ...]) -> str:
    call = inspect.signature(layer.forward).parameters
    if "y" not in call:
        return "no"
    if call["y"].default is inspect.Parameter.empty:
        return "yes"
    found = []
    for y in (Y, None):
        torch.manual_seed(0)  # for random neighbours
        out = layer(*arguments, y=y)
        found.append(torch.cat([part.flatten().double() for part in as_tuple(out)]))
    return "no" if torch.equal(*found) else "may"


def as_tuple(out: Any) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", CALLS)
def test_the_table_of_layers_is_true(name: str) -> None:
    row, (options, arguments) = section("Layers")[name], CALLS[name]
    layer = getattr(layers, name)(**options)
    if row["batch"] != "by its edges":
        call = inspect.signature(layer.forward).parameters
        assert row["batch"] == ("yes" if "batch" in call else "no")
    assert row["labels"] == labels_needed(layer, arguments)
    torch._dynamo.reset()
    try:
        torch.compile(layer, backend="eager", fullgraph=True)(*arguments)
    except torch._dynamo.exc.Unsupported:
        found = "no"
    else:
        found = "yes"
    if found == "no" and torch.torch_version.TorchVersion(torch.__version__) < (2, 11):
        pytest.skip("the table is of PyTorch 2.11 and newer")
    assert row["compile"] == found


@pytest.mark.reliability
@pytest.mark.parametrize("name", CALLS)
def test_the_onnx_column_is_true(name: str) -> None:
    """Each export takes seconds."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs bgl[export]")
    options, arguments = CALLS[name]
    layer = getattr(layers, name)(**options).eval()
    try:
        torch.onnx.export(layer, arguments, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError:
        found = "no"
    else:
        found = "yes"
    assert section("Layers")[name]["ONNX"] == found


def test_the_table_of_losses_is_true() -> None:
    table = section("Losses")
    assert table.keys() >= set(LOSSES)
    for name, loss in LOSSES.items():
        hyperbolic = getattr(loss, "any_distance", True)
        assert table[name]["distance"] == ("cosine, hyperbolic" if hyperbolic else "cosine")
        assert table[name]["proxies"] == ("yes" if getattr(loss, "proxies", False) else "no")
        assert table[name]["miner"] == getattr(loss, "default_miner", "none")


def test_all_teachers_and_datasets_are_in_the_tables() -> None:
    assert section("Teachers").keys() == set(TEACHERS)
    table = section("Datasets")
    assert table.keys() == set(dataset_names())
    for name in ("cub", "cars", "sop", "inshop"):
        figures = SOURCES[name].figures
        sizes = {part: {f"{one.classes:,}" for one in figures[part]} for part in figures}
        train, test = table[name]["classes to train on / to test"].split(" / ")
        assert train in sizes["train"]
        assert test in sizes["test"]


def test_the_glossary_explains_each_word_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    words = re.findall(r"^\| (\S.*?) \| \w", text, re.M)
    assert len(words) > 30
    assert len({word.casefold() for word in words}) == len(words)


@pytest.mark.parametrize("room", ["layers", "losses", "augment", "models", "training"])
def test_forward_has_a_text_of_its_own(room: str) -> None:
    """Or the reference would show that of torch."""
    module = importlib.import_module(f"bgl.{room}")
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            own = [kind for kind in found.__mro__ if "forward" in vars(kind)]
            if own[0] is not nn.Module:  # a class that is not called has no page for it
                assert own[0].__module__.startswith("bgl."), name
                assert vars(own[0])["forward"].__doc__, name
