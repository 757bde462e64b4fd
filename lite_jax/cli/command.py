"""The command `lite-jax`: adapt to photographs and predict, train, look and report.

A command imports its modules when it runs, so help and errors are printed quickly.
"""

from __future__ import annotations

import argparse
import logging
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lite_jax.errors import UserError


def run() -> None:
    """Run the command line of this process."""
    tell_on_stderr()
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # the reader of a pipe has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str]) -> None:
    """Run a command; for a `UserError` print one line, and exit with code 1.

    Args:
        argv: The command line without the name of the program.
    """
    if argv and argv[0] in _PASSED_ON:
        _PASSED_ON[argv[0]](list(argv[1:]))
        return
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def tell_on_stderr() -> None:
    """Write the messages that the package logs to stderr, such as unreadable files."""
    logger = logging.getLogger("lite_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:  # already set if a command runs another one
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lite-jax", description=__doc__.split("\n\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], None], text: str):
        command = commands.add_parser(run.__name__[1:], help=text, description=text)
        command.set_defaults(run=run)
        return command

    adapt = add(_adapt, "make a classifier of a folder of class folders, in one pass")
    adapt.add_argument("--checkpoint", required=True, help="a run's workdir")
    adapt.add_argument("--support", required=True, help="a folder, one folder a class")
    adapt.add_argument("--out", default="classifier.zip", help="the classifier's file")
    adapt.add_argument(
        "--folds", type=int, help="parts that are held out in turn; 0: none"
    )
    adapt.add_argument(
        "--platforms", default="", help="such as cpu,cuda; by default this machine's"
    )
    predict = add(_predict, "classify images by an adapted classifier")
    predict.add_argument("--classifier", required=True, help="what adapt wrote")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders")
    predict.add_argument("--format", default="table", choices=_FORMATS)
    predict.add_argument("--out", help="write there in place of printing")
    predict.add_argument("--sheet", help="a .png of all images by predicted class")
    demo = add(_demo, "serve a page that learns classes as photographs are dropped")
    demo.add_argument("--checkpoint", required=True, help="a run's workdir")
    demo.add_argument("--port", type=int, default=8421, help="0 for any that is free")
    add(_doctor, "say what this installation has, and test it")
    for name, text in _TEXTS.items():  # their modules parse their arguments
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _adapt(arguments: argparse.Namespace) -> None:
    from lite_jax.classify import load

    out = Path(arguments.out).expanduser()
    _check_replaceable(out)
    learner = load(arguments.checkpoint)
    classifier = learner.adapt(arguments.support, folds=arguments.folds)
    support = classifier.support
    counts = f"{len(support.images)} images of {len(support.class_names)} classes"
    skipped = f", {support.skipped} unreadable" if support.skipped else ""
    print(f"{counts}{skipped}: adapted in {classifier.seconds:.2f} s")
    print(classifier.held_out.describe())
    platforms = [x.strip() for x in arguments.platforms.split(",") if x.strip()]
    classifier.save(out, platforms or None)
    print(
        f"{out}: {out.stat().st_size / 1e6:.2f} MB; lite-jax predict "
        f"--classifier={out} PHOTO …"
    )


def _check_out(out: Path) -> None:
    """Raise unless a file can be written at the path."""
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out={out}: expected a file in a folder that exists")


def _check_replaceable(out: Path) -> None:
    """Raise if the path exists and is no classifier, so that no other file is lost."""
    from lite_jax.classify import load_classifier

    _check_out(out)
    if out.exists():
        try:
            load_classifier(out)
        except UserError as error:
            raise UserError(
                f"--out={out} exists, and is no classifier: choose another name"
            ) from error


def _predict(arguments: argparse.Namespace) -> None:
    from lite_jax.classify import load_classifier
    from lite_jax.classify.predictions import (
        FORMATS,
        check_sheet,
        draw_predictions,
        predict_files,
    )
    from lite_jax.files import write_atomically

    if arguments.sheet:
        check_sheet(Path(arguments.sheet))
    if arguments.out:
        _check_out(Path(arguments.out))
    classifier = load_classifier(arguments.classifier)
    predictions = predict_files(classifier, arguments.paths)
    text = FORMATS[arguments.format](predictions)
    if arguments.out:
        try:
            write_atomically(Path(arguments.out), text + "\n")
        except OSError as error:
            raise UserError(
                f"--out={arguments.out} cannot be written: {error}"
            ) from error
        print(f"{len(predictions.files)} images: {arguments.out}")
    else:
        print(text)
    if arguments.sheet:
        draw_predictions(predictions, Path(arguments.sheet))


def _demo(arguments: argparse.Namespace) -> None:
    try:
        from lite_jax.classify.demo.server import serve
    except ImportError as error:
        raise UserError(
            f"the demo needs {error.name}: pip install 'lite_jax[demo]'"
        ) from error
    serve(arguments.checkpoint, arguments.port)


def _doctor(arguments: argparse.Namespace) -> None:
    from lite_jax.cli.doctor import examine

    del arguments
    print(examine())


def _train(argv: list[str]) -> None:
    _run_module("lite_jax.main", ["--mode=train", *argv])


def _eval(argv: list[str]) -> None:
    _run_module("lite_jax.main", ["--mode=eval", *argv])


def _describe(argv: list[str]) -> None:
    _run_module("lite_jax.data", ["describe", *argv])


def _report(argv: list[str]) -> None:
    if not Path("experiments/report.py").is_file():
        sys.exit(
            "error: the report is made of a clone's experiments/results: run this in "
            "the folder of a clone"
        )
    sys.path.insert(0, "")
    _run_module("experiments.report", argv)


def _run_module(name: str, argv: list[str]) -> None:
    """Run a module as `python -m NAME` does."""
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


_FORMATS = ("csv", "json", "table")  # those of `lite_jax.classify.predictions`
_PASSED_ON = {"describe": _describe, "eval": _eval, "report": _report, "train": _train}
_TEXTS = {
    "describe": "count a data set, and draw an episode (python -m lite_jax.data)",
    "eval": "test a trained workdir (python -m lite_jax.main --mode=eval)",
    "report": "make a page of a clone's results (python -m experiments.report)",
    "train": "meta-train by a configuration (python -m lite_jax.main)",
}
