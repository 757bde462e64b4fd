"""From a configuration to the parts of a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lite_jax import data
from lite_jax.data.episodes import EpisodeSpec, check_spec
from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError, unknown_name
from lite_jax.learners import protonets
from lite_jax.lite import exact_sum, lite_sum, subsample_sum
from lite_jax.nn import conv4, pixels
from lite_jax.objectives import episode_loss
from lite_jax.types import GradFn, Learner, Network, Params, SetSum

_logger = logging.getLogger(__name__)

Sources = Callable[[str], ClassSource]
"""`split -> source`, for "train", "valid" and "test"."""


def make_sources(config: ConfigDict) -> Sources:
    """Return the data set's splits, each made when it is first asked for."""
    settings = config.data
    if not 1 <= settings.image_size <= 4096:
        raise UserError(f"data.image_size={settings.image_size}: expected 1 to 4096")
    make = _pick("data.dataset", settings.dataset, _SOURCES)

    @functools.cache
    def source(split: str) -> ClassSource:
        found = make(settings, split)
        turn = split == "train" and settings.rotations
        return data.rotated(found) if turn else found

    return source


def _digits(settings: ConfigDict, split: str) -> ClassSource:
    return data.digits(split, settings.image_size)


def _synthetic(settings: ConfigDict, split: str) -> ClassSource:
    return data.synthetic(
        split,
        settings.image_size,
        num_classes=settings.synthetic_classes,
        images_per_class=settings.synthetic_images,
        channels=settings.synthetic_channels,
    )


def _folder(settings: ConfigDict, split: str) -> ClassSource:
    _check_root(settings)
    return data.folder(
        settings.root, split, settings.image_size, cache_gb=settings.cache_gb
    )


def _omniglot(settings: ConfigDict, split: str) -> ClassSource:
    """Train on background_small1; hold out one alphabet; test on what small2 adds."""
    _check_root(settings)
    small1 = Path(settings.root) / "images_background_small1"
    small2 = Path(settings.root) / "images_background_small2"
    sizes: dict[str, Any] = {
        "image_size": settings.image_size,
        "cache_gb": settings.cache_gb,
    }
    if split == "test":
        return data.omniglot_folder(small2, without=small1, **sizes)
    alphabets = _OMNIGLOT_VALID if split == "valid" else _OMNIGLOT_TRAIN
    return data.omniglot_folder(small1, alphabets=alphabets, **sizes)


_OMNIGLOT_TRAIN = ("Balinese", "Greek", "Korean", "Latin")
_OMNIGLOT_VALID = ("Early_Aramaic",)
_SOURCES: dict[str, Callable[[ConfigDict, str], ClassSource]] = {
    "digits": _digits,
    "folder": _folder,
    "omniglot": _omniglot,
    "synthetic": _synthetic,
}


def make_spec(settings: ConfigDict) -> EpisodeSpec:
    """Return the episode settings as the sampler wants them."""
    way, shot = _ends("way", settings.way), _ends("shot", settings.shot)
    return EpisodeSpec(way, shot, settings.query, settings.max_support)


def _ends(name: str, value: Sequence[int]) -> tuple[int, int]:
    """Return `least, most`; a single number is both."""
    if not 1 <= len(value) <= 2 or not all(isinstance(x, int) for x in value):
        raise UserError(
            f"episode {name}={tuple(value)}: expected one whole number, or least,most"
        )
    return value[0], value[-1]


def check_episodes(
    config: ConfigDict, sources: Sources, splits: Sequence[str] = data.SPLITS
) -> None:
    """Raise unless the classes of the splits can serve the episodes asked of them."""
    for name, split, settings in episode_settings(config):
        if split in splits:
            check_spec(name, make_spec(settings), sources(split))


