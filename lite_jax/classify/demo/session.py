"""The state of the demo page: named classes of photographs, and their classifier."""

from __future__ import annotations

import io
import threading
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lite_jax.classify.trained import AdaptedClassifier, TrainedLearner
from lite_jax.data.images import as_picture, decode
from lite_jax.data.readers.items import UNREADABLE
from lite_jax.data.supports import Support
from lite_jax.errors import UserError

MOST_PHOTOGRAPHS = 500
MOST_CLASSES = 50
MOST_LETTERS = 60  # of the name of a class
_THUMBNAIL = 160  # pixels of the longer side


class Photograph(NamedTuple):
    """An example of a class.

    Attributes:
        number: Identifies the photograph in this session.
        name: Name of the file, as the browser gives it; used for display only.
        image: `[height, width, channels]` uint8, as the learner reads it.
        thumbnail: A small picture, as PNG.
    """

    number: int
    name: str
    image: np.ndarray
    thumbnail: bytes


class Session:
    """The photographs of a page, in memory, and the classifier adapted to them.

    All methods can be called from any thread. The classifier is adapted again on its
    first use after a change of the photographs.
    """

    def __init__(self, learner: TrainedLearner):
        """Start without classes."""
        self.learner = learner
        # Other learners adapt again for each part, which takes time.
        self._folds = None if learner.has_fixed_features else 2
        self._classes: dict[str, list[Photograph]] = {}
        self._count = 0
        self._classifier: AdaptedClassifier | None = None
        self._lock = threading.RLock()

    def add(self, class_name: str, name: str, content: bytes) -> None:
        """Add a photograph to a class; add the class if it is new.

        Args:
            class_name: Name of the class, 1 to `MOST_LETTERS` letters.
            name: Name of the file.
            content: Bytes of the file.

        Raises:
            UserError: A name that is empty or too long, too many classes or
                photographs, or a file that is no readable image.
        """
        class_name = " ".join(class_name.split())
        if not 1 <= len(class_name) <= MOST_LETTERS:
            raise UserError(f"a class needs a name of 1 to {MOST_LETTERS} letters")
        image, thumbnail = self._read(name, content)
        with self._lock:
            if class_name not in self._classes and len(self._classes) >= MOST_CLASSES:
                raise UserError(f"no more than {MOST_CLASSES} classes fit on the page")
            if sum(map(len, self._classes.values())) >= MOST_PHOTOGRAPHS:
                raise UserError(f"no more than {MOST_PHOTOGRAPHS} photographs fit")
            self._count += 1
            photograph = Photograph(self._count, name, image, thumbnail)
            self._classes.setdefault(class_name, []).append(photograph)
            self._classifier = None

    def remove(self, number: int) -> None:
        """Remove a photograph, and its class if no other is left in it.

        Raises:
            UserError: There is no photograph of that number.
        """
        with self._lock:
            self._find(number)
            remaining = {
                name: [x for x in photographs if x.number != number]
                for name, photographs in self._classes.items()
            }
            self._classes = {
                name: photographs
                for name, photographs in remaining.items()
                if photographs
            }
            self._classifier = None

    def clear(self) -> None:
        """Remove all classes."""
        with self._lock:
            self._classes, self._classifier = {}, None

    def thumbnail(self, number: int) -> bytes:
        """Return the thumbnail of a photograph, as PNG.

        Raises:
            UserError: There is no photograph of that number.
        """
        with self._lock:
            return self._find(number).thumbnail

    def describe(self) -> dict[str, Any]:
        """Return the state of the page, as a dictionary that JSON can hold."""
        with self._lock:
            classifier = self._adapted()
            config = self.learner.config
            return {
                "learner": f"{config.learner} on {config.backbone.name}",
                "image_size": self.learner.spec.size,
                "classes": [
                    {
                        "name": name,
                        "photographs": [
                            {"number": x.number, "name": x.name} for x in photographs
                        ],
                    }
                    for name, photographs in self._classes.items()
                ],
                "held_out": classifier and classifier.held_out.describe(),
                "seconds": classifier and classifier.seconds,
            }

    def predict(self, name: str, content: bytes) -> dict[str, Any]:
        """Return the classes of a photograph by probability, and its nearest examples.

        Raises:
            UserError: Fewer than two classes, or a file that is no readable image.
        """
        image, _ = self._read(name, content)
        with self._lock:
            classifier = self._adapted()
            if classifier is None:
                raise UserError("add photographs of two classes first")
            (shares,) = classifier.probabilities(image[None])
            (nearest,) = classifier.nearest(image[None])
            photographs = [x for of_class in self._classes.values() for x in of_class]
            order = np.argsort(-shares, kind="stable")
            return {
                "classes": [
                    {
                        "name": classifier.class_names[i],
                        "probability": float(shares[i]),
                    }
                    for i in order
                ],
                "nearest": [photographs[i].number for i in nearest],
            }

    def warm(self) -> None:
        """Compile the programs of small supports, on images without content."""
        images = np.zeros((2, *self.learner.spec.shape), np.uint8)
        images[1] = 255
        labels = np.arange(2, dtype=np.int32)
        support = Support(("", " "), images, labels, (b"", b""), 0)
        classifier = self.learner.adapt_to(support, folds=self._folds)
        classifier.probabilities(images[:1])
        classifier.nearest(images[:1], 1)

    def _adapted(self) -> AdaptedClassifier | None:
        """Return the classifier of the photographs; None for fewer than two classes."""
        if self._classifier is None and len(self._classes) > 1:
            sizes = [len(of_class) for of_class in self._classes.values()]
            photographs = [x for of_class in self._classes.values() for x in of_class]
            support = Support(
                tuple(self._classes),
                np.stack([x.image for x in photographs]),
                np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
                tuple(x.name for x in photographs),
                0,
            )
            self._classifier = self.learner.adapt_to(support, folds=self._folds)
        return self._classifier

    def _find(self, number: int) -> Photograph:
        """Return the photograph of a number."""
        for photographs in self._classes.values():
            for photograph in photographs:
                if photograph.number == number:
                    return photograph
        raise UserError(f"there is no photograph {number}")

    def _read(self, name: str, content: bytes) -> tuple[np.ndarray, bytes]:
        """Return the resized pixels of a photograph, and its thumbnail.

        Raises:
            UserError: The file is no readable image.
        """
        try:
            pixels = decode(content, upright=True)
        except UNREADABLE as error:
            raise UserError(f"{name[:80]!r} is no readable image") from error
        small = as_picture(pixels)
        small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "png")
        return self.learner.spec.fit(pixels), file.getvalue()
