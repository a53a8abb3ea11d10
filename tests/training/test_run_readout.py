"""The readout of a run, against a fit by hand of the embeddings of its stored model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import DIM, WIDTH, At, assert_same_files, make_splits, part, tiny
from torch.nn.functional import layer_norm

from bgl.datasets import Splits
from bgl.metrics import retrieval_metrics
from bgl.models import load
from bgl.readout import SHRINKAGE, choose_readout, fit_readout
from bgl.training import (
    Evaluator,
    Interrupted,
    TrainConfig,
    build_encoder,
    evaluate_encoder,
    train,
)
from bgl.training.readout import add_readout, start_head


@pytest.fixture
def splits() -> Splits:
    return make_splits()


def without_validation(splits: Splits) -> Splits:
    return Splits("colours", splits.train, None, splits.test)


@pytest.mark.parametrize(("covariance", "dim"), [("within", None), ("total", 5)])
def test_the_readout_of_the_best_validation_is_the_models_embedding(
    tmp_path: Path, covariance: str, dim: int | None
) -> None:
    torch.manual_seed(2)
    parts = [part(name, n, 4, 120, 8) for name, n in (("train", 8), ("val", 8), ("test", 4))]
    splits = Splits("noise", *parts)
    result = train(tiny(readout=covariance, readout_dim=dim), splits, tmp_path)
    encoder = load(tmp_path)
    x, val_x = (encoder.embed(data, 256, "backbone") for data in parts[:2])
    labels = splits.train.labels
    choice = choose_readout(x, labels, val_x, parts[1].labels, covariances=(covariance,), dim=dim)
    assert result.readout == {
        "covariance": covariance,
        "shrinkage": choice.best["shrinkage"],
        "chosen_by": "validation MAP@R",
    }
    assert len({score["map@r"] for score in choice.scores}) > 1  # there was something to choose
    test_x = encoder.embed(parts[2], 256, "backbone")
    assert choice.readout is not None
    torch.testing.assert_close(encoder.embed(parts[2]), choice.readout(test_x))
    found = retrieval_metrics(choice.readout(test_x), parts[2].labels, k=(1, 2, 4, 8))
    assert result.metrics["readout"] == pytest.approx(found)
    assert result.metrics == evaluate_encoder(encoder, splits)
    assert result.dimensions["readout"] == encoder.config.readout_dim == (dim or WIDTH)
    stored = load_file(tmp_path / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(stored, choice.readout(x))


def test_without_validation_the_default_shrinkage_counts(tmp_path: Path, splits: Splits) -> None:
    splits = without_validation(splits)
    result = train(tiny(epochs=1), splits, tmp_path)
    assert result.readout is not None
    assert (result.readout["shrinkage"], result.readout["chosen_by"]) == (SHRINKAGE, "default")
    encoder = load(tmp_path)
    x = encoder.embed(splits.train, 256, "backbone")
    expected = fit_readout(x, splits.train.labels, covariance="within")
    torch.testing.assert_close(encoder.embed(splits.train), expected(x))


@pytest.mark.parametrize("select", ["backbone", "head"])
def test_without_a_readout_the_embedding_is_the_one_that_chose_the_epoch(
    tmp_path: Path, splits: Splits, select: str
) -> None:
    result = train(tiny(epochs=1, readout="none", select_embedding=select), splits, tmp_path)
    encoder = load(tmp_path)
    assert result.readout is None
    assert list(result.metrics) == ["backbone", "head"]
    assert encoder.config.embedding == select
    assert torch.equal(encoder.embed(splits.test), encoder.embed(splits.test, output=select))
    assert json.loads((tmp_path / "model.json").read_text())["embedding"] == select


def test_a_run_without_a_possible_readout_goes_on(splits: Splits) -> None:
    encoder, _ = build_encoder(tiny())
    evaluator = Evaluator(encoder, workers=0)
    collapsed = torch.ones(len(splits.train), WIDTH)
    with pytest.warns(UserWarning, match="There is no readout.*`x` to vary within classes"):
        assert add_readout(tiny(), evaluator, splits, collapsed) is None
    assert evaluator.encoder is encoder


@pytest.mark.parametrize("ema", [0.0, 0.99])
@pytest.mark.parametrize("norm", [False, True])
def test_a_head_starts_from_the_readout_of_the_encoder_as_it_came(
    tmp_path: Path, splits: Splits, ema: float, norm: bool
) -> None:
    config = tiny(epochs=1, head_init="readout", head_norm=norm, ema=ema, lr=1e-12)
    encoder, _ = build_encoder(config)  # which hardly changes
    x = encoder.embed(splits.train, 256, "backbone")
    if norm:
        x = layer_norm(x, (WIDTH,))
    readout = fit_readout(x, splits.train.labels, covariance="within", dim=DIM)
    train(config, splits, tmp_path)
    trained = load(tmp_path)
    ratio = trained.embed(splits.train, 256, "head") / readout(x)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    weight = trained.model.head[-1].weight.detach()
    assert float(weight.norm(dim=1).mean()) == pytest.approx(1.0)


def test_a_run_stopped_before_its_first_step_still_starts_its_head(
    tmp_path: Path, splits: Splits
) -> None:
    config = tiny(epochs=1, head_init="readout")
    train(config, splits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, splits, tmp_path / "parts", At(1, lambda: signal.raise_signal(signal.SIGINT)))
    train(config, splits, tmp_path / "parts")
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_a_head_that_cannot_start_from_a_readout_is_refused(splits: Splits) -> None:
    encoder, _ = build_encoder(tiny())
    collapsed = torch.ones(len(splits.train), WIDTH)
    with pytest.raises(ValueError, match=r"`head_init`.*'orthogonal'.*`x` to vary within classes"):
        start_head(encoder.model.head, collapsed, splits.train.labels)


def test_too_many_dimensions_are_refused_before_anything_is_trained(splits: Splits) -> None:
    with pytest.raises(ValueError, match=rf"`readout_dim`.*at most the {WIDTH} features"):
        build_encoder(tiny(readout_dim=WIDTH + 1))
    with pytest.raises(ValueError, match=rf"`head_dim`.*at most the {WIDTH} features"):
        build_encoder(tiny(head_dim=WIDTH + 1, head_init="readout"))
    with pytest.raises(ValueError, match=r"`readout`.*'both'"):
        TrainConfig(readout="both")
    with pytest.raises(ValueError, match="`readout_dim`"):
        dataclasses.replace(tiny(), readout_dim=0)


def test_a_run_that_ended_after_its_readout_was_stored_resumes(
    tmp_path: Path, splits: Splits
) -> None:
    """The checkpoint is there until the whole result is written."""
    result = train(tiny(epochs=1), splits, tmp_path)
    before = shutil.copytree(tmp_path, tmp_path / "before")
    again = train(tiny(epochs=1), splits, tmp_path)
    assert again.metrics == result.metrics
    assert_same_files(before, tmp_path)
