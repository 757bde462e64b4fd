"""Settings of reweighting runs, and the variants of `configs/sama_*`."""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

from lite_jax.data.settings import DataSettings
from lite_jax.run import recipes
from lite_jax.run.configs import as_config
from lite_jax.run.settings import (
    BackboneSettings,
    EstimatorSettings,
    InnerOptimizerSettings,
    OptimizerSettings,
    ProgramSettings,
)


@dataclass(frozen=True)
class ReweightingTrainSettings:
    """Training of the weights."""

    steps: int = 1000  # updates of the weights
    batch_size: int = 100  # training examples in a step of the classifier
    valid_every: int = 100  # steps between checkpoints


@dataclass(frozen=True)
class ReweightSettings:
    """The job, its sets, and its network."""

    job: str = "reweight"  # reweight | prune
    weighting: str = "meta_weight_net"  # per_example | meta_weight_net
    hidden: int = 100  # units of Meta-Weight-Net
    noise: float = 0.0  # share of training labels changed to another class, [0, 1)
    train_size: int = 1000  # training examples; unused by data.dataset=tsv
    meta_size: int = 50  # clean examples; unused by data.dataset=tsv
    meta_batch_size: int = 100  # clean examples in a step of the weights
    network: str = "mlp"  # mlp (vectors) | transformer (texts)
    width: int = 128  # units of a layer
    depth: int = 1  # layers of the mlp, or blocks of the transformer
    heads: int = 4  # attention heads of the transformer; must divide the width
    vocabulary: int = 500  # words with a token of their own
    length: int = 24  # most words of a text
    keep: str = "0.9,0.7,0.5"  # prune: shares of the examples kept
    seeds: int = 3  # prune: networks for each rule and share


@dataclass(frozen=True)
class ReweightingSettings(ProgramSettings):
    """All settings; the defaults are Meta-Weight-Net by SAMA, rounds of 2 steps."""

    program: str = "reweighting"
    name: str = "reweighting"
    data: DataSettings = DataSettings()
    backbone: BackboneSettings = BackboneSettings()
    inner: InnerOptimizerSettings = InnerOptimizerSettings(
        steps=2, learning_rate=1e-3, optimizer="adam"
    )
    hypergrad: EstimatorSettings = EstimatorSettings(through="sama")
    optimizer: OptimizerSettings = OptimizerSettings(schedule="constant")
    train: ReweightingTrainSettings = ReweightingTrainSettings()
    reweight: ReweightSettings = ReweightSettings()


def reweighting_config() -> ConfigDict:
    """Return all settings, unlocked, for files in `configs/`."""
    return as_config(ReweightingSettings())


def per_example_weights(config: ConfigDict) -> None:
    """Learn a weight for each example, in larger steps."""
    config.reweight.weighting = "per_example"
    config.optimizer.learning_rate = 3e-2


def text(config: ConfigDict) -> None:
    """Use generated texts, and a transformer small enough for a CPU."""
    config.data.dataset = "text"
    config.train.steps = 200  # ten epochs of the training texts
    config.reweight.train_size, config.reweight.meta_size = 4000, 100
    config.reweight.network = "transformer"
    config.reweight.width, config.reweight.depth = 32, 2


def tsv(config: ConfigDict) -> None:
    """Use texts of TSV files, without added noise, and the same transformer."""
    text(config)
    config.data.dataset = "tsv"
    config.reweight.noise = 0.0
    config.reweight.vocabulary, config.reweight.length = 10_000, 64


def bert_base(config: ConfigDict) -> None:
    """Use a transformer of BERT-base's size, 110 million parameters, for a GPU."""
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
    """Lower Meta-Weight-Net's learning rate; 1e-3 ends with weight on large losses."""
    if config.reweight.weighting == "meta_weight_net":
        config.optimizer.learning_rate = 3e-4


def shrink(config: ConfigDict) -> None:
    """Shorten a run of any other variants to seconds: the `smoke` variant."""
    config.train.steps, config.train.valid_every = min(config.train.steps, 4), 2
    config.reweight.train_size = min(config.reweight.train_size, 200)
    config.reweight.meta_size = min(config.reweight.meta_size, 50)
    config.reweight.seeds = 1
