"""The settings of meta-learning runs: their defaults, and checks of their ranges."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from lite_jax.errors import UserError


@contextlib.contextmanager
def settings_named(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of arguments in a `UserError` by the names of settings.

    Code below `run/` names its arguments in errors. In its messages `steps=0` becomes
    `inner.steps=0`, and `unknown through 'x'` `unknown hypergrad.through 'x'`.

    Args:
        names: Argument → setting.
    """
    try:
        yield
    except UserError as error:
        known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        named = re.compile(
            rf"(?<![\w./])({known})(?==)|(?<=\bunknown )({known})(?= )|"
            rf"(?<=\bchange )({known})\b"
        )
        message = named.sub(lambda match: names[match[0]], str(error))
        raise UserError(message) from error


def names_of(*sections: str) -> dict[str, str]:
    """Return `{"field": "section.field"}` for all settings of some sections.

    For arguments that have the name of the setting, as in `settings_named`.
    """
    config = base_config()
    return {key: f"{name}.{key}" for name in sections for key in config[name]}


def check_at_least(config: ConfigDict, bound: int, *names: str) -> None:
    """Raise unless all named settings are at least `bound`.

    Args:
        config: All settings.
        bound: The least value allowed.
        names: Settings, with dots as on the command line.

    Raises:
        UserError: A setting is below the bound; the first one is named.
    """
    for name in names:
        value = operator.attrgetter(name)(config)
        if value < bound:
            raise UserError(f"{name}={value}: expected {bound} or more")


def base_config() -> ConfigDict:
    """Return all settings of meta-learning, unlocked: ProtoNets on digits."""
    return ConfigDict(
        {
            "program": "meta_learning",  # a row of lite_jax.apps.programs; fixed
            "name": "protonets",  # names the default workdir, runs/<name>
            "seed": 0,  # of all random numbers: parameters, episodes, draws
            "data": {
                # digits | synthetic | folder | omniglot | meta_dataset | orbit | tfds |
                # arrays (.npz, HDF5, pickles) | parquet | cache
                "dataset": "digits",
                # folder or file of the data; digits and synthetic need none
                "root": "",
                "image_size": 32,  # pixels a side
                "resize": "",  # md | vtab | lanczos | bilinear | area; "": the data's
                "channels": 3,  # 1 | 3, for data sets that can have either
                "class_list": "",  # classes of each split (lite_jax.data.class_lists)
                "label": "label",  # feature (tfds) or column (parquet) of the class
                "allow_pickle": False,  # read pickles; this runs the code in them
                "by_alphabet": False,  # omniglot: draw an episode from one alphabet
                "protocol": "md-v2",  # meta_dataset: md-v2 | lite
                "sources": "",  # meta_dataset: NAME,NAME to use; "": the protocol's
                "orbit_protocol": "2022",  # 2021 (clips of 8 frames) | 2022 (frames)
                "orbit_mode": "clutter",  # target videos of orbit: clutter | clean
                # orbit: issues of frames to leave out, as NAME,NAME; none: leave out no
                # frame; "": the protocol's
                "orbit_filter": "",
                "rotations": True,  # add rotated training classes: 90°, 180°, 270°
                # training images: none, or of affine, crop, flip, jitter, as NAME,NAME
                "augment": "none",
                "cache_gb": 2.0,  # most memory for decoded images, in 10⁹ bytes
                "prefetch": 3,  # episodes loaded ahead of the device
                "workers": 0,  # threads that decode images; 0: one for each core
                "synthetic_classes": 20,  # synthetic: classes of each split
                "synthetic_images": 40,  # synthetic: images of each class
            },
            # protonets | cnaps | simple_cnaps | maml | mrml | imaml | finetuner |
            # classifier
            "learner": "protonets",
            "backbone": {
                # conv4 | resnet12 | resnet18 | resnet50 | efficientnet_b0 |
                # tf_efficientnet_b0 | vit_s | pixels
                "name": "conv4",
                "width": 64,  # conv4: channels of every block
                "norm": "group",  # group | batch (frozen statistics of the weights)
                "norm_groups": 8,  # must divide the width
                # of pixels in [0, 1]; None: those of the weights, or of the backbone
                "mean": placeholder(float),
                "std": placeholder(float),
                "weights": "",  # safetensors file, its folder, or hub:NAME; "": random
                "frozen": False,  # do not train it, and store nothing for its gradient
                "dtype": "float32",  # float32 | bfloat16; parameters stay float32
                "remat": False,  # store block boundaries only, rematerialise the rest
            },
            "protonets": {
                "scale": 1.0,  # multiplies distances; lower for pretrained weights
            },
            "cnaps": {
                "film_penalty": 1e-3,  # weight of squared FiLM amplitudes in the loss
            },
            "inner": {  # the inner loop of maml, mrml, imaml and finetuner
                "steps": 5,
                "learning_rate": 0.01,
                # maml: sgd | learned_sgd | anil | boil | p_meta
                "rule": "sgd",
                # p_meta: λ, weight in the loss of Σ step size × layer size
                "penalty": 1.0,
                # p_meta: what a layer's size counts: inputs | memory (inputs and the
                # gradients of weights)
                "penalty_on": "inputs",
                "attention": "both",  # p_meta: none | forward | backward | both
                # p_meta: share of the scores that each attention sets to 0, in [0, 1)
                "attention_forward": 0.3,
                "attention_backward": 0.0,
                # p_meta: choose channels for the support as a batch | each example
                "attention_over": "batch",
                # p_meta: gradient through norms, from most to least memory:
                # exact | bfloat16 | detached
                "norm_gradient": "exact",
                "first_order": False,  # maml: treat inner gradients as constants
                # maml, mrml, imaml: learn the head's start; False: it starts at 0
                "learned_head": False,
                "optimizer": "sgd",  # finetuner, imaml: sgd | adam
                "film": False,  # maml, finetuner: adapt FiLM parameters too
            },
            "hypergrad": {  # of mrml and imaml
                # conjugate_gradient | neumann | identity | unrolled (mrml) |
                # sama (imaml)
                "through": "conjugate_gradient",
                "steps": 10,  # iterations of conjugate gradients, or terms of Neumann
                "damping": 0.0,  # added to the inner Hessian
                "weight_decay": 1e-2,  # mrml: λ of the head's loss, λ/2 ‖head‖²
                "proximity": 1.0,  # imaml: β of the inner loss, β/2 ‖φ − θ‖²
            },
            "gradient": {
                # lite | exact (chunks rematerialised) | plain (no chunks) | subsample
                "estimator": "lite",
                "num_backprop": 20,  # H of lite and subsample; lower: faster, noisier
                # images computed at once, or auto: the most that fit the memory budget;
                # changes memory, never results
                "chunk_size": FieldReference(50, field_type=object),
                # of chunk_size=auto, in 10⁹ bytes; 0: 0.9 of the device's memory
                "memory_budget_gb": 0.0,
                # uniform | with_replacement | stratified | sensitivity |
                # stratified_sensitivity
                "sampling": "uniform",
            },
            "devices": {  # their product is the number of devices
                "tasks": 1,  # groups of devices, each with its share of a step's tasks
                "examples": 1,  # devices that share the examples of each task
            },
            "optimizer": {
                "learning_rate": 1e-3,  # of Adam
                "weight_decay": 0.0,  # decoupled, as in AdamW
                "schedule": "cosine",  # cosine (to 0 at the last step) | constant
                "clip_norm": 0.0,  # largest global norm of a gradient; 0: no clipping
                # steps in a row that are skipped where the gradient is not finite
                "skip_not_finite": 0,
            },
            "train": {
                "steps": 200,  # parameter updates; 0: test the initial parameters
                "tasks_per_step": 1,  # tasks whose gradients are averaged
                "batch_size": 64,  # images; learner=classifier trains on batches
                "valid_every": 100,  # steps between validations and checkpoints
                "episode": episode(way=(10, 10), shot=(5, 5), query=10),
            },
            "valid": {
                "tasks": 100,  # 0: no validation; the last parameters are tested
                "episode": episode(way=(5, 5), shot=(1, 1), query=10),
            },
            "test": {
                "tasks": 600,  # of each kind of episode
                "episodes": {
                    "w5s1": episode(way=(5, 5), shot=(1, 1), query=15),
                    "w5s5": episode(way=(5, 5), shot=(5, 5), query=15),
                },
            },
            "benchmark": {  # what --mode=eval runs instead of test episodes
                "name": "",  # meta_dataset | vtab_md | orbit; "": test episodes
                "only": "",  # data sets (orbit: users) to run, as NAME,NAME; "": all
                "episodes": 600,  # of each source of Meta-Dataset
                "vtab_root": "",  # data_dir of tfds, or folder of VTAB's data sets
                "vtab_protocol": "official",  # official | lite
                "vtab_resize": "",  # "": vtab if official, lanczos if lite
                "vtab_support": 1000,  # support images of a task of VTAB
                "most_test_images": 0,  # most test images of a task of VTAB; 0: all
                "tasks_per_user": 0,  # test tasks of a user of ORBIT; 0: the protocol's
            },
        }
    )


