"""The door between configurations and code: `ConfigDict` in, frozen settings out.

Files in `configs/` change a `ConfigDict`, whose settings are flags. `read_settings`
turns it into the frozen dataclasses of `lite_jax.run.settings`, which all other code
reads. Errors of that code name arguments; `settings_named` names the settings instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from lite_jax.errors import UserError, unknown_name
from lite_jax.run.settings import (
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
        settings: A dataclass of `lite_jax.run.settings`, or of the same kind.
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

    Raises:
        UserError: A setting is missing, unknown, of another type or not finite, or the
            seed is negative or has more than 63 bits.
    """
    if isinstance(config, kind):
        return config
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config: expected a ConfigDict or {kind.__name__}, got "
            f"{type(config).__name__}"
        )
    settings = _read(config, kind(), "")  # type: ignore[call-arg]
    if not 0 <= settings.seed < 2**63:
        raise UserError(f"seed={settings.seed}: expected 0 to 2**63 - 1")
    return settings


def _read(
    config: ConfigDict, default: Any, path: str, with_defaults: bool = False
) -> Any:
    """Return a section as a dataclass of the type of its default.

    Args:
        config: The section.
        default: The dataclass with its defaults.
        path: The section's name with a dot, or empty for the whole.
        with_defaults: Let missing settings have their defaults.
    """
    hints = typing.get_type_hints(type(default))
    unknown, missing = set(config) - set(hints), set(hints) - set(config)
    if unknown:
        raise unknown_name("setting", path + min(unknown), [path + x for x in hints])
    if missing and not with_defaults:
        raise UserError(f"{path}{min(missing)} is missing from the configuration")
    values = {
        name: _read_value(config[name], getattr(default, name), hint, path + name)
        for name, hint in hints.items()
        if name in config
    }
    return dataclasses.replace(default, **values)


def _read_value(value: Any, default: Any, hint: Any, name: str) -> Any:
    """Return a setting as its dataclass holds it, and check its type."""
    if isinstance(default, _EPISODES):
        return _read_episode(value, name)
    if isinstance(default, dict):
        if not isinstance(value, ConfigDict) or not len(value):
            raise UserError(f"{name}={value}: expected one kind of episode or more")
        return {key: _read_episode(x, f"{name}.{key}") for key, x in value.items()}
    if dataclasses.is_dataclass(default):
        if not isinstance(value, ConfigDict):
            raise UserError(f"{name}={value}: expected a section of settings")
        return _read(value, default, f"{name}.")
    value = tuple(value) if isinstance(value, list | tuple) else value
    if not any(_fits(value, x) for x in _alternatives(hint)):
        expected = " or ".join(_described(x) for x in _alternatives(hint))
        raise UserError(f"{name}={value}: expected {expected}")
    return value


def _read_episode(config: Any, name: str) -> AnyEpisode:
    """Return one kind of episode, of the class that has its settings.

    Settings that are missing, as in runs of older versions, have their defaults.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}={config}: expected the settings of an episode")
    kind: type[Any] = EpisodeSettings
    for other, distinctive in (
        (OrbitEpisodeSettings, {"max_target"}),
        (VariableEpisodeSettings, {"max_query", "max_contribution"}),
    ):
        if distinctive & set(config):
            kind = other
    return _read(config, kind(), f"{name}.", with_defaults=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or a type alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type of `lite_jax.run.settings`."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(x, int) for x in value)
    if hint in (int, float):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        whole = hint is float or isinstance(value, numbers.Integral)
        return number and whole and math.isfinite(value)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    """Return a phrase for a type."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "whole numbers"
    phrases = {
        int: "a whole number", float: "a finite number", str: "a text",
        bool: "True or False", type(None): "None",
    }  # fmt: skip
    return phrases[hint]


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
