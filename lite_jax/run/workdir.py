"""A run's folder: its lock, and the `config.json` of the run it belongs to."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
from ml_collections import ConfigDict

from lite_jax.errors import MALFORMED, UserError
from lite_jax.files import write_atomically
from lite_jax.run.configs import base_config, read_settings
from lite_jax.run.settings import ProgramSettings, Settings

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def occupied(workdir: Path, config: ProgramSettings) -> Iterator[None]:
    """Claim a folder and lock it against other runs while inside.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        workdir: The folder; made if it does not exist.
        config: The settings of the run.

    Raises:
        UserError: The folder belongs to another configuration, another run works in
            it, or it cannot be written, at the start or inside.
    """
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    claim(workdir, config)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"workdir={workdir}: another run is at work in it: wait for its end, or "
            "choose another --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"workdir={workdir} cannot be written: {error}") from error
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"workdir={workdir} cannot be written: {error}. Its checkpoints are whole: "
            "make room, and the same command goes on from the last one"
        ) from error
    finally:
        lock.release()


def claim(workdir: Path, config: ProgramSettings) -> None:
    """Write the config into the folder, or check that the folder has the same config.

    Raises:
        UserError: The folder belongs to another configuration, or cannot be written.
    """
    saved = read_config(workdir)
    if saved is None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(workdir / "config.json", _json_text(config))
        except OSError as error:
            raise UserError(f"workdir={workdir} cannot be written: {error}") from error
    else:
        check_same(workdir, saved, config, list(saved))


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Return the configuration in a folder's `config.json`, or None without that file.

    Raises:
        UserError: The file is not a JSON object.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
        return config
    except MALFORMED as error:
        raise UserError(
            f"{path} is no configuration of a run ({error}): choose another workdir"
        ) from error


def load_config(workdir: Path) -> Settings:
    """Return the settings of a meta-learning run.

    Settings that did not exist when the run was saved have their defaults.

    Raises:
        UserError: The folder holds no `config.json` of a meta-learning run.
    """
    saved = read_config(workdir)
    if not isinstance(saved, dict):
        raise UserError(
            f"run={workdir} holds no config.json: give the workdir of a run, which "
            "python -m lite_jax.main --config=… leaves"
        )
    program = saved.get("program", "none, as versions before 0.2 wrote")
    if program != "meta_learning":
        raise UserError(
            f"run={workdir}: its program is {program}, and only meta_learning makes "
            "classifiers: choose another run, or train it again"
        )
    config = base_config()
    for section, name in (
        (config.train, "episode"),
        (config.valid, "episode"),
        (config.test, "episodes"),
    ):
        section[name] = ConfigDict()  # episodes of different kinds have other settings
    try:
        with config.unlocked():
            config.update(saved)
        return read_settings(config, Settings)
    except MALFORMED as error:
        raise UserError(
            f"{workdir}/config.json is no configuration of a run ({error}): copy the "
            "run again"
        ) from error


def check_same(
    workdir: Path, saved: dict[str, Any], config: ProgramSettings, sections: list[str]
) -> None:
    """Raise unless two configurations are equal in some sections.

    Args:
        workdir: The folder, for the message.
        saved: The configuration in the folder.
        config: The settings of this run.
        sections: Names of the sections that are compared.

    Raises:
        UserError: They differ; the message lists every setting that does.
    """
    current = json.loads(_json_text(config))
    old, new = ({k: x.get(k) for k in sections} for x in (saved, current))
    changed = _differences(old, new, "there", "here")
    if changed:
        raise UserError(
            f"workdir={workdir} belongs to another config: {'; '.join(changed)}. "
            "Choose another --workdir, or restore those settings"
        )


def check_hosts_agree(configs: Sequence[dict[str, Any]]) -> None:
    """Raise unless all hosts have the same configuration.

    Args:
        configs: The configuration of each host, in the order of hosts.

    Raises:
        UserError: They differ; the message lists every setting that does.
    """
    for index, config in enumerate(configs):
        changed = _differences(configs[0], config, "on host 0", f"on host {index}")
        if changed:
            raise UserError(
                f"the hosts of this run have different configs: {'; '.join(changed)}. "
                "Start all of them with the same settings"
            )


def _json_text(config: ProgramSettings) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def _differences(
    first: dict[str, Any], second: dict[str, Any], first_place: str, second_place: str
) -> list[str]:
    """Return a phrase for each setting that differs between two configurations."""
    old, new = _flatten(first), _flatten(second)
    texts = {
        key: (json.dumps(old.get(key)), json.dumps(new.get(key)))
        for key in sorted(old.keys() | new.keys())
    }
    return [
        f"{key} is {there} {first_place} and {here} {second_place}"
        for key, (there, here) in texts.items()
        if there != here
    ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{"a.b": value}` for `{"a": {"b": value}}`."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
