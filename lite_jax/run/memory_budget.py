"""Search for the largest chunk size whose compiled program fits a memory budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lite_jax.errors import UserError
from lite_jax.run.settings import Settings

GB = 10**9
SHARE = 0.9
"""Share of a device's memory that `chunk_size="auto"` uses without a budget."""


class ChunkFit(NamedTuple):
    """A compiled program and its memory.

    Attributes:
        chunk_size: Images computed at once.
        program: The compiled program.
        num_bytes: Bytes it needs on each device, arguments and results included.
    """

    chunk_size: int
    program: Any
    num_bytes: int


def program_bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs, by XLA's memory analysis."""
    analysis = program.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return total - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes


def temporary_bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs besides arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def largest_chunk(
    build: Callable[[int], Any], most: int, budget_gb: float = 0.0
) -> ChunkFit:
    """Return the program of the largest chunk size that fits into the budget.

    Sizes 1, 2, 3, 4, 6, 8, 12, … and `most` are searched by bisection: about four
    programs are compiled, and none is run.

    Args:
        build: `chunk_size -> compiled program`; its memory grows with the chunk size.
        most: Largest chunk size tried; the size of the largest set.
        budget_gb: In 10⁹ bytes; 0 for nine tenths of the memory of a device.

    Raises:
        UserError: No size fits, or the budget is 0 and the device does not report its
            memory.
    """
    budget = budget_bytes(budget_gb)
    sizes = sorted({1, most} | {b << k for b in (2, 3) for k in range(20)})
    sizes = [size for size in sizes if size <= most]

    def fit(size: int) -> ChunkFit:
        program = build(size)
        return ChunkFit(size, program, program_bytes(program))

    best, low, high = fit(sizes[0]), 1, len(sizes)
    if best.num_bytes > budget:
        raise UserError(
            f"gradient.memory_budget_gb={budget / GB:.3g}: images one at a time need "
            f"{best.num_bytes / GB:.3g} GB. Raise it, or lower data.image_size, the "
            "size of the episodes or the backbone, or use gradient.estimator=lite"
        )
    while low < high:
        middle = (low + high) // 2
        candidate = fit(sizes[middle])
        if candidate.num_bytes <= budget:
            best, low = candidate, middle + 1
        else:
            high = middle
    return best


def budget_bytes(budget_gb: float) -> int:
    """Return the budget in bytes: nine tenths of the device's memory where it is 0.

    Raises:
        UserError: A negative budget, or 0 on a device that does not report its memory.
    """
    if budget_gb < 0:
        raise UserError(f"gradient.memory_budget_gb={budget_gb}: expected 0 or more")
    if budget_gb > 0:
        return int(budget_gb * GB)
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise UserError(
            f"gradient.chunk_size=auto: {device.device_kind} does not tell its memory; "
            "set gradient.memory_budget_gb"
        )
    return int(SHARE * limit)


@contextlib.contextmanager
def out_of_memory_explained(config: Settings) -> Iterator[None]:
    """Replace JAX's out-of-memory error by one that names the setting to lower.

    Raises:
        UserError: The device ran out of memory inside.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        chunk = config.gradient.chunk_size
        stores_support = config.gradient.estimator in ("plain", "subsample")
        mend = (
            "set gradient.estimator=lite, whose memory does not grow with the support"
            if stores_support
            else f"lower gradient.chunk_size={chunk}, or let gradient.chunk_size=auto "
            "choose it"
        )
        raise UserError(f"out of memory on {jax.devices()[0]}: {mend}") from error
