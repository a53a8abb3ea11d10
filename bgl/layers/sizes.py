"""How many pairs of samples are looked at and kept at once, by kind of device."""

from __future__ import annotations

import torch

# A block of float32 numbers and what is made of it stay in the caches of a core (4 MiB each).
_CPU_BLOCK = 2**20
# Inner products kept from one iteration to the next (16 MiB): cheaper to keep than to compute.
_CPU_KEPT = 2**22
# Every launch costs as much as millions of operations, so blocks are as large as memory allows.
# So many pairs (64 MiB) fit on any GPU; beyond, one pair takes up to 32 bytes in a block
# (products, costs, masks, and what is selected) and half of the free memory may be used.
_CUDA_BLOCK = 2**24
_CUDA_BYTES = 2 * 32
# Graphs of a batch are looked at together up to so many nodes: below, the calls cost more than
# the pairs between different graphs.
TOGETHER = 128


def block_pairs(device: torch.device, wanted: int) -> int:
    """Pairs in a block of rows, of ``wanted`` in all.

    A compiled graph is the same for every number of samples, so it has one block.
    """
    if torch.compiler.is_compiling():
        return wanted
    if device.type == "cpu":
        return _CPU_BLOCK
    if device.type != "cuda" or wanted <= _CUDA_BLOCK:
        return _CUDA_BLOCK
    free = torch.cuda.mem_get_info(device)[0]
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(_CUDA_BLOCK, (free + cached) // _CUDA_BYTES)


def kept_pairs(device: torch.device, wanted: int) -> int:
    """Pairs, of ``wanted`` in all, whose inner products are kept while a graph is refined."""
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return _CPU_KEPT
    return block_pairs(device, wanted)
