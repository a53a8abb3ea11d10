"""Products that are exact to float32, whatever PyTorch's switches allow elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bgl import _precision
from bgl._precision import exact_matmul
from bgl.hyperbolic import HyperbolicDistance
from bgl.losses import PairwiseCrossEntropyLoss
from bgl.metrics import retrieval_metrics

CUBLAS, ONEDNN = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
SWITCHES: dict[str, Callable[[], None]] = {
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
}
if ONEDNN is not None:  # PyTorch 2.9 and later
    SWITCHES |= {
        "all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        "oneDNN": lambda: setattr(ONEDNN, "fp32_precision", "bf16"),
    }


class Tf32(TorchDispatchMode):
    """Rounds the factors of every float32 product to TF32, as a GPU with that switch does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            args = [rounded(arg) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    if ONEDNN is not None:  # the line above has set these two to "ieee"
        torch.backends.fp32_precision = CUBLAS.fp32_precision = ONEDNN.fp32_precision = "none"


@pytest.fixture(params=SWITCHES)
def switched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Float32 products in less than float32, on this device as on a GPU."""
    SWITCHES[request.param]()
    with Tf32():
        yield


def pair(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, 5, 40), torch.randn(*batch, 40, 7)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_products_and_both_derivatives_are_exact(switched: None, batch: tuple[int, ...]) -> None:
    a, b = pair(*batch)
    assert ((a @ b).double() - a.double() @ b.double()).abs().max() > 1e-4  # the switch is on

    def all_three(a: Tensor, b: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> list[Any]:
        a, b = a.requires_grad_(), b.requires_grad_()
        product = multiply(a, b)
        first = torch.autograd.grad(product.square().sum(), (a, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))
        return [product, *first, *second]

    exact = all_three(a.double(), b.double(), torch.matmul)
    for got, expected in zip(all_three(a, b, exact_matmul), exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() < 2e-6 * expected.abs().max()


def test_float64_and_autocast_are_left_out(switched: None) -> None:
    a, b = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact_matmul(a, b), (a.double() @ b.double()).float())
        assert torch.equal(exact_matmul(a.double(), b.double()), a.double() @ b.double())


def test_without_a_switch_the_product_is_the_plain_one() -> None:
    a, b = pair()
    assert torch.equal(exact_matmul(a, b), a @ b)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_graph_without_a_break() -> None:
    compiled = torch.compile(exact_matmul, backend="aot_eager", fullgraph=True, dynamic=True)
    for precision in ("highest", "high", "highest"):  # the graph follows the switch
        torch.set_float32_matmul_precision(precision)
        for rows in (5, 6, 9):
            a, b = torch.randn(rows, 40), torch.randn(40, rows)
            assert torch.equal(compiled(a, b), exact_matmul(a, b))
    torch.compiler.reset()


def test_the_switches_for_a_gpu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _precision._may_reduce_float32("cuda")
    CUBLAS.allow_tf32 = True
    assert _precision._may_reduce_float32("cuda")
    assert not _precision._may_reduce_float32("mps")
    CUBLAS.allow_tf32 = False
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert _precision._may_reduce_float32("cuda")
    assert not _precision._may_reduce_float32("cpu")


@pytest.mark.skipif(ONEDNN is None, reason="PyTorch has these switches since 2.9")
@pytest.mark.parametrize("switch", [torch.backends, CUBLAS], ids=["all", "cuda"])
def test_the_new_switches_for_a_gpu_are_seen(switch: Any) -> None:
    switch.fp32_precision = "tf32"
    assert _precision._may_reduce_float32("cuda")


@pytest.mark.slow
def test_the_environment_of_nvidia_containers_is_seen() -> None:
    """PyTorch reads it once, at the start."""
    code = "from bgl._precision import _may_reduce_float32 as may; print(may('cuda'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "True"


def test_an_older_torch_is_asked_by_its_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backends:
        class cuda:
            matmul = object()

        mkldnn = object()

    for precision in ("highest", "high", "medium"):
        monkeypatch.setattr(torch, "backends", Backends)
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda p=precision: p)
        for device in ("cpu", "cuda"):
            assert _precision._may_reduce_float32(device) == (precision != "highest")
        monkeypatch.undo()


def test_close_points_keep_their_distances_and_gradients(switched: None) -> None:
    x = (1.5 + 0.005 * torch.randn(24, 16)) / 16
    distance = HyperbolicDistance(c=1.0)

    def measured(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.requires_grad_()
        apart = distance(x, x)
        return apart.detach(), torch.autograd.grad(apart.sum(), x)[0]

    for got, expected in zip(measured(x), measured(x.double()), strict=True):
        assert (got - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("distance", [None, HyperbolicDistance(c=0.1)], ids=["default", "ball"])
def test_pairwise_loss_is_exact(switched: None, distance: HyperbolicDistance | None) -> None:
    z, y = 0.3 * torch.randn(12, 8), torch.arange(12) % 3
    loss = PairwiseCrossEntropyLoss(distance=distance)
    expected = loss(z.double(), y)
    assert abs(loss(z, y) - expected) < 1e-6 * expected


@pytest.mark.parametrize("distance", ["cosine", "euclidean", HyperbolicDistance()], ids=str)
def test_metrics_are_those_of_full_precision(
    distance: str | HyperbolicDistance,
) -> None:
    # Far from the origin, close together: what TF32 confuses.
    x = (1 + 0.02 * torch.randn(200, 16)) / 4
    y = torch.arange(200) % 20
    expected = retrieval_metrics(x.double(), y, distance=distance)
    for switch in SWITCHES.values():
        switch()
        with Tf32():
            assert retrieval_metrics(x, y, distance=distance) == expected


@pytest.mark.parametrize("rows", [1, 2, 7, 300])
def test_central_point_is_the_lower_median_of_some_rows(rows: int) -> None:
    x = torch.randint(-9, 9, (rows, 3)).float()
    some = x if rows < 300 else x[::2]
    assert torch.equal(_precision.central_point(x), some.median(dim=0).values)
