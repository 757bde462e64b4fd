"""What else might lower the variance of a draw: tried, with what came of it.

    python -m experiments.variance [--smoke] [--dataset=omniglot --root=FOLDER]
        [--out=experiments/results/variance.jsonl]

ProtoNets, Conv-4, 20-way 10-shot tasks (N = 200), H = 20, at initialisation and after
training; variances of the backbone's gradient relative to the paper's draw with
replacement at the same H, mean of the tasks. Every rule is unbiased and is combined
with three draws: uniform, by class, by class and sensitivity.

- "as it is": the draw alone, as `lite_sum` makes it.
- "scores by own gradients": sensitivity, told the norms of the examples' own gradients,
  which no rule can know. How much better scores could ever gain.
- "last block exact": the last block back-propagates all N, the blocks below it the H
  drawn. Needs the last block's inputs of all N.
- "control variate": besides, gradients of the blocks below are predicted linearly from
  an example's gradient in the last block; only what is left of them is sampled. The
  prediction is fitted to the other tasks, at the same parameters, by ridge regression
  with the best of RIDGES for the very task, so that the figure is a lower bound.
- "draw for each query chunk", H / 4 or H examples for each of four chunks of the query,
  instead of one draw for all.
- "complement in the next task": two tasks, whose draws share no position. For "the same
  task", two steps on one task; relative to two draws that do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.responses import draw_weights, populations, sketch
from experiments.rows import emit, parser
from experiments.sections import Section, columns
from experiments.unbiasedness import make_source, states
from lite_jax import (
    Learner,
    Sampler,
    Task,
    data,
    episode_grad,
    episode_loss,
    exact_sum,
    lite_sum,
    nn,
    protonets,
)
from lite_jax.lite.sampling import SAMPLERS, Draw, Population
from lite_jax.types import Params, PyTree

QUERY, NUM_BACKPROP, CHUNKS = 5, 20, 4
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
DRAWS = ("uniform", "stratified", "stratified_sensitivity")
Terms = dict[str, np.ndarray]
"""Block of the backbone → the examples' own gradients `[n, k]`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each rule, draw and state."""
    found = parser("ways to lower the variance of a draw")
    found.add_argument("--dataset", default="digits", choices=("digits", "omniglot"))
    found.add_argument("--root", default="", help="folder of the Omniglot sets")
    found.add_argument("--draws", type=int, default=1000)
    found.add_argument("--tasks", type=int, default=4)
    found.add_argument("--steps", type=int, default=300, help="of training")
    arguments = found.parse_args(argv)
    if arguments.smoke:
        arguments.draws, arguments.tasks, arguments.steps = 100, 2, 0
    pixels = 16 if arguments.smoke else 32
    source = make_source(arguments.dataset, arguments.root, pixels)
    way, shot, query = (4, 8, CHUNKS) if arguments.smoke else (20, 10, QUERY)
    spec = data.EpisodeSpec((way, way), (shot, shot), query)
    learner = protonets(nn.conv4(8 if arguments.smoke else 64), way=way)
    tasks = [
        jax.device_put(data.load_task(source, spec, 0, "variance", i))
        for i in range(arguments.tasks)
    ]
    for state, params in states(learner, source, spec, arguments.steps).items():
        for row in compared(learner, params, tasks, arguments.draws):
            found_at = {"experiment": "variance", "dataset": arguments.dataset}
            emit(arguments.out, found_at | {"state": state} | row)


