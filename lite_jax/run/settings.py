"""The door between configurations and code: `ConfigDict` in, frozen settings out.

Files in `configs/` change a `ConfigDict`, whose settings are flags. `read_settings`
turns it into the frozen dataclasses of `lite_jax.run.schema`, which all other code
reads. Errors of that code name arguments; `settings_named` names the settings instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from lite_jax.errors import UserError
from lite_jax.run.schema import (
    AnyEpisode,
    EpisodeSettings,
    OrbitEpisodeSettings,
    ProgramSettings,
    Settings,
    VariableEpisodeSettings,
)

S = TypeVar("S", bound=ProgramSettings)
_EPISODES = (EpisodeSettings, VariableEpisodeSettings, OrbitEpisodeSettings)


@contextlib.contextmanager
def settings_named(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of arguments in a `UserError` by the names of settings.

    Code below `run/` names its arguments in errors. In its messages `steps=0` becomes
    `inner.steps=0`, and `unknown through 'x'` `unknown hypergrad.through 'x'`.

    Args:
        names: Argument → setting.
    """
    try:
        yield
    except UserError as error:
        known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        named = re.compile(
            rf"(?<![\w./])({known})(?==)|(?<=\bunknown )({known})(?= )|"
            rf"(?<=\bchange )({known})\b"
        )
        message = named.sub(lambda match: names[match[0]], str(error))
        raise UserError(message) from error


def names_of(*sections: str) -> dict[str, str]:
    """Return `{"field": "section.field"}` for all settings of some sections.

    For arguments that have the name of the setting, as in `settings_named`.
    """
    defaults = Settings()
    return {
        field.name: f"{section}.{field.name}"
        for section in sections
        for field in dataclasses.fields(getattr(defaults, section))
    }


def check_at_least(config: ProgramSettings, bound: int, *names: str) -> None:
    """Raise unless all named settings are at least `bound`.

    Args:
        config: All settings.
        bound: The least value allowed.
        names: Settings, with dots as on the command line.

    Raises:
        UserError: A setting is below the bound; the first one is named.
    """
    for name in names:
        value = operator.attrgetter(name)(config)
        if value < bound:
            raise UserError(f"{name}={value}: expected {bound} or more")


def base_config() -> ConfigDict:
    """Return all settings of meta-learning, unlocked: ProtoNets on digits."""
    return as_config(Settings())


def as_config(settings: Any) -> ConfigDict:
    """Return settings as a `ConfigDict`, unlocked, for files in `configs/` and flags.

    Args:
        settings: A dataclass of `lite_jax.run.schema`, or of the same kind.
    """
    types = typing.get_type_hints(type(settings))
    values = {
        field.name: _as_config_value(getattr(settings, field.name), types[field.name])
        for field in dataclasses.fields(settings)
    }
    config = ConfigDict({name: x for name, x in values.items() if x is not None})
    for name in values.keys() - config.keys():
        (kind,) = set(typing.get_args(types[name])) - {type(None)}
        config[name] = placeholder(kind)
    return config


def _as_config_value(value: Any, kind: Any) -> Any:
    """Return a setting as a `ConfigDict` stores it."""
    if dataclasses.is_dataclass(value):
        return as_config(value)
    if isinstance(value, dict):
        return ConfigDict({key: as_config(x) for key, x in value.items()})
    if set(typing.get_args(kind)) == {int, str}:
        return FieldReference(value, field_type=object)
    return value


def read_settings(config: ConfigDict | S, kind: type[S]) -> S:
    """Return the frozen settings of a configuration.

    Args:
        config: A configuration with exactly the settings of `kind`, or such settings,
            which are returned as they are.
        kind: The dataclass of the program's settings.
    """
    if isinstance(config, ConfigDict):
        return _read(config, kind())  # type: ignore[call-arg]
    return config


def read_episode(config: ConfigDict | AnyEpisode) -> AnyEpisode:
    """Return one kind of episode, of the class whose fields the configuration has."""
    if not isinstance(config, ConfigDict):
        return config
    (kind,) = [
        x for x in _EPISODES if {y.name for y in dataclasses.fields(x)} == set(config)
    ]
    return _read(config, kind())


def _read(config: ConfigDict, default: Any) -> Any:
    """Return a section as a dataclass of the type of its default."""
    values = {
        field.name: _read_value(config[field.name], getattr(default, field.name))
        for field in dataclasses.fields(default)
    }
    return type(default)(**values)


def _read_value(value: Any, default: Any) -> Any:
    if isinstance(default, _EPISODES):
        return read_episode(value)
    if dataclasses.is_dataclass(default):
        return _read(value, default)
    if isinstance(default, dict):
        return {name: read_episode(x) for name, x in value.items()}
    return tuple(value) if isinstance(default, tuple) else value


def episode(
    way: tuple[int, ...],
    shot: tuple[int, ...],
    query: int,
    max_support: int | None = None,
) -> ConfigDict:
    """Return the settings of one kind of episode, for files in `configs/`.

    Args:
        way: Least and most classes of a task.
        shot: Least and most support images of a class.
        query: Number of query images of a class.
        max_support: Most support images of a task; None for no limit.
    """
    config = as_config(EpisodeSettings(way, shot, query))
    config.max_support = max_support
    return config


def variable_episode() -> ConfigDict:
    """Return the settings of Meta-Dataset's episodes, for files in `configs/`."""
    return as_config(VariableEpisodeSettings())


def orbit_episode() -> ConfigDict:
    """Return the settings of ORBIT's training tasks, for files in `configs/`."""
    return as_config(OrbitEpisodeSettings())
