"""Bilevel problems whose hypergradient is known, or can be had by a dense solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.random import normal
from sklearn.datasets import load_digits

from lite_jax.hypergrad import Problem
from lite_jax.types import Key, PyTree


class Case(NamedTuple):
    """A problem at its inner solution.

    Attributes:
        problem: The two losses.
        solution: θ*(λ).
        meta: λ.
        batches: Of the inner and the outer loss.
    """

    problem: Problem
    solution: PyTree
    meta: PyTree
    batches: tuple[Any, Any]


def softmax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example, `[n]`."""
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -found[:, 0]


def _squares(w: jax.Array, batch: Any) -> jax.Array:
    a, y = batch
    return ((a @ w - y) ** 2).mean() / 2


def _regression(
    key: Key, rows: int, columns: int
) -> tuple[Any, Any, Callable[[jax.Array], jax.Array]]:
    """Return training and test data, and the slope of the test loss."""
    keys = jax.random.split(key, 4)
    train = normal(keys[0], (rows, columns)), normal(keys[1], (rows,))
    test = normal(keys[2], (rows, columns)), normal(keys[3], (rows,))
    return train, test, lambda w: test[0].T @ (test[0] @ w - test[1]) / rows


def ridge(key: Key, rows: int = 30, columns: int = 8) -> tuple[Case, jax.Array]:
    """Return ridge regression with a log-penalty a coordinate, and dF/dλ."""
    train, test, slope = _regression(key, rows, columns)
    (a, y), penalty = train, jnp.linspace(-2.0, 1.0, columns)

    def inner(w, t, batch, *, set_sum):
        return _squares(w, batch) + (jnp.exp(t) * w**2).sum() / 2

    def outer(w, t, batch, *, set_sum):
        return _squares(w, batch)

    hessian = a.T @ a / rows + jnp.diag(jnp.exp(penalty))
    solution = jnp.linalg.solve(hessian, a.T @ y / rows)
    adjoint = jnp.linalg.solve(hessian, slope(solution))
    case = Case(Problem(inner, outer), solution, penalty, (train, test))
    return case, -jnp.exp(penalty) * solution * adjoint


def biased_regression(
    key: Key, rows: int = 30, columns: int = 8, beta: float = 0.3
) -> tuple[Case, jax.Array]:
    """Return regression drawn towards a centre, the meta-parameter, and dF/dλ."""
    first, second = jax.random.split(key)
    train, test, slope = _regression(first, rows, columns)
    (a, y), centre = train, normal(second, (columns,))

    def inner(w, x, batch, *, set_sum):
        return _squares(w, batch) + beta * ((w - x) ** 2).sum() / 2

    def outer(w, x, batch, *, set_sum):
        return _squares(w, batch)

    hessian = a.T @ a / rows + beta * jnp.eye(columns)
    solution = jnp.linalg.solve(hessian, a.T @ y / rows + beta * centre)
    case = Case(Problem(inner, outer), solution, centre, (train, test))
    return case, beta * jnp.linalg.solve(hessian, slope(solution))


def logistic(key: Key, rows: int = 60, columns: int = 8) -> Case:
    """Return logistic regression with a log-penalty a coordinate, solved by Newton.

    The usual test of hyper-parameter optimisation: its Hessian depends on the solution,
    and no closed form gives either.
    """
    train, test, _ = _regression(key, rows, columns)

    def loss(w, batch):
        a, y = batch
        return jax.nn.softplus(-jnp.sign(y) * (a @ w)).mean()

    def inner(w, t, batch, *, set_sum):
        return loss(w, batch) + (jnp.exp(t) * w**2).sum() / 2

    def outer(w, t, batch, *, set_sum):
        return loss(w, batch)

    problem, penalty = Problem(inner, outer), jnp.linspace(-4.0, -1.0, columns)
    solution = newton(problem, jnp.zeros(columns), penalty, train)
    return Case(problem, solution, penalty, (train, test))


