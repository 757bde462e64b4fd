"""Classifiers of people's own images, adapted from a trained run in one pass."""

from lite_jax.classify.classifier import Classifier
from lite_jax.classify.estimator import FewShotClassifier
from lite_jax.classify.held_out import HeldOut
from lite_jax.classify.saved import load_classifier
from lite_jax.classify.trained import AdaptedClassifier, TrainedLearner, load

__all__ = [
    "AdaptedClassifier",
    "Classifier",
    "FewShotClassifier",
    "HeldOut",
    "TrainedLearner",
    "load",
    "load_classifier",
]
