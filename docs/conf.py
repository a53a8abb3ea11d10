"""Sphinx: ``sphinx-build -W docs build/docs`` writes the site; it needs no network to be read."""

from __future__ import annotations

import re
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

import bgl

project = "bgl"
author = "the authors of bgl"
release = bgl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["results"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_custom_sections = ["Shapes"]
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"bgl {release}"
html_math_renderer = "mathml"


def mathml(tex: str, display: bool) -> str:
    """A formula as MathML, which browsers show without scripts and fonts from elsewhere."""
    tex = re.sub(r"\\[bB]ig(?![a-z])", "", tex).replace(r"\dots", r"\ldots")  # unknown to docutils
    return str(latex2mathml.tex2mathml(tex, as_block=display))


def visit_inline(self: Any, node: Any) -> None:
    self.body.append(mathml(node.astext(), display=False))
    raise SkipNode


def visit_block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), display=True)}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
