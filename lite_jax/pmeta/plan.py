"""Plans, which name the layers that each step trains, and adaptation by a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lite_jax.errors import UserError
from lite_jax.heads.class_means import linear_products
from lite_jax.nn.description import Architecture, layer_at, with_layers
from lite_jax.pmeta.attention import NO_ATTENTION, Attention, most_channels
from lite_jax.pmeta.choice import Choice
from lite_jax.pmeta.layers import NormGradient, check_norm_gradient
from lite_jax.pmeta.memory_model import Conventions, Kept, check_layers
from lite_jax.pmeta.sparse import sparse_features
from lite_jax.types import Params

StepSizes = dict[str, float]
"""Path of a trained layer → its step size."""


class Plan(NamedTuple):
    """A plan of adaptation on a device.

    Attributes:
        architecture: The layers of the backbone and its head.
        steps: For each step, the step sizes of the layers that it trains.
        attention: Ratios of meta attention.
        norm_gradient: How gradients pass norms, "exact", "bfloat16" or "detached".
    """

    architecture: Architecture
    steps: tuple[StepSizes, ...]
    attention: Attention = NO_ATTENTION
    norm_gradient: NormGradient = "exact"

    def choices(self) -> list[Choice]:
        """Return the trained layers of each step, as `sparse_features` takes them."""
        return [
            Choice(frozenset(sizes), self.attention, self.norm_gradient)
            for sizes in self.steps
        ]

    def check(self) -> Plan:
        """Return the plan if it is valid.

        Raises:
            UserError: No step trains a layer, or an unknown layer, an unknown
                `norm_gradient`, or a ratio outside [0, 1).
        """
        self.attention.check()
        check_norm_gradient(self.norm_gradient)
        for sizes in self.steps:
            check_layers(self.architecture, sizes)
        if not any(self.steps):
            raise UserError(
                "plan: every step size is 0, so there is nothing to train: lower "
                "the penalty, or train with fewer steps"
            )
        return self

    def kept(self) -> dict[str, Kept]:
        """Return the largest shares of channels that attention can leave, by path.

        The head, which has no attention, is not named.
        """
        layer_shares = {}
        for layer in self.architecture.body:
            shares = [
                most_channels(size, ratio) / size
                for size, ratio in zip(
                    (layer.inputs[-1], layer.outputs[-1]), self.attention, strict=True
                )
            ]
            layer_shares[layer.path] = Kept(*shares)
        return layer_shares

    def conventions(self) -> Conventions:
        """Return the conventions that count the memory of this library's programs."""
        return Conventions(
            relu_at_winners=True, shortcut_input=False, norm_inputs=self.norm_gradient
        )


def learned_plan(
    architecture: Architecture,
    params: Params,
    *,
    attention: Attention = NO_ATTENTION,
    norm_gradient: NormGradient = "exact",
) -> Plan:
    """Return the plan that meta-training with p-Meta's rule has learned.

    Args:
        architecture: The layers of the backbone and its head.
        params: The learner's parameters, with "inner_rule".
        attention: The ratios of training.
        norm_gradient: The `norm_gradient` of training.

    Raises:
        UserError: All step sizes are 0.
    """
    rule_params = params["inner_rule"]
    sizes = {x.path: layer_at(rule_params, x.path) for x in architecture.layers}
    learned = {path: np.asarray(x) for path, x in sizes.items() if x is not None}
    num_steps = len(next(iter(learned.values())))
    steps = tuple(
        {path: float(x[k]) for path, x in learned.items() if x[k] > 0}
        for k in range(num_steps)
    )
    return Plan(architecture, steps, attention, norm_gradient).check()


def fixed_plan(
    architecture: Architecture,
    trained: Any,
    *,
    step_size: float,
    steps: int,
    norm_gradient: NormGradient = "exact",
) -> Plan:
    """Return the plan that trains the same layers at every step, as MAML and ANIL do.

    Args:
        architecture: The layers of the backbone and its head.
        trained: Paths of the trained layers.
        step_size: Their step size at every step.
        steps: Number of steps.
        norm_gradient: How gradients pass norms.

    Raises:
        UserError: No layer is trained, or one is unknown.
    """
    sizes = dict.fromkeys(trained, step_size)
    return Plan(architecture, (sizes,) * steps, norm_gradient=norm_gradient).check()


Adapt = Callable[[Params, jax.Array, jax.Array], Params]
"""`(params, inputs [n, …], labels [n]) -> params`, a learner's parameters adapted."""


