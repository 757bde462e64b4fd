"""Every setting of a run, with its default; no other place holds one.

A file in `configs/` starts from `base_config()` and changes a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from lite_jax.errors import unknown_name


def base_config() -> ConfigDict:
    """Return the complete, unlocked configuration: ProtoNets on digits."""
    return ConfigDict(
        {
            "name": "protonets",  # names the default workdir, runs/<name>
            "seed": 0,  # decides everything random: parameters, episodes, draws
            "data": {
                # digits | synthetic | folder | omniglot | meta_dataset | orbit | tfds |
                # arrays (.npz, HDF5, pickles) | parquet | cache; of reweight.job: text,
                # tsv too
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
                # of maml and policies: sgd | learned_sgd | anil | boil | p_meta
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
            "reweight": {  # weights of training examples, in place of meta-learning
                "job": "",  # reweight | prune; "": meta-learning
                "weighting": "per_example",  # per_example | meta_weight_net
                "hidden": 100,  # units of Meta-Weight-Net
                "noise": 0.0,  # share of the training labels moved to another class
                "train_size": 1000,  # examples; data.dataset=tsv has its own sizes
                "meta_size": 400,  # clean examples that the weights are learned on
                "meta_batch_size": 100,
                "network": "mlp",  # mlp | transformer (of texts)
                "width": 128,
                "depth": 1,  # layers, or blocks of the transformer
                "heads": 4,  # of the transformer
                "vocabulary": 500,  # words of texts known by name
                "length": 24,  # most words of a text
                "keep": "0.9,0.7,0.5",  # of prune: shares kept
                "seeds": 3,  # of prune: networks trained on what a rule keeps
            },
            "rl": {  # policies, in place of classifiers
                "environment": "",  # navigation | half_cheetah; "": classification
                "episodes": 20,  # of each task, for each inner step and the loss
                "horizon": 200,  # most steps of an episode
                "width": 100,  # units of each layer of the policy
                "depth": 2,  # layers
                "discount": 0.99,
                "gae_lambda": 1.0,  # of generalised advantages
                "divergence": 0.01,  # most that a trust-region step may change, in nats
                "solver_steps": 10,  # of conjugate gradients
                "damping": 1e-5,  # of the divergence's curvature
                "frame_skip": 5,  # of half_cheetah: steps of simulation for an action
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


def digits(config: ConfigDict) -> None:
    """Keep scikit-learn's digits, which need no download: train on the even ones."""
    config.data.dataset = "digits"


def synthetic(config: ConfigDict) -> None:
    """Use procedural images; no data needed."""
    config.data.dataset = "synthetic"
    config.data.image_size = 28


def omniglot(config: ConfigDict) -> None:
    """Use Omniglot's small sets, distorted a little in training; 60-way 1-shot."""
    config.data.dataset = "omniglot"
    config.data.image_size = 28
    config.data.augment = "affine"
    config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.gradient.chunk_size = 20
    config.train.episode = episode(way=(60, 60), shot=(1, 1), query=3)
    config.valid.episode = episode(way=(20, 20), shot=(1, 1), query=5)
    config.test.episodes.w20s1 = episode(way=(20, 20), shot=(1, 1), query=5)


def folder(config: ConfigDict) -> None:
    """Use folders of photographs at 84 pixels; 10-way 5-shot."""
    config.data.dataset = "folder"
    config.data.image_size = 84
    config.data.rotations = False
    config.gradient.chunk_size = 20
    config.train.steps = 400
    config.train.episode = episode(way=(10, 10), shot=(5, 5), query=5)


def resnet18(config: ConfigDict) -> None:
    """Use ResNet-18 with GroupNorm, which can be trained without a download."""
    config.backbone.name = "resnet18"
    config.backbone.norm_groups = 32


