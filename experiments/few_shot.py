"""5-way tasks of the data at hand, for experiments that compare learners on them."""

from __future__ import annotations

import argparse

from ml_collections import ConfigDict

from lite_jax.run.configs import base_config, episode

WAY = 5


def add_data(found: argparse.ArgumentParser) -> None:
    """Let a command choose the data."""
    found.add_argument(
        "--dataset", default="digits", choices=("digits", "omniglot", "folder")
    )
    found.add_argument("--root", default="", help="folder of the images")


def few_shot_config(
    arguments: argparse.Namespace, name: str, shot: int, query: int, test_query: int
) -> ConfigDict:
    """Return a run on Conv-4 of 32 channels, two tasks a step, without validation.

    Args:
        arguments: The command's, with `dataset`, `root` and `steps`.
        name: Of the test episodes, which their tasks are drawn by.
        shot: Support images of a class.
        query: Query images of a class, in training.
        test_query: The same, in tests.
    """
    config = base_config()
    config.data.dataset, config.data.root = arguments.dataset, arguments.root
    photographs = arguments.dataset == "folder"
    config.data.image_size = 42 if photographs else 28
    config.data.rotations = not photographs
    if not photographs:
        config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.backbone.width = 32
    config.train.steps, config.train.tasks_per_step = arguments.steps, 2
    config.train.episode = episode((WAY, WAY), (shot, shot), query=query)
    config.valid.tasks = 0
    tested = episode((WAY, WAY), (shot, shot), query=test_query)
    config.test.episodes = ConfigDict({name: tested})
    return config
