"""Settings of reweighting runs, and what `configs/sama_*` choose from."""

from __future__ import annotations

from ml_collections import ConfigDict

from lite_jax.run import recipes
from lite_jax.run.settings import selected


def reweighting_config() -> ConfigDict:
    """Return the complete, unlocked settings: weights by SAMA, rounds of 2 steps."""
    config = selected(
        data=(
            "dataset", "root", "image_size", "resize", "channels", "class_list",
            "label", "allow_pickle", "by_alphabet", "protocol", "sources",
            "orbit_protocol", "orbit_mode", "orbit_filter", "cache_gb",
            "synthetic_classes", "synthetic_images",
        ),
        backbone=(),
        inner=("steps", "learning_rate", "optimizer"),
        hypergrad=("through", "steps", "damping"),
        optimizer=(),
        train=("steps", "batch_size", "valid_every"),
    )  # fmt: skip
    config.program = "reweighting"
    config.reweight = ConfigDict(
        {
            "job": "reweight",  # reweight | prune
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
        }
    )
    config.reweight.weighting = "meta_weight_net"
    config.reweight.meta_size = 50
    config.hypergrad.through = "sama"
    config.inner.optimizer, config.inner.learning_rate = "adam", 1e-3
    config.inner.steps = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.train.steps = 1000
    config.train.batch_size = 100
    return config


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
    recipes.resnet18(config)
    config.reweight.train_size, config.reweight.meta_size = 300, 60
    _slow_weight_net(config)


def _slow_weight_net(config: ConfigDict) -> None:
    """Slow Meta-Weight-Net down: at 1e-3 it ends by trusting what fits badly."""
    if config.reweight.weighting == "meta_weight_net":
        config.optimizer.learning_rate = 3e-4


def shrink(config: ConfigDict) -> None:
    """Shrink whatever was chosen to seconds: the `smoke` variant."""
    config.train.steps, config.train.valid_every = min(config.train.steps, 4), 2
    config.reweight.train_size = min(config.reweight.train_size, 200)
    config.reweight.meta_size = min(config.reweight.meta_size, 50)
    config.reweight.seeds = 1
