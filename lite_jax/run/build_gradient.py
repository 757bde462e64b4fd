"""Builders of gradient functions, set sums and optimisers from a configuration."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from lite_jax.errors import UserError, check_number, pick, unknown_name
from lite_jax.hypergrad import Estimator, conjugate_gradient, identity, neumann, sama
from lite_jax.learners.episode_loss import episode_grad
from lite_jax.lite import exact_sum, lite_sum, subsample_sum
from lite_jax.run.build_data import make_spec
from lite_jax.run.configs import names_of, settings_named
from lite_jax.run.parallel import EXAMPLES
from lite_jax.run.settings import (
    EstimatorSettings,
    InnerOptimizerSettings,
    OptimizerSettings,
    Settings,
)
from lite_jax.types import GradFn, Learner, SetSum

_logger = logging.getLogger(__name__)

AUTO = "auto"


def make_grad_fn(config: Settings, learner: Learner) -> GradFn:
    """Return `(params, task, key) -> ((loss, aux), grads)` of `gradient.estimator`."""
    return episode_grad(
        learner,
        make_set_sum(config),
        query_chunk_size=chunk_size(config),
        axis_name=_axis_name(config),
    )


def make_set_sum(config: Settings) -> SetSum:
    """Return the operator by which the training loss sums over a support set."""
    settings = config.gradient
    chunk, axis_name = chunk_size(config), _axis_name(config)
    if settings.estimator in ("exact", "plain"):
        return exact_sum(chunk, axis_name=axis_name)
    num_backprop = _num_backprop(config)
    if settings.estimator == "subsample":
        return subsample_sum(num_backprop)
    if settings.estimator == "lite":
        with settings_named(names_of("gradient")):
            return lite_sum(num_backprop, chunk, settings.sampling, axis_name=axis_name)
    raise unknown_name(
        "gradient.estimator",
        settings.estimator,
        ("exact", "lite", "plain", "subsample"),
    )


def _axis_name(config: Settings) -> str | None:
    """Return the mesh axis that examples are sharded along; None without sharding."""
    return EXAMPLES if config.devices.examples > 1 else None


def _num_backprop(config: Settings) -> int:
    """Return H, checked against the support sizes of the training tasks."""
    value = config.gradient.num_backprop
    spec = make_spec(config.train.episode)
    least, most = spec.least_support, spec.support_size
    if value < 1:
        raise UserError(f"gradient.num_backprop={value}: expected 1 or more")
    if value > most and least == most:
        raise UserError(
            f"gradient.num_backprop={value} is more than the {most} support images of "
            "a task: lower it, or set gradient.estimator=exact"
        )
    if value > least:
        _logger.warning(
            "gradient.num_backprop=%d is more than the %d support images of the "
            "smallest tasks: where a task has fewer, all are back-propagated",
            value,
            least,
        )
    return min(value, most)


def chunk_size(config: Settings) -> int | None:
    """Return the number of examples computed at once; None, for all, with "plain"."""
    size = checked_chunk_size(config)
    return None if config.gradient.estimator == "plain" else size


def checked_chunk_size(config: Settings) -> int:
    """Return `gradient.chunk_size`, in images; 1 while it is still "auto".

    Raises:
        UserError: It is neither "auto" nor a whole number from 1.
    """
    value = config.gradient.chunk_size
    if value == AUTO:
        return 1  # replaced by `resolve_chunk_size`
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"gradient.chunk_size={value}: expected a whole number from 1, or auto"
        )
    return value


def resolve_chunk_size(config: Settings, fit: Callable[[], int]) -> Settings:
    """Return settings without "auto": `gradient.chunk_size` is a number.

    Args:
        config: The settings.
        fit: Returns the chunk size to take; called for "auto" only.
    """
    if config.gradient.chunk_size != AUTO:
        return config
    return config.with_chunk_size(fit())


def largest_set(config: Settings) -> int:
    """Return the number of images of the largest support or query set in training."""
    if config.learner == "classifier":
        return config.train.batch_size
    spec = make_spec(config.train.episode)
    return max(spec.support_size, spec.query_size)


def make_inner_optimizer(inner: InnerOptimizerSettings) -> optax.GradientTransformation:
    """Return the optimiser that adapts to a task, or trains on weighted examples.

    Raises:
        UserError: An unknown `inner.optimizer`.
    """
    makers = {"adam": optax.adam, "sgd": optax.sgd}
    make = pick("inner.optimizer", inner.optimizer, makers)
    return make(inner.learning_rate)


ESTIMATORS = ("conjugate_gradient", "identity", "neumann", "sama")
"""Values of `hypergrad.through` for reweighting and iMAML."""

MRML_SOLVERS = ("conjugate_gradient", "identity", "neumann", "unrolled")
"""Values of `hypergrad.through` for MRML."""


def make_estimator(
    settings: EstimatorSettings,
    inner: InnerOptimizerSettings,
    known: Sequence[str] = ESTIMATORS,
) -> Estimator | None:
    """Return the hypergradient estimator of `hypergrad.through`; None for "unrolled".

    Args:
        settings: The section `hypergrad`.
        inner: The section `inner`.
        known: The names to choose from.

    Raises:
        UserError: Another name, or a setting of the estimator out of range.
    """
    makers: dict[str, Callable[[], Estimator | None]] = {
        "conjugate_gradient": lambda: conjugate_gradient(
            settings.steps, settings.damping
        ),
        "identity": identity,
        "neumann": lambda: neumann(settings.steps, inner.learning_rate),
        "sama": lambda: sama(make_inner_optimizer(inner)),
        "unrolled": lambda: None,
    }
    choice = {name: makers[name] for name in known}
    make = pick("hypergrad.through", settings.through, choice)
    with settings_named(names_of("hypergrad") | {"step_size": "inner.learning_rate"}):
        return make()


def make_optimizer(
    settings: OptimizerSettings,
    steps: int,
    constraint: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Return AdamW with a learning rate schedule, and optionally gradient clipping.

    With `optimizer.skip_not_finite`, gradients that are not finite change nothing.
    Weight decay applies to arrays of two or more axes. Biases, the parameters of norms
    and stored statistics are vectors, which do not decay.

    Args:
        settings: The section `optimizer`.
        steps: Number of steps of the schedule.
        constraint: Transforms the updates last, such as a learner's constraint.

    Raises:
        UserError: An unknown schedule, or a setting out of range.
    """
    if not settings.learning_rate > 0:
        raise UserError(
            f"optimizer.learning_rate={settings.learning_rate}: expected > 0"
        )
    schedules = {
        "constant": optax.constant_schedule,
        "cosine": functools.partial(
            optax.cosine_decay_schedule, decay_steps=max(steps, 1)
        ),
    }
    make = pick("optimizer.schedule", settings.schedule, schedules)
    if settings.weight_decay < 0:
        raise UserError(
            f"optimizer.weight_decay={settings.weight_decay}: expected 0 or more"
        )
    adam = optax.adamw(
        make(settings.learning_rate),
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda x: jnp.ndim(x) > 1, params),
    )
    parts = [adam]
    check_number("optimizer.clip_norm", settings.clip_norm)
    if settings.clip_norm > 0:
        parts = [optax.clip_by_global_norm(settings.clip_norm), adam]
    if constraint is not None:
        parts.append(constraint)
    optimizer = optax.chain(*parts)
    if settings.skip_not_finite > 0:
        return optax.apply_if_finite(optimizer, settings.skip_not_finite)
    return optimizer
