"""The step: what it computes in, that nothing waits for it, and what a bad batch leaves behind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import PartialState
from helpers import without_values
from tiny_training import SIDE, assert_same_files, make_splits, tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from bgl.losses import MinedLoss, PairwiseCrossEntropyLoss
from bgl.models import BatchGraphModel
from bgl.training import TrainConfig, build_model, make_accelerator, train
from bgl.training.build import SHARDING, make_optimizer
from bgl.training.loop import compute_losses, freeze_batch_norm
from bgl.training.step import Precision, Step, Values, _tf32, choose_precision

CPU = torch.device("cpu")
N = 8


def fused(config: TrainConfig, model: BatchGraphModel) -> torch.optim.Optimizer:
    """The optimiser of a GPU; it works on a CPU as well."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)


def make_step(
    config: TrainConfig, make: Callable[..., torch.optim.Optimizer]
) -> tuple[Step, BatchGraphModel, Callable[..., Any]]:
    torch.manual_seed(0)
    model, _ = build_model(config)
    freeze_batch_norm(model.train())
    step = Step(config, model, make(config, model), CPU, compute_losses)
    images, labels = torch.rand(N, 3, SIDE, SIDE), torch.arange(N) // 2

    def run(criterion: nn.Module) -> Any:
        return step(images, labels, criterion, criterion, seed=0, sizes=[N])

    return step, model, run


@pytest.mark.parametrize(
    ("method", "precision"), [("none", "bf16"), ("dybgr+bgformer", "fp32"), ("dybgr", "bf16")]
)
def test_nothing_in_a_step_waits_for_the_device_but_the_reading(method, precision):
    """Fake tensors have no values: whatever looks at one raises."""
    config = tiny(method=method, precision=precision)
    model, _ = build_model(config)
    criterion = MinedLoss(PairwiseCrossEntropyLoss())
    freeze_batch_norm(model.train())
    with FakeTensorMode():
        without_values(model)
        step = Step(config, model, fused(config, model), CPU, compute_losses)
        images, labels = torch.empty(N, 3, SIDE, SIDE), torch.arange(N) // 2
        for _ in range(2):
            _, reading = step(images, labels, criterion, criterion, seed=0, sizes=[N])
        with pytest.raises(DataDependentOutputException):
            reading.values()


class Bad(nn.Module):
    """A loss that is not finite, or whose gradient is not."""

    def __init__(self, gradient_only: bool) -> None:
        super().__init__()
        self.gradient_only = gradient_only

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        zero = embeddings.sum() * 0
        return zero.sqrt() if self.gradient_only else embeddings.sum() + math.inf


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("make", [fused, None], ids=["fused", "plain"])
def test_a_step_that_is_not_finite_leaves_weights_and_moments(make, gradient_only):
    """The next step is as if it had not been."""
    config, good = tiny(lr=0.1), MinedLoss(PairwiseCrossEntropyLoss())
    states = []
    for bad in (False, True):
        step, model, run = make_step(
            config, make or (lambda config, model: make_optimizer(config, model, good))
        )
        assert run(good)[1].values().finite
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if bad:
            values = run(Bad(gradient_only))[1].values()
            assert not values.finite
            assert math.isfinite(values.losses["loss"]) == gradient_only
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, before[name]), name
        run(good)
        moved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert any(not torch.equal(moved[name], before[name]) for name in moved)
        states.append((moved, step.optimizer.state_dict()["state"]))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_overflow_in_fp16_is_no_fault_of_the_batch():
    """The scale is halved until the gradient fits, and the weights wait for that."""
    step, model, run = make_step(tiny(precision="fp16"), fused)
    criterion = MinedLoss(PairwiseCrossEntropyLoss())
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = model.head[0].weight.clone()
    values = run(criterion)[1].values()
    assert not math.isfinite(values.norm)
    assert values.finite
    assert torch.equal(model.head[0].weight, before)
    while not math.isfinite(values.norm):
        last = values
        values = run(criterion)[1].values()
        assert values.scale == last.scale / 2
    assert not torch.equal(model.head[0].weight, before)
    loss = values.losses["loss"]
    expected = make_step(tiny(), fused)[2](criterion)[1].values()
    assert loss == pytest.approx(expected.losses["loss"], rel=1e-2)
    assert values.norm == pytest.approx(expected.norm, rel=0.1)
    assert not Values({"loss": math.nan}, 1.0, 2.0**16).finite
    assert not Values({"loss": 1.0}, math.inf, 1.0).finite


