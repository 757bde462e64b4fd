"""Plans: which layers train at which step; adaptation by one, example by example."""

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
from lite_jax.pmeta.layers import NormGradient, check_norm_gradient
from lite_jax.pmeta.memory_model import Conventions, Kept, check_layers
from lite_jax.pmeta.sparse import Choice, sparse_features
from lite_jax.types import Params

StepSizes = dict[str, float]
"""Path of a trained layer → its step size."""


class Plan(NamedTuple):
    """How a network is adapted on a device.

    Attributes:
        architecture: Of the network.
        steps: Step sizes of each step's trained layers; no others are trained.
        attention: Ratios of meta attention.
        norm_gradient: How gradients pass norms.
    """

    architecture: Architecture
    steps: tuple[StepSizes, ...]
    attention: Attention = NO_ATTENTION
    norm_gradient: NormGradient = "exact"

    def choices(self) -> list[Choice]:
        """Return what each step wants the gradient of."""
        return [
            Choice(frozenset(sizes), self.attention, self.norm_gradient)
            for sizes in self.steps
        ]

    def check(self) -> Plan:
        """Return the plan if it can be carried out.

        Raises:
            UserError: Nothing to train, an unknown layer, or a ratio outside [0, 1).
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
        """Return the most that attention leaves of each layer's channels, as shares."""
        found = {}
        for layer in self.architecture.body:
            shares = [
                most_channels(size, ratio) / size
                for size, ratio in zip(
                    (layer.inputs[-1], layer.outputs[-1]), self.attention, strict=True
                )
            ]
            found[layer.path] = Kept(*shares)
        return found

    def conventions(self) -> Conventions:
        """Return how the memory of this plan is counted, as it is computed here."""
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
        architecture: Of the backbone and its head.
        params: The learner's, with "inner_rule".
        attention: As trained with.
        norm_gradient: As trained with.

    Raises:
        UserError: All step sizes are 0.
    """
    learned = params["inner_rule"]
    sizes = {x.path: layer_at(learned, x.path) for x in architecture.layers}
    known = {path: np.asarray(x) for path, x in sizes.items() if x is not None}
    count = len(next(iter(known.values())))
    steps = tuple(
        {path: float(x[k]) for path, x in known.items() if x[k] > 0}
        for k in range(count)
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
    """Return the plan that trains the same layers at every step: MAML, ANIL, BOIL."""
    sizes = dict.fromkeys(trained, step_size)
    return Plan(architecture, (sizes,) * steps, norm_gradient=norm_gradient).check()


Adapt = Callable[[Params, jax.Array, jax.Array], Params]
"""`(params, inputs [n, …], labels [n]) -> params`, those of a learner in and out."""


def make_adapt(plan: Plan, *, batch_size: int = 1) -> Adapt:
    """Return the adaptation of a network by a plan, in the memory of one example.

    Gradients are accumulated over the support, `batch_size` examples at a time, and
    each step is a program of its own, compiled once for each set of trained layers.

    Args:
        plan: What is trained.
        batch_size: Examples computed at once; meta attention looks at these together.

    Raises:
        UserError: A plan that cannot be carried out; when called, a support that the
            batch size does not divide.
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
    """Return the compiled step `(inner, modules, sizes, inputs, labels) -> inner`."""
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
        moved = {
            path: jax.tree.map(
                lambda x, g, path=path: x - sizes[path] / count * g,
                trained[path], total[path],
            )
            for path in trained
        }  # fmt: skip
        return with_layers(inner, moved)

    return step


def inner_params(architecture: Architecture, params: Params) -> tuple[Params, Any]:
    """Return what steps change, and the modules of meta attention.

    A head whose start is not learned is 0.
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
    """Return the cross-entropy summed over a batch, as a function of trained layers."""
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
    """Return the logits `[n, way]`, as a function of the trained layers' weights."""
    inner = with_layers(inner, trained)
    features = sparse_features(architecture, choice, inner["backbone"], modules, inputs)
    return linear_products(**inner["head"], features=features)
