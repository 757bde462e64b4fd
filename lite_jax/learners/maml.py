"""MAML with LITE (eq. 3): a set sum of the examples' inner-loss gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite_jax.errors import UserError, check_whole
from lite_jax.learners.inner_model import AdaptedState, InnerModel
from lite_jax.learners.inner_rules import (
    InnerRule,
    check_network,
    constraint,
    init_with_rule,
    sgd,
)
from lite_jax.lite import batched
from lite_jax.nn.description import Architecture
from lite_jax.trees import merge, split
from lite_jax.types import (
    Examples,
    Key,
    Learner,
    Network,
    Params,
    PyTree,
    SetSum,
    Task,
)


def maml(
    backbone: Network,
    *,
    way: int,
    steps: int = 5,
    rule: InnerRule | None = None,
    first_order: bool = False,
    learned_head: bool = False,
    film: bool = False,
) -> Learner:
    """Return MAML, which takes gradient steps on the support from a learned start.

    θ_{k+1} = θ_k - α (1/N) Σ_n ∂ℓ(θ_k; x_n, y_n)/∂θ,   p(y | x) from θ_K

    A term of the sum is one example's gradient of the inner loss. So LITE computes
    every step exactly and back-propagates through H of its N terms. (The published
    "MAML with LITE" splits the query set only.)

    Guarantees:
        The K sums have one key each. At second order the gradient is unbiased through
        all steps, because the cotangent of step k+1 is independent of the draw of step
        k. At first order the sums are not differentiated, so the gradient is exactly
        that of first-order MAML, whatever H. Memory: one chunk, and K copies of the
        adapted parameters.

    Args:
        backbone: The feature extractor.
        way: Static maximum of classes in a task; a task may have fewer.
        steps: K, the number of inner steps, 1 or more.
        rule: The update of a step, from `lite_jax.learners.inner_rules`; by default
            `sgd(0.01)`.
        first_order: Treat inner gradients as constants.
        learned_head: Learn the head's start. By default it is 0, and results do not
            depend on the order of the classes.
        film: Adapt FiLM parameters too, starting from the identity.

    Returns:
        A `Learner` with parameters "backbone", and "head", "inner_rule" and
        "inner_features" if they are learned.

    Raises:
        UserError: `steps` under 1, `way` under 2, a rule that does not adapt the head
            although its start is 0, `film` with a backbone without FiLM or a rule with
            features of its own, or a rule that goes by layers with a backbone that
            does not describe its layers.

    >>> from lite_jax import exact_sum
    >>> flat = Network(lambda key, spec: {}, lambda params, x: x.reshape(len(x), -1))
    >>> learner = maml(flat, way=2, steps=1, rule=sgd(1.0))
    >>> images = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    >>> support = Examples(images, jnp.array([0, 1]), jnp.ones(2, bool))
    >>> params, key = {"backbone": {}}, jax.random.key(0)
    >>> state = learner.adapt(params, support, key, exact_sum())
    >>> print(learner.predict(params, state, images))
    [[ 0.5 -0.5]
     [-0.5  0.5]]

    References:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks", ICML 2017, https://arxiv.org/abs/1703.03400.
    """
    rule = rule or sgd()
    check_whole("steps", steps)
    if not learned_head and not rule.adapts("head/weights"):
        raise UserError(
            "this inner rule leaves the head as it is, and a head that starts at 0 "
            "tells no classes apart: set learned_head=True"
        )
    if film and rule.features is not None:
        raise UserError("film=True: this rule has features of its own, without FiLM")
    check_network(rule, backbone, "conv4 or resnet12 in float32")
    model = InnerModel(backbone, way, learned_head=learned_head, film=film)

    def describe(image_shape: tuple[int, ...]) -> Architecture:
        assert backbone.describe is not None
        return backbone.describe(image_shape, way)

    def init(key: Key, example_spec: Any) -> Params:
        return init_with_rule(
            rule,
            key,
            init=lambda key: model.init(key, example_spec),
            inner=lambda params: model.start(params, example_spec),
            steps=steps,
            describe=lambda: describe(example_spec.shape),
        )

    def gradient(args: PyTree, examples: Examples, weights: jax.Array) -> PyTree:
        """Return the gradient of the weighted sum of the examples' losses."""
        adapted, fixed, present, feature_params = args

        def rule_features(params: Params, inputs: jax.Array) -> jax.Array:
            assert rule.features is not None
            architecture = describe(inputs.shape[1:])
            return rule.features(architecture, feature_params, params, inputs, weights)

        apply = None if rule.features is None else rule_features

        def loss(adapted: PyTree) -> jax.Array:
            state = AdaptedState(merge(adapted, fixed), present)
            return model.loss(state, examples, weights, apply)

        return jax.grad(loss)(adapted)

    def encode(args: PyTree, example: Examples) -> PyTree:
        return gradient(args, jax.tree.map(lambda x: x[None], example), jnp.ones(1))

    additive = batched(jax.vmap(encode, (None, 0))) if rule.each else gradient

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> AdaptedState:
        start, present = model.start_on(params, support)
        first, fixed = split(start, rule.adapts)
        count = jnp.maximum(support.mask.sum(), 1)

        def step(carry: tuple[PyTree, PyTree], rule_params_and_key: Any) -> Any:
            (adapted, state), (rule_params, key) = carry, rule_params_and_key
            args = adapted, fixed, present, params.get("inner_features")
            args = lax.stop_gradient(args) if first_order else args
            total = set_sum(additive, args, support, key, support.mask)
            mean = jax.tree.map(
                lambda x, t: (t / count.astype(t.dtype)).astype(x.dtype), adapted, total
            )
            adapted, state = rule.update(rule_params, state, adapted, mean)
            return (adapted, state), None

        learned = params.get("inner_rule", {})
        scanned = learned, jax.random.split(key, steps)
        (adapted, _), _ = lax.scan(step, (first, rule.begin(first)), scanned)
        return AdaptedState(merge(adapted, fixed), present)

    def predict(
        params: Params, task_state: AdaptedState, inputs: jax.Array
    ) -> jax.Array:
        del params
        return model.logits(task_state, inputs)

    def penalty(params: Params, task: Task) -> jax.Array:
        assert rule.penalty is not None
        architecture = describe(task.support.inputs.shape[1:])
        return rule.penalty(params["inner_rule"], architecture)

    return Learner(
        init,
        encode,
        adapt,
        predict,
        penalty=penalty if rule.penalty else None,
        constraint=constraint(rule),
    )
