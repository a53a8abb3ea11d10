"""A memory of the latest batches: what is remembered, and where gradients go."""

from __future__ import annotations

import pytest
import torch

from bgl.layers import DyBGRBlock, FeatureMemory
from bgl.losses import create_loss

N, C = 6, 5


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(N, C), torch.arange(N) // 2 + 3 * i) for i in range(count)]


@pytest.mark.parametrize("size", [4, N, 8, 13])
def test_the_latest_samples_follow_the_batch(size):
    memory, earlier = FeatureMemory(size), batches(5)
    for i, (x, y) in enumerate(earlier):
        nodes, labels = memory(x, y)
        expected = [(x, y)]
        if i * N >= size:
            before = [torch.cat(part) for part in zip(*earlier[:i][::-1], strict=True)]
            expected.append((before[0][:size], before[1][:size]))
        assert torch.equal(nodes, torch.cat([part for part, _ in expected]))
        assert torch.equal(labels, torch.cat([part for _, part in expected]))
        if i == 3:
            state, memory = memory.state_dict(), FeatureMemory(size)
            memory.load_state_dict(state)


def test_gradients_reach_the_batch_alone_with_any_loss():
    memory, block = FeatureMemory(2 * N), DyBGRBlock(C, k=4)
    loss = create_loss("multi-similarity", 10, C)
    inputs = [(x.requires_grad_(), y) for x, y in batches(3)]
    for x, y in inputs:
        nodes, labels = memory(x, y)
        value = loss(block(nodes, y=labels)[: len(x)], y)
    (x, y), *_ = inputs[::-1]
    value.backward()
    assert x.grad.abs().sum() > 0
    assert all(earlier.grad is None for earlier, _ in inputs[:2])
    whole = torch.cat([x, inputs[1][0], inputs[0][0]]).detach().requires_grad_()
    labels = torch.cat([y, inputs[1][1], inputs[0][1]])
    loss(block(whole, y=labels)[:N], y).backward()
    torch.testing.assert_close(x.grad, whole.grad[:N])


def test_in_evaluation_nothing_is_added_or_taken():
    memory, ((x, y), (other, labels)) = FeatureMemory(4), batches(2)
    memory(x, y)
    memory.eval()
    assert torch.equal(memory(other, labels)[0], other)
    memory.train()
    assert torch.equal(memory(other, labels)[0][N:], x[:4])
