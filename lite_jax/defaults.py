"""Every setting of a run, with its default; no other place holds one.

A file in `configs/` starts from `base_config()` and changes a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lite_jax.errors import unknown_name


def base_config() -> ConfigDict:
    """Return the complete, unlocked configuration: ProtoNets on digits."""
    return ConfigDict(
        {
            "name": "protonets",  # names the default workdir, runs/<name>
            "seed": 0,  # decides everything random: parameters, episodes, draws
            "data": {
                "dataset": "digits",  # digits | omniglot | folder | synthetic
                "root": "",  # folder of the images; digits and synthetic need none
                "image_size": 32,  # pixels a side
                "rotations": True,  # training classes turned by 90° as extra ones
                "affine": False,  # training images turned, sheared, scaled, shifted
                "cache_gb": 2.0,  # decoded images kept in memory, up to this
                "prefetch": 2,  # steps of episodes loaded ahead of the device
                "synthetic_classes": 20,  # per split, for dataset=synthetic
                "synthetic_images": 40,  # per class
                "synthetic_channels": 3,  # 1 or 3
            },
            "learner": "protonets",
            "backbone": {
                "name": "conv4",
                "width": 64,  # channels of every block
                "norm": "group",  # batch statistics would mix examples: refused
                "norm_groups": 8,  # must divide the width
                "mean": 0.5,  # normalisation of pixels in [0, 1]
                "std": 0.25,
            },
            "gradient": {
                "estimator": "lite",  # lite | exact | subsample
                "num_backprop": 20,  # H; lower: faster steps, noisier gradients
                "chunk_size": 50,  # images at once: sets the memory, never results
                "sampling": "uniform",  # uniform | with_replacement
            },
            "optimizer": {
                "learning_rate": 1e-3,  # of Adam
                "schedule": "cosine",  # cosine (to 0 at the last step) | constant
                "clip_norm": 0.0,  # global norm that gradients are cut to; 0: not
            },
            "train": {
                "steps": 200,  # parameter updates
                "tasks_per_step": 1,  # tasks whose gradients are averaged
                "valid_every": 100,  # steps between validations and checkpoints
                "episode": episode(way=(10, 10), shot=(5, 5), query=10),
            },
            "valid": {
                "tasks": 100,  # 0: no validation, and the last parameters count as best
                "episode": episode(way=(5, 5), shot=(1, 1), query=10),
            },
            "test": {
                "tasks": 600,  # per kind of episode
                "episodes": {
                    "w5s1": episode(way=(5, 5), shot=(1, 1), query=15),
                    "w5s5": episode(way=(5, 5), shot=(5, 5), query=15),
                },
            },
        }
    )


def episode(
    way: tuple[int, int],
    shot: tuple[int, int],
    query: int,
    max_support: int | None = None,
) -> ConfigDict:
    """Return the settings of one kind of episode.

    Args:
        way: Least and most classes of a task.
        shot: Least and most support images of a class.
        query: Query images of a class.
        max_support: Most support images of a task; None for no limit.
    """
    limit = placeholder(int)
    fields = {"way": way, "shot": shot, "query": query, "max_support": limit}
    config = ConfigDict(fields)
    config.max_support = max_support
    return config


def choose(
    arguments: str, variants: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Return the base configuration after the named variants, in the order given.

    Args:
        arguments: What follows the colon of `--config=FILE:a,b`; may be empty.
        variants: Name → function that changes the configuration in place.

    Raises:
        UserError: An unknown variant.
    """
    config = base_config()
    for name in filter(None, (x.strip() for x in arguments.split(","))):
        if name not in variants:
            raise unknown_name("config argument", name, variants)
        variants[name](config)
    return config.lock()
