"""What a benchmark compares with: useful work, the machine's matrix rate, ranks, padding."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scar_core.ranker.linears import OneDnnLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

CUTS = (0.01, 0.1, 0.5)
"""Shares whose selected sets are compared."""


def useful_flops(config: Any, lengths_N: NDArray[np.int64]) -> float:  # noqa: ANN401  - an encoder's config
    """Multiplications and additions of the encoder's matrices for these texts, each alone."""
    D, F = config.hidden_size, config.intermediate_size
    linear = 2 * (4 * D * D + 2 * D * F) * lengths_N.sum()
    attention = 4 * D * (lengths_N**2).sum()
    return float(config.num_hidden_layers * (linear + attention))


def matrix_rate(device: str, dtype: torch.dtype, width: int) -> float:
    """Best FLOP/s of a linear layer of an encoder this wide, plain torch or oneDNN, bias included.

    Per second of CPU time, one thread; on a GPU per second of wall time.
    """
    rates = []
    rows = 65_536 if device == "cuda" else 1024
    for narrow, wide in ((width, width), (width, 4 * width), (4 * width, width)):
        layer = torch.nn.Linear(narrow, wide).to(device, dtype)
        x = torch.randn((rows, narrow), device=device, dtype=dtype)
        ways: list[Callable[[torch.Tensor], torch.Tensor]] = [layer]
        if device == "cpu":
            ways.append(OneDnnLinear(layer, dtype))
        work = 2 * rows * narrow * wide
        rates += [_rate(lambda way=way, x=x: way(x), work, device) for way in ways]  # type: ignore[misc]
    return max(rates)


def _rate(call: Callable[[], Any], work: int, device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    with torch.inference_mode():
        call()
        times = max(3, int(2e10 / work)) if device == "cpu" else 20
        seconds = []
        for _ in range(5):
            synchronize(device)
            start = clock()
            for _ in range(times):
                call()
            synchronize(device)
            seconds.append(clock() - start)
    return work * times / min(seconds)


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def padded_tokens(lengths_N: NDArray[np.int64], batch_size: int) -> int:
    """Tokens that batches of so many texts compute, padded, in this order."""
    starts = range(0, len(lengths_N), batch_size)
    return sum(
        int(part.max()) * len(part) for part in (lengths_N[s : s + batch_size] for s in starts)
    )


def selected(scores: Sequence[float], keep: float) -> set[int]:
    """The best share of the rows, at least one; ties to the earlier row."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return set(order[: max(1, int(keep * len(scores)))])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, for scores without ties."""
    first, second = (np.argsort(np.argsort(scores)).astype(float) for scores in (one, other))
    return float(np.corrcoef(first, second)[0, 1])
