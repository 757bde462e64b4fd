"""The command line: flags, and one call.

A program is imported once the flags are right, so that mistakes are told at once.

python -m lite_jax.main --config=configs/protonets.py[:VARIANT,…] [--workdir=FOLDER]
    [--mode=train|eval|export] [--hosts=auto|ADDRESS:PORT,COUNT,INDEX]
    [--config.KEY=VALUE …]
"""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

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
    ["train", "eval", "export"],
    "Train and test, test a trained workdir, or export the plan that p-Meta learned.",
)
_HOSTS = flags.DEFINE_string(
    "hosts",
    None,
    "Join the other processes of a run on several hosts: auto (SLURM, Kubernetes, …) "
    "or ADDRESS:PORT,COUNT,INDEX.",
)


def main(argv: Sequence[str]) -> None:
    """Run the chosen mode and print the table of test results."""
    del argv
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    alone = _alone(config)
    if alone is not None:
        print(alone(config, workdir))
        print(f"workdir: {workdir}")
        return
    from lite_jax.run import parallel

    if _HOSTS.value is not None:
        parallel.connect(_HOSTS.value)
        if not parallel.is_main():
            logging.getLogger("lite_jax").setLevel(logging.WARNING)
    if _MODE.value == "eval" and config.benchmark.name:
        from lite_jax.apps.evaluations import run_benchmark

        print(run_benchmark(config, workdir))
        print(f"rows: {workdir / config.benchmark.name}.jsonl")
        return
    if _MODE.value == "export":
        from lite_jax.run.export import export_run

        print(export_run(config, workdir))
        return
    from lite_jax.run.evaluate import evaluate_checkpoint, format_results
    from lite_jax.run.train import train_and_evaluate

    run = {"train": train_and_evaluate, "eval": evaluate_checkpoint}[_MODE.value]
    results = run(config, workdir)
    if parallel.is_main():
        print(format_results(config, results))
        print(f"workdir: {workdir}")


def _alone(config: ConfigDict) -> Callable[[ConfigDict, Path], str] | None:
    """Return the run of one process that a section of the config asks for, if any.

    Raises:
        UserError: It is asked for what it does not do.
    """
    runs = {
        "reweight.job": {"train": _run_reweighting},
        "rl.environment": {"train": _run_policy, "eval": _evaluate_policy},
    }
    for setting, modes in runs.items():
        if not operator.attrgetter(setting)(config):
            continue
        if _MODE.value not in modes:
            known = " or ".join(f"--mode={mode}" for mode in modes)
            raise UserError(
                f"--mode={_MODE.value}: a run with {setting} knows {known} alone"
            )
        if _HOSTS.value is not None:
            raise UserError(
                f"--hosts={_HOSTS.value}: a run with {setting} is of one process: "
                "leave --hosts out"
            )
        return modes[_MODE.value]
    return None


def _run_reweighting(config: ConfigDict, workdir: Path) -> str:
    from lite_jax.apps.reweight import run_reweighting

    return run_reweighting(config, workdir)


def _run_policy(config: ConfigDict, workdir: Path) -> str:
    from lite_jax.apps.rl import run_policy

    return run_policy(config, workdir)


def _evaluate_policy(config: ConfigDict, workdir: Path) -> str:
    from lite_jax.apps.rl import evaluate_policy

    return evaluate_policy(config, workdir)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a mistake becomes one `UserError`."""
    if not any(argument.lstrip("-").startswith("help") for argument in argv):
        _check_config_path(argv)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
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
    path = values[-1].split(":")[0]
    if not Path(path).is_file():
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
    """Return the mistake behind an exception of the flags, in one line."""
    cause: BaseException | None = error
    mistakes = []
    while cause is not None:
        mistakes += [cause] if isinstance(cause, UserError) else []
        cause = cause.__cause__ or cause.__context__
    if mistakes:
        return mistakes[-1]
    if isinstance(error, (AttributeError, KeyError)):
        return _unknown_setting(argv) or UserError(str(error))
    return UserError(" ".join(str(error).split()))


def _unknown_setting(argv: list[str]) -> UserError | None:
    """Return the error for the first `--config.KEY` that the config lacks, if any."""
    config = flags.FLAGS["config"].parser.parse(_config_values(argv)[-1])
    known = _setting_names(config, "config")
    for argument in argv:
        name = argument.split("=", 1)[0].removeprefix("--")
        if name.startswith("config.") and name not in known:
            return unknown_name("setting", name, known)
    return None


def _setting_names(config: ConfigDict, prefix: str) -> list[str]:
    """Return the dotted names of all settings."""
    names = []
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        name = f"{prefix}.{key}"
        names += _setting_names(value, name) if inner else [name]
    return names


def run() -> None:
    """Run the program; a user's mistake is one line and exit code 1."""
    tell_on_stderr()
    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells of every file
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