def paper(config: ConfigDict) -> None:
    """Use the recipe of the LITE paper on folders of 224-pixel photographs.

    Adam at 1e-3, 10,000 tasks, 16 a step, 5 to 50 ways, at most 500 support images and
    10 query images a class, H = 40, chunks of 40, EfficientNet-B0.
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
    """Use the recipe of the LITE paper on Meta-Dataset, as its code draws it."""
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
    """Use ORBIT's videos of the users' own objects; H counts clips."""
    paper(config)
    config.data.dataset = "orbit"
    config.gradient.num_backprop = 16
    config.optimizer.learning_rate = 1e-4
    config.train.steps = 10 * 44 * 50 // 16  # 10 epochs of 50 tasks of each user
    config.train.episode = orbit_episode()
    config.valid.episode = orbit_episode()
    config.test.episodes = ConfigDict({"users": orbit_episode()})
    config.benchmark.name = "orbit"


def reweighting(config: ConfigDict) -> None:
    """Learn weights of training examples by SAMA: rounds of 2 steps of Adam."""
    config.reweight.weighting = "meta_weight_net"
    config.reweight.meta_size = 50
    config.data.rotations = False
    config.hypergrad.through = "sama"
    config.inner.optimizer, config.inner.learning_rate = "adam", 1e-3
    config.inner.steps = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.train.steps = 1000
    config.train.batch_size = 100


def per_example_weights(config: ConfigDict) -> None:
    """Learn a weight for each example, in larger steps."""
    config.reweight.weighting = "per_example"
    config.optimizer.learning_rate = 3e-2


def text(config: ConfigDict) -> None:
    """Use generated texts, and a transformer small enough for a CPU."""
    config.data.dataset = "text"
    config.train.steps = 200  # ten times through the training texts
    config.reweight.train_size, config.reweight.meta_size = 4000, 100
    config.reweight.network = "transformer"
    config.reweight.width, config.reweight.depth = 32, 2


def tsv(config: ConfigDict) -> None:
    """Use texts of TSV files, labels as they are, and the same transformer."""
    text(config)
    config.data.dataset = "tsv"
    config.reweight.noise = 0.0
    config.reweight.vocabulary, config.reweight.length = 10_000, 64


def bert_base(config: ConfigDict) -> None:
    """Take a transformer of BERT-base's size, 110 million parameters, for a GPU."""
    config.reweight.width, config.reweight.depth, config.reweight.heads = 768, 12, 12
    config.reweight.vocabulary, config.reweight.length = 30_000, 128
    config.train.batch_size, config.reweight.meta_batch_size = 32, 32
    config.inner.learning_rate = 1e-4


def omniglot_features(config: ConfigDict) -> None:
    """Use features of Omniglot's 106 test characters, two clean ones of each."""
    config.data.dataset = "omniglot"
    config.data.image_size = 28
    config.backbone.mean, config.backbone.std = 0.0, 1.0
    config.reweight.meta_size = 212
    _slow_weight_net(config)


def folder_features(config: ConfigDict) -> None:
    """Use features of photographs, of the backbone that `configs/pretrain.py` makes."""
    config.data.dataset = "folder"
    config.data.image_size = 84
    resnet18(config)
    config.reweight.train_size, config.reweight.meta_size = 300, 60
    _slow_weight_net(config)


def _slow_weight_net(config: ConfigDict) -> None:
    """Slow Meta-Weight-Net down: at 1e-3 it ends by trusting what fits badly."""
    if config.reweight.weighting == "meta_weight_net":
        config.optimizer.learning_rate = 3e-4


def shrink(config: ConfigDict) -> None:
    """Shrink whatever was chosen to seconds: the `smoke` variant of every config."""
    config.train.steps = min(config.train.steps, 4)
    config.train.valid_every = 2
    config.train.tasks_per_step = min(config.train.tasks_per_step, 2)
    config.valid.tasks = 4
    config.test.tasks = 10
    config.benchmark.episodes = 4
    config.benchmark.most_test_images = 100
    config.benchmark.tasks_per_user = 1
    config.reweight.train_size = min(config.reweight.train_size, 200)
    config.reweight.meta_size = min(config.reweight.meta_size, 50)
    config.reweight.seeds = 1
    config.rl.episodes = min(config.rl.episodes, 4)
    config.rl.horizon = min(config.rl.horizon, 20)


def folder_resnet18(config: ConfigDict) -> None:
    """Use photographs, and the backbone that `configs/pretrain.py:folder` trains."""
    folder(config)
    resnet18(config)


Change = Callable[[ConfigDict], None]
VARIANTS: dict[str, Change] = {  # what the config files have in common
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
    arguments: str, variants: Mapping[str, Change], start: Change = digits
) -> ConfigDict:
    """Return the base configuration after the named variants, in the order given.

    The run is named after the configuration and its variants.

    Args:
        arguments: What follows the colon of `--config=FILE:a,b`; may be empty.
        variants: Name → function that changes the configuration in place.
        start: What is changed before any variant.

    Raises:
        UserError: An unknown variant.
    """
    config = base_config()
    start(config)
    for name in filter(None, (x.strip() for x in arguments.split(","))):
        if name not in variants:
            raise unknown_name("config argument", name, variants)
        variants[name](config)
        config.name += f"_{name}"
    return config.lock()
