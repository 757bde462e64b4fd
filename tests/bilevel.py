"""Bilevel problems whose hypergradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import normal

from lite_jax import exact_sum
from lite_jax.hypergrad import Problem, Products


def softmax_loss(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def ridge(key, rows=30, columns=8):
    """Ridge with a log-penalty a coordinate; closed form in `exact`."""
    keys = jax.random.split(key, 4)
    a = normal(keys[0], (rows, columns))
    y = normal(keys[1], (rows,))
    test = (
        normal(keys[2], (rows, columns)),
        normal(keys[3], (rows,)),
    )
    penalty = jnp.linspace(-2.0, 1.0, columns)

    def inner(w, t, batch, *, set_sum):
        a, y = batch
        return ((a @ w - y) ** 2).mean() / 2 + (jnp.exp(t) * w**2).sum() / 2

    def outer(w, t, batch, *, set_sum):
        a, y = batch
        return ((a @ w - y) ** 2).mean() / 2

    hessian = a.T @ a / rows + jnp.diag(jnp.exp(penalty))
    solution = jnp.linalg.solve(hessian, a.T @ y / rows)
    slope = test[0].T @ (test[0] @ solution - test[1]) / rows
    exact = -jnp.exp(penalty) * solution * jnp.linalg.solve(hessian, slope)
    return Problem(inner, outer), solution, penalty, ((a, y), test), exact


def biased_regression(key, rows=30, columns=8, beta=0.3):
    keys = jax.random.split(key, 5)
    a = normal(keys[0], (rows, columns))
    y = normal(keys[1], (rows,))
    test = (
        normal(keys[2], (rows, columns)),
        normal(keys[3], (rows,)),
    )
    centre = normal(keys[4], (columns,))

    def inner(w, x, batch, *, set_sum):
        a, y = batch
        return ((a @ w - y) ** 2).mean() / 2 + beta * ((w - x) ** 2).sum() / 2

    def outer(w, x, batch, *, set_sum):
        a, y = batch
        return ((a @ w - y) ** 2).mean() / 2

    hessian = a.T @ a / rows + beta * jnp.eye(columns)
    solution = jnp.linalg.solve(hessian, a.T @ y / rows + beta * centre)
    slope = test[0].T @ (test[0] @ solution - test[1]) / rows
    exact = beta * jnp.linalg.solve(hessian, slope)
    return Problem(inner, outer), solution, centre, ((a, y), test), exact


def quadratic(condition, size=40, seed=0):
    """A quadratic with curvatures from 1/condition to 1, and a direct term."""
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
    return Problem(inner, outer), solution, meta, (None, None), exact


def hyper_cleaning():
    """Digits with 40 % wrong labels, a weight an example, solved by Newton's method."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(data.target))
    images, labels = data.data[order] / 16, data.target[order].copy()
    wrong = rng.random(1000) < 0.4
    shift = rng.integers(1, 10, wrong.sum())
    labels[:1000][wrong] = (labels[:1000][wrong] + shift) % 10
    train = jnp.array(images[:1000]), jnp.array(labels[:1000], jnp.int32)
    valid = jnp.array(images[1000:1400]), jnp.array(labels[1000:1400], jnp.int32)

    def outputs(w, batch):
        images, labels = batch
        return softmax_loss(images @ w["kernel"] + w["bias"][None], labels), w

    def combine(t, outputs, batch):
        losses, w = outputs
        decay = sum((x**2).sum() for x in jax.tree.leaves(w))
        return (jax.nn.sigmoid(t) * losses).mean() + 1e-3 / 2 * decay

    def inner(w, t, batch, *, set_sum):
        return combine(t, outputs(w, batch), batch)

    def outer(w, t, batch, *, set_sum):
        return outputs(w, batch)[0].mean()

    start = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    weights = jnp.zeros(1000)
    problem = Problem(inner, outer)
    solution = newton(problem, start, weights, train)
    fast = problem._replace(outputs=outputs, combine=combine)
    return problem, fast, solution, weights, (train, valid)


def newton(problem, start, meta, batch, steps=9):
    flat, unravel = jax.flatten_util.ravel_pytree(start)

    def loss(x):
        return problem.inner(unravel(x), meta, batch, set_sum=None)

    @jax.jit
    def step(x):
        return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))

    for _ in range(steps):
        flat = step(flat)
    return unravel(flat)


def estimate(estimator, problem, solution, meta, batches, state=None, **options):
    state = estimator.init(solution, meta) if state is None else state
    run = jax.jit(
        lambda solution, meta, batches, state: estimator.hypergrad(
            problem, solution, meta, batches, state, **options
        )
    )
    return run(solution, meta, batches, state)


def relative_error(found, exact):
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def cosine(found, exact):
    return float(found @ exact / jnp.linalg.norm(found) / jnp.linalg.norm(exact))


def products_of(problem, solution, meta, batches, **options):
    options = {"set_sum": exact_sum()} | options
    return Products(problem, solution, meta, batches, **options)
