"""The context of reweighting jobs: sets, classifier, training and weighting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lite_jax import errors, nn
from lite_jax.apps.reweight.sets import LabelledSet, Sets
from lite_jax.apps.reweight.settings import ReweightingSettings
from lite_jax.apps.reweight.training import Logits, make_plain_training
from lite_jax.apps.reweight.weightings import (
    Weighting,
    meta_weight_net,
    per_example_weighting,
)
from lite_jax.errors import UserError
from lite_jax.hypergrad import Estimator
from lite_jax.run import build_gradient
from lite_jax.run.metrics import Interval, interval
from lite_jax.types import Network, Params


class ReweightingSetup(NamedTuple):
    """The sets, the classifier, its optimiser and the weighting of examples.

    Attributes:
        config: The settings of the run.
        sets: The three sets, on the host.
        train: The training set, on the device.
        meta: The clean set, on the device.
        init: `key -> params` of the classifier.
        logits: The compiled classifier, `(params, inputs) -> [n, classes]`.
        optimizer: The optimiser of the classifier.
        weighting: The weights of training examples.
        estimator: The estimator of the hypergradient.
    """

    config: ReweightingSettings
    sets: Sets
    train: LabelledSet
    meta: LabelledSet
    init: Callable[[Any], Params]
    logits: Logits
    optimizer: optax.GradientTransformation
    weighting: Weighting
    estimator: Estimator

    def key(self, use: str, index: int = 0) -> Any:
        """Return the key of a use, one of `_USES`, and of one of its networks."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), _USES.index(use))
        return jax.random.fold_in(key, index)

    def plain(self, share: float = 1.0) -> Callable[..., Params]:
        """Return training with equal weights, `(params, train, key) -> params`.

        Args:
            share: Number of steps, as a share of the classifier's steps in reweighting.
        """
        steps = self.config.train.steps * self.config.inner.steps
        return make_plain_training(
            self.logits,
            self.optimizer,
            steps=max(1, int(share * steps)),
            batch_size=self.config.train.batch_size,
        )

    def accuracy(self, params: Params) -> Interval:
        """Return the accuracy on the test set, with its interval over examples."""
        predicted = self.logits(params, self.sets.test.inputs).argmax(1)
        return interval(np.asarray(predicted) == self.sets.test.labels)


_USES = ("classifier", "weighting", "batches", "plain", "scores", "early")


def make_setup(config: ReweightingSettings, sets: Sets) -> ReweightingSetup:
    """Return the context of a configuration and its sets.

    Raises:
        UserError: An unknown name, or a network for other inputs than the sets have.
    """
    network = _make_network(config, sets)
    example = sets.train.inputs[0]
    spec = jax.ShapeDtypeStruct(example.shape, example.dtype)

    def init(key: Any) -> Params:
        backbone_key, head_key = jax.random.split(key)
        params = {"backbone": network.init(backbone_key, spec)}
        size = nn.feature_size(network, params["backbone"], spec)
        kernel = jax.random.normal(head_key, (size, sets.num_classes)) / size**0.5
        return params | {
            "head": {"kernel": kernel, "bias": jnp.zeros(sets.num_classes)}
        }

    @jax.jit
    def logits(params: Params, inputs: Any) -> jax.Array:
        features = network.apply(params["backbone"], inputs)
        return features @ params["head"]["kernel"] + params["head"]["bias"][None]

    train, meta = jax.device_put((sets.train, sets.meta))
    optimizer = build_gradient.make_inner_optimizer(config.inner)
    weighting = _make_weighting(config)
    estimator = build_gradient.make_estimator(config.hypergrad, config.inner)
    assert estimator is not None
    return ReweightingSetup(
        config, sets, train, meta, init, logits, optimizer, weighting, estimator
    )


def _make_weighting(config: ReweightingSettings) -> Weighting:
    weightings = {
        "meta_weight_net": functools.partial(meta_weight_net, config.reweight.hidden),
        "per_example": per_example_weighting,
    }
    return errors.pick("reweight.weighting", config.reweight.weighting, weightings)()


def _make_network(config: ReweightingSettings, sets: Sets) -> Network:
    settings, dataset = config.reweight, config.data.dataset
    size = {"width": settings.width, "depth": settings.depth}
    input_kinds = {"mlp": "vectors", "transformer": "texts"}
    reads = errors.pick("reweight.network", settings.network, input_kinds)
    given = "vectors" if sets.vocabulary is None else "texts"
    if reads != given:
        fitting = next(name for name, kind in input_kinds.items() if kind == given)
        raise UserError(
            f"reweight.network={settings.network} reads {reads}, and "
            f"data.dataset={dataset} gives {given}: set reweight.network={fitting}"
        )
    if sets.vocabulary is None:
        return nn.mlp(**size)
    return nn.text_encoder(sets.vocabulary, heads=settings.heads, **size)
