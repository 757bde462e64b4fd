"""Temporary memory of one ProtoNets gradient against the number of support images.

    python -m experiments.memory [--smoke] [--out=experiments/results/memory.jsonl]

Compile-only: XLA says what the program will need, nothing runs, so that N = 1024 under
plain differentiation needs no machine that could hold it. Conv-4, 84 × 84 × 3 images,
16 query images, H = 16, chunks of 16, default XLA flags. On CPU the figures leave out
the scratch space of convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.rows import emit, parser
from lite_jax import (
    Examples,
    SetSum,
    Task,
    episode_loss,
    exact_sum,
    lite_sum,
    protonets,
)
from lite_jax.nn import conv4

CHUNK, NUM_BACKPROP, WAY, SIZE, NUM_QUERY = 16, 16, 16, 84, 16
OPERATORS: dict[str, Callable[[], SetSum]] = {
    "plain jax.grad": exact_sum,
    "exact, chunked": lambda: exact_sum(CHUNK),
    "lite": lambda: lite_sum(NUM_BACKPROP, CHUNK),
}


@functools.cache
def temporary_bytes(operator: str, num_support: int) -> int:
    """Return the bytes that the compiled gradient needs besides inputs and outputs."""
    learner = protonets(conv4(), way=WAY)
    loss_fn = episode_loss(learner, query_chunk_size=CHUNK)
    fun = functools.partial(loss_fn, set_sum=OPERATORS[operator]())
    image = jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: learner.init(key, image), key)
    task = Task(_examples(num_support), _examples(NUM_QUERY))
    gradient = jax.jit(jax.grad(fun, has_aux=True))
    memory = gradient.lower(params, task, key).compile().memory_analysis()
    assert memory is not None, "this backend does not say what it allocates"
    return memory.temp_size_in_bytes


def _examples(count: int) -> Examples:
    return Examples(
        jax.ShapeDtypeStruct((count, SIZE, SIZE, 3), jnp.uint8),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.bool_),
    )


def main() -> None:
    """Emit a row for each operator and support size."""
    arguments = parser("temporary memory of a gradient against N").parse_args()
    for operator in OPERATORS:
        for num_support in (64, 1024) if arguments.smoke else (64, 256, 1024):
            mib = temporary_bytes(operator, num_support) / 2**20
            row = {
                "experiment": "memory",
                "operator": operator,
                "num_support": num_support,
                "temporary_mib": round(mib, 1),
            }
            emit(arguments.out, row)


if __name__ == "__main__":
    main()
