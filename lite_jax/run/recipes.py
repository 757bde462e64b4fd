"""Variants and recipes: functions that change the settings of meta-learning in place.

A file in `configs/` starts from `base_config()` and applies some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from lite_jax.errors import unknown_name
from lite_jax.run.configs import base_config, episode, orbit_episode, variable_episode


def digits(config: ConfigDict) -> None:
    """Use scikit-learn's digits, which need no download; the even ones for training."""
    config.data.dataset = "digits"


def synthetic(config: ConfigDict) -> None:
    """Use generated images, which need no files."""
    config.data.dataset = "synthetic"
    config.data.image_size = 28


def omniglot(config: ConfigDict) -> None:
    """Use Omniglot's small sets, with random affine distortions; 60-way 1-shot."""
    config.data.dataset = "omniglot"
    config.data.image_size = 28
    config.data.augment = "affine"
    config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.gradient.chunk_size = 20
    config.train.episode = episode(way=(60, 60), shot=(1, 1), query=3)
    config.valid.episode = episode(way=(20, 20), shot=(1, 1), query=5)
    config.test.episodes.w20s1 = episode(way=(20, 20), shot=(1, 1), query=5)


def folder(config: ConfigDict) -> None:
    """Use folders of photographs at 84 × 84 pixels; 10-way 5-shot."""
    config.data.dataset = "folder"
    config.data.image_size = 84
    config.data.rotations = False
    config.gradient.chunk_size = 20
    config.train.steps = 400
    config.train.episode = episode(way=(10, 10), shot=(5, 5), query=5)


def resnet18(config: ConfigDict) -> None:
    """Use ResNet-18 with GroupNorm, which needs no pretrained weights."""
    config.backbone.name = "resnet18"
    config.backbone.norm_groups = 32


def paper(config: ConfigDict) -> None:
    """Use the recipe of the LITE paper on folders of 224-pixel photographs.

    Adam at 1e-3; 10,000 tasks, 16 a step; 5 to 50 ways; at most 500 support images a
    task; 10 query images a class; H = 40; chunks of 40 images; EfficientNet-B0.
    """
    folder(config)
    config.data.image_size = 224
    config.data.cache_gb = 8.0
    config.backbone.name = "efficientnet_b0"
    config.backbone.norm = "batch"
    config.gradient.num_backprop = 40
    config.gradient.chunk_size = 40
    config.optimizer.schedule = "constant"
    config.train.tasks_per_step = 16
    config.train.steps = 10_000 // 16
    config.train.episode = episode(
        way=(5, 50), shot=(1, 100), query=10, max_support=500
    )


def meta_dataset(config: ConfigDict) -> None:
    """Use the recipe of the LITE paper on Meta-Dataset, with the paper's protocol."""
    paper(config)
    config.data.dataset = "meta_dataset"
    config.data.protocol = "lite"
    config.train.episode = variable_episode()
    config.valid.episode = variable_episode()
    config.valid.tasks = 200
    config.test.episodes = ConfigDict({"md": variable_episode()})
    config.benchmark.name = "meta_dataset"


def vtab_md(config: ConfigDict) -> None:
    """Train on Meta-Dataset; `--mode=eval` tests on its sources and VTAB's 18 tasks."""
    meta_dataset(config)
    config.benchmark.name = "vtab_md"


def orbit(config: ConfigDict) -> None:
    """Use ORBIT's videos of users' objects; H counts clips."""
    paper(config)
    config.data.dataset = "orbit"
    config.gradient.num_backprop = 16
    config.optimizer.learning_rate = 1e-4
    config.train.steps = 10 * 44 * 50 // 16  # 10 epochs of 50 tasks of each user
    config.train.episode = orbit_episode()
    config.valid.episode = orbit_episode()
    config.test.episodes = ConfigDict({"users": orbit_episode()})
    config.benchmark.name = "orbit"


def shrink(config: ConfigDict) -> None:
    """Shorten a run of any other variants to seconds: the `smoke` variant."""
    config.train.steps = min(config.train.steps, 4)
    config.train.valid_every = 2
    config.train.tasks_per_step = min(config.train.tasks_per_step, 2)
    config.valid.tasks = 4
    config.test.tasks = 10
    config.benchmark.episodes = 4
    config.benchmark.most_test_images = 100
    config.benchmark.tasks_per_user = 1


def folder_resnet18(config: ConfigDict) -> None:
    """Use folders of photographs, and the backbone of `configs/pretrain.py:folder`."""
    folder(config)
    resnet18(config)


Change = Callable[[ConfigDict], None]
VARIANTS: dict[str, Change] = {  # shared by the files in configs/
    "digits": digits,
    "omniglot": omniglot,
    "folder": folder,
    "synthetic": synthetic,
    "smoke": shrink,
}


RECIPES: dict[str, Change] = {  # of the LITE paper, for one GPU
    "paper": paper,
    "meta_dataset": meta_dataset,
    "vtab_md": vtab_md,
    "orbit": orbit,
}


def choose(
    arguments: str,
    variants: Mapping[str, Change],
    start: Change = digits,
    schema: Callable[[], ConfigDict] = base_config,
) -> ConfigDict:
    """Return a program's settings, locked, after the named variants in their order.

    The names of the variants are appended to the name of the run.

    Args:
        arguments: Names of variants, as in `--config=FILE:a,b`; may be empty.
        variants: Name → function that changes the configuration in place.
        start: Changes the configuration before the variants.
        schema: `() -> settings` of the program, with their defaults.

    Raises:
        UserError: An unknown variant.
    """
    config = schema().lock()
    if "episodes" in config.get("test", {}):
        config.test.episodes.unlock()  # variants add kinds of episodes
    start(config)
    for name in filter(None, (x.strip() for x in arguments.split(","))):
        if name not in variants:
            raise unknown_name("config argument", name, variants)
        variants[name](config)
        config.name += f"_{name}"
    return config.lock()