def quadratic(
    condition: float, size: int = 40, seed: int = 0
) -> tuple[Case, jax.Array]:
    """Return a quadratic of curvatures from 1/condition to 1, and dF/dλ."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    hessian = jnp.array(turn * np.geomspace(1 / condition, 1, size) @ turn.T)
    cross = jnp.array(rng.normal(size=(size, 5)))
    goal, meta = jnp.array(rng.normal(size=size)), jnp.array(rng.normal(size=5))

    def inner(y, x, batch, *, set_sum):
        return y @ hessian @ y / 2 + y @ cross @ x

    def outer(y, x, batch, *, set_sum):
        return ((y - goal) ** 2).sum() / 2 + (x**2).sum() / 2

    solution = -jnp.linalg.solve(hessian, cross @ meta)
    exact = meta - cross.T @ jnp.linalg.solve(hessian, solution - goal)
    return Case(Problem(inner, outer), solution, meta, (None, None)), exact


class Digits(NamedTuple):
    """Scikit-learn's digits for hyper-cleaning: `(images, labels)` of each part.

    Attributes:
        train: 1000, of which 40 % have a wrong label.
        valid: 400.
        test: 397.
        wrong: Which of `train` are wrong.
    """

    train: tuple[jax.Array, jax.Array]
    valid: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    wrong: np.ndarray


def noisy_digits() -> Digits:
    """Return the digits in a fixed random order, labels moved by 1 to 9 where wrong."""
    data = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(data.target))
    images, labels = data.data[order] / 16, data.target[order].copy()
    wrong = rng.random(1000) < 0.4
    shift = rng.integers(1, 10, wrong.sum())
    labels[:1000][wrong] = (labels[:1000][wrong] + shift) % 10
    labels = labels.astype(np.int32)
    parts = [
        (jnp.array(images[i:j]), jnp.array(labels[i:j]))
        for i, j in ((0, 1000), (1000, 1400), (1400, None))
    ]
    return Digits(parts[0], parts[1], parts[2], wrong)


def cleaning_problem(weight_decay: float = 1e-3) -> Problem:
    """Return softmax regression with a weight sigmoid(λ_n) an example.

    It has `outputs` and `combine`, since the weights act on losses; without them
    (`_replace(outputs=None, combine=None)`) it is the same problem.
    """

    def outputs(w, batch):
        images, labels = batch
        return softmax_loss(images @ w["kernel"] + w["bias"][None], labels), w

    def combine(t, outputs, batch):
        losses, w = outputs
        decay = sum((x**2).sum() for x in jax.tree.leaves(w))
        return (jax.nn.sigmoid(t) * losses).mean() + weight_decay / 2 * decay

    def inner(w, t, batch, *, set_sum):
        return combine(t, outputs(w, batch), batch)

    def outer(w, t, batch, *, set_sum):
        return outputs(w, batch)[0].mean()

    return Problem(inner, outer, outputs, combine)


def no_classifier() -> PyTree:
    """Return the weights of zero that softmax regression of digits starts with."""
    return {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}


def hyper_cleaning() -> Case:
    """Return the cleaning of digits at equal weights, solved by Newton's method."""
    digits, problem, meta = noisy_digits(), cleaning_problem(), jnp.zeros(1000)
    solution = newton(problem, no_classifier(), meta, digits.train)
    return Case(problem, solution, meta, (digits.train, digits.valid))


def newton(
    problem: Problem, start: PyTree, meta: PyTree, batch: Any, steps: int = 9
) -> PyTree:
    """Return the inner solution by Newton's method with the dense Hessian."""
    flat, unravel = ravel_pytree(start)

    @jax.jit
    def step(x, meta, batch):
        def loss(x):
            return problem.inner(unravel(x), meta, batch, set_sum=None)

        return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))

    for _ in range(steps):
        flat = step(flat, meta, batch)
    return unravel(flat)
