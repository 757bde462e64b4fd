"""Is the gradient unbiased, and how far off is one draw? Estimators side by side.

    python -m experiments.unbiasedness [--smoke] [--dataset=omniglot --root=FOLDER]
        [--out=experiments/results/unbiasedness.jsonl]

Part "enumeration": small tasks in float64; the mean over *all* draws (H = 2 of N = 6)
against the exact gradient, for every learner, with a subset for each sum and with one
subset that the sums share.

Part "draws": one 10-way 10-shot task (N = 100), Conv-4, each group of parameters of
ProtoNets and Simple CNAPs, at initialisation and after training. Estimators:

- `lite_sum` under each of its sampling rules;
- the published rules: "no factor" (H examples, weight 1), "whole loss × N/H"
  (Algorithm 1), "N/H, shared subset" (one draw for both of Simple CNAPs' sums);
- what the paper compares with, whose values change with the draw, so that each one is
  computed, and there are fewer: "small task", the exact gradient of a task of H of the
  examples, as many of each class; `subsample_sum`, which may leave classes without any;
- the limit of independent draws, with probabilities by the examples' own gradients.

Part "variance": ProtoNets on four 20-way 10-shot tasks (N = 200), H = 20; the variance
of each sampling rule relative to the paper's, which draws with replacement, and the
limit of independent draws.

All errors are relative to the norm of the exact gradient. A row tells the squared bias
with its 95 % interval (jackknife over 20 batches of draws; 0 lies inside for what is
unbiased), the standard deviation and root mean square error of one draw and of a step
of 16, the mean cosine, and the image passes of a draw (a backward pass counts two).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.responses import (
    Responses,
    Sketch,
    draw_weights,
    sketched_grad,
)
from experiments.rows import emit, parser
from lite_jax import (
    Learner,
    Sampler,
    Task,
    data,
    episode_grad,
    episode_loss,
    exact_grad,
    exact_sum,
    lite_sum,
    nn,
    protonets,
    simple_cnaps,
    subsample_sum,
)
from lite_jax.lite.sampling import SAMPLERS, Draw
from lite_jax.run import build_data, configs, recipes
from lite_jax.run.train import init_state, make_train_step
from lite_jax.types import Params
from tests import toys

WAY, SHOT, QUERY = 10, 10, 5
NUM_SUPPORT, NUM_QUERY = WAY * SHOT, WAY * QUERY
HS = (1, 2, 5, 10, 20, 40, 80, 100)
BATCHES, TASKS_PER_STEP = 20, 16
LEARNERS: dict[str, Callable[..., Learner]] = {
    "protonets": protonets,
    "simple_cnaps": simple_cnaps,
}
Source = data.ClassSource
LearnerOf = Callable[[str, int], Learner]
"""`(name, way) -> learner`, the same one for the same, so that programs are shared."""


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of both parts."""
    found = parser("bias and deviation of gradient estimators")
    found.add_argument("--dataset", default="digits", choices=("digits", "omniglot"))
    found.add_argument("--root", default="", help="folder of the Omniglot sets")
    found.add_argument("--draws", type=int, default=1000)
    found.add_argument("--small-draws", type=int, default=200)
    found.add_argument("--steps", type=int, default=300, help="of training")
    arguments = found.parse_args(argv)
    sizes: tuple[int, ...] = HS
    if arguments.smoke:
        arguments.draws, arguments.small_draws, arguments.steps = 100, 20, 0
        sizes = (20,)  # as in `variances`, so that programs are compiled once
    for row in enumerated(["simple_cnaps"] if arguments.smoke else None):
        emit(arguments.out, {"experiment": "unbiasedness"} | row)
    width, pixels = (8, 16) if arguments.smoke else (64, 32)
    source = make_source(arguments.dataset, arguments.root, pixels)
    learner_of = functools.cache(functools.partial(make_learner, width))
    for row in variances(arguments, source, learner_of):
        emit(arguments.out, {"experiment": "unbiasedness"} | row)
    names = ["protonets"] if arguments.smoke else list(LEARNERS)
    for name in names:
        for row in drawn(name, arguments, source, learner_of, sizes):
            emit(arguments.out, {"experiment": "unbiasedness"} | row)


