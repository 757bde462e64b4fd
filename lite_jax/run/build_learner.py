"""Builders of learners and their parameters from a configuration."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lite_jax import nn
from lite_jax.data.orbit.protocol import find_orbit_protocol
from lite_jax.errors import UserError, pick
from lite_jax.learners import (
    classifier,
    cnaps,
    finetuner,
    imaml,
    inner_rules,
    maml,
    mrml,
    protonets,
    simple_cnaps,
)
from lite_jax.lite.sampling import SAMPLERS, SCORES
from lite_jax.pmeta.attention import Attention
from lite_jax.pmeta.rule import p_meta
from lite_jax.run.build_backbone import in_dtype, make_backbone
from lite_jax.run.build_data import Sources, episode_settings, make_spec
from lite_jax.run.build_gradient import (
    MRML_SOLVERS,
    checked_chunk_size,
    make_estimator,
    make_inner_optimizer,
)
from lite_jax.run.configs import names_of, settings_named
from lite_jax.run.settings import GradientSettings, InnerRuleSettings, Settings
from lite_jax.types import Learner, Network, Params

_logger = logging.getLogger(__name__)


class Learners(NamedTuple):
    """The learner that is trained and the learner that is tested.

    Both use the same parameters. They differ only in pretraining: a classifier of all
    training classes is trained, and prototypes of its backbone's features are tested.
    """

    trained: Learner
    tested: Learner


def make_learners(config: Settings, sources: Sources) -> Learners:
    """Return the learners, for at most the largest way of the run's episodes."""
    pick("learner", config.learner, _LEARNERS)
    tested = make_tested_learner(config, most_ways(config))
    if config.learner != "classifier":
        return Learners(tested, tested)
    classes = len(sources("train").class_names)
    trained = classifier(_backbone(config), num_classes=classes)
    trained = trained._replace(frozen=tested.frozen)
    return Learners(trained, tested._replace(init=trained.init))


def make_tested_learner(
    config: Settings, way: int, backbone: Network | None = None
) -> Learner:
    """Return the learner that is tested.

    Args:
        config: All settings.
        way: Most classes of a task.
        backbone: Replaces the backbone of the settings.
    """
    make = pick("learner", config.learner, _LEARNERS)
    learner = make(config, backbone or _backbone(config), way)
    frozen = {"backbone"} if config.backbone.frozen else set()
    return learner._replace(frozen=tuple(sorted({*learner.frozen, *frozen})))


def _backbone(config: Settings) -> Network:
    return _for_clips(config, make_backbone(config.backbone))


def _for_clips(config: Settings, network: Network) -> Network:
    """Return the network, applied to clips if the examples of a run are clips."""
    return network if clip_length(config) is None else nn.over_clips(network)


def clip_length(config: Settings) -> int | None:
    """Return the number of frames of a clip, or None where examples are images."""
    if config.data.dataset != "orbit":
        return None
    return find_orbit_protocol(config.data.orbit_protocol).clip_length


def _learner_from_settings(
    make: Callable[..., Learner],
    config: Settings,
    backbone: Network,
    arguments: Mapping[str, str],
    **others: Any,
) -> Learner:
    """Return a learner made from settings, whose errors name the settings.

    Args:
        make: `(backbone, **arguments) -> learner`.
        config: All settings.
        backbone: The feature extractor.
        arguments: Argument → setting, with dots.
        others: Further arguments and their values.
    """
    values = {
        name: operator.attrgetter(setting)(config)
        for name, setting in arguments.items()
    }
    with settings_named(arguments):
        return make(backbone, **values, **others)


def _protonets(config: Settings, backbone: Network, way: int) -> Learner:
    return _learner_from_settings(
        protonets, config, backbone, {"scale": "protonets.scale"}, way=way
    )


def _cnaps(config: Settings, backbone: Network, way: int) -> Learner:
    return _learner_with_set_encoder(cnaps, config, backbone, way)


