"""What the page shows: named classes of photographs, and the classifier of them."""

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
MOST_LETTERS = 60  # of a class's name
_THUMBNAIL = 160  # pixels of the longer side


class Photograph(NamedTuple):
    """An example of a class.

    Attributes:
        number: Its own for as long as the page is served.
        name: Of the file, as the browser tells it; shown, and used for nothing else.
        image: As the learner sees it.
        thumbnail: A PNG.
    """

    number: int
    name: str
    image: np.ndarray
    thumbnail: bytes


class Session:
    """The photographs of one page, in memory alone, and the classifier they make.

    Every method may be called from any thread. The classifier is made anew when it is
    asked for after a change.
    """

    def __init__(self, learner: TrainedLearner):
        """Begin without classes."""
        self.learner = learner
        # A learner that adapts anew for each part would keep the page waiting.
        self._folds = None if learner.has_fixed_features else 2
        self._classes: dict[str, list[Photograph]] = {}
        self._count = 0
        self._classifier: AdaptedClassifier | None = None
        self._lock = threading.RLock()

    def add(self, class_name: str, name: str, content: bytes) -> None:
        """Add an example to a class, which is made if there is none of that name.

        Raises:
            UserError: No name, one too long, too many classes or photographs, or a file
                that is no readable image.
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
            found = Photograph(self._count, name, image, thumbnail)
            self._classes.setdefault(class_name, []).append(found)
            self._classifier = None

    def remove(self, number: int) -> None:
        """Remove an example, and its class if it was the last one.

        Raises:
            UserError: None of that number.
        """
        with self._lock:
            self._find(number)
            kept = {
                name: [x for x in own if x.number != number]
                for name, own in self._classes.items()
            }
            self._classes = {name: own for name, own in kept.items() if own}
            self._classifier = None

    def clear(self) -> None:
        """Remove all classes."""
        with self._lock:
            self._classes, self._classifier = {}, None

    def thumbnail(self, number: int) -> bytes:
        """Return an example's picture as a PNG.

        Raises:
            UserError: None of that number.
        """
        with self._lock:
            return self._find(number).thumbnail

    def describe(self) -> dict[str, Any]:
        """Return what the page shows of the classes and the classifier, as JSON."""
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
                            {"number": x.number, "name": x.name} for x in own
                        ],
                    }
                    for name, own in self._classes.items()
                ],
                "held_out": classifier and classifier.held_out.describe(),
                "seconds": classifier and classifier.seconds,
            }

    def predict(self, name: str, content: bytes) -> dict[str, Any]:
        """Return the classes of a photograph by probability, and the nearest examples.

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
            photographs = [x for own in self._classes.values() for x in own]
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
        """Compile what the first photographs will take, on noise."""
        noise = np.zeros((2, *self.learner.spec.shape), np.uint8)
        noise[1] = 255
        labels = np.arange(2, dtype=np.int32)
        support = Support(("", " "), noise, labels, (b"", b""), 0)
        found = self.learner.adapt_to(support, folds=self._folds)
        found.probabilities(noise[:1])
        found.nearest(noise[:1], 1)

    def _adapted(self) -> AdaptedClassifier | None:
        """Return the classifier of what is there; None for fewer than two classes."""
        if self._classifier is None and len(self._classes) > 1:
            sizes = [len(own) for own in self._classes.values()]
            photographs = [x for own in self._classes.values() for x in own]
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
        for own in self._classes.values():
            for found in own:
                if found.number == number:
                    return found
        raise UserError(f"there is no photograph {number}")

    def _read(self, name: str, content: bytes) -> tuple[np.ndarray, bytes]:
        """Return a photograph as the learner sees it, and its thumbnail.

        Raises:
            UserError: It is no readable image.
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
