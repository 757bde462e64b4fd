"""The command `python -m lite_jax.data`: describe a data set, or cache it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_jax.data.cache import build_cache
from lite_jax.data.describe import contact_sheet, describe, format_description
from lite_jax.data.episodes import EpisodeSampler, EpisodeSpec, check_spec
from lite_jax.data.orbit.source import OrbitSource, OrbitSpec
from lite_jax.data.registry import DATASETS, detect, open_source
from lite_jax.data.settings import DataSettings
from lite_jax.data.sources import SPLITS, ClassSource
from lite_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; for a `UserError` print one line, and exit with code 1."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lite_jax.data")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, text in (
        (_describe, "say what a data set holds, and draw one episode"),
        (_cache, "decode and resize a data set once; then data.dataset=cache"),
    ):
        command = commands.add_parser(run.__name__[1:], help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument(
            "--source", required=True, help=f"a path, or one of {', '.join(DATASETS)}"
        )
        command.add_argument(
            "--splits", default=",".join(SPLITS), help="of train, valid, test"
        )
        command.add_argument("--image-size", type=int, default=84, help="pixels a side")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="any setting of config.data, e.g. --set=class_list=splits.json",
        )
        if run is _describe:
            _add_episode(command)
        else:
            command.add_argument("--out", required=True, help="folder, a new one")
    return parser


def _add_episode(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", default="episode.png", help="the picture")
    command.add_argument("--all", action="store_true", help="open every image")
    for name, value in (("way", 5), ("shot", 5), ("query", 5), ("episode", 0)):
        command.add_argument(f"--{name}", type=int, default=value)
    command.add_argument("--seed", type=int, default=0)


def _describe(arguments: argparse.Namespace) -> None:
    path = Path(arguments.out)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"--out={path}: expected a .png file in a folder that exists")
    sources = _sources(arguments)
    descriptions = {
        split: describe(source, everything=arguments.all)
        for split, source in sources.items()
    }
    print(format_description(descriptions))
    split, source = next(iter(sources.items()))
    check_spec("--", spec := _spec(arguments, source), source)
    contact_sheet(source, spec, path, seed=arguments.seed, index=arguments.episode)
    print(f"episode {arguments.episode} of {split!r}: {path}")


def _spec(arguments: argparse.Namespace, source: ClassSource) -> EpisodeSampler:
    way, shot = arguments.way, arguments.shot
    if isinstance(source, OrbitSource):
        return OrbitSpec((2, way), way * shot, way * arguments.query)
    return EpisodeSpec((way, way), (shot, shot), arguments.query)


def _cache(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    about = {
        "source": arguments.source,
        "dataset": settings.dataset,
        "resize": settings.resize or "the data set's own",
    }
    size = build_cache(arguments.out, _sources(arguments), about)
    print(
        f"{arguments.out}: {size / 1e9:.3g} GB; train from it with "
        f"--config.data.dataset=cache --config.data.root={arguments.out} "
        f"--config.data.image_size={settings.image_size}"
    )


def _sources(arguments: argparse.Namespace) -> dict[str, ClassSource]:
    settings = _settings(arguments)
    splits = [x.strip() for x in arguments.splits.split(",") if x.strip()]
    return {split: open_source(settings, split) for split in splits}


def _settings(arguments: argparse.Namespace) -> DataSettings:
    """Return the data settings that the flags give."""
    dataset, root = arguments.source, ""
    if dataset not in DATASETS:
        path = Path(dataset).expanduser()
        dataset, root = detect(path), str(path)
    settings = DataSettings(dataset, root, arguments.image_size, cache_gb=0.0)
    values = dataclasses.asdict(settings)
    for change in arguments.set:
        name, equals, value = change.partition("=")
        if name not in values or not equals:
            raise UserError(
                f"--set={change}: expected KEY=VALUE with one of {', '.join(values)}"
            )
        values[name] = _as_type_of(values[name], value, change)
    return DataSettings(**values)


def _as_type_of(old: Any, value: str, change: str) -> Any:
    """Return a text as a value of the type of `old`; `change` is for the message."""
    if isinstance(old, bool):
        booleans = {"true": True, "1": True, "false": False, "0": False}
        if value.lower() not in booleans:
            raise UserError(f"--set={change}: expected true or false")
        return booleans[value.lower()]
    try:
        return type(old)(value)
    except ValueError as error:
        raise UserError(
            f"--set={change}: expected a value of type {type(old).__name__}"
        ) from error