def selected(**sections: Sequence[str]) -> ConfigDict:
    """Return some sections of `base_config()`, for a program with settings of its own.

    `program`, `name` and `seed` are always included.

    Args:
        sections: Section → names of its settings to include; empty for all.
    """
    config = base_config()
    for name in set(config) - set(sections) - {"program", "name", "seed"}:
        del config[name]
    for name, keys in sections.items():
        for key in set(config[name]) - set(keys or config[name]):
            del config[name][key]
    return config


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
        query: Number of query images of a class.
        max_support: Most support images of a task; None for no limit.
    """
    limit = placeholder(int)
    fields = {"way": way, "shot": shot, "query": query, "max_support": limit}
    config = ConfigDict(fields)
    config.max_support = max_support
    return config


def variable_episode(
    way: tuple[int, int] = (5, 50),
    max_query: int = 10,
    max_support: int = 500,
    max_contribution: int = 100,
) -> ConfigDict:
    """Return the settings of Meta-Dataset's episodes, with variable way and shot.

    Args:
        way: Least and most classes of a task.
        max_query: Most query images of a class.
        max_support: Most support images of a task.
        max_contribution: Most images that a class counts for in the draw of the
            support's size.
    """
    return ConfigDict(
        {
            "way": way,
            "max_query": max_query,
            "max_support": max_support,
            "max_contribution": max_contribution,
        }
    )


def orbit_episode(
    way: tuple[int, int] = (2, 15), max_support: int = 500, max_target: int = 500
) -> ConfigDict:
    """Return the settings of ORBIT's training tasks.

    Args:
        way: Least and most objects of a user.
        max_support: Most context clips.
        max_target: Most target clips.
    """
    return ConfigDict(
        {"way": way, "max_support": max_support, "max_target": max_target}
    )
