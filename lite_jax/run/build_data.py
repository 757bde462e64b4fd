"""Builders of data sources and episode samplers from a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from lite_jax import data
from lite_jax.data.episodes import EpisodeSampler, EpisodeSpec, VariableSpec, check_spec
from lite_jax.data.orbit.source import OrbitSpec
from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError
from lite_jax.run.configs import names_of, settings_named
from lite_jax.run.settings import (
    AnyEpisode,
    OrbitEpisodeSettings,
    Settings,
    VariableEpisodeSettings,
)

Sources = Callable[[str], ClassSource]
"""`split -> source`, for "train", "valid" and "test"."""


def make_sources(config: Settings) -> Sources:
    """Return `split -> source` of the data set; a split is opened on its first use."""

    @functools.cache
    def open_split(split: str) -> ClassSource:
        add_rotated = split == "train" and config.data.rotations
        with settings_named(names_of("data")):
            source = data.open_source(config.data, split)
            return data.rotated(source) if add_rotated else source

    return open_split


def make_spec(settings: AnyEpisode) -> EpisodeSampler:
    """Return the episode sampler of some settings.

    Raises:
        UserError: `way` or `shot` is not one or two whole numbers.
    """
    way = _least_and_most("way", settings.way)
    if isinstance(settings, OrbitEpisodeSettings):
        return OrbitSpec(way, settings.max_support, settings.max_target)
    if isinstance(settings, VariableEpisodeSettings):
        return VariableSpec(
            way, settings.max_query, settings.max_support, settings.max_contribution
        )
    shot = _least_and_most("shot", settings.shot)
    return EpisodeSpec(way, shot, settings.query, settings.max_support)


def _least_and_most(name: str, value: Sequence[int]) -> tuple[int, int]:
    """Return `(least, most)` of a setting of one or two numbers; one number is both."""
    if not 1 <= len(value) <= 2 or not all(isinstance(x, int) for x in value):
        raise UserError(
            f"episode {name}={tuple(value)}: expected one whole number, or least,most"
        )
    return value[0], value[-1]


def check_episodes(
    config: Settings, sources: Sources, splits: Sequence[str] = data.SPLITS
) -> None:
    """Raise unless the splits have the classes and images that their episodes need."""
    for name, split, settings in episode_settings(config):
        if split in splits:
            with settings_named(names_of("data")):
                check_spec(name, make_spec(settings), sources(split))


def episode_settings(config: Settings) -> list[tuple[str, str, AnyEpisode]]:
    """Return `(name of the setting, split, settings)` of each kind of episode."""
    episodes: list[tuple[str, str, AnyEpisode]] = [
        ("train.episode", "train", config.train.episode)
    ]
    if config.valid.tasks:
        episodes.append(("valid.episode", "valid", config.valid.episode))
    tests = config.test.episodes.items()
    return episodes + [(f"test.episodes.{k}", "test", v) for k, v in tests]
