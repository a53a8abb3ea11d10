"""benchmarks/studies/correlation.py: class means and variances, by definition and by command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.studies import correlation


def test_distances_by_definition() -> None:
    x = torch.randn(12, 3)
    labels = torch.tensor([5] * 4 + [7] * 4 + [9] * 3 + [11])  # one sample has no variance
    parts = [x[labels == label].double() for label in (5, 7, 9)]
    mean, variance = correlation.distances(x, labels)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for found, values in (
        (mean, [part.mean(0).square() for part in parts]),
        (variance, [part.var(0, unbiased=False) for part in parts]),
    ):
        expected = torch.stack([(values[i] - values[k]).norm() for i, k in pairs])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_classes_that_spread_with_their_position(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "MAX_POINTS", 3)
    at = torch.arange(1.0, 6)
    x = torch.cat([0 * at, 2 * at])[:, None]  # mean k, variance k²
    file, labels = tmp_path / f"embeddings{suffix}", torch.arange(10) % 5
    if suffix == ".npz":
        np.savez(file, embeddings=x.numpy(), labels=labels.numpy())
    else:
        save_file({"embeddings": x, "labels": labels}, file)
    correlation.main([str(file), "--plot", str(tmp_path / "plot.png")])
    printed = capsys.readouterr().out
    assert printed.startswith("Spearman correlation 1.0000")
    assert "10 pairs" in printed
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
