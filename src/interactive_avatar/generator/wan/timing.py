# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a call, and how long the device takes over one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Timed = Callable[[Callable[[], Any]], float]
"""Milliseconds that a call takes."""


def capture(run: Callable[[], Any], warm_up: int = 2) -> tuple[Any, Any]:
    """Record ``run`` as a CUDA graph; returns the graph and what a replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # PyTorch's own capture stream belongs to the card that captured first.
    with torch.cuda.graph(graph, stream=side):
        out = run()
    return graph, out


def device_ms(run: Callable[[], Any], calls: int = 8, repeats: int = 5) -> float:
    """Milliseconds of one call, the median of several replays of ``calls`` of them: launching
    them from Python costs more than many of them, and is not paid where graphs run.

    Raises:
        RuntimeError: if the device cannot run or record it.
    """
    def several() -> None:
        for _ in range(calls):
            run()

    graph, _ = capture(several, 1)
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return float(sorted(times)[repeats // 2])


def quickest(candidates: dict[str, Callable[[], Any]], timed: Timed = device_ms
             ) -> dict[str, float]:
    """Milliseconds of each call that runs here, the quickest first; without those that do not."""
    found = {}
    for name, run in candidates.items():
        try:
            found[name] = timed(run)
        except RuntimeError:  # no kernel for it on this card, in this build, or no memory
            continue
    return dict(sorted(found.items(), key=lambda item: item[1]))