def compared(
    learner: Learner, params: Params, tasks: list[Task], count: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows at one state of the parameters."""
    own_terms = terms_of(learner)
    all_terms = [own_terms(params, task) for task in tasks]
    check_against_lite(learner, params, tasks[0], all_terms[0])
    shares: dict[tuple[str, str, int], list[float]] = {}
    for i, task in enumerate(tasks):
        (told,) = populations(learner, params, task)
        others = [x for j, x in enumerate(all_terms) if j != i]
        chunks = [own_terms(params, chunk) for chunk in query_chunks(task)]
        paper = draws_of("with_replacement", told, NUM_BACKPROP, count, 0)
        yardstick = variance(paper, all_terms[i])
        for key, value in rules(told, all_terms[i], others, chunks, count):
            shares.setdefault(key, []).append(value / yardstick)
    for (rule, draw, backprops), own in shares.items():
        yield {
            "rule": rule,
            "draw": draw,
            "num_support": tasks[0].support.mask.size,
            "num_backprop": NUM_BACKPROP,
            "examples_backpropagated": backprops,
            "tasks": len(own),
            "relative_variance": round(float(np.mean(own)), 4),
            "least": round(min(own), 4),
            "most": round(max(own), 4),
        }


def rules(
    told: Population,
    terms: Terms,
    others: list[Terms],
    chunks: list[Terms],
    count: int,
) -> Iterator[tuple[tuple[str, str, int], float]]:
    """Yield `((rule, draw, examples back-propagated), variance)` for one task."""
    own_norms = np.sqrt(sum((x**2).sum(1) for x in terms.values()))
    below = {name: x for name, x in terms.items() if name != last(terms)}
    rests = [unpredicted(terms, others, ridge) for ridge in RIDGES]
    for draw in DRAWS:
        found = draws_of(draw, told, NUM_BACKPROP, count, 1)
        yield ("as it is", draw, NUM_BACKPROP), variance(found, terms)
        yield ("last block exact", draw, NUM_BACKPROP), variance(found, below)
        least = min(variance(found, rest) for rest in rests)
        yield ("control variate", draw, NUM_BACKPROP), least
        for size in (NUM_BACKPROP // CHUNKS, NUM_BACKPROP):
            total = sum(
                variance(draws_of(draw, told, size, count, 2 + j), chunk)
                for j, chunk in enumerate(chunks)
            )
            found_with = ("draw for each query chunk", draw, size * CHUNKS)
            yield found_with, total / CHUNKS**2  # the loss is the chunks' mean
    informed = told._replace(scores=jnp.asarray(own_norms, float))
    found = draws_of("stratified_sensitivity", informed, NUM_BACKPROP, count, 1)
    yield (
        ("scores by own gradients", "stratified_sensitivity", NUM_BACKPROP),
        variance(found, terms),
    )
    for name, second in (("the next task", others[0]), ("the same task", terms)):
        first, complement = disjoint_draws(len(own_norms), count)
        both = {
            block: first @ x + complement @ second[block] for block, x in terms.items()
        }
        summed = sum((x**2).sum() for x in both.values()) / count
        apart = variance(first, terms) + variance(complement, second)
        # Relative to two draws that do not know of each other, in units of one draw.
        value = variance(first, terms) * summed / apart
        yield (f"complement in {name}", "uniform", NUM_BACKPROP), float(value)


def last(terms: Terms) -> str:
    """Return the name of the last block: `blocks.3` of Conv-4."""
    return max(terms)


def variance(weights: np.ndarray, terms: Terms) -> float:
    """Return the mean square error of draws of `1 + weights [t, n]`."""
    total = sum(((weights @ x) ** 2).sum() for x in terms.values())
    return float(total / len(weights))


def draws_of(
    draw: str, told: Population, size: int, count: int, seed: int
) -> np.ndarray:
    """Return by how much each draw's weights `[t, n]` differ from 1."""
    return draw_weights(SAMPLERS[draw], told, size, count, seed) - 1


def disjoint_draws(num_support: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights less 1 of pairs of uniform draws that share no example."""
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(num_support), (count, 1)), axis=1)
    found = np.full((2, count, num_support), -1.0)
    for part, weights in enumerate(found):
        rows = order[:, part * NUM_BACKPROP : (part + 1) * NUM_BACKPROP]
        np.put_along_axis(weights, rows, num_support / NUM_BACKPROP - 1, axis=1)
    return found[0], found[1]


def unpredicted(terms: Terms, others: list[Terms], ridge: float) -> Terms:
    """Return what a linear prediction from the last block's gradient leaves.

    The prediction is fitted to the other tasks' examples, in the dual.
    """
    controls = np.concatenate([x[last(terms)] for x in others])
    products = controls @ controls.T
    products += ridge * np.trace(products) / len(products) * np.eye(len(products))
    weights = np.linalg.solve(products, controls @ terms[last(terms)].T).T
    return {
        name: x - weights @ np.concatenate([other[name] for other in others])
        for name, x in terms.items()
        if name != last(terms)
    }


def query_chunks(task: Task) -> list[Task]:
    """Return the task with every `CHUNKS`-th query image; losses average to its own."""
    return [
        Task(task.support, jax.tree.map(lambda x, i=i: x[i::CHUNKS], task.query))
        for i in range(CHUNKS)
    ]


def terms_of(learner: Learner) -> Callable[[Params, Task], Terms]:
    """Return `(params, task) -> terms`, the examples' own gradients in the backbone.

    Those are the pullbacks, through an example's term, of what the loss asks of the
    sum: its exact derivative, which is the same for all draws.
    """

    @jax.jit
    def run(params: Params, task: Task) -> dict[str, jax.Array]:
        seen: list[Any] = []

        def record(additive, args, examples, key, mask=None):
            total = exact_sum()(additive, args, examples, None, mask)
            seen.append((additive, args, examples, total))
            return total

        loss_fn, key = episode_loss(learner), jax.random.key(0)
        loss_fn(params, task, key, set_sum=record)
        ((additive, args, examples, total),) = seen

        def loss(total: PyTree) -> jax.Array:
            return loss_fn(params, task, key, set_sum=lambda *_, **__: total)[0]

        asked = jax.grad(loss)(total)

        def term(row: PyTree) -> dict[str, jax.Array]:
            def one(args: PyTree) -> PyTree:
                alone = jax.tree.map(lambda x: x[None], row)
                return additive(args, alone, jnp.ones(1))

            (grads,) = jax.vjp(one, args)[1](asked)
            blocks = grads["backbone"].items()
            return {k: sketch(k, x) for k, x in blocks if k.startswith("blocks.")}

        return lax.map(term, examples, batch_size=50)

    def terms(params: Params, task: Task) -> Terms:
        return {k: np.asarray(x, np.float64) for k, x in run(params, task).items()}

    return terms


def check_against_lite(
    learner: Learner, params: Params, task: Task, terms: Terms
) -> None:
    """Raise unless the terms predict how far `lite_sum` is off for a given draw."""
    rng = np.random.default_rng(0)
    rows, drawn = (
        rng.choice(task.support.mask.size, 7, replace=False),
        9 * rng.random(7),
    )
    draw = Draw(jnp.array(rows, jnp.int32), jnp.array(drawn, float), jnp.int32(7))
    sampled = lite_sum(7, 3, Sampler(lambda key, told, size: draw))
    gradients = [
        jax.jit(episode_grad(learner, operator))(params, task, jax.random.key(0))[1]
        for operator in (sampled, exact_sum())
    ]
    off = jax.tree.map(lambda x, y: x - y, *gradients)["backbone"]
    weights = np.full(task.support.mask.size, -1.0)
    weights[rows] += drawn
    for name, own in terms.items():
        found, expected = np.asarray(sketch(name, off[name])), weights @ own
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 5e-3, f"{name}: terms are {error:.1e} off lite_sum"


SECTIONS = (
    Section(
        "Other ways to lower the variance",
        "variance",
        "python -m experiments.variance --dataset=omniglot --root=OMNIGLOT",
        "What was tried and not kept, relative to the paper's draw with replacement of "
        "H = 20. Draws for each query chunk back-propagate what the column says.",
        lambda rows: columns(
            rows,
            "state",
            "rule",
            "draw",
            "examples_backpropagated",
            "relative_variance",
            "least",
            "most",
        ),
    ),
)


if __name__ == "__main__":
    main()