def _simple_cnaps(config: Settings, backbone: Network, way: int) -> Learner:
    return _learner_with_set_encoder(simple_cnaps, config, backbone, way)


def _learner_with_set_encoder(
    make: Callable[..., Learner], config: Settings, backbone: Network, way: int
) -> Learner:
    size = 64
    encoder = _for_clips(config, in_dtype(config.backbone, nn.set_encoder(size)))
    return _learner_from_settings(
        make, config, backbone, {"film_penalty": "cnaps.film_penalty"},
        way=way, embedding=encoder, embedding_size=size,
    )  # fmt: skip


def _maml(config: Settings, backbone: Network, way: int) -> Learner:
    _check_sampling(config.gradient, "MAML")
    rule = make_inner_rule(config.inner)
    if rule.features is not None and not rule.each:
        _check_support_in_one_chunk(config)
    arguments = {
        name: f"inner.{name}"
        for name in ("steps", "first_order", "learned_head", "film")
    }
    return _learner_from_settings(maml, config, backbone, arguments, way=way, rule=rule)


def make_inner_rule(inner: InnerRuleSettings) -> inner_rules.InnerRule:
    """Return the update rule of the inner loop.

    Raises:
        UserError: An unknown `inner.rule`, or one of its settings out of range.
    """
    sides = {f"attention.{x}": f"inner.attention_{x}" for x in ("forward", "backward")}
    with settings_named(names_of("inner") | sides):
        return pick("inner.rule", inner.rule, _RULES)(inner)


def make_attention(inner: InnerRuleSettings) -> Attention:
    """Return the ratios of meta attention.

    Raises:
        UserError: An unknown `inner.attention`.
    """
    ratios = {"forward": inner.attention_forward, "backward": inner.attention_backward}
    sides = {
        "none": (),
        "forward": ("forward",),
        "backward": ("backward",),
        "both": ("forward", "backward"),
    }
    enabled = pick("inner.attention", inner.attention, sides)
    return Attention(**{k: x if k in enabled else None for k, x in ratios.items()})


def _p_meta(inner: InnerRuleSettings) -> inner_rules.InnerRule:
    over = {"batch": False, "example": True}
    each = pick("inner.attention_over", inner.attention_over, over)
    return p_meta(
        inner.learning_rate,
        penalty=inner.penalty,
        penalty_on=inner.penalty_on,
        attention=make_attention(inner),
        each=each,
        norm_gradient=inner.norm_gradient,
    )


def _check_support_in_one_chunk(config: Settings) -> None:
    """Raise unless each support is computed in one chunk, as batch attention needs."""
    settings = config.gradient
    largest = max(make_spec(x).support_size for _, _, x in episode_settings(config))
    fits = checked_chunk_size(config) >= largest  # 1 while it is "auto"
    if settings.estimator != "plain" and not (settings.estimator == "exact" and fits):
        raise UserError(
            "inner.attention_over=batch looks at all of a support at once: set "
            f"gradient.estimator=plain, or exact with gradient.chunk_size={largest} "
            "or more, or inner.attention_over=example"
        )


def _check_sampling(gradient: GradientSettings, learner: str) -> None:
    """Raise where sampling needs features, since `learner` sums gradients instead."""
    if gradient.estimator == "lite" and gradient.sampling in _BY_FEATURES:
        raise UserError(
            f"gradient.sampling={gradient.sampling} draws by the features of "
            f"what is summed, and {learner} sums gradients: choose stratified or "
            "uniform"
        )


def _finetuner(config: Settings, backbone: Network, way: int) -> Learner:
    arguments = {"steps": "inner.steps", "film": "inner.film"}
    optimizer = make_inner_optimizer(config.inner)
    return _learner_from_settings(
        finetuner, config, backbone, arguments, way=way, optimizer=optimizer
    )


