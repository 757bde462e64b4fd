"""An adapted classifier: images in, classes with calibrated probabilities out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lite_jax.classify.held_out import HeldOut
from lite_jax.data.images import ImageSpec
from lite_jax.data.supports import Image, read_images


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier adapted to a support set.

    Attributes:
        class_names: Names of the columns of probabilities.
        spec: How images are resized before classification.
        held_out: Accuracy on held-out support images.
        temperature: Divides logits, for calibration.
        log_probabilities: `images [n, height, width, channels] uint8 -> [n, classes]`.
    """

    class_names: tuple[str, ...]
    spec: ImageSpec
    held_out: HeldOut
    temperature: float
    log_probabilities: Callable[[np.ndarray], np.ndarray]

    def predict(self, images: Sequence[Image]) -> np.ndarray:
        """Return the name of the most probable class of each image.

        Args:
            images: Paths, encoded bytes, or pixels `[h, w]`, `[h, w, 1]`, `[h, w, 3]`
                uint8 of any size.

        Returns:
            `[n]` names.

        Raises:
            UserError: An image that cannot be read.
        """
        best = self.predict_proba(images).argmax(1)
        return np.array(self.class_names)[best]

    def predict_proba(self, images: Sequence[Image]) -> np.ndarray:
        """Return probabilities `[n, classes]`, calibrated on the support.

        Raises:
            UserError: An image that cannot be read.
        """
        return self.probabilities(read_images(images, self.spec))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities `[n, classes]` of images that `spec` has resized.

        Args:
            images: `[n, height, width, channels]` uint8.
        """
        return np.exp(self.log_probabilities(images))
