"""A few-shot classifier with scikit-learn's `fit` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from lite_jax.classify.trained import TrainedLearner, load
from lite_jax.data.supports import Image
from lite_jax.errors import UserError


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A trained run as a scikit-learn classifier of images.

    Args:
        run: A workdir, or the result of `lite_jax.load`, which keeps compiled programs
            between fits, as in cross-validation.
        folds: See `TrainedLearner.adapt`; 0 is fastest, and leaves probabilities
            uncalibrated.

    Attributes:
        classes_: The different labels given to `fit`, sorted.
        classifier_: The adapted classifier.

    >>> from lite_jax.data import ImageSpec
    >>> from lite_jax.run.configs import base_config
    >>> config = base_config()
    >>> config.backbone.name = "pixels"  # in place of a run that has learned something
    >>> learner = TrainedLearner(config, ImageSpec(8), {"backbone": {}})
    >>> grey = [np.full((9, 12), x, np.uint8) for x in (10, 20, 180, 220, 40, 240)]
    >>> estimator = FewShotClassifier(learner)
    >>> estimator = estimator.fit(grey[:4], ["night", "night", "day", "day"])
    >>> print(estimator.predict(grey[4:]), estimator.classes_)
    ['night' 'day'] ['day' 'night']
    """

    def __init__(self, run: str | Path | TrainedLearner, folds: int | None = None):
        self.run = run
        self.folds = folds

    def __sklearn_clone__(self) -> FewShotClassifier:
        """Return an unfitted copy that shares the loaded run."""
        return type(self)(self.run, self.folds)

    def fit(self, X: Sequence[Image], y: Sequence[Any]) -> FewShotClassifier:  # noqa: N803
        """Adapt to labelled images.

        Args:
            X: Paths, encoded bytes, or uint8 pixels of any size.
            y: A label for each image.

        Raises:
            UserError: More or fewer labels than images, fewer than two classes, or a
                class without readable images.
        """
        if len(X) != len(y):
            raise UserError(f"y: {len(y)} labels for {len(X)} images: give one each")
        labels = np.asarray(y)
        self.classes_ = np.unique(labels)
        learner = self.run if isinstance(self.run, TrainedLearner) else load(self.run)
        support = {
            str(label): [X[int(i)] for i in np.flatnonzero(labels == label)]
            for label in self.classes_
        }
        self.classifier_ = learner.adapt(support, folds=self.folds)
        return self

    def predict(self, X: Sequence[Image]) -> np.ndarray:  # noqa: N803
        """Return the labels `[n]` of images."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Sequence[Image]) -> np.ndarray:  # noqa: N803
        """Return probabilities `[n, classes]`, in the order of `classes_`."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)
