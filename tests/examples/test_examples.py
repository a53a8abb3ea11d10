"""Every example runs in its short form, and is short enough to read."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from bgl.datasets import READERS
from bgl.losses import LOSSES
from bgl.models import BLOCKS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
(OWN_IMAGES,) = [file for file in EXAMPLES if file.stem == "your_own_images"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in an empty folder; returns what it prints. What it registers is dropped."""
    monkeypatch.chdir(tmp_path)
    for registry in (BLOCKS, LOSSES, READERS):
        monkeypatch.setattr(registry, "_members", dict(registry._members))

    def run_example(file: Path, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(file), *options])
        runpy.run_path(str(file), run_name="__main__")
        return str(capsys.readouterr().out)

    return run_example


@pytest.mark.parametrize(
    "file", [file for file in EXAMPLES if file != OWN_IMAGES], ids=lambda file: file.stem
)
def test_short_form(file, run):
    if file.stem == "lightning_module":
        pytest.importorskip("lightning", reason="Lightning is not installed")
    assert_figures(run(file, "--short"))


def assert_figures(out):
    percentages = [float(found) for found in re.findall(r"(?:R@1|accuracy) ([\d.]+)", out)]
    assert len(percentages) >= 2, out
    assert all(0 < value <= 100 for value in percentages)
    if "R@1" in out and "before" in out:  # the digits, which are learned within seconds
        assert percentages[-1] > percentages[0] + 5
    assert "nan" not in out


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_reads_as_a_tutorial(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert f"python examples/{file.name}" in text.partition('"""\n')[0]


def test_five_lines_make_it_a_dybgr_training():
    """Without the marked lines it is the training as it was, and would run."""
    text = (EXAMPLES[0].parent / "metric_learning.py").read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if re.search(r"# DyBGR \d", line)]
    assert [line.partition("# DyBGR ")[2][0] for line in marked] == list("12345")
    plain = "\n".join(line for line in text.splitlines() if line not in marked)
    assert "block" not in plain.partition("def main")[2]
    assert "context" not in plain.partition("def main")[2]
    compile(plain, "plain", "exec")


@pytest.mark.slow  # reads the emoji
def test_a_query_among_the_images(run):
    assert_figures(run(OWN_IMAGES, "--short"))


@pytest.mark.slow  # reads the emoji
def test_a_picture_of_the_answer(run, tmp_path):
    """The query is a file of one's own, which the folder does not hold."""
    Image.new("RGB", (50, 40), "red").save(tmp_path / "new.png")
    out = run(OWN_IMAGES, "--short", "--query", "new.png", "--output-dir", "out")
    assert_figures(out)
    assert "the images most like new.png" in out
    with Image.open(tmp_path / "out" / "answer.png") as picture:
        assert picture.size[0] > picture.size[1] > 100
    with pytest.raises(ValueError, match="pass the folder above the class folders"):
        run(OWN_IMAGES, "--short", str(tmp_path / "out"))
