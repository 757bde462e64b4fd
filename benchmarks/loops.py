"""Which loop over chunks? The same gradient by each, timed and weighed side by side.

    python -m benchmarks.loops [--smoke] [--backbone=resnet18] [--rounds=5]
        [--out=experiments/results/loops.jsonl]

The gradient of a smooth loss of the summed features of N images (84 pixels, chunks of
20), all of them back-propagated (H = N) or H = N / 3 of them:

- fori_loop: what `lite_jax.lite.chunks` does, a loop whose length follows the set
- unrolled, and with barriers: the chunks one after the other in one program; barriers
  forbid the compiler to begin a chunk before the last is done
- host loop: one compiled program a chunk, called from Python, the sum donated to it
- residuals kept: the H images are encoded once, and their residuals kept until the
  backward pass, so that nothing is computed twice and memory grows with H

Seconds are medians over rounds in which every variant runs once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import median_seconds
from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import Network, batched, exact_sum, lite_sum, nn
from lite_jax.run import memory_budget
from lite_jax.types import Params

BACKBONES: dict[str, Callable[..., Network]] = {
    "conv4": functools.partial(nn.conv4, 32),
    "resnet18": nn.resnet18,
}
NUM_IMAGES, SIZE, CHUNK = 120, 84, 20
Run = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each backbone, H and variant."""
    found = parser("loops over chunks")
    found.add_argument("--backbone", choices=BACKBONES, help="one only")
    found.add_argument("--rounds", type=int, default=5)
    arguments = found.parse_args(argv)
    count, rounds, names = NUM_IMAGES, arguments.rounds, list(BACKBONES)
    size = SIZE
    if arguments.smoke:
        count, rounds, names, size = 3 * CHUNK, 1, ["conv4"], 16
    image = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    for name in [arguments.backbone] if arguments.backbone else names:
        network = BACKBONES[name](norm="batch")
        params = jax.jit(lambda key, n=network: n.init(key, image))(jax.random.key(0))
        images = jax.random.randint(
            jax.random.key(1), (count, *image.shape), 0, 256, jnp.uint8
        )
        for num_backprop in (count, count // 3):
            runs = dict(variants(network, params, images, num_backprop))
            median = median_seconds({k: run for k, (run, _) in runs.items()}, rounds)
            for variant, (_, mib) in runs.items():
                row = {
                    "experiment": "loops",
                    "backbone": name,
                    "num_support": count,
                    "num_backprop": num_backprop,
                    "chunk_size": CHUNK,
                    "variant": variant,
                    "seconds": round(median[variant], 4),
                    "times_fori_loop": round(median[variant] / median["fori_loop"], 3),
                    "temporary_mib": mib,
                }
                emit(arguments.out, row)


def variants(
    network: Network, params: Params, images: jax.Array, num_backprop: int
) -> Iterator[tuple[str, tuple[Run, float]]]:
    """Yield `(name, (run, temporary MiB))`; all but LITE's draw give equal results."""
    additive = batched(network.apply)
    drawn, factor = images[:num_backprop], len(images) / num_backprop

    def loss_of(total: jax.Array) -> jax.Array:
        return jnp.sin(total / len(images)).sum()

    def by_loop(params: Params, images: jax.Array, key: Any) -> Params:
        whole = num_backprop == len(images)
        set_sum = exact_sum(CHUNK) if whole else lite_sum(num_backprop, CHUNK)
        total = functools.partial(set_sum, additive)
        return jax.grad(lambda p: loss_of(total(p, images, key)))(params)

    yield "fori_loop", _compiled(by_loop, params, images, jax.random.key(2))

    ones = jnp.ones(CHUNK)

    def forward(params: Params, chunk: jax.Array) -> jax.Array:
        return additive(params, chunk, ones)

    def backward(params: Params, chunk: jax.Array, cotangent: jax.Array) -> Params:
        return jax.vjp(lambda p: forward(p, chunk), params)[1](cotangent)[0]

    def unrolled(barrier: bool, params: Params, images: jax.Array) -> Params:
        total = forward(params, images[:CHUNK])
        for start in range(CHUNK, len(images), CHUNK):
            if barrier:
                params, total = lax.optimization_barrier((params, total))
            total = total + forward(params, images[start : start + CHUNK])
        cotangent = jax.grad(loss_of)(total) * factor
        gradient = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, num_backprop, CHUNK):
            if barrier:
                params, gradient = lax.optimization_barrier((params, gradient))
            part = backward(params, drawn[start : start + CHUNK], cotangent)
            gradient = jax.tree.map(jnp.add, gradient, part)
        return gradient

    for name, barrier in (("unrolled", False), ("unrolled, barriers", True)):
        yield name, _compiled(functools.partial(unrolled, barrier), params, images)

    @functools.partial(jax.jit, donate_argnums=0)
    def add_forward(total: jax.Array, params: Params, chunk: jax.Array) -> jax.Array:
        return total + forward(params, chunk)

    @functools.partial(jax.jit, donate_argnums=0)
    def add_backward(
        gradient: Params, params: Params, chunk: jax.Array, cotangent: jax.Array
    ) -> Params:
        part = backward(params, chunk, cotangent)
        return jax.tree.map(jnp.add, gradient, part)

    size = jax.eval_shape(forward, params, images[:CHUNK])

    def from_host() -> Any:
        total = jnp.zeros(size.shape, size.dtype)
        for start in range(0, len(images), CHUNK):
            total = add_forward(total, params, images[start : start + CHUNK])
        cotangent = jax.grad(loss_of)(total) * factor
        gradient = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, num_backprop, CHUNK):
            chunk = drawn[start : start + CHUNK]
            gradient = add_backward(gradient, params, chunk, cotangent)
        return jax.block_until_ready(gradient)

    zeros = jax.tree.map(jnp.zeros_like, params)
    arguments = zeros, params, images[:CHUNK], jnp.zeros(size.shape, size.dtype)
    program: Any = add_backward.lower(*arguments).compile()
    mib = round(memory_budget.temporary_bytes(program) / 2**20, 1)
    from_host()
    yield "host loop", (from_host, mib)

    def kept(params: Params, images: jax.Array) -> Params:
        rest = images[num_backprop:]
        total, pull_back = jax.vjp(
            lambda p: additive(p, drawn, jnp.ones(num_backprop)), params
        )
        if len(rest):
            total = total + exact_sum(CHUNK)(additive, params, rest, None)
        return pull_back(jax.grad(loss_of)(total) * factor)[0]

    yield "residuals kept", _compiled(kept, params, images)


def _compiled(function: Callable[..., Any], *inputs: Any) -> tuple[Run, float]:
    """Return a run of the compiled function, and its temporary MiB."""
    program: Any = jax.jit(function).lower(*inputs).compile()

    def run() -> Any:
        return jax.block_until_ready(program(*inputs))

    run()
    return run, round(memory_budget.temporary_bytes(program) / 2**20, 1)


SECTIONS = (
    Section(
        "Loops over chunks",
        "loops",
        "python -m benchmarks.loops",
        "The same gradient by each.",
    ),
)


if __name__ == "__main__":
    main()
