"""Mahalanobis heads: Cholesky factors of the smaller side against explicit inverses.

    python -m benchmarks.mahalanobis [--smoke]
        [--out=experiments/results/mahalanobis.jsonl]

d = 1280 features, 50 classes, 40 queries; N support examples. Each row compares the
loss and its gradient by `lite_jax.heads.mahalanobis` with the same computed as
published, by an explicit inverse of every class's d × d matrix: median seconds of one
call, both called in turn, and temporary bytes as compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import median_seconds
from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax.heads.mahalanobis import fit_mahalanobis, mahalanobis_logits
from lite_jax.run import memory_budget


def ours(features, labels, mask, queries, targets, way):
    """The loss by `lite_jax.heads.mahalanobis`."""
    state = fit_mahalanobis(features, labels, mask, way)
    return _loss(mahalanobis_logits(state, queries), targets)


def by_inverses(features, labels, mask, queries, targets, way):
    """The loss by explicit inverses, class by class, all in one batched call."""
    size = features.shape[1]
    weights = mask.astype(features.dtype)
    centre = (weights @ features) / weights.sum()
    centred = features - centre[None, :]
    members = jax.nn.one_hot(labels, way).T * weights[None, :]
    counts = members.sum(1)
    means = members @ centred / counts[:, None]
    task = centred.T @ (centred * weights[:, None]) / (weights.sum() - 1)

    def precision(member, count, mean):
        rows = (centred - mean[None, :]) * member[:, None]
        own = rows.T @ rows / jnp.maximum(count - 1, 1)
        share = count / (count + 1)
        return jnp.linalg.inv(share * own + (1 - share) * task + jnp.eye(size))

    precisions = jax.vmap(precision)(members, counts, means)
    apart = (queries - centre[None, :])[None] - means[:, None]
    distances = jnp.einsum("kmd,kde,kme->mk", apart, precisions, apart)
    return _loss(-distances, targets)


def _loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probs, targets[:, None], 1).mean()


def make_problem(num_support: int, size: int, way: int, num_query: int):
    """Return features of the scale that EfficientNet-B0's have, and labels."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(num_support, size))) * 0.5
    labels = np.arange(num_support) % way
    queries = np.abs(rng.normal(size=(num_query, size))) * 0.5
    return (
        jnp.array(features, jnp.float32),
        jnp.array(labels, jnp.int32),
        jnp.ones(num_support, bool),
        jnp.array(queries, jnp.float32),
        jnp.arange(num_query, dtype=jnp.int32) % way,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compile both, run them in turn, and emit a row for each N."""
    found = parser("Mahalanobis heads: factors of the smaller side against inverses")
    arguments = found.parse_args(argv)
    size, way, num_query = (64, 5, 8) if arguments.smoke else (1280, 50, 40)
    for num_support in (20, 80) if arguments.smoke else (100, 500):
        problem = make_problem(num_support, size, way, num_query)
        compiled = {
            name: _compile(fun, way, problem)
            for name, fun in {"ours": ours, "inverses": by_inverses}.items()
        }
        values = {name: run(*problem) for name, run in compiled.items()}
        bound = {k: functools.partial(run, *problem) for k, run in compiled.items()}
        seconds = median_seconds(bound, rounds=3)
        row = {
            "experiment": "mahalanobis",
            "num_support": num_support,
            "features": size,
            "way": way,
            "num_query": num_query,
            "relative_difference_of_loss": float(
                abs(values["ours"][0] - values["inverses"][0]) / values["inverses"][0]
            ),
        }
        for name, run in compiled.items():
            memory = memory_budget.temporary_bytes(run) / 2**20
            row[f"{name}_seconds"] = round(seconds[name], 4)
            row[f"{name}_temp_mib"] = round(memory, 1)
        row["speedup"] = round(seconds["inverses"] / seconds["ours"], 2)
        emit(arguments.out, row)


def _compile(fun: Callable, way: int, problem: tuple):
    gradient = jax.value_and_grad(lambda *args: fun(*args, way))
    return jax.jit(gradient).lower(*problem).compile()


SECTIONS = (
    Section(
        "Mahalanobis head",
        "mahalanobis",
        "python -m benchmarks.mahalanobis",
        "Loss and gradient against explicit inverses.",
    ),
)


if __name__ == "__main__":
    main()
