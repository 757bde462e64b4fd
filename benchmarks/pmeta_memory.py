"""Memory and multiplications of adapting on a device, by plan, counted three ways.

    python -m benchmarks.pmeta_memory [--smoke] [--network=conv4|resnet12|mlp]
        [--out=experiments/results/pmeta_memory.jsonl]

Each row is one network, one set of trained layers, and one way to keep what it needs:

- `paper_mb`: p-Meta's analytic peak of one image, or of an episode of 200 observations,
  with a gradient for every trained weight (Tables 2 and 3 of the paper);
- `stored_mb`: what this library's backward pass has to keep, by the same analysis;
- `residual_mb`: what its VJP does keep (`lite_jax.pmeta.memory_model.residual_bytes`);
- `temporary_mb`: what the compiled gradient needs besides arguments and results;
- `step_mb`: what a compiled step needs that accumulates 25 images one by one;
- `mmacs`: millions of multiply-accumulate operations of one example and step.

"plain" is the same network differentiated by JAX alone. MB are 10⁶ bytes. Channels are
cut at ρ, scores by meta attention as it is initialised: bytes do not depend on them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.rows import emit, parser, rounded
from experiments.sections import Row, Section
from lite_jax import Network, nn
from lite_jax.heads.class_means import linear_products
from lite_jax.nn.description import Architecture, layer_at, with_layers
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, init_attention
from lite_jax.pmeta.memory_model import MB, count_macs, count_memory, residual_bytes
from lite_jax.pmeta.plan import (
    Plan,
    batch_logits,
    batch_loss,
    inner_params,
    make_step,
)
from lite_jax.run import memory_budget
from lite_jax.types import Params

WAY, SUPPORT = 5, 25


class Case(NamedTuple):
    """A network, what it is given at once, and its weights."""

    network: Network
    architecture: Architecture
    inner: Params
    inputs: jax.Array
    support: jax.Array

    @property
    def paths(self) -> list[str]:
        """Paths of the layers."""
        return [layer.path for layer in self.architecture.layers]


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of every network."""
    found = parser("memory of adaptation plans")
    found.add_argument("--network", choices=NETWORKS, help="one only")
    arguments = found.parse_args(argv)
    names = [arguments.network] if arguments.network else list(NETWORKS)
    for name in names[-1:] if arguments.smoke else names:
        case = make_case(*NETWORKS[name])
        for row in rows_of(case, arguments):
            row = {"experiment": "pmeta_memory", "network": name} | rounded(row)
            emit(arguments.out, row)


NETWORKS: dict[str, tuple[Network, tuple[int, ...], Any, int]] = {
    # network, shape of an input, its dtype, examples at once
    "conv4": (nn.conv4(32), (84, 84, 3), jnp.uint8, 1),
    "resnet12": (nn.resnet12((64, 128, 256, 512)), (84, 84, 3), jnp.uint8, 1),
    "mlp": (nn.mlp(100, 2), (20,), jnp.float32, 200),
}


def make_case(network: Network, shape: tuple[int, ...], dtype: Any, count: int) -> Case:
    """Return a network with weights, a batch, and a support of `SUPPORT` batches."""
    architecture = network.describe(shape, WAY)  # type: ignore[misc]
    backbone = network.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))
    inner, _ = inner_params(architecture, {"backbone": backbone})
    support = jnp.ones((SUPPORT * count, *shape), dtype)
    return Case(network, architecture, inner, support[:count], support)


