"""Memory of maps over a set: `exact_map` and `lite_map` beside JAX's own ways.

    python -m benchmarks.maps [--smoke] [--out=experiments/results/maps.jsonl]

N rows of 128 numbers by a network of seven layers, and a loss that is no sum of terms
(the logarithm of a sum of exponentials). Temporary bytes of the gradient as compiled,
nothing is run. The table of rows is 512 N bytes of them. "lax.map" is
`jax.lax.map(jax.checkpoint(f), batch_size=50)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import exact_map, lite_map
from lite_jax.run import memory_budget

SIZES, FEATURES, CHUNK, NUM_BACKPROP = (100, 1000, 8192, 65_536), 128, 50, 16


def encode(params: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """Return rows `[n, 128]`."""
    x = jnp.tanh(x @ params[0])
    for _ in range(6):
        x = jnp.tanh(x @ params[1])
    return x


def _by_lax_map(params, x, key):
    one = jax.checkpoint(lambda x: encode(params, x[None])[0])
    return jax.lax.map(one, x, batch_size=CHUNK)


WAYS: dict[str, Callable[..., jax.Array]] = {
    "plain": lambda params, x, key: encode(params, x),
    "lax.map": _by_lax_map,
    "exact_map": lambda params, x, key: exact_map(CHUNK)(encode, params, x, None),
    "lite_map": lambda params, x, key: lite_map(NUM_BACKPROP, CHUNK)(
        encode, params, x, key
    ),
}


def temporary_bytes(way: str, num_rows: int) -> int:
    """Return the temporary bytes of the gradient by a way, as compiled."""

    def loss(params, x, key):
        rows = WAYS[way](params, x, key)
        return jax.nn.logsumexp(rows.sum(1)) + jnp.square(rows).sum()

    float32 = jnp.float32
    params = (
        jax.ShapeDtypeStruct((64, FEATURES), float32),
        jax.ShapeDtypeStruct((FEATURES, FEATURES), float32),
    )
    inputs = jax.ShapeDtypeStruct((num_rows, 64), float32)
    key = jax.eval_shape(jax.random.key, 0)
    program = jax.jit(jax.grad(loss)).lower(params, inputs, key).compile()
    return memory_budget.temporary_bytes(program)


def main(argv: Sequence[str] | None = None) -> None:
    """Compile every way at every size, and emit a row for each size."""
    arguments = parser("memory of maps over a set").parse_args(argv)
    for num_rows in SIZES[:2] if arguments.smoke else SIZES:
        row = {
            "experiment": "maps",
            "rows": num_rows,
            "features": FEATURES,
            "chunk_size": CHUNK,
            "num_backprop": NUM_BACKPROP,
            "table_mb": num_rows * FEATURES * 4 / 1e6,
        }
        for way in WAYS:
            row[f"{way}_mb"] = round(temporary_bytes(way, num_rows) / 1e6, 2)
        emit(arguments.out, row)


SECTIONS = (
    Section(
        "Maps",
        "maps",
        "python -m benchmarks.maps",
        "Temporary bytes of a map's gradient, beside JAX's own ways.",
    ),
)


if __name__ == "__main__":
    main()
