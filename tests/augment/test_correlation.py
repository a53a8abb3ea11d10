"""Rank correlation of class means and variances, its figure and its command line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close
from safetensors.torch import save_file
from scipy.stats import spearmanr

from bgl.augment import ClassStatistics
from bgl.augment.correlation import main, mean_variance_correlation, plot_mean_variance


def spread_with_position(classes: int = 12, full: bool = False) -> ClassStatistics:
    """Classes whose width grows with the distance of their mean from 0."""
    y = torch.arange(classes * 6) % classes
    z = y.unsqueeze(1) + torch.randn(len(y), 3) * (0.1 + 0.1 * y).unsqueeze(1)
    covariance = "full" if full else "diagonal"
    statistics = ClassStatistics(classes + 1, 3, covariance=covariance).double()
    statistics.estimate(z.double(), y)
    statistics.update(torch.full((1, 3), 1e3).double(), torch.tensor([classes]))  # one sample
    return statistics


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_equals_scipy_over_pairs_of_classes(full: bool) -> None:
    statistics = spread_with_position(full=full)
    result = mean_variance_correlation(statistics)
    means, variances = [], []
    for i in range(12):
        for k in range(i + 1, 12):
            means.append((statistics.mean[i] ** 2 - statistics.mean[k] ** 2).norm())
            variances.append((statistics.variance[i] - statistics.variance[k]).norm())
    assert_close(result.mean_distance, torch.stack(means))
    assert_close(result.variance_distance, torch.stack(variances))
    assert result.spearman == pytest.approx(spearmanr(means, variances).statistic, abs=1e-12)
    assert result.spearman > 0.5


def test_ties_share_their_rank() -> None:
    statistics = ClassStatistics(5, 1)
    statistics.mean.copy_(torch.tensor([[0.0], [1.0], [1.0], [2.0], [2.0]]))
    statistics.variance.copy_(torch.tensor([[3.0], [1.0], [2.0], [2.0], [0.0]]))
    statistics.count.fill_(2)
    result = mean_variance_correlation(statistics)
    expected = spearmanr(result.mean_distance, result.variance_distance).statistic
    assert result.spearman == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_too_few_classes_have_no_correlation(classes: int) -> None:
    statistics = ClassStatistics(3, 2)
    y = torch.arange(2 * classes) // 2
    statistics.estimate(torch.randn(len(y), 2), y)
    assert math.isnan(mean_variance_correlation(statistics).spearman)


def test_figure_shows_a_point_per_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    result = mean_variance_correlation(spread_with_position())
    (axes,) = plot_mean_variance(result).axes
    offsets = torch.from_numpy(np.asarray(axes.collections[0].get_offsets()))
    assert_close(offsets, torch.stack([result.mean_distance, result.variance_distance], dim=1))
    assert f"{result.spearman:.3f}" in axes.get_title()
    monkeypatch.setattr("bgl.augment.correlation._MAX_POINTS", 20)
    (axes,) = plot_mean_variance(result).axes
    assert len(axes.collections[0].get_offsets()) == 17  # every 4th of 66


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    y = torch.arange(60) % 10
    z = y.unsqueeze(1) + torch.randn(60, 3) * (1 + y).unsqueeze(1)
    names = y * 7 - 3  # any integers
    file, plot = tmp_path / f"embeddings.{suffix}", tmp_path / "figure.png"
    if suffix == "npz":
        np.savez(file, embeddings=z.numpy(), labels=names.numpy())
    else:
        save_file({"embeddings": z, "labels": names}, file)
    main([str(file), "--plot", str(plot)])
    statistics = ClassStatistics(10, 3)
    statistics.estimate(z, y)
    expected = mean_variance_correlation(statistics).spearman
    assert f"{expected:.4f} (45 pairs of 10 classes)" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_command_line_names_what_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", embeddings=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"hold \['labels'\]"):
        main([str(tmp_path / "a.npz")])
