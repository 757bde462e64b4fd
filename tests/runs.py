"""Small configurations for tests of whole runs."""

import dataclasses
import importlib.util
import os
import signal
from pathlib import Path

from flax import linen

from lite_jax.apps.programs import PROGRAMS, load
from lite_jax.nn import description
from lite_jax.nn.backbones import ConvBlock
from lite_jax.nn.layers import global_average
from lite_jax.nn.network import make_network
from lite_jax.run import build_backbone, loop
from lite_jax.run.configs import read_settings

CONFIGS = Path(__file__).parents[1] / "configs"


def config_of(name="protonets", arguments="", **changes):
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


def load_config(name="protonets", arguments="", **changes):
    """The settings of that config, as a program reads them."""
    config = config_of(name, arguments, **changes)
    return read_settings(config, load(PROGRAMS[config.program].settings))


def changed(settings, **changes):
    """The settings with changes."""
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            value = changed(getattr(settings, section), **{name: value})
        settings = dataclasses.replace(settings, **{section: value})
    return settings


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


def one_block(
    width=8, *, norm="group", norm_groups=8, mean=0.5, std=0.25, remat=False, film=True
):
    """Conv-4's first block and a mean over positions, for runs of whichever network.

    A quarter of the code to trace and compile. Takes Conv-4's settings.
    """
    del remat

    def describe(image, way):
        found = description.describe_conv4(image, way, width=width, groups=norm_groups)
        head = description.dense_layer(found.head.path, width, way)
        return description.Architecture(found.blocks[:1], head, average=True)

    return make_network(
        _OneBlock(width, norm, norm_groups, film),
        mean=mean, std=std, least_size=1, film=film, describe=describe,
    )  # fmt: skip


def use_one_block(patch):
    """Let runs have one block where their settings say Conv-4; `patch` undoes it."""
    _, settings = build_backbone._BACKBONES["conv4"]
    patch.setitem(build_backbone._BACKBONES, "conv4", (one_block, settings))


class _OneBlock(linen.Module):
    width: int
    norm: str
    norm_groups: int
    film: bool

    @linen.compact
    def __call__(self, images):
        block = ConvBlock(
            self.width, self.norm, self.norm_groups, film=self.film, name="blocks.0"
        )
        return global_average(block(images))


def interrupt():
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def terminate():
    """What a scheduler does before it takes a machine."""
    os.kill(os.getpid(), signal.SIGTERM)


def after_step(patch, step, stop):
    """Let `stop` happen after a step of a run, while `patch` lasts."""

    class Stopping(loop.Reporter):
        def later(self, number, metrics):
            super().later(number, metrics)
            if number == step:
                stop()

    patch.setattr(loop, "Reporter", Stopping)