def rows_of(case: Case, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each set of layers, dense, and sparse where that changes it."""
    for name, trained in layer_sets(case).items():
        yield {"layers": name, "kept": "plain"} | plain(case, trained)
        yield {"layers": name, "kept": "dense"} | measured(case, trained)
        for norm_gradient in ("exact", "bfloat16", "detached"):
            if arguments.smoke or len(case.inputs) > 1 or name == "head (ANIL)":
                continue
            attention = Attention(0.3, 0.0)
            found = measured(case, trained, attention, norm_gradient)
            yield {"layers": name, "kept": f"ρ = 0.3, {norm_gradient}"} | found


def layer_sets(case: Case) -> dict[str, list[str]]:
    """Return what the methods train, and everything from a block on."""
    found = {
        "all (MAML, MAML++)": case.paths,
        "head (ANIL)": ["head"],
        "body (BOIL)": case.paths[:-1],
    }
    for i in range(1, len(case.architecture.blocks)):
        below = {x.path for block in case.architecture.blocks[:i] for x in block.layers}
        name = f"from block {i + 1} on"
        found[name] = [path for path in case.paths if path not in below]
    return found


def measured(
    case: Case,
    trained: list[str],
    attention: Attention = NO_ATTENTION,
    norm_gradient: Any = "exact",
) -> Row:
    """Return a plan's bytes and operations, counted in every way."""
    sizes = dict.fromkeys(trained, 0.1)
    plan = Plan(case.architecture, (sizes,), attention, norm_gradient).check()
    choice, count = plan.choices()[0], len(case.inputs)
    modules = init_attention(jax.random.key(1), case.architecture, attention)
    weights = {path: layer_at(case.inner, path) for path in trained}
    labels = jnp.zeros(count, jnp.int32)

    def logits(weights: Any) -> jax.Array:
        return batch_logits(
            case.architecture, choice, weights, case.inner, modules, case.inputs
        )

    gradient = jax.grad(functools.partial(batch_loss, case.architecture, choice))
    inputs = weights, case.inner, modules, case.inputs, labels
    support = case.support, jnp.zeros(len(case.support), jnp.int32)
    step = make_step(plan, choice, count).lower(case.inner, modules, sizes, *support)
    counted: dict[str, Any] = {"kept": plan.kept(), "examples": count}
    stored = count_memory(
        case.architecture, trained, conventions=plan.conventions(), **counted
    ).stored_bytes
    kept = residual_bytes(logits, weights, known=(case.inner, modules))
    return {
        "paper_mb": count_memory(case.architecture, trained, **counted).num_bytes / MB,
        "stored_mb": stored / MB,
        "residual_mb": kept / MB,
        "temporary_mb": compiled_mb(jax.jit(gradient).lower(*inputs)),
        "step_mb": compiled_mb(step),
        "mmacs": count_macs(case.architecture, trained, kept=plan.kept()).total / 1e6,
    }


def plain(case: Case, trained: list[str]) -> Row:
    """Return the bytes of the same gradient by JAX alone."""
    weights = {path: layer_at(case.inner, path) for path in trained}

    def logits(weights: Any, inner: Params, inputs: jax.Array) -> jax.Array:
        inner = with_layers(inner, weights)
        features = case.network.apply(inner["backbone"], inputs)
        return linear_products(**inner["head"], features=features)

    def loss(weights: Any, inner: Params, inputs: jax.Array) -> jax.Array:
        labels = jnp.zeros(len(inputs), jnp.int32)
        found = logits(weights, inner, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).sum()

    lowered = jax.jit(jax.grad(loss)).lower(weights, case.inner, case.inputs)
    kept = residual_bytes(
        lambda weights: logits(weights, case.inner, case.inputs),
        weights,
        known=case.inner,
    )
    return {"residual_mb": kept / MB, "temporary_mb": compiled_mb(lowered)}


def compiled_mb(lowered: Any) -> float:
    """Return the temporary MB of a program."""
    return memory_budget.temporary_bytes(lowered.compile()) / MB


def tabulate_plans(rows: list[Row]) -> list[Row]:
    """Return bytes and operations of adaptation plans, empty where not counted."""
    names = (
        "network", "layers", "kept", "paper_mb", "stored_mb", "residual_mb",
        "temporary_mb", "step_mb", "mmacs",
    )  # fmt: skip
    return [{name: row.get(name, "") for name in names} for row in rows]


SECTIONS = (
    Section(
        "Memory of adaptation plans",
        "pmeta_memory",
        "python -m benchmarks.pmeta_memory",
        "MB of adapting a network by what is trained and kept, one image at a time "
        "(200 observations of the perceptron): the paper's model, what has to be "
        "stored, what the VJP keeps, the compiled gradient and accumulating step; "
        "millions of multiplications.",
        tabulate_plans,
    ),
)


if __name__ == "__main__":
    main()
