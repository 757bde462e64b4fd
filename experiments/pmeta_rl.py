"""Policies after adaptation, by inner rule: p-Meta's Table 3.

    python -m experiments.pmeta_rl [--environment=navigation|half_cheetah] [--full]
        [--smoke] [--out=experiments/results/pmeta_rl.jsonl]

Each method of `configs/pmeta_rl.py` meta-trains a policy (the variant `small`; `--full`
for the paper's sizes) and is tested on the same held-out tasks. A row tells the return
before and after adaptation with the 95 % interval over tasks, the layers that the inner
step trains, the paper's model of memory and operations for one episode, and the curve:
the mean return after adaptation over every tenth of training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from configs.pmeta_rl import get_config
from experiments.pmeta import plan_costs, plan_of
from experiments.rows import emit, parser, rounded
from experiments.sections import Row, Section, columns, legend_below, panels
from lite_jax.apps.rl.run import restore_policy, run_policy
from lite_jax.apps.rl.settings import PolicySettings
from lite_jax.files import read_rows
from lite_jax.run.configs import read_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {
    "MAML": "maml",
    "ANIL": "anil",
    "BOIL": "boil",
    "MAML++": "mamlpp",
    "p-Meta, steps only": "steps_only",
    "p-Meta": "",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each method."""
    found = parser("policies after adaptation, by inner rule")
    found.add_argument("--environment", default="navigation")
    found.add_argument("--full", action="store_true", help="the paper's sizes")
    arguments = found.parse_args(argv)
    chosen = ["ANIL", "p-Meta"] if arguments.smoke else list(METHODS)
    for name in chosen:
        emit(arguments.out, row_of(arguments, name))


def row_of(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return what a method comes to."""
    config = make_config(arguments, METHODS[method])
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.perf_counter()
        run_policy(config, folder)
        seconds = time.perf_counter() - begun
        rows = read_rows(folder / "metrics.jsonl")
        setting, params = restore_policy(read_settings(config, PolicySettings), folder)
    row: dict[str, Any] = {
        "experiment": "pmeta_rl",
        "environment": arguments.environment,
        "method": method,
        "steps": config.train.steps,
        "tasks_per_step": config.train.tasks_per_step,
        "episodes": config.rl.episodes,
        "horizon": config.rl.horizon,
    }
    for found in rows:
        if found["split"] == "test":
            place = found["policy"].split()[0]
            row[place] = found["mean"]
            row[f"{place}_half_width"] = found["half_width"]
            row["tasks"] = found["num_tasks"]
    plan = plan_of(setting.learner.architecture, config.inner, params)
    row |= plan_costs(plan, config.rl.horizon)
    row["trained"] = ", ".join(plan.steps[0])
    curve = [x["return"] for x in rows if x["split"] == "train"]
    parts = np.array_split(curve, min(10, len(curve)))
    row["curve"] = [round(float(part.mean()), 2) for part in parts]
    return rounded(row | {"seconds": seconds})


def make_config(arguments: argparse.Namespace, variant: str) -> ConfigDict:
    """Return the configuration of a method."""
    sizes = [] if arguments.full else ["small"]
    sizes += ["smoke"] if arguments.smoke else []
    names = [arguments.environment, variant, *sizes]
    config = get_config(",".join(filter(None, names)))
    if arguments.smoke:
        config.train.steps, config.rl.depth = 2, 1
    return config


def draw_returns(rows: list[Row]) -> Figure:
    """Draw returns in meta-training, a panel an environment."""
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    figure, axes = panels(len(environments))
    for axis, environment in zip(axes, environments, strict=True):
        for row in rows:
            if row["environment"] == environment:
                parts = len(row["curve"])
                ends = [row["steps"] * (i + 1) / parts for i in range(parts)]
                axis.plot(ends, row["curve"], label=row["method"])
        axis.set(title=environment, xlabel="meta-training steps", ylabel="return")
    legend_below(figure, axes)
    return figure


SECTIONS = (
    Section(
        "Policies after adaptation",
        "pmeta_rl",
        "python -m experiments.pmeta_rl",
        "Mean return before and after one inner step, over held-out tasks; memory and "
        "operations of one episode by p-Meta's model. Curves: after adaptation, in "
        "meta-training.",
        lambda rows: columns(
            rows,
            "environment",
            "method",
            "before",
            "after",
            "after_half_width",
            "trained",
            "paper_mb",
            "mmacs",
        ),
        draw_returns,
    ),
)


if __name__ == "__main__":
    main()
