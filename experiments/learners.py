"""Learners on one pretrained backbone: accuracy, and the cost of adapting to a task.

    python -m experiments.learners --root=FOLDER --weights=FILE.safetensors \
        [--steps=200] [--smoke] [--out=experiments/results/learners.jsonl]

FOLDER holds folders of photographs (Caltech101 in the results), FILE the ResNet-18 that
`configs/pretrain.py:folder` trained on its training classes. Four learners start from
it and are tested on the same tasks: prototypes of the features as they are; ProtoNets,
which goes on training the backbone with LITE; Simple CNAPs, which keeps it frozen and
learns to modulate it with LITE; fine-tuning, 50 steps of SGD on a linear head.

A row tells the accuracy with its 95 % interval, the gradient steps that adapting to a
task takes, and its multiply-accumulate operations (5-way 5-shot).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.macs import count_macs
from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import Examples, exact_sum
from lite_jax.run import build_data, build_learner, recipes
from lite_jax.run.configs import base_config
from lite_jax.run.train import train_and_evaluate

LEARNERS = ("prototypes", "protonets", "simple_cnaps", "finetuner")
NUM_SUPPORT = 25


def make_config(arguments: argparse.Namespace, learner: str) -> ConfigDict:
    """Return the configuration of one run."""
    config = base_config()
    if arguments.root:
        recipes.folder(config)
        recipes.resnet18(config)
        config.data.root = arguments.root
    else:
        recipes.synthetic(config)
    config.learner = "protonets" if learner == "prototypes" else learner
    config.backbone.weights = arguments.weights
    config.backbone.frozen = learner != "protonets"
    config.protonets.scale = 0.02  # distances of order 1; no effect on prototypes
    config.optimizer.learning_rate = 1e-4 if learner == "protonets" else 1e-3
    config.inner.steps, config.inner.learning_rate = 50, 0.1
    trains = learner in ("protonets", "simple_cnaps")
    config.data.augment = "crop" if arguments.root and trains else "none"
    config.train.steps = arguments.steps if trains else 0
    config.valid.tasks = 50
    config.test.tasks = arguments.tasks
    for settings in config.test.episodes.values():
        settings.query = 5
    if arguments.smoke:
        config.train.steps = min(config.train.steps, 1)
        config.backbone.width, config.data.image_size = 8, 16
        config.train.episode.way = config.train.episode.shot = (2, 2)
        config.train.episode.query, config.gradient.num_backprop = 1, 1
        config.valid.tasks, config.test.tasks = 1, 2
        del config.test.episodes.w5s5
    return config


def adaptation_macs(config: ConfigDict) -> int:
    """Return the MACs of adapting to one 5-way 5-shot task."""
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).tested
    image = sources("test").image_shape
    support = Examples(
        jax.ShapeDtypeStruct((NUM_SUPPORT, *image), jnp.uint8),
        jax.ShapeDtypeStruct((NUM_SUPPORT,), jnp.int32),
        jax.ShapeDtypeStruct((NUM_SUPPORT,), jnp.bool_),
    )
    params = build_learner.params_shape(learner, sources("test").image_shape)

    def adapt(params, support, key):
        return learner.adapt(params, support, key, exact_sum())

    return count_macs(adapt, params, support, jax.random.key(0))


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test each learner, and emit a row for each."""
    found = parser("accuracy and cost of learners on one pretrained backbone")
    found.add_argument("--root", default="", help="folder of photographs")
    found.add_argument("--weights", default="", help="of the backbone")
    found.add_argument("--steps", type=int, default=200, help="of meta-training")
    found.add_argument("--tasks", type=int, default=600, help="of each kind of test")
    arguments = found.parse_args(argv)
    for learner in LEARNERS:
        config = make_config(arguments, learner)
        macs = adaptation_macs(config)
        with tempfile.TemporaryDirectory() as workdir:
            results = train_and_evaluate(config, Path(workdir))
        row = {
            "experiment": "learners",
            "learner": learner,
            "backbone": config.backbone.name,
            "image_size": config.data.image_size,
            "meta_training_steps": config.train.steps,
            "num_backprop": config.gradient.num_backprop,
            "test_tasks": config.test.tasks,
            "adaptation_steps": 50 if learner == "finetuner" else 0,
            "adaptation_gmacs": round(macs / 1e9, 3),
        }
        for kind, by_name in results.items():
            for name, result in by_name.items():
                place = f"{kind}_pixels" if name == "raw pixels" else kind
                row[place] = round(result.mean, 4)
                row[f"{place}_half_width"] = round(result.half_width, 4)
        emit(arguments.out, row)


SECTIONS = (
    Section(
        "Learners",
        "learners",
        "python -m experiments.learners --root=CALTECH101 --weights=WEIGHTS",
        "The same pretrained ResNet-18 and the same 600 test tasks for each.",
    ),
)


if __name__ == "__main__":
    main()
