"""What one gradient or another buys: accuracy after equal time, from the same seeds.

    python -m experiments.accuracy [--smoke] [--out=experiments/results/accuracy.jsonl]
        [--dataset=omniglot|folder --root=FOLDER] [--steps=300] [--seeds=3]

ProtoNets on Conv-4, 20-way 5-shot training (N = 100), chunks of 20 images, so that all
need the memory of 20 images; METHODS are the exact gradient, LITE at two H under the
paper's sampling and under ours, small tasks (20 of the 100 support images, the memory
of one chunk) and small images (16 pixels a side, not 28). The seconds of a step are
measured for all methods in turn, in rounds, before anything is trained; the exact
gradient then takes `--steps` steps, and every other method what fits into the same
time. `--equal-steps` gives all the same steps instead.

Runs of one seed share initial parameters, tasks and test tasks. Without `--dataset` the
tasks are made of scikit-learn's digits, which need no download; photographs (`folder`)
are taken at 42 pixels, small ones at 24.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import median_seconds
from experiments.rows import emit, parser
from experiments.sections import Row, Section, mean_and_each, panels
from lite_jax import data
from lite_jax.run import build_data, build_gradient, build_learner
from lite_jax.run.configs import base_config, episode, read_settings
from lite_jax.run.settings import Settings
from lite_jax.run.train import init_state, make_train_step, train_and_evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SUPPORT, CHUNK, ROUNDS = 100, 20, 6
METHODS: dict[str, dict[str, Any]] = {
    # name: settings that differ from the exact gradient's
    "exact": {},
    "lite 10, uniform": {
        "estimator": "lite",
        "num_backprop": 10,
        "sampling": "uniform",
    },
    "lite 10, by class and sensitivity": {
        "estimator": "lite",
        "num_backprop": 10,
        "sampling": "stratified_sensitivity",
    },
    "lite 25, uniform": {
        "estimator": "lite",
        "num_backprop": 25,
        "sampling": "uniform",
    },
    "lite 25, by class and sensitivity": {
        "estimator": "lite",
        "num_backprop": 25,
        "sampling": "stratified_sensitivity",
    },
    "small tasks": {"max_support": 20},
    "small images": {"small_images": True},
}
SMOKE_METHODS = ["exact", "lite 25, by class and sensitivity", "small images"]
KINDS = {"w20s1": "20-way 1-shot", "w5s1": "5-way 1-shot", "w5s5": "5-way 5-shot"}


def make_config(arguments: argparse.Namespace, seed: int, method: str) -> ConfigDict:
    """Return the configuration of one run; steps are those of the exact gradient."""
    settings = dict(METHODS[method])
    config = base_config()
    config.seed = seed
    config.data.dataset, config.data.root = arguments.dataset, arguments.root
    photographs = arguments.dataset == "folder"
    config.data.image_size, small = (42, 24) if photographs else (28, 16)
    if settings.pop("small_images", False):
        config.data.image_size = small
    config.data.rotations = not photographs
    if not photographs:
        config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.train.episode = episode(
        (20, 20), (5, 5), query=5, max_support=settings.pop("max_support", None)
    )
    config.gradient.estimator, config.gradient.chunk_size = "exact", CHUNK
    config.gradient.update(settings)
    config.train.steps, config.valid.tasks = arguments.steps, 0
    config.test.tasks = 200
    if arguments.dataset == "omniglot":
        del config.test.episodes.w5s1
        config.test.episodes.w20s1 = episode((20, 20), (1, 1), query=5)
    if arguments.smoke:
        config.backbone.width, config.train.episode.query = 8, 1
        config.train.steps, config.test.tasks = 1, 2
        del config.test.episodes.w5s5
    return config


def seconds_a_step(configs: dict[str, ConfigDict], rounds: int) -> dict[str, float]:
    """Return the median time of a training step, measured in rounds side by side."""
    steppers = {name: stepper(config) for name, config in configs.items()}
    return median_seconds(steppers, rounds, warm_up=True)


def stepper(config: ConfigDict | Settings) -> Callable[[], None]:
    """Return a function that takes one training step, data loading apart."""
    config = read_settings(config, Settings)
    sources = build_data.make_sources(config)
    learner, _ = build_learner.make_learners(config, sources)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    step_fn = make_train_step(build_gradient.make_grad_fn(config, learner), optimizer)
    params = build_learner.init_params(config, learner, sources)
    spec = build_data.make_spec(config.train.episode)
    task = data.load_task(sources("train"), spec, 0, "timing", 0)
    stacked = jax.tree.map(lambda x: np.stack([x]), task)
    state = [init_state(optimizer, params)]

    def step() -> None:
        state[0], _ = step_fn(state[0], stacked, jax.random.key(0))
        jax.block_until_ready(state[0])

    return step


def main(argv: Sequence[str] | None = None) -> None:
    """Train once for each seed and method, and emit a row a run."""
    found = parser("accuracy under different gradients after equal time")
    found.add_argument(
        "--dataset", default="digits", choices=("digits", "omniglot", "folder")
    )
    found.add_argument("--root", default="", help="folder of the images")
    found.add_argument("--steps", type=int, default=300, help="of the exact gradient")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--equal-steps", action="store_true", help="not equal time")
    arguments = found.parse_args(argv)
    names = SMOKE_METHODS if arguments.smoke else list(METHODS)
    seconds = seconds_a_step(
        {name: make_config(arguments, 0, name) for name in names},
        rounds=1 if arguments.smoke else ROUNDS,
    )
    for seed in range(1 if arguments.smoke else arguments.seeds):
        for name in names:
            config = make_config(arguments, seed, name)
            if not arguments.equal_steps:
                ratio = seconds["exact"] / seconds[name]
                config.train.steps = max(round(config.train.steps * ratio), 1)
            with tempfile.TemporaryDirectory() as workdir:
                results = train_and_evaluate(config, Path(workdir))
            row = {
                "experiment": "accuracy",
                "dataset": arguments.dataset,
                "method": name,
                "equal": "steps" if arguments.equal_steps else "time",
                "seed": seed,
                "steps": config.train.steps,
                "step_time_of_exact": round(seconds[name] / seconds["exact"], 3),
                "num_support": NUM_SUPPORT,
            }
            for kind, by_name in results.items():
                row[kind] = round(by_name["protonets"].mean, 4)
                row[f"{kind}_half_width"] = round(by_name["protonets"].half_width, 4)
            emit(arguments.out, row)


def draw_accuracy(rows: list[Row]) -> Figure:
    """Draw each method's accuracy, a dot a seed; after equal time if there is any."""
    rows = [r for r in rows if r["equal"] == "time"] or rows
    cases = list(
        dict.fromkeys((r["dataset"], k) for r in rows for k in KINDS if k in r)
    )
    figure, axes = panels(len(cases))
    names = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    for axis, (dataset, kind) in zip(axes, cases, strict=True):
        runs = [r for r in rows if r["dataset"] == dataset and kind in r]
        for place, name in enumerate(names):
            seeds = [100 * r[kind] for r in runs if r["method"] == name]
            axis.plot(seeds, [place] * len(seeds), "o", color="#4477aa", alpha=0.5)
            axis.plot([statistics.mean(seeds)], [place], "|", color="k", markersize=14)
        data_name = {"folder": "Caltech101"}.get(dataset, dataset.capitalize())
        axis.set(title=f"{data_name}\n{KINDS[kind]}", xlabel="accuracy, %")
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
    return figure


def tabulate_accuracy(rows: list[Row]) -> list[Row]:
    """Return the mean over seeds, and each seed's, in %."""
    table = []
    cases = dict.fromkeys((r["equal"], r["dataset"], r["method"]) for r in rows)
    for case in cases:
        runs = [r for r in rows if (r["equal"], r["dataset"], r["method"]) == case]
        row = dict(zip(("equal", "dataset", "method"), case, strict=True))
        row |= {"seeds": len(runs), "steps": runs[0]["steps"]}
        for kind in KINDS:
            values = [100 * r[kind] for r in runs if kind in r]
            if values:
                row[kind] = mean_and_each(values)
        table.append(row)
    return table


SECTIONS = (
    Section(
        "Accuracy",
        "accuracy",
        "python -m experiments.accuracy --dataset=omniglot --root=OMNIGLOT",
        "ProtoNets on Omniglot, in the memory of 20 images; a dot a seed, a bar at "
        "their mean.",
        tabulate_accuracy,
        draw_accuracy,
    ),
)


if __name__ == "__main__":
    main()