def episode_settings(config: ConfigDict) -> list[tuple[str, str, ConfigDict]]:
    """Return `(name of the setting, split, settings)` of all episodes of a run."""
    found = [("train.episode", "train", config.train.episode)]
    if config.valid.tasks:
        found.append(("valid.episode", "valid", config.valid.episode))
    tests = config.test.episodes.items()
    return found + [(f"test.episodes.{k}", "test", v) for k, v in tests]


def make_learner(config: ConfigDict) -> Learner:
    """Return the learner, with room for the largest way among the episodes."""
    backbone = _make_backbone(config.backbone)
    make = _pick("learner", config.learner, {"protonets": protonets})
    return make(backbone, way=_most_ways(config))


def make_baseline(config: ConfigDict) -> Learner:
    """Return the learner-free baseline: prototypes of raw pixels."""
    return protonets(pixels(), way=_most_ways(config))


def _most_ways(config: ConfigDict) -> int:
    return max(
        make_spec(settings).way[1] for _, _, settings in episode_settings(config)
    )


def init_params(config: ConfigDict, learner: Learner, sources: Sources) -> Params:
    """Return the learner's initial parameters, decided by the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), _INIT)
    return learner.init(key, _example_spec(sources("train")))


def params_shape(learner: Learner, source: ClassSource) -> Params:
    """Return the shapes of the learner's parameters, for images like the source's."""
    spec = _example_spec(source)
    return jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))


def _example_spec(source: ClassSource) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(source.image_shape, jnp.uint8)


_INIT = 2**31 - 1  # apart from the steps, which the same key is folded with


def _make_backbone(settings: ConfigDict) -> Network:
    if settings.norm != "group":
        raise UserError(
            f"backbone.norm={settings.norm!r}: expected 'group'; batch statistics make "
            "the features of one image depend on the others, so sums over a support "
            "set taken in chunks, and LITE, would be wrong"
        )
    make = _pick("backbone.name", settings.name, {"conv4": conv4})
    return make(settings.width, settings.norm_groups, settings.mean, settings.std)


def make_grad_fn(config: ConfigDict, learner: Learner) -> GradFn:
    """Return `(params, task, key) -> ((loss, aux), grads)` by the chosen estimator."""
    loss_fn = episode_loss(learner, query_chunk_size=_chunk_size(config))
    fun = functools.partial(loss_fn, set_sum=make_set_sum(config))
    return jax.value_and_grad(fun, has_aux=True)


def make_set_sum(config: ConfigDict) -> SetSum:
    """Return the operator that the training loss is formed with."""
    settings = config.gradient
    chunk = _chunk_size(config)
    if settings.estimator == "exact":
        return exact_sum(chunk)
    num_backprop = _num_backprop(config)
    if settings.estimator == "subsample":
        return subsample_sum(num_backprop)
    if settings.estimator == "lite":
        return lite_sum(num_backprop, chunk, settings.sampling)
    raise unknown_name(
        "gradient.estimator", settings.estimator, ("exact", "lite", "subsample")
    )


def _num_backprop(config: ConfigDict) -> int:
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


def _chunk_size(config: ConfigDict) -> int:
    value = config.gradient.chunk_size
    if value < 1:
        raise UserError(f"gradient.chunk_size={value}: expected 1 or more")
    return value


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return Adam with the chosen schedule, after clipping if asked."""
    settings = config.optimizer
    if not settings.learning_rate > 0:
        raise UserError(
            f"optimizer.learning_rate={settings.learning_rate}: expected > 0"
        )
    schedules = {
        "constant": optax.constant_schedule,
        "cosine": functools.partial(
            optax.cosine_decay_schedule, decay_steps=config.train.steps
        ),
    }
    make = _pick("optimizer.schedule", settings.schedule, schedules)
    adam = optax.adam(make(settings.learning_rate))
    if settings.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adam)
    return adam


def _check_root(settings: ConfigDict) -> None:
    if not settings.root:
        raise UserError(
            f"data.root is empty, and dataset {settings.dataset!r} reads image files: "
            "set --config.data.root=FOLDER"
        )


def _pick(kind: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]
