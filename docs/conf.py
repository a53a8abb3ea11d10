"""Sphinx configuration; ``sphinx-build -W docs build/docs`` writes a site that works offline.

The tutorials are notebooks in Markdown: they are run when the pages are built, and an error in one
of them is an error of the build.
"""

from __future__ import annotations

import os
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import bgl

project = "bgl"
author = "the authors of bgl"
release = bgl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"  # in the build folder: a notebook that has not changed is not run again
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # warnings of other libraries
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # leaves out members such as torch's `extra_repr`
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_custom_sections = ["Shapes"]
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"bgl {os.environ.get('READTHEDOCS_VERSION_NAME', release)}"
html_static_path = ["_static"]
html_css_files = ["math.css", "figures.css"]
if repository := os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git"):
    html_theme_options = {
        "source_repository": repository,  # "edit this page"
        "source_branch": os.environ.get("READTHEDOCS_GIT_IDENTIFIER", "main"),
        "source_directory": "docs/",
    }
html_math_renderer = "mathml"


def mathml(tex: str, display: bool) -> str:
    """Render a formula as MathML, which browsers show without scripts or external fonts."""
    if "&" in tex:
        tex = rf"\begin{{align*}}{tex}\end{{align*}}"
    shown = str(convert(tex.replace(r"\Vert", r"\|"), display="block" if display else "inline"))
    if "\\" in shown:
        raise ValueError(f"Expected commands that latex2mathml knows, but got the formula {tex}")
    return shown


def visit_inline(self: Any, node: Any) -> None:
    self.body.append(mathml(node.astext(), display=False))
    raise SkipNode


def visit_block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), display=True)}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
