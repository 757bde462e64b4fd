"""Adaptation of a trained run to a few images of each class."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lite_jax.classify.classifier import Classifier
from lite_jax.classify.held_out import fit_temperature, hold_out
from lite_jax.classify.saved import PredictFn, save_classifier
from lite_jax.data.images import ImageSpec
from lite_jax.data.loader import pad_examples
from lite_jax.data.registry import own_image_spec
from lite_jax.data.supports import (
    Image,
    Support,
    folder_support,
    read_support,
)
from lite_jax.errors import UserError
from lite_jax.run import (
    build_backbone,
    build_gradient,
    build_learner,
)
from lite_jax.run.configs import names_of, settings_named
from lite_jax.run.memory_budget import out_of_memory_explained
from lite_jax.run.predictor import Adapted, Predictor, in_batches, padded_size
from lite_jax.run.restore import open_run
from lite_jax.run.settings import Settings
from lite_jax.types import Network, Params, PyTree


def load(run: str | Path) -> TrainedLearner:
    """Return the learner of a trained run, ready to adapt to new classes.

    Args:
        run: A workdir of `lite_jax.main`. Only `config.json` and the best checkpoint
            are read; the training data are not needed.

    Raises:
        UserError: The folder holds no run, no checkpoint, or a run on other data than
            images.

    >>> import tempfile
    >>> from lite_jax.run.configs import base_config
    >>> from lite_jax.run.train import train_and_evaluate
    >>> config = base_config()  # a run of no steps, on raw pixels
    >>> config.backbone.name, config.data.dataset = "pixels", "synthetic"
    >>> config.train.steps, config.valid.tasks, config.test.tasks = 0, 0, 1
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = train_and_evaluate(config, Path(folder.name))
    >>> grey = [np.full((9, 12), x, np.uint8) for x in (10, 20, 40, 180, 220, 240)]
    >>> classifier = load(folder.name).adapt({"night": grey[:2], "day": grey[3:5]})
    >>> print(classifier.predict([grey[2], grey[5]]), classifier.held_out.accuracy)
    ['night' 'day'] 1.0
    >>> print(classifier.predict_proba(grey[2:3]).round(1))
    [[0.8 0.2]]
    >>> folder.cleanup()
    """
    folder = Path(run).expanduser()
    opened = open_run(folder)
    config = build_gradient.resolve_chunk_size(opened.config, lambda: _CHUNK)
    params = opened.params
    with settings_named(names_of("data")):
        spec = own_image_spec(config.data)
    if config.learner == "classifier":  # tested through prototypes
        params = {"backbone": params["backbone"]}
    learner = build_learner.make_tested_learner(config, build_learner.most_ways(config))
    if _shapes(params) != _shapes(build_learner.params_shape(learner, spec.shape)):
        raise UserError(
            f"run={run}: its checkpoint does not fit its config.json: copy both again"
        )
    return TrainedLearner(config, spec, jax.device_put(params))


_CHUNK = 16  # images at once, for runs with gradient.chunk_size=auto


def _shapes(params: Params) -> PyTree:
    return jax.tree.map(lambda x: tuple(x.shape), params)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedLearner:
    """A meta-learner with its learned parameters.

    Attributes:
        config: The settings of the run.
        spec: How images are resized before the learner reads them.
        params: The learned parameters.
    """

    config: Settings
    spec: ImageSpec
    params: Params

    def adapt(
        self,
        support: str | Path | Mapping[str, Sequence[Image]],
        *,
        folds: int | None = None,
    ) -> AdaptedClassifier:
        """Return a classifier of the support's classes.

        Args:
            support: A folder with a sub-folder of images for each class, or class →
                images (paths, encoded bytes, or uint8 pixels of any size).
            folds: Number of parts of the support that are held out in turn, to measure
                the accuracy and to calibrate probabilities; 0 to hold nothing out. By
                default as many as images where features do not depend on the task
                (ProtoNets, MRML, a fine-tuned head), which is cheap; else at most 10.

        Raises:
            UserError: A folder that does not exist, fewer than two classes, a class
                without readable images, or more classes than the run's head has.
        """
        if not isinstance(support, Mapping):
            support = folder_support(support)
        return self.adapt_to(read_support(support, self.spec), folds=folds)

    def adapt_to(
        self, support: Support, *, folds: int | None = None
    ) -> AdaptedClassifier:
        """Return a classifier of a support whose images are already read."""
        start = time.perf_counter()
        with out_of_memory_explained(self.config):
            programs = self._programs(self._padded_way(len(support.class_names)))
            inputs = programs.inputs(support.images)
            task = _Task(programs.predictor, self.params, inputs, support.labels)
            all_rows = np.arange(len(inputs))
            adapted = jax.block_until_ready(task.adapt(all_rows))
            seconds = time.perf_counter() - start
            if folds is None:
                fixed = self.has_fixed_features
                folds = len(inputs) if fixed else min(10, len(inputs))
            columns = len(support.class_names)
            held_out, logits, labels = hold_out(
                lambda rest, held: task.score(task.adapt(rest), held)[:, :columns],
                support.labels,
                folds,
            )
        temperature = fit_temperature(logits, labels)

        def log_probabilities(images: np.ndarray) -> np.ndarray:
            inputs = programs.inputs(images)
            logits = programs.predictor.logits(adapted, inputs)[:, :columns]
            return np.asarray(jax.nn.log_softmax(logits / temperature))

        def program(weights: PyTree, images: jax.Array) -> jax.Array:
            params, state = weights
            inputs = self._backbone(params, images) if programs.features else images
            learner = programs.predictor.learner
            logits = learner.predict(params, state, inputs)[:, :columns]
            return jax.nn.log_softmax(logits / temperature)

        return AdaptedClassifier(
            support.class_names, self.spec, held_out, temperature, log_probabilities,
            program, tuple(adapted), self, support, seconds,
        )  # fmt: skip

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the backbone's features `[n, d]` of images, without adaptation."""
        return in_batches(lambda x: self._jitted_backbone(self.params, x), images)

    @functools.cached_property
    def has_fixed_features(self) -> bool:
        """Whether the features of an image do not depend on the task."""
        way = build_learner.most_ways(self.config)
        return build_learner.make_tested_learner(self.config, way).fixed_features

    @functools.cached_property
    def _jitted_backbone(self) -> Any:
        return jax.jit(self._backbone)

    @functools.cached_property
    def _backbone(self) -> Any:
        backbone = build_backbone.make_backbone(self.config.backbone)
        return lambda params, images: backbone.apply(params["backbone"], images)

    def _padded_way(self, classes: int) -> int:
        """Return the padded number of classes, at least the largest way of the run.

        Raises:
            UserError: The run has a learned head for fewer classes.
        """
        most = build_learner.most_ways(self.config)
        if classes <= most:
            return most
        way = padded_size(classes)
        learner = build_learner.make_tested_learner(self.config, way)
        expected = build_learner.params_shape(learner, self.spec.shape)
        if _shapes(expected) != _shapes(self.params):
            raise UserError(
                f"support: {classes} classes, and the learned head of this run has "
                f"room for {most}: give fewer classes, or train with "
                "test.episodes of a larger way"
            )
        return way

    def _programs(self, way: int) -> _Programs:
        """Return the programs of a way, made on its first use."""
        if way not in self._compiled:
            self._compiled[way] = self._make_programs(way)
        return self._compiled[way]

    @functools.cached_property
    def _compiled(self) -> dict[int, _Programs]:
        return {}

    def _make_programs(self, way: int) -> _Programs:
        fixed = self.has_fixed_features
        backbone = Network(lambda key, spec: {}, lambda params, x: x) if fixed else None
        learner = build_learner.make_tested_learner(self.config, way, backbone)
        chunk_size = None if fixed else build_gradient.chunk_size(self.config)
        return _Programs(
            Predictor(learner, chunk_size), self.features if fixed else None
        )


