"""Coverage is held for each part by itself, lines and branches apart."""

from __future__ import annotations

from typing import Any

import pytest

from tools.check_coverage import PARTS, table


def counted(lines: int, branches: int) -> dict[str, Any]:
    of = {"covered_lines": lines, "num_statements": 100}
    return {"summary": of | {"covered_branches": branches, "num_branches": 100}}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("lines", "branches"), [(94, 100), (100, 89)])
def test_one_part_below_a_limit_is_enough_to_fail(part: str, lines: int, branches: int) -> None:
    files = {f"bgl/{name}/x.py": counted(95, 90) for name in PARTS}
    assert table(files)[1]
    text, enough = table(files | {f"bgl/{part}/x.py": counted(lines, branches)})
    assert not enough
    assert f"| {part} | {lines}.0 % | {branches}.0 % |" in text


def test_the_files_of_a_part_are_added_up() -> None:
    files = {f"bgl/{name}/{x}.py": counted(95, 90) for name in PARTS for x in "ab"}
    files["bgl/layers/a.py"] = counted(99, 94)
    assert "| layers | 97.0 % | 92.0 % |" in table(files)[0]
