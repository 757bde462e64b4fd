"""Seconds of several functions, side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def median_seconds(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: bool = False,
) -> dict[str, float]:
    """Return the median seconds of each, called in turn: round by round, all of them.

    Args:
        runs: Name → function; what it returns is waited for.
        rounds: How often each is called.
        warm_up: Leave the first round out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + warm_up):
        for name, run in runs.items():
            begun = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(x[warm_up:]) for name, x in seconds.items()}
