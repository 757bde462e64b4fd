"""CNAPs and Simple CNAPs: frozen backbones with FiLM generated from the support (§3.1).

There are a sum and a sum or map over the support, with one key each. The mean of a set
encoder's outputs is the task embedding, from which FiLM parameters are generated. The
features of the modulated backbone give the classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lite_jax.errors import UserError, check_number
from lite_jax.heads.class_means import (
    ClassSums,
    LinearClassifier,
    check_labels,
    check_way,
    class_means,
    class_sums,
    classes_present,
    linear_logits,
)
from lite_jax.heads.mahalanobis import (
    MahalanobisState,
    fit_mahalanobis,
    mahalanobis_logits,
)
from lite_jax.lite.additive import (
    Pooled,
    accumulation_dtype,
    row_of,
    weighted_sum,
)
from lite_jax.nn import feature_size, set_encoder
from lite_jax.nn.hypernets import AMPLITUDE, film_generator, linear_hypernet
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


class FilmState(NamedTuple):
    """The task state of CNAPs and Simple CNAPs.

    Attributes:
        film: FiLM parameters of the backbone, as `Network.identity_film` has them.
        classifier: The fitted classifier, a `LinearClassifier` or `MahalanobisState`.
    """

    film: PyTree
    classifier: PyTree


def cnaps(
    backbone: Network,
    *,
    way: int,
    embedding: Network | None = None,
    embedding_size: int = 64,
    film_penalty: float = 1e-3,
) -> Learner:
    """Return CNAPs, which generates FiLM and a linear classifier from the support.

    z = (1/N) Σ_n e(x_n),  film = g(z),  w_k, b_k = h((1/N_k) Σ_{y_n = k} f(x_n; film))
    p(y = k | x) ∝ exp(w_kᵀ f(x; film) + b_k)

    The first sum is that of the set encoder's outputs, the second that of the per-class
    features and counts. Set encoder e, generators g and hyper-network h are learned;
    the backbone f is frozen. At H = N support examples the gradient is exact.

    Args:
        backbone: The feature extractor f, with FiLM.
        way: Static maximum of classes in a task; a task may have fewer.
        embedding: The set encoder e; by default
            `lite_jax.nn.set_encoder(embedding_size)`.
        embedding_size: Size of the task embedding z, the set encoder's output.
        film_penalty: Weight of the penalty, the sum of the squared amplitudes of the
            FiLM generators, which is added to the loss.

    Returns:
        A `Learner` with parameters "backbone" (frozen), "set_encoder", "film" and
        "head".

    Raises:
        UserError: A backbone without FiLM, or `way` under 2.

    References:
        Requeima et al., "Fast and Flexible Multi-Task Classification Using Conditional
        Neural Adaptive Processes", 2019, https://arxiv.org/abs/1906.07697.
    """
    options = way, embedding, embedding_size, film_penalty
    return _film_learner(backbone, _linear_head(way), *options)


def simple_cnaps(
    backbone: Network,
    *,
    way: int,
    embedding: Network | None = None,
    embedding_size: int = 64,
    film_penalty: float = 1e-3,
) -> Learner:
    """Return Simple CNAPs, which generates FiLM and fits a Mahalanobis classifier.

    z = (1/N) Σ_n e(x_n),  film = g(z)
    p(y = k | x) ∝ exp(-(f(x; film) - μ_k)ᵀ Q_k⁻¹ (f(x; film) - μ_k))

    Q_k is formed from class and task covariances; see `lite_jax.heads.mahalanobis`. The
    sum is that of the set encoder's outputs. The map gives the table of features
    `[n, d]`, whose means and covariances are those of exact features. The table holds
    `n · d` numbers, where second moments would be `way · d²`. Set encoder e and
    generators g are learned; the backbone f is frozen.

    Args:
        backbone: The feature extractor f, with FiLM.
        way: Static maximum of classes in a task; a task may have fewer.
        embedding: The set encoder e; by default
            `lite_jax.nn.set_encoder(embedding_size)`.
        embedding_size: Size of the task embedding z, the set encoder's output.
        film_penalty: Weight of the penalty, the sum of the squared amplitudes of the
            FiLM generators, which is added to the loss.

    Returns:
        A `Learner` with parameters "backbone" (frozen), "set_encoder" and "film".

    Raises:
        UserError: A backbone without FiLM, or `way` under 2.

    >>> from lite_jax import nn
    >>> learner = simple_cnaps(nn.conv4(8), way=3)
    >>> image = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)
    >>> params = learner.init(jax.random.key(0), image)
    >>> print(sorted(params), learner.frozen)
    ['backbone', 'film', 'set_encoder'] ('backbone',)

    References:
        Bateni et al., "Improved Few-Shot Visual Classification", CVPR 2020,
        https://arxiv.org/abs/1912.03432.
    """
    options = way, embedding, embedding_size, film_penalty
    return _film_learner(backbone, _mahalanobis_head(way), *options)


class _Head(NamedTuple):
    """A classifier on features, fitted to one sum or map over the support.

    Attributes:
        init: `(key, feature size) -> params`, empty for a head without parameters.
        pool: `(features [n, d], examples, weights [n]) -> aggregate`, linear in the
            weights. None for a head that is fitted to the features themselves.
        fit: `(params, aggregate or features [n, d], support) -> classifier`.
        logits: `(classifier, features [m, d]) -> [m, way]`.
    """

    init: Callable[..., Params]
    pool: Callable[..., PyTree] | None
    fit: Callable[..., PyTree]
    logits: Callable[..., jax.Array]


def _film_learner(
    backbone: Network,
    head: _Head,
    way: int,
    embedding: Network | None,
    embedding_size: int,
    film_penalty: float,
) -> Learner:
    """Return the learner that generates FiLM from the support and fits a head.

    Args:
        backbone: The feature extractor, with FiLM.
        head: The classifier on features.
        way: Static maximum of classes in a task.
        embedding: The set encoder; None for `set_encoder(embedding_size)`.
        embedding_size: Size of the task embedding.
        film_penalty: Weight of the squared amplitudes of the FiLM generators.
    """
    check_way(way)
    check_number("film_penalty", film_penalty)
    if backbone.identity_film is None:
        raise UserError(
            "backbone: CNAPs modulates its backbone by FiLM, and this one has no FiLM "
            "places: choose another backbone"
        )
    encoder = embedding or set_encoder(embedding_size)
    generator = film_generator(backbone.identity_film(), embedding_size)

    def embed_all(params: Params, examples: Examples) -> jax.Array:
        return encoder.apply(params, examples.inputs)

    embed = Pooled(embed_all, _sum_embeddings)

    def init(key: Key, example_spec: Any) -> Params:
        keys = jax.random.split(key, 4)
        params = {
            "backbone": backbone.init(keys[0], example_spec),
            "set_encoder": encoder.init(keys[1], example_spec),
            "film": generator.init(keys[2]),
        }
        size = feature_size(backbone, params["backbone"], example_spec)
        head_params = head.init(keys[3], size)
        return params | ({"head": head_params} if head_params else {})

    def features(args: PyTree, examples: Any) -> jax.Array:
        return backbone.apply(args[0], examples.inputs, args[1])

    additive = None if head.pool is None else Pooled(features, head.pool)
    encode = row_of(features) if additive is None else additive.term

    def adapt(
        params: Params, support: Examples, key: Key, set_sum: SetSum
    ) -> FilmState:
        check_labels(support.labels, support.mask, way)
        embed_key, feature_key = jax.random.split(key)
        total = set_sum(embed, params["set_encoder"], support, embed_key, support.mask)
        count = jnp.maximum(support.mask.sum(), 1).astype(total.dtype)
        film = generator.apply(params["film"], total / count)
        inputs = (params["backbone"], film), support, feature_key, support.mask
        if additive is None:
            aggregate = set_sum.map(features, *inputs)
        else:
            aggregate = set_sum(additive, *inputs)
        return FilmState(film, head.fit(params.get("head"), aggregate, support))

    def predict(params: Params, task_state: FilmState, inputs: jax.Array) -> jax.Array:
        features = backbone.apply(params["backbone"], inputs, task_state.film)
        return head.logits(task_state.classifier, features)

    def penalty(params: Params, task: Task) -> jax.Array:
        del task
        return film_penalty * (params["film"][AMPLITUDE] ** 2).sum()

    return Learner(init, encode, adapt, predict, frozen=("backbone",), penalty=penalty)


def _sum_embeddings(embeddings: jax.Array, examples: Any, weights: Any) -> jax.Array:
    """Return the weighted sum; a loss is equally sensitive to all embeddings."""
    return weighted_sum(embeddings, examples, weights)


def _linear_head(way: int) -> _Head:
    def init(key: Key, size: int) -> Params:
        return linear_hypernet(size).init(key)

    def pool(features: jax.Array, examples: Examples, weights: jax.Array):
        return class_sums(features, examples.labels, weights, way)

    def fit(params: Params, totals: ClassSums, support: Examples) -> LinearClassifier:
        means = class_means(totals)
        weights, biases = linear_hypernet(means.shape[1]).apply(params, means)
        present = classes_present(support.labels, support.mask, way)
        return LinearClassifier(weights, biases, present)

    return _Head(init, pool, fit, linear_logits)


def _mahalanobis_head(way: int) -> _Head:
    def fit(params: None, table: jax.Array, support: Examples) -> MahalanobisState:
        del params
        table = table.astype(accumulation_dtype(table.dtype))
        return fit_mahalanobis(table, support.labels, support.mask, way)

    return _Head(lambda key, size: {}, None, fit, mahalanobis_logits)
