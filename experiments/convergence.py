"""Does MRML converge as its theory says? Error against steps and against batch size.

    python -m experiments.convergence [--smoke]
        [--out=experiments/results/convergence.jsonl]

256 tasks of biased regression (30 examples, 8 weights, pull β = 0.3 towards the centre
x that is learned), whose gradient is known in closed form; float64; plain gradient
descent on x, as in the analysis. Yang, Ma and Yu 2025 claim convergence to a stationary
point with all tasks in every step, and an error of O(1 / |B|) with |B| tasks a step.

Parts of the rows:

- "deterministic": ‖∇F(x_t)‖ / ‖∇F(x_0)‖ over outer steps, by inner steps K and
  iterations of conjugate gradients N. Inner steps start anew at x, so that a small K
  leaves a bias that no number of outer steps removes.
- "stochastic": the mean of ‖∇F(x_t)‖² over the last quarter of the steps and over
  seeds, relative to that at x_0, by |B|; tasks are drawn without replacement.
- "slope": of its logarithm over log |B|; -1 is O(1 / |B|).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax.hypergrad import Problem, conjugate_gradient

BETA, ROWS, COLUMNS, NUM_TASKS = 0.3, 30, 8, 256
BATCHES = (1, 2, 4, 8, 16, 32, 64)
Tasks = dict[str, jax.Array]


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of every part, in float64."""
    arguments = parser("convergence of MRML").parse_args(argv)
    with jax.enable_x64(True):
        for row in convergence(arguments.smoke):
            emit(arguments.out, {"experiment": "convergence"} | row)


def convergence(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield all rows."""
    tasks = make_tasks()
    steps = 20 if smoke else 400
    curvature = jax.jit(jax.hessian(loss))(jnp.zeros(COLUMNS), tasks)
    rate = 1 / float(np.linalg.eigvalsh(curvature)[-1])
    key, budgets = jax.random.key(0), ((5, 1), (5, 8), (20, 3), (100, 8))
    for inner_steps, solver_steps in budgets[:1] if smoke else budgets:
        counts = steps, NUM_TASKS, inner_steps, solver_steps
        norms = descend(tasks, key, rate, *counts)
        for step in sorted({0, *np.geomspace(1, steps, 9).astype(int).tolist()}):
            yield {
                "part": "deterministic",
                "inner_steps": inner_steps,
                "solver_steps": solver_steps,
                "step": step,
                "gradient_norm": float(f"{norms[step] / norms[0]:.3g}"),
            }
    seeds = 1 if smoke else 20
    found = {}
    for batch in BATCHES[::6] if smoke else BATCHES:
        squares = []
        for seed in range(seeds):
            counts = 2 * steps, batch, *budgets[0 if smoke else -1]
            norms = descend(tasks, jax.random.key(seed), rate / 4, *counts)
            squares.append((norms[-steps // 2 :] ** 2).mean() / norms[0] ** 2)
        found[batch] = float(np.mean(squares))
        spread = float(np.std(squares) / np.sqrt(seeds))
        yield {
            "part": "stochastic",
            "batch": batch,
            "seeds": seeds,
            "squared_gradient": float(f"{found[batch]:.3g}"),
            "standard_error": float(f"{spread:.2g}"),
        }
    sizes, values = np.log(list(found)), np.log(list(found.values()))
    yield {"part": "slope", "slope": round(float(np.polyfit(sizes, values, 1)[0]), 3)}


def make_tasks() -> Tasks:
    """Return regression tasks whose true weights scatter about a common centre."""
    rng = np.random.default_rng(0)
    true = 2 + rng.normal(size=(NUM_TASKS, COLUMNS))
    found = {}
    for part in ("train", "test"):
        inputs = rng.normal(size=(NUM_TASKS, ROWS, COLUMNS))
        noise = rng.normal(size=(NUM_TASKS, ROWS))
        found[f"{part}_inputs"] = jnp.array(inputs)
        targets = np.einsum("tnd,td->tn", inputs, true) + noise
        found[f"{part}_targets"] = jnp.array(targets)
    return found


def _squares(weights: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    return ((inputs @ weights - targets) ** 2).mean() / 2


def _train(task: Tasks, weights: jax.Array) -> jax.Array:
    return _squares(weights, task["train_inputs"], task["train_targets"])


def _test(task: Tasks, weights: jax.Array) -> jax.Array:
    return _squares(weights, task["test_inputs"], task["test_targets"])


def _inner(weights: jax.Array, centre: jax.Array, task: Any, *, set_sum: Any) -> Any:
    return _train(task, weights) + BETA / 2 * ((weights - centre) ** 2).sum()


def _outer(weights: jax.Array, centre: jax.Array, task: Any, *, set_sum: Any) -> Any:
    return _test(task, weights)


def loss(centre: jax.Array, tasks: Tasks) -> jax.Array:
    """Return F(x), the mean test loss at the tasks' exact inner solutions."""

    def of_task(task: Tasks) -> jax.Array:
        inputs = task["train_inputs"]
        hessian = inputs.T @ inputs / ROWS + BETA * jnp.eye(COLUMNS)
        target = inputs.T @ task["train_targets"] / ROWS + BETA * centre
        return _test(task, jnp.linalg.solve(hessian, target))

    return jax.vmap(of_task)(tasks).mean()


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def descend(
    tasks: Tasks,
    key: jax.Array,
    rate: float,
    steps: int,
    batch: int,
    inner_steps: int,
    solver_steps: int,
) -> jax.Array:
    """Return the exact ‖∇F‖ `[steps + 1]` along MRML's gradient descent."""
    problem, estimator = Problem(_inner, _outer), conjugate_gradient(solver_steps)

    def of_task(centre: jax.Array, task: Tasks) -> jax.Array:
        def step(weights: jax.Array, _: None) -> tuple[jax.Array, None]:
            slope = jax.grad(_inner)(weights, centre, task, set_sum=None)
            return weights - 0.3 * slope, None

        solution, _ = jax.lax.scan(step, centre, length=inner_steps)
        return estimator.hypergrad(problem, solution, centre, (task, task), ()).grads

    def outer_step(centre: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = jnp.linalg.norm(jax.grad(loss)(centre, tasks))
        rows = jax.random.permutation(key, NUM_TASKS)[:batch]
        drawn = jax.tree.map(lambda x: x[rows], tasks)
        grads = jax.vmap(of_task, (None, 0))(centre, drawn).mean(0)
        return centre - rate * grads, norm

    keys = jax.random.split(key, steps)
    centre, norms = jax.lax.scan(outer_step, jnp.zeros(COLUMNS), keys)
    last = jnp.linalg.norm(jax.grad(loss)(centre, tasks))
    return jnp.append(norms, last)


SECTIONS = (
    Section(
        "Convergence of MRML",
        "convergence",
        "python -m experiments.convergence",
        "256 regression tasks with a known gradient: over outer steps with all tasks a "
        "step, and by the tasks drawn for a step; a slope of -1 is O(1 / |B|).",
    ),
)


if __name__ == "__main__":
    main()
