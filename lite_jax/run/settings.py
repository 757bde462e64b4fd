"""The settings of a run: their defaults, and checks of their ranges."""

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
    """Let a `UserError` name settings where it names arguments.

    Code below `run/` speaks of its own arguments. In its messages `steps=0` becomes
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
    """Return field → setting of sections whose fields are arguments of that name."""
    config = base_config()
    return {key: f"{name}.{key}" for name in sections for key in config[name]}


def check_at_least(config: ConfigDict, bound: int, *names: str) -> None:
    """Refuse settings, named with dots as on the command line, below the bound.

    Raises:
        UserError: The first that is.
    """
    for name in names:
        value = operator.attrgetter(name)(config)
        if value < bound:
            raise UserError(f"{name}={value}: expected {bound} or more")


def base_config() -> ConfigDict:
    """Return the complete, unlocked settings of meta-learning: ProtoNets on digits."""
    return ConfigDict(
        {
            "program": "meta_learning",  # of lite_jax.apps.programs; fixed
            "name": "protonets",  # names the default workdir, runs/<name>
            "seed": 0,  # decides everything random: parameters, episodes, draws
            "data": {
                # digits | synthetic | folder | omniglot | meta_dataset | orbit | tfds |
                # arrays (.npz, HDF5, pickles) | parquet | cache
                "dataset": "digits",
                "root": "",  # folder of the images; digits and synthetic need none
                "image_size": 32,  # pixels a side
                "resize": "",  # md | vtab | lanczos | bilinear | area; "": its own
                "channels": 3,  # 1 or 3, of sets that can have either
                "class_list": "",  # which classes a split has (data/class_lists.py)
                "label": "label",  # the feature or column of classes, of tfds, parquet
                "allow_pickle": False,  # reading a pickle runs the code in it
                "by_alphabet": False,  # an episode of Omniglot is of one alphabet
                "protocol": "md-v2",  # of meta_dataset: md-v2 | lite
                "sources": "",  # of meta_dataset: these alone, as NAME,NAME
                "orbit_protocol": "2022",  # of orbit: 2021 (clips of 8) | 2022 (frames)
                "orbit_mode": "clutter",  # target videos: clutter | clean
                "orbit_filter": "",  # issues of frames left out; "": the protocol's
                "rotations": True,  # training classes turned by 90° as extra ones
                # of training images: affine, crop, flip, jitter, or several, as in a,b
                "augment": "none",
                "cache_gb": 2.0,  # decoded images kept in memory, up to this
                "prefetch": 3,  # episodes in memory ahead of the device
                "workers": 0,  # threads that decode images; 0: one a core
                "synthetic_classes": 20,  # per split, for dataset=synthetic
                "synthetic_images": 40,  # per class
            },
            # protonets | cnaps | simple_cnaps | maml | mrml | imaml | finetuner |
            # classifier
            "learner": "protonets",
            "backbone": {
                # conv4 | resnet12 | resnet18 | resnet50 | efficientnet_b0 |
                # tf_efficientnet_b0 | vit_s | pixels
                "name": "conv4",
                "width": 64,  # channels of every block, of conv4 alone
                "norm": "group",  # group | batch (frozen statistics of the weights)
                "norm_groups": 8,  # must divide the width
                "mean": placeholder(float),  # of pixels in [0, 1]; by default that of
                "std": placeholder(float),  # the weights, or else of the backbone
                "weights": "",  # a safetensors file, its folder, or hub:NAME
                "frozen": False,  # not learned: no gradient memory is spent on it
                "dtype": "float32",  # float32 | bfloat16 (parameters stay float32)
                "remat": False,  # keep block boundaries alone, in plain and LITE steps
            },
            "protonets": {
                "scale": 1.0,  # times the distances; lower for pretrained weights
            },
            "cnaps": {
                "film_penalty": 1e-3,  # times the squares of the FiLM amplitudes
            },
            "inner": {  # the inner loop of maml, mrml, imaml and finetuner
                "steps": 5,
                "learning_rate": 0.01,
                # of maml: sgd | learned_sgd | anil | boil | p_meta
                "rule": "sgd",
                "penalty": 1.0,  # of p_meta: λ, on each step size, by layer size,
                "penalty_on": "inputs",  # inputs | memory: with gradients of weights
                # of p_meta: none | forward | backward | both, and what share of the
                # scores each cuts off; over the support as a batch, or each example
                "attention": "both",
                "attention_forward": 0.3,
                "attention_backward": 0.0,
                "attention_over": "batch",
                # of p_meta, through norms: exact | bfloat16 | detached; less is kept
                "norm_gradient": "exact",
                "first_order": False,  # of maml: inner gradients are constants
                "learned_head": False,  # of maml, mrml, imaml: else it starts at 0
                "optimizer": "sgd",  # of finetuner, imaml: sgd | adam
                "film": False,  # adapt FiLM parameters too
            },
            "hypergrad": {  # of mrml and imaml
                # conjugate_gradient | neumann | identity; of mrml: unrolled; of imaml:
                # sama
                "through": "conjugate_gradient",
                "steps": 10,  # iterations of conjugate gradients, or terms of neumann
                "damping": 0.0,  # added to the inner Hessian
                "weight_decay": 1e-2,  # of mrml: half of it times the head's squares
                "proximity": 1.0,  # of imaml: half of it times the squared way gone
            },
            "gradient": {
                # lite | exact (chunks computed again) | plain (all kept) | subsample
                "estimator": "lite",
                "num_backprop": 20,  # H; lower: faster steps, noisier gradients
                # images at once: sets the memory, never results; or "auto", the
                "chunk_size": FieldReference(50, field_type=object),
                "memory_budget_gb": 0.0,  # most that fits; 0: 0.9 of the device's
                # uniform | with_replacement | stratified | sensitivity |
                # stratified_sensitivity
                "sampling": "uniform",
            },
            "devices": {  # their product is the number of devices
                "tasks": 1,  # that compute tasks of a step side by side
                "examples": 1,  # that share out the examples of each task
            },
            "optimizer": {
                "learning_rate": 1e-3,  # of Adam
                "weight_decay": 0.0,  # decoupled, as in AdamW
                "schedule": "cosine",  # cosine (to 0 at the last step) | constant
                "clip_norm": 0.0,  # global norm that gradients are cut to; 0: not
                "skip_not_finite": 0,  # steps in a row that may have no finite gradient
            },
            "train": {
                "steps": 200,  # parameter updates; 0 tests the learner as it is
                "tasks_per_step": 1,  # tasks whose gradients are averaged
                "batch_size": 64,  # of learner=classifier, which trains on no tasks
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
            "benchmark": {  # what --mode=eval runs in place of test episodes
                "name": "",  # meta_dataset | vtab_md | orbit; "": the test episodes
                "only": "",  # these data sets (of orbit, users) alone, as NAME,NAME
                "episodes": 600,  # of each source of Meta-Dataset
                "vtab_root": "",  # data_dir of tfds, or VTAB's folders
                "vtab_protocol": "official",  # official | lite
                "vtab_resize": "",  # "": vtab for official, lanczos for lite
                "vtab_support": 1000,  # images to adapt to
                "most_test_images": 0,  # of a task of VTAB; 0: all
                "tasks_per_user": 0,  # of orbit; 0: the protocol's
            },
        }
    )


def selected(**sections: Sequence[str]) -> ConfigDict:
    """Return sections of `base_config()` alone, for a program that has other settings.

    Args:
        sections: Section → its settings that are kept; all where none is named. `seed`
            and `name` are kept too.
    """
    config = base_config()
    for name in set(config) - set(sections) - {"program", "name", "seed"}:
        del config[name]
    for name, kept in sections.items():
        for key in set(config[name]) - set(kept or config[name]):
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
        query: Query images of a class.
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
    """Return the settings of Meta-Dataset's episodes of variable way and shot.

    Args:
        way: Least and most classes of a task.
        max_query: Most query images of a class.
        max_support: Most support images of a task.
        max_contribution: Most images that a class counts for when the size of the
            support is drawn.
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
