"""The command `python -m lite_jax.main`: its flags, and the call of a program.

A program is imported after the flags are checked, so errors are printed quickly.

python -m lite_jax.main --config=configs/protonets.py[:VARIANT,…] [--workdir=FOLDER]
    [--mode=train|eval|export] [--hosts=auto|ADDRESS:PORT,COUNT,INDEX]
    [--config.KEY=VALUE …]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lite_jax.apps.programs import MODES, find_run
from lite_jax.cli.command import tell_on_stderr
from lite_jax.errors import UserError, unknown_name
from lite_jax.run.preemption import EXIT_CODE, Preempted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config, as FILE or FILE:ARGUMENTS."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/<config.name>."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "Train and test, test a trained workdir, or export what a device adapts by.",
)
_HOSTS = flags.DEFINE_string(
    "hosts",
    None,
    "Join the other processes of a run on several hosts: auto (SLURM, Kubernetes, …) "
    "or ADDRESS:PORT,COUNT,INDEX.",
)


def main(argv: Sequence[str]) -> None:
    """Run the mode of the flags, and print its result and the workdir."""
    del argv
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    run = find_run(config, _MODE.value, hosts=_HOSTS.value)
    from lite_jax.run import parallel

    if _HOSTS.value is not None:
        parallel.connect(_HOSTS.value)
        if not parallel.is_main():
            logging.getLogger("lite_jax").setLevel(logging.WARNING)
    text = run(config, workdir)
    if parallel.is_main():
        print(text)
        print(f"workdir: {workdir}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags, and return the arguments that are no flags.

    Raises:
        UserError: Any error in the command line or in the config file.
    """
    if not any(argument.lstrip("-").startswith("help") for argument in argv):
        _check_config_path(argv)
    try:
        rest = flags.FLAGS(argv)
    except (
        flags.Error, ArithmeticError, AttributeError, ImportError, LookupError,
        NameError, SyntaxError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise _explained(argv, error) from error
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {rest[1]!r}: settings look like --config.KEY=VALUE"
        )
    return rest


def _check_config_path(argv: Sequence[str]) -> None:
    """Raise unless `--config` names a file that exists."""
    values = _config_values(argv)
    if not values:
        raise UserError("--config is missing, e.g. --config=configs/protonets.py")
    path = Path(values[-1].split(":")[0])
    if path.is_dir():
        raise UserError(f"--config={values[-1]}: a folder; name a file in it")
    if not path.is_file():
        raise UserError(f"--config={values[-1]}: no such file")


def _config_values(argv: Sequence[str]) -> list[str]:
    """Return the values of `--config`, written with an equals sign or a space."""
    values = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("-config", "--config"):
            values.append(value if equals else following)
    return values


def _explained(argv: list[str], error: Exception) -> UserError:
    """Return a `UserError` of one line for an exception raised by the flags."""
    cause: BaseException | None = error
    causes: list[BaseException] = []
    while cause is not None and cause not in causes:  # they can form a circle
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    user_errors = [cause for cause in causes if isinstance(cause, UserError)]
    if user_errors:
        return user_errors[-1]
    unknown = _unknown_setting(argv)
    if unknown is not None:
        return unknown
    return UserError(" ".join(str(error).split()))


def _unknown_setting(argv: list[str]) -> UserError | None:
    """Return the error for the first `--config.KEY` that the config lacks, if any.

    Raises:
        UserError: The config file raises an exception.
    """
    path = _config_values(argv)[-1]
    try:
        config = flags.FLAGS["config"].parser.parse(path)
    except Exception as error:  # of any kind, since the file is a Python program
        kind = type(error).__name__
        raise UserError(f"--config={path} cannot be read: {kind}: {error}") from error
    known = _setting_names(config, "config")
    for argument in argv:
        name = argument.split("=", 1)[0].removeprefix("--")
        if name.startswith("config.") and name not in known:
            return unknown_name("setting", name, known)
    return None


def _setting_names(config: ConfigDict, prefix: str) -> list[str]:
    """Return the names of all settings, with dots, as in `config.train.steps`."""
    names = []
    for key, value in config.items():
        is_section = isinstance(value, ConfigDict)
        name = f"{prefix}.{key}"
        names += _setting_names(value, name) if is_section else [name]
    return names


def run() -> None:
    """Run the command; for a `UserError` print one line, and exit with code 1.

    After SIGTERM and a saved checkpoint the exit code is `EXIT_CODE`.
    """
    tell_on_stderr()
    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax logs every file
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Preempted as stop:
        print(f"{stop}: the same command goes on from there")
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint")
        sys.exit(130)
