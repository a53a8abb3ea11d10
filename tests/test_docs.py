"""The lines of Python in the guide run as they stand."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_code_on_a_page_runs(page: str) -> None:
    """All blocks in turn, as one reader would; not those about a training's folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    blocks = [block for block in blocks if "runs/" not in block]
    assert len(blocks) >= 2
    random.seed()  # PyG names the code of a `Sequential` by it, and takes that of an equal name
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")]:
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