@pytest.mark.slow
def test_compiled_training_needs_one_graph_for_each_part_and_changes_nothing(tmp_path, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: real(f, backend="aot_eager", **o))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    options = {"method": "dybgr", "epochs": 2, "batches_per_epoch": 3}
    for compiled in (False, True):
        train(tiny(compile=compiled, **options), make_splits(), tmp_path / str(compiled))
    assert counters["stats"]["unique_graphs"] == 2  # the encoder; blocks, head and losses
    assert not counters["graph_break"]
    assert_same_files(tmp_path / "False", tmp_path / "True")


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", torch.device("cuda")) == ("bf16" if native else "fp32")
    assert choose_precision("auto", CPU) == "fp32"
    with pytest.raises(ValueError, match=r"`precision`.*'tf32' on cpu.*use auto, fp32"):
        choose_precision("tf32", CPU)


two_apis = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="since PyTorch 2.9"
)


def switches() -> list[Any]:
    def old(place: Any) -> bool | str:
        try:
            return place.allow_tf32
        except RuntimeError:  # where it disagrees with the new one
            return "refused"

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [matmul.fp32_precision, cudnn.conv.fp32_precision, old(matmul), old(cudnn)]


@two_apis
@pytest.mark.parametrize(
    "before", [("none", "tf32"), ("tf32", "ieee"), ("ieee", "none")], ids="-".join
)
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_a_matter_of_the_step_alone(before, allowed):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    start = switches()
    try:
        matmul.fp32_precision, conv.fp32_precision = before
        found = switches()
        with _tf32(allowed):
            kind = "tf32" if allowed else "ieee"
            assert matmul.fp32_precision == kind
            assert (conv.fp32_precision == "tf32") == allowed
            assert switches()[2:] == [allowed, allowed]
            torch.get_float32_matmul_precision()  # as torch.compile asks
        assert switches() == found
    finally:
        matmul.fp32_precision, conv.fp32_precision = start[:2]
    assert switches() == start


@two_apis
def test_on_a_cpu_no_switch_is_touched():
    start = switches()
    with Precision("auto", CPU, benchmark=True).switches():
        assert switches() == start


@pytest.mark.parametrize(("name", "kind"), SHARDING.items())
def test_accelerate_for_sharded_models_is_refused_by_name(monkeypatch, name, kind):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=f"for {kind} .{name}.: use torchrun"):
        make_accelerator("cpu")


@pytest.mark.parametrize("first", ["cpu", "auto"])
def test_a_process_may_train_on_one_device_after_the_other(monkeypatch, first):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kinds = {"cpu": "cpu", "auto": "cuda"}
    try:
        for device in (first, *kinds, first):
            assert make_accelerator(device).device.type == kinds[device]
            assert PartialState().device.type == kinds[device]
    finally:
        make_accelerator("cpu")


def test_determinism_is_asked_of_cublas_before_it_starts(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_accelerator("cpu", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_checkpoint_of_another_device_keeps_the_kind_of_optimiser():
    config = tiny()
    states = []
    for kind in (True, False):
        model, _ = build_model(config)
        optimizer = make_optimizer(config, model, nn.Identity())
        optimizer.defaults["fused"] = kind
        for group in optimizer.param_groups:
            group["fused"] = kind
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states.append((optimizer, optimizer.state_dict()))
    for (optimizer, _), (_, state) in zip(states, states[::-1], strict=True):
        kind = optimizer.defaults["fused"]
        optimizer.load_state_dict(state)
        assert all(group["fused"] == kind for group in optimizer.param_groups)
        optimizer.step()
