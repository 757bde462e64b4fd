"""Classifiers of user-supplied images, adapted from a trained run in one pass."""

from typing import Any

from lite_jax.classify.classifier import Classifier
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


def __getattr__(name: str) -> Any:
    """Import `FewShotClassifier` on first use; scikit-learn takes a second."""
    if name != "FewShotClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lite_jax.classify.estimator import FewShotClassifier

    return FewShotClassifier
