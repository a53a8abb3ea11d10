"""The whole pipeline, ``bgl train``: load data, train, measure, write a table and a page."""

from bgl._extras import extra

with extra("train"):
    from bgl.pipeline.adapting import Adapted, adapt
    from bgl.pipeline.api import Trained, train
    from bgl.pipeline.data import load_splits
    from bgl.pipeline.explorer import explore_run
    from bgl.pipeline.files import read_config, read_results
    from bgl.pipeline.options import CONFIGS, parse
    from bgl.pipeline.published import published_rows
    from bgl.pipeline.results import Row
    from bgl.pipeline.rows import baseline_rows, check_folder, pixel_rows, trained_rows
    from bgl.pipeline.run import main
    from bgl.pipeline.table import as_csv, markdown, print_table
    from bgl.pipeline.terminal import TerminalProgress

__all__ = [
    "CONFIGS",
    "Adapted",
    "Row",
    "TerminalProgress",
    "Trained",
    "adapt",
    "as_csv",
    "baseline_rows",
    "check_folder",
    "explore_run",
    "load_splits",
    "main",
    "markdown",
    "parse",
    "pixel_rows",
    "print_table",
    "published_rows",
    "read_config",
    "read_results",
    "train",
    "trained_rows",
]