# --------------------------------------------------------------------- enumeration


def enumerated(names: list[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the error of the mean over all subsets, for each learner."""
    with jax.enable_x64(True):
        for name in names or toys.LEARNERS:
            learner, params = toys.make_learner(name)
            task, sum_keys = toys.task(), toys.LEARNERS[name][1]
            loss_fn = episode_loss(learner)
            exact_fn = jax.jit(exact_grad(loss_fn, has_aux=True))
            exact, _ = exact_fn(params, task, jax.random.key(1))

            def loss(*args: Any, loss_fn: Any = loss_fn, set_sum: Any) -> Any:
                return loss_fn(*args, set_sum=set_sum)[0]

            num_sums = len(list(sum_keys(jax.random.key(0))))
            for shared in (False, True) if num_sums > 1 else (False,):
                mean = toys.mean_over_subsets(
                    loss, (params, task, jax.random.key(0)), 6, 2, sum_keys, shared
                )
                yield {
                    "part": "enumeration",
                    "learner": name,
                    "estimator": "N/H, shared subset" if shared else "uniform",
                    "num_support": 6,
                    "num_backprop": 2,
                    "relative_bias": float(f"{toys.relative_error(mean, exact):.3g}"),
                }


# --------------------------------------------------------------------------- draws


def drawn(
    name: str,
    arguments: argparse.Namespace,
    source: Source,
    learner_of: LearnerOf,
    sizes: tuple[int, ...],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each state, estimator, H and group of parameters."""
    spec = data.EpisodeSpec((WAY, WAY), (SHOT, SHOT), QUERY)
    learner = learner_of(name, WAY)
    task = jax.device_put(data.load_task(source, spec, 0, "unbiasedness", 0))
    for state, params in states(learner, source, spec, arguments.steps).items():
        responses = Responses(learner, params, task)
        check_against_lite(responses, learner, params, task)
        for num_backprop in sizes:
            for estimator, gradients, passes in estimators(
                responses, learner, params, task, num_backprop, arguments
            ):
                for group in responses.groups:
                    yield {
                        "part": "draws",
                        "dataset": arguments.dataset,
                        "learner": name,
                        "state": state,
                        "group": group,
                        "estimator": estimator,
                        "num_support": NUM_SUPPORT,
                        "num_backprop": num_backprop,
                        **errors(gradients[group], responses.exact[group]),
                        "passes": passes,
                    }
            yield from limits(responses, name, state, num_backprop)


def variances(
    arguments: argparse.Namespace, source: Source, learner_of: LearnerOf
) -> Iterator[dict[str, Any]]:
    """Yield the variance of each sampling rule relative to the paper's."""
    way, num_backprop = WAY if arguments.smoke else 2 * WAY, 20
    spec = data.EpisodeSpec((way, way), (SHOT, SHOT), QUERY)
    learner = learner_of("protonets", way)
    tasks = [
        jax.device_put(data.load_task(source, spec, 0, "variance", i))
        for i in range(1 if arguments.smoke else 4)
    ]
    for state, params in states(learner, source, spec, arguments.steps).items():
        shares: dict[str, list[float]] = {}
        for task in tasks:
            responses = Responses(learner, params, task)
            (told,) = responses.populations
            found = {}
            for name, sampler in SAMPLERS.items():
                draws = draw_weights(sampler, told, num_backprop, arguments.draws, 0)
                gradients = responses.gradients([draws])["backbone"]
                found[name] = gradients.var(0, ddof=1).sum()
            limit = independent_limit(responses, "backbone", num_backprop)
            found["optimal independent draws"] = limit
            for name, variance in found.items():
                share = variance / found["with_replacement"]
                shares.setdefault(name, []).append(float(share))
        for name, own in shares.items():
            yield {
                "part": "variance",
                "dataset": arguments.dataset,
                "learner": "protonets",
                "state": state,
                "estimator": name,
                "num_support": way * SHOT,
                "num_backprop": num_backprop,
                "tasks": len(own),
                "relative_variance": round(float(np.mean(own)), 4),
                "least": round(min(own), 4),
                "most": round(max(own), 4),
            }


def make_learner(width: int, name: str, way: int) -> Learner:
    """Return one of LEARNERS on Conv-4 of that width."""
    return LEARNERS[name](nn.conv4(width), way=way)


def states(
    learner: Learner, source: Source, spec: data.EpisodeSpec, steps: int
) -> dict[str, Params]:
    """Return parameters at initialisation and, if steps are taken, after training."""
    image = jax.ShapeDtypeStruct(source.image_shape, np.uint8)
    initial = jax.jit(lambda key: learner.init(key, image))(jax.random.key(0))
    if not steps:
        return {"initial": initial}
    trained = train(learner, initial, source, spec, steps)
    return {"initial": initial, "trained": trained}


def make_source(dataset: str, root: str, pixels: int) -> Source:
    """Return the training classes of the data set, so many pixels a side."""
    config = configs.base_config()
    if dataset == "omniglot":
        recipes.omniglot(config)
        config.data.root = root
    config.data.image_size = pixels
    return build_data.make_sources(config)("train")


def train(
    learner: Learner,
    params: Params,
    source: Source,
    spec: data.EpisodeSpec,
    steps: int,
) -> Params:
    """Return the parameters after some steps of Adam on exact gradients."""
    optimizer = optax.adam(1e-3)
    grad_fn = episode_grad(learner, exact_sum(20), query_chunk_size=20)
    step_fn = make_train_step(grad_fn, optimizer)
    copied = jax.tree.map(lambda x: x.copy(), params)  # a step donates its state
    state = init_state(optimizer, copied, learner.frozen)
    tasks = (data.load_task(source, spec, 0, "train", i) for i in range(steps))
    for task in tasks:
        stacked = jax.tree.map(lambda x: x[None], task)
        state, _ = step_fn(state, stacked, jax.random.key(0))
    return state.params


def estimators(
    responses: Responses,
    learner: Learner,
    params: Params,
    task: Task,
    num_backprop: int,
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, Sketch, int]]:
    """Yield `(name, gradients, image passes)` of each estimator at one H."""
    told = responses.populations
    count, factor = arguments.draws, NUM_SUPPORT / num_backprop
    passes = NUM_SUPPORT + 3 * num_backprop + 3 * NUM_QUERY

    def weights(sampling: str) -> list[np.ndarray]:
        """Return independent draws for each sum."""
        return [
            draw_weights(SAMPLERS[sampling], population, num_backprop, count, seed)
            for seed, population in enumerate(told)
        ]

    for sampling in SAMPLERS:
        yield sampling, responses.gradients(weights(sampling)), passes
    shared = [weights("uniform")[0]] * len(told)
    unweighted = responses.gradients([(w > 0).astype(float) for w in shared])
    yield "no factor", unweighted, passes
    scaled = {name: factor * g for name, g in unweighted.items()}
    yield "whole loss × N/H", scaled, passes
    if len(told) > 1:
        yield "N/H, shared subset", responses.gradients(shared), passes
    rows = np.stack(
        [np.flatnonzero(w) for w in weights("stratified")[0][: arguments.small_draws]]
    )
    passes = 3 * num_backprop + 3 * NUM_QUERY
    for name, draws in small_draws(learner, params, task, rows).items():
        yield name, draws, passes


def small_draws(
    learner: Learner, params: Params, task: Task, rows: np.ndarray
) -> dict[str, Sketch]:
    """Return gradients of tasks of `rows [t, h]` alone, and of `subsample_sum`."""
    count, num_backprop = rows.shape

    @jax.jit
    def small_tasks(params: Params, task: Task, rows: jax.Array) -> Sketch:
        def gradient(rows: jax.Array) -> Sketch:
            support = jax.tree.map(lambda x: x[rows], task.support)
            whole = sketched_grad(learner, exact_sum())
            return whole(params, Task(support, task.query), jax.random.key(0))

        return jax.lax.map(gradient, rows)

    @jax.jit
    def sub_sampled(params: Params, task: Task, keys: jax.Array) -> Sketch:
        gradient = sketched_grad(learner, subsample_sum(num_backprop))
        return jax.lax.map(lambda key: gradient(params, task, key), keys)

    keys = jax.random.split(jax.random.key(9), count)
    found = {"subsample_sum": sub_sampled(params, task, keys)}
    if num_backprop >= WAY:  # with fewer, classes would be missing
        found["small task"] = small_tasks(params, task, rows)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def check_against_lite(
    responses: Responses, learner: Learner, params: Params, task: Task
) -> None:
    """Raise unless the responses predict what `lite_sum` returns for a given draw."""
    rng = np.random.default_rng(0)
    rows, drawn = rng.choice(NUM_SUPPORT, 7, replace=False), 9 * rng.random(7)
    draw = Draw(jnp.array(rows, jnp.int32), jnp.array(drawn), jnp.int32(7))
    operator = lite_sum(7, 3, Sampler(lambda key, told, size: draw))
    gradient = sketched_grad(learner, operator)
    found = jax.jit(gradient)(params, task, jax.random.key(0))
    weights = np.zeros((1, NUM_SUPPORT))
    weights[0, rows] = drawn
    count = len(responses.populations)
    expected = responses.gradients([weights] * count)
    for name, values in expected.items():
        error = np.linalg.norm(found[name] - values[0]) / np.linalg.norm(values)
        # In float32; Simple CNAPs' solves cost three digits.
        assert error < 5e-3, f"{name}: responses are {error:.1e} off lite_sum"


def limits(
    responses: Responses, name: str, state: str, num_backprop: int
) -> Iterator[dict[str, Any]]:
    """Yield the least deviation of independent draws, where there is one sum."""
    if name != "protonets":
        return
    for group in responses.groups:
        variance = independent_limit(responses, group, num_backprop)
        sd = np.sqrt(variance) / np.linalg.norm(responses.exact[group])
        yield {
            "part": "limit",
            "learner": name,
            "state": state,
            "group": group,
            "estimator": "optimal independent draws",
            "num_support": NUM_SUPPORT,
            "num_backprop": num_backprop,
            "sd": round(float(sd), 4),
        }


def independent_limit(responses: Responses, group: str, num_backprop: int) -> float:
    """Return the least variance of H independent draws: by the gradients' own norms."""
    none = np.zeros((1, responses.num_support))
    support = responses.exact[group] - responses.gradients([none])[group][0]
    total = responses.norms(group).sum() ** 2 - (support**2).sum()
    return float(total) / num_backprop


def errors(gradients: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return bias, deviation and cosine of draws `[t, k]`, relative to `exact [k]`."""
    size = np.linalg.norm(exact)
    off = (gradients - exact) / size
    bias, half_width = squared_bias(off)
    variance = off.var(0, ddof=1).sum()
    cosine = gradients @ exact / (np.linalg.norm(gradients, axis=1) * size)
    found = {
        "bias": np.sqrt(max(bias, 0)),
        "bias_squared": bias,
        "bias_squared_half_width": half_width,
        "sd": np.sqrt(variance),
        "rmse": np.sqrt((off**2).sum(1).mean()),
        "rmse_of_16": np.sqrt(max(bias, 0) + variance / TASKS_PER_STEP),
        "cosine": cosine.mean(),
    }
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    return {"draws": len(gradients), **rounded}


def squared_bias(off: np.ndarray) -> tuple[float, float]:
    """Return the squared norm of the mean of `off [t, k]`, and its 95 % half width.

    Products of different batches' means: their noise is independent, so that the mean
    over pairs of batches is unbiased for the squared bias, and may be negative.
    """
    means = np.stack([batch.mean(0) for batch in np.array_split(off, BATCHES)])
    products = means @ means.T
    np.fill_diagonal(products, 0)
    total, own = products.sum(), 2 * products.sum(1)
    estimate = total / (BATCHES * (BATCHES - 1))
    without = (total - own) / ((BATCHES - 1) * (BATCHES - 2))
    spread = (BATCHES - 1) / BATCHES * ((without - without.mean()) ** 2).sum()
    return float(estimate), float(2.09 * np.sqrt(spread))  # Student's t, 19 degrees


if __name__ == "__main__":
    main()
