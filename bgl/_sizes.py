"""How many pairs of samples are looked at and kept at once, by the device and its free memory."""

from __future__ import annotations

from pathlib import Path

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
# Up to so many pairs (16 MiB), sums over the edges of a graph are products with its matrix: three
# kernels. Those of lists sort them, which takes some 18.
_CUDA_SPREAD = 2**22
_CPU_SPREAD = 0
# Scores of a search held at once (128 MiB on a CPU). On a GPU one takes up to 16 bytes where its
# products are computed in float64; up to 2³⁰ are numbered in 32 bits.
_CPU_SCORES = 2**25
_CUDA_SCORES = 2**30
# Free memory where the system does not tell it: few machines have less.
_CPU_BYTES = 2**32
_CGROUP = "/sys/fs/cgroup/memory.max"  # the limit of a container, or "max"
# Rows against which a gallery is read at once: fewer would wait for its memory.
_SCORED_ROWS = 256
# Rows for which a gallery is read and converted anew: fewer would wait for the conversion.
_CONVERTED_FOR_ROWS = 4096
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
    return max(_CUDA_BLOCK, _free_bytes(device) // _CUDA_BYTES)


def kept_pairs(device: torch.device, wanted: int) -> int:
    """Pairs, of ``wanted`` in all, whose inner products are kept while a graph is refined."""
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return _CPU_KEPT
    return block_pairs(device, wanted)


def spreads(device: torch.device, pairs: int) -> bool:
    """Whether to sum over edges by a matrix of so many pairs."""
    return pairs <= (_CUDA_SPREAD if device.type == "cuda" else _CPU_SPREAD)


def fitting_scores(device: torch.device) -> int:
    """Float32 scores, or as many numbers in float64, that a search may hold at once."""
    if device.type != "cuda":
        return _CPU_SCORES
    return min(_CUDA_SCORES, max(_CPU_SCORES, _free_bytes(device) // 32))


def score_block(device: torch.device, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a block of the scores of ``rows`` queries against a gallery.

    All columns, unless that left too few rows.
    """
    scores = fitting_scores(device)
    height = max(1, min(rows, max(_SCORED_ROWS, scores // columns)))
    return height, min(columns, scores // height)


def converted_block(device: torch.device, rows: int, columns: int, dim: int) -> tuple[int, int]:
    """As :func:`score_block`, against a gallery whose vectors are converted block by block.

    A conversion takes some float64 copies of a block.
    """
    scores = fitting_scores(device)
    height = max(1, min(rows, _CONVERTED_FOR_ROWS))
    return height, max(1, min(columns, scores // max(height, 8 * dim)))


def fits(device: torch.device, numbers: int) -> bool:
    """Whether so many float32 numbers may be kept: in a quarter of the free memory."""
    return numbers <= _free_bytes(device) // 16


def _free_bytes(device: torch.device) -> int:
    """Memory that nobody uses, or that PyTorch keeps for itself."""
    if device.type != "cuda":
        found = _number_in("/proc/meminfo", "MemAvailable:", 2**10), _number_in(_CGROUP)
        return min((number for number in found if number is not None), default=_CPU_BYTES)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def _number_in(path: str, name: str = "", unit: int = 1) -> int | None:
    """The number behind a name in a file of the system; None if there is none."""
    try:
        words = Path(path).read_text(encoding="utf-8").split()
        return int(words[words.index(name) + 1 if name else 0]) * unit
    except (OSError, ValueError, IndexError):
        return None
