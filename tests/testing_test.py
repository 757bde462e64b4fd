"""`check_learner` finds what breaks the contract, and names it."""

import jax
import jax.numpy as jnp
import pytest

from lite_jax import Learner, batched, exact_sum, protonets
from lite_jax.lite import Pooled
from lite_jax.testing import check_learner
from tests import toys

WAY = 3
NETWORK = toys.network()
SOUND = protonets(NETWORK, way=WAY)


def params():
    spec = jax.ShapeDtypeStruct((2, 2, 1), jnp.float64)
    return SOUND.init(jax.random.key(7), spec)


def with_features(features):
    """Class means of other features."""

    def pool(features, examples, weights):
        members = jax.nn.one_hot(examples.labels, WAY, dtype=weights.dtype)
        members = members * weights[:, None]
        return members.T @ features, members.sum(0)

    additive = Pooled(features, pool)

    def adapt(params, support, key, set_sum):
        return set_sum(additive, params, support, key, support.mask)

    def predict(params, state, inputs):
        sums, counts = state
        means = sums / jnp.maximum(counts, 1)[:, None]
        rows = NETWORK.apply(params["backbone"], inputs)
        distances = ((rows[:, None] - means[None]) ** 2).sum(-1)
        return jnp.where(counts[None] > 0, -distances, -jnp.inf)

    return Learner(SOUND.init, additive.term, adapt, predict)


def features(params, examples):
    return NETWORK.apply(params["backbone"], examples.inputs)


def batch_statistics():
    def normalised(params, examples):
        rows = features(params, examples)
        return rows - rows.mean(0, keepdims=True)

    return with_features(normalised)


def another_encoder():
    def encode(params, example):
        term = SOUND.encode(params, example)
        return jax.tree.map(lambda x: 2 * x, term)

    return SOUND._replace(encode=encode)


def no_sum():
    def adapt(params, support, key, set_sum):
        return SOUND.adapt(params, support, key, exact_sum())

    return SOUND._replace(adapt=adapt)


def a_shared_key():
    """The mean of the features modulates the features; one key draws for both sums."""

    def modulated(args, examples):
        params, mean = args
        return features(params, examples) * (1 + jnp.tanh(mean))[None]

    inner = with_features(modulated)

    def adapt(params, support, key, set_sum):
        same = jax.random.clone(key)  # or JAX, made strict here, would tell
        total = set_sum(batched(features), params, support, key, support.mask)
        args = params, total / support.mask.sum(dtype=float)
        return inner.adapt(args, support, same, set_sum)

    return with_features(features)._replace(adapt=adapt, encode=inner.encode)


def by_position():
    def adapt(params, support, key, set_sum):
        state = SOUND.adapt(params, support, key, set_sum)
        first = NETWORK.apply(params["backbone"], support.inputs[:1])
        return state._replace(prototypes=state.prototypes + first)

    return SOUND._replace(adapt=adapt)


def blind_to_the_mask():
    def adapt(params, support, key, set_sum):
        everyone = support._replace(mask=jnp.ones_like(support.mask))
        return SOUND.adapt(params, everyone, key, set_sum)

    return SOUND._replace(adapt=adapt)


def finite_for_absent_classes():
    def predict(params, state, inputs):
        return jnp.maximum(SOUND.predict(params, state, inputs), -1e3)

    return SOUND._replace(predict=predict)


BROKEN = {
    "not additive": batch_statistics,
    "encode: the sum of its terms": another_encoder,
    "adapt: it forms no sum": no_sum,
    "LITE's is biased": a_shared_key,
    "order of the support": by_position,
    "padding of 3.0": blind_to_the_mask,
    "class 2 is absent": finite_for_absent_classes,
}


def test_a_sound_learner_passes():
    check_learner(SOUND, params(), toys.task(), rtol=1e-9)
    check_learner(with_features(features), params(), toys.task(), rtol=1e-9)


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_learner_is_named(message):
    with pytest.raises(ValueError, match=message):
        check_learner(BROKEN[message](), params(), toys.task(), rtol=1e-9)