def _mrml(config: Settings, backbone: Network, way: int) -> Learner:
    arguments = _INNER_LOOP | {
        "learning_rate": "inner.learning_rate",
        "weight_decay": "hypergrad.weight_decay",
    }
    solver = make_estimator(config.hypergrad, config.inner, MRML_SOLVERS)
    return _learner_from_settings(
        mrml, config, backbone, arguments, way=way, solver=solver
    )


def _imaml(config: Settings, backbone: Network, way: int) -> Learner:
    _check_sampling(config.gradient, "iMAML")
    return _learner_from_settings(
        imaml, config, backbone,
        _INNER_LOOP | {"proximity": "hypergrad.proximity"},
        way=way,
        optimizer=make_inner_optimizer(config.inner),
        solver=make_estimator(config.hypergrad, config.inner),
    )  # fmt: skip


_INNER_LOOP = {"steps": "inner.steps", "learned_head": "inner.learned_head"}


_LEARNERS: dict[str, Callable[..., Learner]] = {
    "classifier": _protonets,  # tested through prototypes
    "cnaps": _cnaps,
    "finetuner": _finetuner,
    "imaml": _imaml,
    "maml": _maml,
    "mrml": _mrml,
    "protonets": _protonets,
    "simple_cnaps": _simple_cnaps,
}
_BY_FEATURES = {name for name, rule in SAMPLERS.items() if SCORES in rule.needs}
_RULES: dict[str, Callable[[InnerRuleSettings], inner_rules.InnerRule]] = {
    "anil": lambda inner: inner_rules.anil(inner.learning_rate),
    "boil": lambda inner: inner_rules.boil(inner.learning_rate),
    "learned_sgd": lambda inner: inner_rules.learned_sgd(inner.learning_rate),
    "p_meta": _p_meta,
    "sgd": lambda inner: inner_rules.sgd(inner.learning_rate),
}


def make_baseline(config: Settings) -> Learner:
    """Return the baseline without learned parameters: prototypes of raw pixels."""
    return protonets(_for_clips(config, nn.pixels()), way=most_ways(config))


def most_ways(config: Settings) -> int:
    """Return the largest way of all kinds of episodes of a run."""
    return max(
        make_spec(settings).way[1] for _, _, settings in episode_settings(config)
    )


def init_params(config: Settings, learner: Learner, sources: Sources) -> Params:
    """Return the learner's initial parameters, a function of the seed.

    Raises:
        UserError: All parameters are frozen and `train.steps` is not 0, or
            `backbone.norm` is "batch" and there are no weights.
    """
    if config.backbone.norm == "batch" and not config.backbone.weights:
        raise UserError(
            "backbone.norm='batch' means frozen statistics, which come with weights: "
            "set backbone.weights, or backbone.norm='group' (statistics of each batch "
            "would make the features of one image depend on the others, and LITE wrong)"
        )
    key = jax.random.fold_in(jax.random.key(config.seed), _INIT)
    with settings_named(names_of("backbone", "data")):
        params = learner.init(key, _example_spec(sources("train").image_shape))
    learned = {name: x for name, x in params.items() if name not in learner.frozen}
    if config.train.steps and not jax.tree.leaves(learned):
        cause, mend = "its backbone has no parameters", "choose another backbone.name"
        if learner.frozen:
            cause, mend = "backbone.frozen=True", "set backbone.frozen=False"
        raise UserError(
            f"{cause}: it leaves {config.learner} nothing to learn: {mend}, or "
            "train.steps=0 to test it as it is"
        )
    if learner.frozen and not config.backbone.weights:
        _logger.warning(
            "the backbone is frozen at its random initialisation: set backbone.weights "
            "(configs/pretrain.py makes some)"
        )
    return params


def params_shape(learner: Learner, image_shape: tuple[int, ...]) -> Params:
    """Return the specs of the learner's parameters for images of a shape."""
    spec = _example_spec(image_shape)
    return jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))


def _example_spec(image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(image_shape, jnp.uint8)


_INIT = 2**31 - 1  # folded into the seed's key; larger than any step
