"""What the checks of arguments say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bgl._checks import check_choice, check_int, check_matrix, check_real
from bgl.transforms import LearnBatchGraph


@pytest.mark.parametrize(
    "check",
    [
        check_matrix,
        lambda value: check_int(value, "x", 1),
        lambda value: check_real(value, "x"),
        lambda value: check_choice(value, "x", ("a", "b")),
        LearnBatchGraph(),
    ],
    ids=["matrix", "int", "real", "choice", "transform"],
)
@pytest.mark.parametrize(
    ("value", "described"),
    [
        (np.zeros((50, 3)), "got a float64 numpy array of shape [50, 3]"),
        (torch.zeros(50, 3, dtype=torch.int32), "got a int32 tensor of shape [50, 3]"),
    ],
    ids=["numpy", "tensor"],
)
def test_arrays_are_described_not_printed(check: Any, value: Any, described: str) -> None:
    with pytest.raises(ValueError, match="Expected argument") as caught:
        check(value)
    assert str(caught.value).endswith(described)
