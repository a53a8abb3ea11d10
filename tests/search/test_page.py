"""The page of search results: links, classes and names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torchvision.io import write_png

from bgl.search import Hit, write_results

ODD = '<b>&amp; "co" #1%.png'


def make_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), str(path))
    return path


def test_pictures_lead_to_their_files(tmp_path):
    files = [make_picture(tmp_path / "a" / ODD), make_picture(tmp_path / "b" / "2.png")]
    hits = [Hit(file, 0.5) for file in files]
    page = write_results({files[1]: hits}, tmp_path / "page.html", "cosine similarity").read_text()
    links = re.findall(r'<a href="([^"]*)"><img', page)
    assert links == [file.as_uri() for file in (files[1], *files)]
    assert ODD not in page


def test_a_query_is_followed_by_the_classes_of_its_hits(tmp_path):
    files = [make_picture(tmp_path / name / f"{i}.png") for i, name in enumerate("abb")]
    hits = [Hit(file, 0.5) for file in files] + [Hit(files[0], 0.4, "<label>")]
    page = write_results({files[0]: hits}, tmp_path / "page.html", "cosine similarity").read_text()
    assert "Found: b (2), a (1), &lt;label&gt; (1)" in page
    assert page.count("cosine similarity") == 1
    assert page.count("a/0.png</h2>") == 1
