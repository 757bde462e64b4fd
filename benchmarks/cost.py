"""The cost of adapting to one task: multiply-accumulates and gradient steps.

    python -m benchmarks.cost [--smoke] [--full]
        [--out=experiments/results/cost.jsonl]

5-way tasks of 25 support images; ResNet-18 at 84 pixels, with `--full` EfficientNet-B0
at 224. MACs are counted in what JAX traces (convolutions and matrix products) and, to
check, by XLA's cost analysis of the compiled program, as half its operations, which
hold the element-wise ones too. XLA counts a loop's body once: no figure where the
adaptation has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.macs import count_macs
from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import (
    Examples,
    Learner,
    Network,
    cnaps,
    exact_sum,
    finetuner,
    maml,
    nn,
    protonets,
    simple_cnaps,
)

WAY, NUM_SUPPORT = 5, 25
LEARNERS: dict[str, tuple[Callable[[Network], Learner], int]] = {
    # name: (how it is made, gradient steps to adapt)
    "protonets": (lambda net: protonets(net, way=WAY), 0),
    "cnaps": (lambda net: cnaps(net, way=WAY), 0),
    "simple_cnaps": (lambda net: simple_cnaps(net, way=WAY), 0),
    "maml": (lambda net: maml(net, way=WAY, steps=15), 15),
    "finetuner": (lambda net: finetuner(net, way=WAY, steps=50), 50),
    "finetuner with FiLM": (
        lambda net: finetuner(net, way=WAY, steps=50, film=True),
        50,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each learner."""
    found = parser("cost of adapting to a task")
    found.add_argument("--full", action="store_true", help="EfficientNet-B0 at 224")
    arguments = found.parse_args(argv)
    size = 224 if arguments.full else 84
    name = "efficientnet_b0" if arguments.full else "resnet18"
    if arguments.smoke:
        name, size = "conv4", 32
    image = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    for learner_name, (make, steps) in LEARNERS.items():
        learner = make(getattr(nn, name)())
        macs, by_xla = adaptation_macs(learner, image, loops=steps > 0)
        row = {
            "experiment": "cost",
            "learner": learner_name,
            "backbone": name,
            "image_size": size,
            "num_support": NUM_SUPPORT,
            "steps": steps,
            "gmacs": round(macs / 1e9, 3),
            "gmacs_by_xla": None if by_xla is None else round(by_xla / 1e9, 3),
        }
        emit(arguments.out, row)


def adaptation_macs(
    learner: Learner, image: Any, loops: bool
) -> tuple[int, float | None]:
    """Return the MACs of `adapt`, counted in the trace and by XLA."""
    params = jax.eval_shape(lambda key: learner.init(key, image), jax.random.key(0))
    support = Examples(
        jax.ShapeDtypeStruct((NUM_SUPPORT, *image.shape), image.dtype),
        jax.ShapeDtypeStruct((NUM_SUPPORT,), jnp.int32),
        jax.ShapeDtypeStruct((NUM_SUPPORT,), jnp.bool_),
    )

    def adapt(params: Any, support: Examples, key: Any) -> Any:
        return learner.adapt(params, support, key, exact_sum())

    args = params, support, jax.random.key(0)
    traced = count_macs(adapt, *args)
    if loops:
        return traced, None
    analysis = jax.jit(adapt).lower(*args).compile().cost_analysis()
    return traced, analysis["flops"] / 2 if analysis else None


SECTIONS = (
    Section(
        "Cost of adapting",
        "cost",
        "python -m benchmarks.cost",
        "To one 5-way 5-shot task.",
    ),
)


if __name__ == "__main__":
    main()