class _Programs(NamedTuple):
    """The compiled functions of a way.

    Attributes:
        predictor: Adapts and predicts.
        features: Computes the predictor's inputs from images; None if the inputs are
            images.
    """

    predictor: Predictor
    features: Any

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Return the inputs of the predictor, features or the images themselves."""
        return images if self.features is None else self.features(images)


class _Task(NamedTuple):
    """A support set, to adapt to some of its rows and predict others."""

    predictor: Predictor
    params: Params
    inputs: np.ndarray
    labels: np.ndarray

    def adapt(self, rows: np.ndarray) -> Adapted:
        """Return the task state of some rows, given by their indices."""
        size = padded_size(len(self.inputs))
        mask = np.zeros(size, bool)
        mask[rows] = True
        support = pad_examples(self.inputs, self.labels, size)._replace(mask=mask)
        return Adapted(self.params, self.predictor.adapt_padded(self.params, support))

    def score(self, adapted: Adapted, rows: np.ndarray) -> np.ndarray:
        """Return the logits `[m, way]` of some rows, given by their indices."""
        return self.predictor.logits(adapted, self.inputs[rows])


@dataclasses.dataclass(frozen=True)
class AdaptedClassifier(Classifier):
    """A classifier together with its learner and its support set.

    Attributes:
        program: `(weights, images) -> log-probabilities`; can be traced by JAX.
        weights: The learner's parameters and the task state.
        learner: The learner that was adapted.
        support: The support set.
        seconds: Time of the adaptation; the first one includes compilation.
    """

    program: PredictFn
    weights: PyTree
    learner: TrainedLearner
    support: Support
    seconds: float

    def save(self, path: str | Path, platforms: Sequence[str] | None = None) -> None:
        """Write a file that predicts with JAX alone (`lite_jax.classify.standalone`).

        `load_classifier` reads it too. The file holds the weights used in prediction, a
        program for any number of images, and `class_names`, `spec`, `held_out` and
        `temperature`. It holds no image.

        Args:
            path: The file; written whole or not at all.
            platforms: Such as `("cpu", "cuda")`; by default that of this machine.

        Raises:
            UserError: An unknown platform, or a path that cannot be written.
        """
        save_classifier(
            Path(path).expanduser(), self, self.program, self.weights, platforms
        )

    def nearest(self, images: np.ndarray, count: int = 3) -> np.ndarray:
        """Return the indices `[n, count]` of the support images nearest to each image.

        Similarity is the cosine of the backbone's centred features.

        Args:
            images: `[n, height, width, channels]` uint8, resized by `spec`.
            count: Number of support images; fewer if the support has fewer.
        """
        centre = self._features.mean(0)
        features = self.learner.features(images)
        support, queries = (_unit_rows(x - centre) for x in (self._features, features))
        return np.argsort(-queries @ support.T, axis=1, kind="stable")[:, :count]

    @functools.cached_property
    def _features(self) -> np.ndarray:
        return self.learner.features(self.support.images)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
