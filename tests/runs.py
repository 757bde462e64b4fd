"""Small configurations for tests of whole runs."""

import importlib.util
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def load_config(name="protonets", arguments="", **changes):
    """The config that `--config=configs/NAME.py:ARGUMENTS` names, with changes.

    A change is written with `__` for the dot: `train__steps=3`.
    """
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arguments)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    return config


def tiny_config(**changes):
    """Conv-4 of 8 channels on 16-pixel patterns: a step takes milliseconds."""
    defaults = {
        "data__image_size": 16,
        "backbone__width": 8,
        "gradient__num_backprop": 4,
        "gradient__chunk_size": 8,
        "train__steps": 6,
        "train__valid_every": 2,
        "train__tasks_per_step": 2,
        "train__episode__way": (3, 5),
        "train__episode__shot": (2, 4),
        "train__episode__query": 2,
        "valid__tasks": 3,
        "test__tasks": 4,
    }
    return load_config("protonets", "synthetic", **(defaults | changes))
