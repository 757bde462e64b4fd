"""Runs killed at random moments, and what the resumed ones end as.

    python -m tests.stress.kills [--kills=100] [--smoke]
        [--out=experiments/results/kills.jsonl]

A run of a few tiny steps saves a checkpoint after each, so that much of its time goes
to writing them. It is started again and again, and SIGKILL (or SIGTERM) ends it at a
moment uniform over the time of an uninterrupted run. What it leaves when it gets
to its end is compared with what an uninterrupted run leaves: metrics, and bit by bit
the backbone's weights, parameters and optimiser state. A row tells how many kills came
before the first checkpoint and how many while one was written, and how many runs ended
alike.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import safe_open

from experiments.rows import emit, parser
from experiments.sections import Section, columns
from lite_jax.run import build_data, build_gradient, build_learner
from lite_jax.run.checkpoint import Slot
from lite_jax.run.configs import read_settings
from lite_jax.run.preemption import EXIT_CODE, Preempted
from lite_jax.run.settings import Settings
from lite_jax.run.train import init_state, train_and_evaluate
from tests import toys

STEPS = 40


class Count(NamedTuple):
    """What came of many kills.

    Attributes:
        kills: Processes that the signal ended.
        before_a_checkpoint: Of these, how many left none yet.
        while_saving: How many left a checkpoint half written beside the whole ones.
        runs: Runs that came to their end.
        identical: Of these, how many left what an uninterrupted run leaves.
    """

    kills: int
    before_a_checkpoint: int
    while_saving: int
    runs: int
    identical: int


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each signal."""
    found = parser("runs killed at random moments")
    found.add_argument("--kills", type=int, default=100, help="of each kind")
    arguments = found.parse_args(argv)
    kills, steps = (1, 8) if arguments.smoke else (arguments.kills, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        for name in ("SIGKILL", "SIGTERM"):
            count = kill(kills, getattr(signal, name), Path(folder) / name, steps)
            row = {"experiment": "kills", "signal": name, "steps": steps}
            emit(arguments.out, row | count._asdict())


def kill(kills: int, number: int, folder: Path, steps: int) -> Count:
    """Kill runs of `steps` in `folder` that often, let the last one end, and count."""
    rng = np.random.default_rng(0)
    for name in ("first", "whole"):  # the first one compiles
        begun = time.perf_counter()
        assert _run(folder / name, steps) == 0
        duration = time.perf_counter() - begun
    config = toys.run_config(steps)
    whole = left(folder / "whole", config)
    killed = early = saving = runs = identical = 0
    while killed < kills or runs == 0:
        current = folder / f"run{runs}"
        wait = rng.uniform(0, duration) if killed < kills else None
        begun = time.perf_counter()
        code = _run(current, steps, wait, number)
        if code == 0:
            duration = min(duration, time.perf_counter() - begun)
            runs += 1
            identical += left(current, config) == whole
            continue
        assert code in (-number, EXIT_CODE), f"exit code {code}"
        killed += 1
        last = current / "checkpoints/last"
        if not any(last.glob("[0-9]*")):
            early += 1
            duration *= 1.25  # the machine may have become slower
        saving += any("tmp" in path.name for path in last.glob("*"))
    return Count(killed, early, saving, runs, identical)


def _run(folder: Path, steps: int, wait: float | None = None, number: int = 0) -> int:
    """Train in a process of its own; return its exit code.

    Args:
        folder: The workdir.
        steps: How many to train for.
        wait: Seconds until the signal; None for no signal.
        number: The signal.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lite_jax.run.train"])  # imported once for all
    process = context.Process(target=_train, args=(str(folder), steps))
    process.start()
    process.join(wait)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(folder: str, steps: int) -> None:
    try:
        train_and_evaluate(toys.run_config(steps), Path(folder))
    except Preempted:
        raise SystemExit(EXIT_CODE) from None


def left(folder: Path, config: ConfigDict | Settings) -> dict[str, Any]:
    """Return what a finished run leaves, as bytes."""
    config = read_settings(config, Settings)
    learner = build_learner.make_learners(
        config, build_data.make_sources(config)
    ).trained
    params = build_learner.init_params(config, learner, build_data.make_sources(config))
    state = init_state(
        build_gradient.make_optimizer(config.optimizer, config.train.steps), params
    )
    template = {"state": state, "best": np.array(0, np.float32)}
    with closing(Slot(folder / "checkpoints/last")) as slot:
        found = slot.restore(template)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "state": [np.asarray(x).tobytes() for x in jax.tree.leaves(found)],
        "metrics": [json.loads(line) for line in lines],
        "backbone": _weights(folder / "backbone.safetensors"),
    }


def _weights(path: Path) -> dict[str, Any]:
    """Return a file's arrays, as bytes, and its metadata, which have no order."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name).tobytes() for name in file.keys()}
        return arrays | file.metadata()


SECTIONS = (
    Section(
        "Killed runs",
        "kills",
        "python -m tests.stress.kills",
        "Runs killed at random moments until they end, against an uninterrupted one: "
        "metrics and backbone byte by byte, parameters and optimiser bit by bit.",
        lambda rows: columns(rows, "signal", *Count._fields),
    ),
)


if __name__ == "__main__":
    main()
