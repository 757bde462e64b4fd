"""Hypergradient estimators: error against exact, memory and time, and what they buy.

    python -m experiments.hypergrad [--smoke] [--out=FILE.jsonl]
        [--only=PART] [--method=ONE] [--dataset=omniglot|folder --root=FOLDER]
        [--steps=400]

Parts of the rows:

- "error": cosine and relative error of each estimator in float64, where the exact
  gradient is known: ridge, biased regression, quadratics of condition numbers 10, 100
  and 1000, and the cleaning of digits with 40 % wrong labels.
- "cost": temporary bytes as compiled and seconds of one hypergradient of a network of
  85,000 weights on the same digits, beside one inner gradient. K = 20 inner steps,
  unrolled in four ways.
- "mixed": the exact mixed product beside finite differences, in float32 and bfloat16.
- "cleaning": 300 outer steps of Adam with 10 inner steps each, by estimator: loss on
  the clean validation images, accuracy on the test images, seconds.
- "few-shot": MRML, ITD with cached features and with features computed again at every
  step, ANIL, MAML, iMAML and SAMA after equally many tasks, 5-way 5-shot: accuracy,
  temporary bytes of a step, seconds of training.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.timing import median_seconds
from configs import imaml, maml, mrml, sama_fewshot
from experiments.few_shot import add_data, few_shot_config
from experiments.rows import emit, parser, rounded
from experiments.sections import Row
from lite_jax import exact_sum, hypergrad
from lite_jax.hypergrad import (
    Estimator,
    Problem,
    Products,
    conjugate_gradient,
    identity,
    neumann,
    unrolled,
)
from lite_jax.run import build_data, build_gradient, build_learner, memory_budget
from lite_jax.run.configs import read_settings
from lite_jax.run.feed import Feed
from lite_jax.run.settings import Settings
from lite_jax.run.train import init_state, make_train_step, train_and_evaluate
from tests import bilevel

CURVATURE = 0.6043  # the largest of the cleaning problem
OUTER_STEPS, INNER_STEPS, INNER_RATE = 300, 10, 1 / CURVATURE


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of every part."""
    found = parser("hypergradient estimators")
    add_data(found)
    found.add_argument("--steps", type=int, default=400, help="of few-shot training")
    found.add_argument("--only", choices=PARTS, help="one part")
    found.add_argument("--method", choices=METHODS, help="one of the few-shot part")
    arguments = found.parse_args(argv)
    if arguments.smoke:
        arguments.steps = 1
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            for row in part(arguments):
                row = {"experiment": "hypergrad", "part": name} | rounded(row)
                emit(arguments.out, row)


# --------------------------------------------------------------------------- error


