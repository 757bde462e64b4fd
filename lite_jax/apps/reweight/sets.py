"""The data of a reweighting run: a noisy training set, a clean set, a test set."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import load_digits

from lite_jax import data
from lite_jax.apps.reweight.settings import ReweightingSettings
from lite_jax.apps.reweight.text import FIRST_WORD, generated_texts, read_tsv
from lite_jax.data.sources import ClassSource
from lite_jax.errors import UserError
from lite_jax.run import build_backbone
from lite_jax.run.configs import names_of, settings_named

_logger = logging.getLogger(__name__)

TEXT_CLASSES, TEXT_TEST = 4, 1000


class LabelledSet(NamedTuple):
    """Examples with labels.

    Attributes:
        inputs: `[n, …]`: vectors or features (float32), or tokens (int32).
        labels: `[n]` int32.
    """

    inputs: Any
    labels: Any


class Sets(NamedTuple):
    """The three sets of a reweighting run.

    Attributes:
        train: Training examples, with noisy labels.
        meta: Clean examples, on which the weights are learned.
        test: Clean examples for the test.
        wrong: `[n]` bool, which labels of `train` were changed; None where not known.
        num_classes: Number of classes.
        vocabulary: Number of different tokens; None where inputs are vectors.
    """

    train: LabelledSet
    meta: LabelledSet
    test: LabelledSet
    wrong: np.ndarray | None
    num_classes: int
    vocabulary: int | None = None


def make_sets(config: ReweightingSettings) -> Sets:
    """Return the sets of `config.data.dataset`, with noise in the training labels.

    A label becomes another class with probability `config.reweight.noise`.

    - "digits": scikit-learn's, all ten classes, as 64 numbers in [0, 1].
    - "text": generated texts of four classes (`lite_jax.apps.reweight.text`).
    - "tsv": texts of the files in `data.root`.
    - any other: features of the images of the test classes, computed once by the
      backbone.

    Raises:
        UserError: Sizes that leave no test examples, or noise outside [0, 1).
    """
    settings = config.reweight
    if not 0 <= settings.noise < 1:
        raise UserError(f"reweight.noise={settings.noise}: expected 0 up to 1")
    rng = np.random.default_rng([config.seed, _STREAM])
    vocabulary = None
    if config.data.dataset == "tsv":
        texts, names = read_tsv(
            Path(config.data.root),
            vocabulary=settings.vocabulary,
            length=settings.length,
        )
        train, meta, test = (LabelledSet(*texts[x]) for x in ("train", "meta", "test"))
        num_classes, vocabulary = len(names), FIRST_WORD + settings.vocabulary
    else:
        if config.data.dataset == "digits":
            digits = load_digits()
            examples = LabelledSet(digits.data.astype(np.float32) / 16, digits.target)
        elif config.data.dataset == "text":
            count = settings.train_size + settings.meta_size + TEXT_TEST
            examples = LabelledSet(
                *generated_texts(
                    count, TEXT_CLASSES, config.seed,
                    vocabulary=settings.vocabulary, length=settings.length,
                )
            )  # fmt: skip
            vocabulary = FIRST_WORD + settings.vocabulary
        else:
            examples = _image_features(config)
        train, meta, test = _split(
            examples, settings.train_size, settings.meta_size, rng
        )
        num_classes = int(examples.labels.max()) + 1
    wrong = rng.random(len(train.labels)) < settings.noise
    offsets = rng.integers(1, num_classes, len(train.labels))
    labels = np.where(wrong, (train.labels + offsets) % num_classes, train.labels)
    known = None if config.data.dataset == "tsv" and not settings.noise else wrong
    train = train._replace(labels=labels.astype(np.int32))
    return Sets(train, meta, test, known, num_classes, vocabulary)


_STREAM = 7  # keeps this use of the seed apart from others


def _split(
    examples: LabelledSet, train_size: int, meta_size: int, rng: np.random.Generator
) -> tuple[LabelledSet, LabelledSet, LabelledSet]:
    """Return three disjoint parts in random order; the third has all other examples."""
    count = len(examples.labels)
    if train_size + meta_size >= count:
        raise UserError(
            f"reweight.train_size={train_size} and reweight.meta_size={meta_size} "
            f"leave none of the {count} examples for the test: lower one of them"
        )
    order = rng.permutation(count)
    parts = np.split(order, [train_size, train_size + meta_size])
    train, meta, test = (
        LabelledSet(examples.inputs[rows], examples.labels[rows].astype(np.int32))
        for rows in parts
    )
    return train, meta, test


def _image_features(config: ReweightingSettings) -> LabelledSet:
    """Return all images of the test classes as features of mean 0 and deviation 1."""
    with settings_named(names_of("data")):
        source = data.open_source(config.data, "test")
    backbone = build_backbone.make_backbone(config.backbone)
    if not config.backbone.weights:
        _logger.warning(
            "the backbone has its random initialisation: set backbone.weights "
            "(configs/pretrain.py makes some)"
        )
    spec = jax.ShapeDtypeStruct(source.image_shape, np.uint8)
    params = backbone.init(jax.random.key(config.seed), spec)
    apply = jax.jit(functools.partial(backbone.apply, params))
    features, labels = [], []
    for label, count in enumerate(source.class_sizes):
        features.append(_class_features(source, label, count, apply))
        labels.append(np.full(count, label))
    rows = np.concatenate(features)
    rows = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-6)
    return LabelledSet(rows.astype(np.float32), np.concatenate(labels))


def _class_features(
    source: ClassSource, label: int, count: int, apply: object
) -> np.ndarray:
    """Return the features `[count, d]` of a class, computed in batches of one shape."""
    assert callable(apply)
    features = []
    for start in range(0, count, _BATCH):
        rows = np.arange(start, start + _BATCH) % count
        features.append(np.asarray(apply(source.read(label, rows)), np.float32))
    return np.concatenate(features)[:count]


_BATCH = 20
