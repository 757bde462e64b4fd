"""From a configuration to data, gradients and optimisers."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from lite_jax import data
from lite_jax.data.episodes import EpisodeSpec, Sampler, VariableSpec, check_spec
from lite_jax.data.orbit.source import OrbitSpec
from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError
from lite_jax.run.settings import names_of, settings_named

_logger = logging.getLogger(__name__)
Sources = Callable[[str], ClassSource]
"""`split -> source`, for "train", "valid" and "test"."""


def make_sources(config: ConfigDict) -> Sources:
    """Return the data set's splits, each made when it is first asked for."""

    @functools.cache
    def open_split(split: str) -> ClassSource:
        turn = split == "train" and config.data.rotations
        with settings_named(names_of("data")):
            source = data.open_source(data_settings(config), split)
            return data.rotated(source) if turn else source

    return open_split


def data_settings(config: ConfigDict) -> data.DataSettings:
    """Return which data set a run reads, and how."""
    fields = dataclasses.fields(data.DataSettings)
    return data.DataSettings(**{x.name: config.data[x.name] for x in fields})


def make_spec(settings: ConfigDict) -> Sampler:
    """Return the episode settings as the sampler wants them."""
    way = _ends("way", settings.way)
    if "max_target" in settings:
        return OrbitSpec(way, settings.max_support, settings.max_target)
    if "max_query" in settings:
        return VariableSpec(
            way, settings.max_query, settings.max_support, settings.max_contribution
        )
    shot = _ends("shot", settings.shot)
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
            with settings_named(names_of("data")):
                check_spec(name, make_spec(settings), sources(split))


def episode_settings(config: ConfigDict) -> list[tuple[str, str, ConfigDict]]:
    """Return `(name of the setting, split, settings)` of all episodes of a run."""
    found = [("train.episode", "train", config.train.episode)]
    if config.valid.tasks:
        found.append(("valid.episode", "valid", config.valid.episode))
    tests = config.test.episodes.items()
    return found + [(f"test.episodes.{k}", "test", v) for k, v in tests]