def errors(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield cosine and relative error of each estimator on each problem."""
    with jax.enable_x64(True):
        cases = known_cases(arguments.smoke)
        for name, (case, exact, rate) in cases.items():
            for title, estimator in error_estimators(rate, arguments.smoke).items():
                state = estimator.init(case.solution, case.meta)
                run = jax.jit(functools.partial(estimator.hypergrad, case.problem))
                found = run(*case[1:], state)
                yield {
                    "problem": name,
                    "estimator": title,
                    "cosine": _cosine(found.grads, exact),
                    "relative_error": _error(found.grads, exact),
                }


def known_cases(smoke: bool) -> dict[str, tuple[bilevel.Case, jax.Array, float]]:
    """Return problems with their exact gradients, and 1 / L of the inner loss."""
    keys = jax.random.split(jax.random.key(0), 3)
    found = {"ridge": (*bilevel.ridge(keys[0]), 0.3)}
    if not smoke:
        found["biased regression"] = (*bilevel.biased_regression(keys[1]), 0.3)
    for condition in () if smoke else (10, 100, 1000):
        found[f"quadratic, κ = {condition}"] = (*bilevel.quadratic(condition), 1.0)
    solved = {"logistic regression": (bilevel.logistic(keys[2]), 1.0)}
    if not smoke:
        cleaning = bilevel.hyper_cleaning(), 1 / CURVATURE
        solved["digits cleaning, κ = 604"] = cleaning
    for name, (case, rate) in solved.items():
        dense = jax.jit(functools.partial(hypergrad.dense().hypergrad, case.problem))
        found[name] = case, dense(*case[1:], ()).grads, rate
    return found


def error_estimators(rate: float, smoke: bool) -> dict[str, Estimator]:
    """Return the estimators that are compared; steps are Hessian products."""
    steps = (5,) if smoke else (1, 3, 5, 10, 20, 50)
    found = {"identity (T1–T2, SAMA on SGD)": identity()}
    found |= {f"CG {n}": conjugate_gradient(n) for n in steps}
    for n in (5,) if smoke else (5, 20, 100):
        found[f"Neumann {n}"] = neumann(n + 1, rate)
        found[f"unrolled {n}"] = unrolled(n, optax.sgd(rate), remat=True)
    return found | {"CG 50, damping 0.01": conjugate_gradient(50, 1e-2)}


def _cosine(found: jax.Array, exact: jax.Array) -> float:
    return float(found @ exact / jnp.linalg.norm(found) / jnp.linalg.norm(exact))


def _error(found: jax.Array, exact: jax.Array) -> float:
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


# ---------------------------------------------------------------------------- cost


def network_problem() -> tuple[Problem, Callable[[], Any]]:
    """Return the cleaning of digits by a network of three layers, and its start."""
    sizes = (64, 256, 256, 10)

    def logits(w: Any, images: jax.Array) -> jax.Array:
        for i, layer in enumerate(w):
            images = images @ layer["kernel"] + layer["bias"][None]
            images = images if i == len(w) - 1 else jnp.tanh(images)
        return images

    def outputs(w: Any, batch: Any) -> Any:
        return bilevel.softmax_loss(logits(w, batch[0]), batch[1]), w

    def combine(t: jax.Array, outputs: Any, batch: Any) -> jax.Array:
        losses, w = outputs
        decay = sum((x**2).sum() for x in jax.tree.leaves(w))
        return (jax.nn.sigmoid(t) * losses).mean() + 5e-4 * decay

    def inner(w: Any, t: jax.Array, batch: Any, *, set_sum: Any) -> jax.Array:
        return combine(t, outputs(w, batch), batch)

    def outer(w: Any, t: jax.Array, batch: Any, *, set_sum: Any) -> jax.Array:
        return outputs(w, batch)[0].mean()

    def start() -> Any:
        keys = jax.random.split(jax.random.key(0), 3)
        return [
            {"kernel": jax.random.normal(k, (m, n)) / m**0.5, "bias": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
        ]

    return Problem(inner, outer, outputs, combine), start


def costs(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield bytes and seconds of one hypergradient, in rounds side by side."""
    problem, start = network_problem()
    digits, weights = bilevel.noisy_digits(), start()
    batches, meta = (digits.train, digits.valid), jnp.zeros(1000)
    steps, slow = (2, 3) if arguments.smoke else (20, 20)
    sgd = optax.sgd(0.1)
    plain = problem._replace(outputs=None, combine=None)
    estimators = {
        "identity": (problem, identity()),
        "identity, general mixed product": (plain, identity()),
        "identity, finite differences": (
            plain,
            hypergrad.sama(adaptation=False, mixed="finite_difference", radius=0.01),
        ),
        "CG 1": (problem, conjugate_gradient(1, 1.0)),
        "CG 5": (problem, conjugate_gradient(5, 1.0)),
        f"CG {slow}": (problem, conjugate_gradient(slow, 1.0)),
        f"CG {slow}, reverse over reverse": (
            problem,
            conjugate_gradient(slow, 1.0, mode="reverse"),
        ),
        f"Neumann {slow}": (problem, neumann(slow, 0.1)),
        f"unrolled {steps}": (plain, unrolled(steps, sgd)),
        f"unrolled {steps}, remat": (plain, unrolled(steps, sgd, remat=True)),
        f"unrolled {steps}, mixed mode": (plain, unrolled(steps, sgd, mixed_mode=True)),
        f"unrolled {steps}, remat and mixed mode": (
            plain,
            unrolled(steps, sgd, remat=True, mixed_mode=True),
        ),
    }

    def inner_gradient(weights: Any, meta: jax.Array, batches: Any, state: Any) -> Any:
        loss = functools.partial(problem.inner, set_sum=exact_sum())
        return jax.grad(loss)(weights, meta, batches[0])

    functions: dict[str, Callable[..., Any]] = {"one inner gradient": inner_gradient}
    chosen = list(estimators)[-1:] if arguments.smoke else list(estimators)
    for name in chosen:
        own, estimator = estimators[name]
        functions[name] = functools.partial(estimator.hypergrad, own)
    inputs = weights, meta, batches, ()
    compiled = {k: jax.jit(f).lower(*inputs).compile() for k, f in functions.items()}
    bound = {k: functools.partial(f, *inputs) for k, f in compiled.items()}
    seconds = median_seconds(bound, 1 if arguments.smoke else 7)
    for name, program in compiled.items():
        yield {
            "estimator": name,
            "mib": memory_budget.temporary_bytes(program) / 2**20,
            "seconds": seconds[name],
            "inner_gradients": seconds[name] / seconds["one inner gradient"],
        }


# --------------------------------------------------------------------------- mixed


def mixed_products(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield time, memory and error of the mixed product in three forms."""
    problem, start = network_problem()
    digits, meta = bilevel.noisy_digits(), jnp.zeros(1000)
    batches = digits.train, digits.valid
    general = problem._replace(outputs=None, combine=None)

    def low(w: Any, t: jax.Array, batch: Any, *, set_sum: Any) -> jax.Array:
        images, labels = batch
        batch = images.astype(jnp.bfloat16), labels
        w = jax.tree.map(lambda x: x.astype(jnp.bfloat16), w)
        losses = problem.outputs(w, batch)[0].astype(jnp.float32)  # type: ignore[misc]
        return (jax.nn.sigmoid(t) * losses).mean()

    weights = start()
    vector = jax.grad(
        lambda w: problem.outer(w, meta, digits.valid, set_sum=exact_sum())
    )(weights)
    exact = Products(general, weights, meta, batches, exact_sum()).mixed(vector)
    forms: dict[str, tuple[Problem, float]] = {
        "exact": (general, 0.0),
        "exact, after the network's output": (problem, 0.0),
        "finite differences, 1": (general, 1.0),
        "finite differences, 0.01": (general, 0.01),
        "exact, bfloat16": (Problem(low, problem.outer), 0.0),
        "finite differences, 0.1, bfloat16": (Problem(low, problem.outer), 0.1),
        "finite differences, 0.01, bfloat16": (Problem(low, problem.outer), 0.01),
    }
    if arguments.smoke:
        forms = {name: forms[name] for name in list(forms)[1::2]}
    compiled, inputs = {}, {}
    for name, (own, radius) in forms.items():

        def product(weights: Any, vector: Any, own: Problem = own, r: float = radius):
            products = Products(own, weights, meta, batches, exact_sum())
            return (
                products.mixed_by_differences(vector, r)
                if r
                else products.mixed(vector)
            )

        dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
        inputs[name] = jax.tree.map(lambda x: x.astype(dtype), (weights, vector))  # noqa: B023
        compiled[name] = jax.jit(product).lower(*inputs[name]).compile()
    bound = {k: functools.partial(f, *inputs[k]) for k, f in compiled.items()}
    seconds = median_seconds(bound, 1 if arguments.smoke else 15)
    for name, program in compiled.items():
        yield {
            "form": name,
            "relative_error": _error(bound[name](), exact),
            "mib": memory_budget.temporary_bytes(program) / 2**20,
            "seconds": seconds[name],
        }


# ------------------------------------------------------------------------- cleaning


def cleaning(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield where 300 outer steps lead, by estimator."""
    digits, problem = bilevel.noisy_digits(), bilevel.cleaning_problem()
    outer_steps = 5 if arguments.smoke else OUTER_STEPS
    estimators: dict[str, Estimator | None] = {
        "no cleaning": None,
        "identity": identity(),
        "Neumann 20": neumann(20, INNER_RATE),
        "unrolled 10": unrolled(INNER_STEPS, optax.sgd(INNER_RATE)),
        "CG 5": conjugate_gradient(5),
        "CG 20": conjugate_gradient(20),
        "CG 1, warm": conjugate_gradient(1, warm_start=True),
        "CG 5, warm": conjugate_gradient(5, warm_start=True),
    }
    chosen = list(estimators)[:2] if arguments.smoke else list(estimators)
    for name in chosen:
        run = jax.jit(
            functools.partial(
                cleaned, problem, digits, estimators[name], steps=outer_steps,
                from_start=name.startswith("unrolled"),
            )
        ).lower().compile()  # fmt: skip
        seconds = median_seconds({name: run}, 1 if arguments.smoke else 3)[name]
        weights, meta = run()
        images, labels = digits.test
        logits = images @ weights["kernel"] + weights["bias"][None]
        kept = np.argsort(-np.asarray(meta))[: int((~digits.wrong).sum())]
        yield {
            "estimator": name,
            "valid_loss": float(
                problem.outer(weights, meta, digits.valid, set_sum=exact_sum())
            ),
            "test_accuracy": float((jnp.argmax(logits, -1) == labels).mean()),
            "clean_among_kept": float((~digits.wrong)[kept].mean()),
            "seconds": seconds,
        }


def cleaned(
    problem: Problem,
    digits: bilevel.Digits,
    estimator: Estimator | None,
    *,
    steps: int,
    from_start: bool,
) -> tuple[Any, jax.Array]:
    """Return weights and meta-parameters after outer steps of Adam at 0.1.

    The inner weights are never reset: every outer step follows 10 inner ones. An
    estimator that takes them itself is given the weights `from_start`.
    """
    adam = optax.adam(0.1)
    batches = digits.train, digits.valid
    gradient = jax.grad(functools.partial(problem.inner, set_sum=exact_sum()))

    def descend(weights: Any, meta: jax.Array) -> Any:
        def step(weights: Any, _: None) -> tuple[Any, None]:
            grads = gradient(weights, meta, digits.train)
            return jax.tree.map(lambda w, g: w - INNER_RATE * g, weights, grads), None

        return jax.lax.scan(step, weights, None, length=INNER_STEPS)[0]

    def outer_step(carry: Any, _: None) -> tuple[Any, None]:
        weights, meta, opt_state, state = carry
        moved = descend(weights, meta)
        if estimator is None:
            return (moved, meta, opt_state, state), None
        at = weights if from_start else moved
        found = estimator.hypergrad(problem, at, meta, batches, state)
        updates, opt_state = adam.update(found.grads, opt_state)
        return (moved, meta + updates, opt_state, found.state), None

    weights, meta = bilevel.no_classifier(), jnp.zeros(1000)
    state = estimator.init(weights, meta) if estimator else ()
    carry = weights, meta, adam.init(meta), state
    (weights, meta, _, _), _ = jax.lax.scan(outer_step, carry, None, length=steps)
    return weights, meta


# ------------------------------------------------------------------------- few-shot


Change = Callable[[ConfigDict], None]


def _set(**settings: Any) -> Change:
    """Return the change of settings, named with two underscores for a dot."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return lambda config: config.update_from_flattened_dict(named)


_CG, _ITD, _IMAML = (mrml.mrml,), (mrml.mrml, mrml.itd), (imaml.imaml,)
METHODS: dict[str, tuple[Change, ...]] = {  # as the configurations set them
    "MRML, CG 10": _CG,
    "MRML, CG 10, 20 inner steps": (*_CG, _set(inner__steps=20)),
    "MRML, identity": (*_CG, mrml.identity),
    "MRML, CG 10, LITE H = 10": (*_CG, _set(gradient__estimator="lite")),
    "ITD, cached features": _ITD,
    "ITD, cached features, 100 inner steps": (*_ITD, _set(inner__steps=100)),
    "ANIL": (maml.maml, maml.anil),
    "ITD, features computed again (ANIL)": (
        maml.maml,
        maml.anil,
        _set(inner__steps=20),
    ),
    "MAML": (maml.maml,),
    "MAML, first order": (maml.maml, maml.fomaml),
    "iMAML, CG 5": _IMAML,
    "iMAML, identity": (*_IMAML, imaml.identity),
    "SAMA": (sama_fewshot.sama_fewshot,),
}


def few_shot(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield accuracy, memory and time of meta-learners on the same tasks."""
    methods = list(METHODS)[:1] if arguments.smoke else list(METHODS)
    for name in [arguments.method] if arguments.method else methods:
        config = method_config(arguments, METHODS[name])
        program = step_program(config)
        with tempfile.TemporaryDirectory() as workdir:
            begun, busy = time.perf_counter(), time.process_time()
            results = train_and_evaluate(config, Path(workdir))
            seconds = time.perf_counter() - begun
            cpu_seconds = time.process_time() - busy
        found = results["w5s5"][config.learner]
        yield {
            "dataset": arguments.dataset,
            "method": name,
            "steps": config.train.steps,
            "accuracy": found.mean,
            "half_width": found.half_width,
            "mib": memory_budget.temporary_bytes(program) / 2**20,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }


def method_config(
    arguments: argparse.Namespace, changes: tuple[Change, ...]
) -> ConfigDict:
    """Return the configuration of a method, 5-way 5-shot."""
    config = few_shot_config(arguments, "w5s5", shot=5, query=5, test_query=10)
    config.gradient.estimator, config.gradient.num_backprop = "exact", 10
    config.gradient.chunk_size = 25
    config.test.tasks = 300
    if arguments.smoke:
        config.backbone.width, config.data.image_size, config.test.tasks = 8, 16, 2
    for change in changes:
        change(config)
    return config


def step_program(config: ConfigDict | Settings) -> jax.stages.Compiled:
    """Return the compiled training step."""
    config = read_settings(config, Settings)
    sources = build_data.make_sources(config)
    learner, _ = build_learner.make_learners(config, sources)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    step = make_train_step(build_gradient.make_grad_fn(config, learner), optimizer)
    state = init_state(optimizer, build_learner.init_params(config, learner, sources))
    tasks = Feed(config, sources("train")).step(1)
    return step.lower(state, tasks, jax.random.key(0)).compile()


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "error": errors,
    "cost": costs,
    "mixed": mixed_products,
    "cleaning": cleaning,
    "few-shot": few_shot,
}

if __name__ == "__main__":
    main()