def make_adapt(plan: Plan, *, batch_size: int = 1) -> Adapt:
    """Return the function that adapts a network by a plan, in the memory of one batch.

    Gradients are accumulated over the support, `batch_size` examples at a time. Steps
    that train the same layers share a program, which is compiled once.

    Args:
        plan: The plan.
        batch_size: Examples computed at once; they share the masks of meta attention.

    Raises:
        UserError: An invalid plan. When called, a support size that is no multiple of
            the batch size.
    """
    plan.check()
    choices = plan.choices()
    programs = {choice: make_step(plan, choice, batch_size) for choice in choices}

    def adapt(params: Params, inputs: jax.Array, labels: jax.Array) -> Params:
        inner, modules = inner_params(plan.architecture, params)
        for sizes, choice in zip(plan.steps, choices, strict=True):
            if sizes:
                inner = programs[choice](inner, modules, sizes, inputs, labels)
        return params | inner

    return adapt


def make_step(plan: Plan, choice: Choice, batch_size: int = 1) -> jax.stages.Wrapped:
    """Return the compiled step `(inner, modules, sizes, inputs, labels) -> inner`.

    Args:
        plan: The plan.
        choice: The layers that the step trains.
        batch_size: Examples computed at once.

    Raises:
        UserError: When called, a support size that is no multiple of the batch size.
    """
    gradient = jax.grad(functools.partial(batch_loss, plan.architecture, choice))

    @jax.jit
    def step(
        inner: Params,
        modules: Any,
        sizes: dict[str, Any],
        inputs: jax.Array,
        labels: jax.Array,
    ) -> Params:
        count = inputs.shape[0]
        if count % batch_size:
            raise UserError(f"batch_size={batch_size} does not divide {count} examples")
        trained = {path: layer_at(inner, path) for path in sorted(choice.trained)}

        def accumulate(i: jax.Array, total: Any) -> Any:
            batch = [
                lax.dynamic_slice_in_dim(x, i * batch_size, batch_size)
                for x in (inputs, labels)
            ]
            return jax.tree.map(
                jnp.add, total, gradient(trained, inner, modules, *batch)
            )

        zeros = jax.tree.map(jnp.zeros_like, trained)
        total = lax.fori_loop(0, count // batch_size, accumulate, zeros)
        updated = {
            path: jax.tree.map(
                lambda x, g, path=path: x - sizes[path] / count * g,
                trained[path], total[path],
            )
            for path in trained
        }  # fmt: skip
        return with_layers(inner, updated)

    return step


def inner_params(architecture: Architecture, params: Params) -> tuple[Params, Any]:
    """Return a learner's inner parameters and the modules of meta attention.

    Args:
        architecture: The layers of the backbone and its head.
        params: The learner's parameters.

    Returns:
        `{"backbone", "head"}`, where a head whose start is not learned is 0, and the
        modules, empty without attention.
    """
    size, way = architecture.head.inputs[0], architecture.head.outputs[0]
    zeros = {"weights": jnp.zeros((way, size)), "biases": jnp.zeros(way)}
    inner = {"backbone": params["backbone"], "head": params.get("head", zeros)}
    return inner, params.get("inner_features", {})


def batch_loss(
    architecture: Architecture,
    choice: Choice,
    trained: dict[str, Any],
    inner: Params,
    modules: Any,
    inputs: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Return the cross-entropy summed over a batch, a scalar.

    Args:
        architecture: The layers of the backbone and its head.
        choice: The trained layers.
        trained: Path → weights of the trained layers, by which it is differentiated.
        inner: The inner parameters; `trained` replaces those of its layers.
        modules: Modules of meta attention.
        inputs: `[n, …]` images.
        labels: `[n]` int.
    """
    logits = batch_logits(architecture, choice, trained, inner, modules, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


def batch_logits(
    architecture: Architecture,
    choice: Choice,
    trained: dict[str, Any],
    inner: Params,
    modules: Any,
    inputs: jax.Array,
) -> jax.Array:
    """Return the logits `[n, way]` of a batch.

    Args:
        architecture: The layers of the backbone and its head.
        choice: The trained layers.
        trained: Path → weights of the trained layers.
        inner: The inner parameters; `trained` replaces those of its layers.
        modules: Modules of meta attention.
        inputs: `[n, …]` images.
    """
    inner = with_layers(inner, trained)
    features = sparse_features(architecture, choice, inner["backbone"], modules, inputs)
    return linear_products(**inner["head"], features=features)
