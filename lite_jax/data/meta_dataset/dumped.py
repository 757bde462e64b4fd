"""Evaluation episodes that Meta-Dataset wrote to disk.

`episode-0000-train.tfrecords` holds the support of episode 0 and
`episode-0000-test.tfrecords` its query, with labels from 0. `images_per_class.json`
gives the number of images of each label in each file.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.loader import pad_examples
from lite_jax.data.meta_dataset.source import open_record
from lite_jax.data.readers.tfrecord import RecordFile
from lite_jax.errors import UserError
from lite_jax.types import Examples, Task

_COUNTS = "images_per_class.json"


class DumpedEpisodes:
    """The dumped episodes of a folder, by number.

    Attributes:
        way: Largest number of classes of an episode.
        support_size: Largest number of support images; supports are padded to it.
        query_size: Largest number of query images; query sets are padded to it.
    """

    def __init__(self, folder: str | Path, image_size: int = 84, resize: str = "md"):
        """Read the counts of images; `load` reads the images.

        Args:
            folder: Folder of the dumped episodes.
            image_size: Pixels a side.
            resize: Name of the resize rule; see `make_resize`.

        Raises:
            UserError: The counts are missing, list no episode, or list a support
                without its query.
        """
        self._folder = Path(folder).expanduser()
        self._spec = ImageSpec(image_size, resize)
        path = self._folder / _COUNTS
        if not path.is_file():
            raise UserError(f"{path} is missing: the folder holds no dumped episodes")
        counts: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(name for name in counts if name.endswith("-train.tfrecords"))
        self._pairs = [(n, n.replace("-train.", "-test.")) for n in names]
        for _, query in self._pairs:
            if query not in counts:
                raise UserError(f"{path} lists no {query}: dump the episodes again")
        if not self._pairs:
            raise UserError(f"{path} lists no episode: dump the episodes again")
        self._counts = counts
        totals = [[sum(counts[n].values()) for n in pair] for pair in self._pairs]
        self.support_size, self.query_size = np.max(totals, 0).tolist()
        self.way = max(len(counts[name]) for name in names)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._pairs)

    def load(self, index: int) -> Task:
        """Return episode `index` as a padded `Task` of NumPy arrays.

        Raises:
            UserError: A file is missing or broken, or its labels contradict the counts.
        """
        support, query = self._pairs[index]
        return Task(
            self._read(support, self.support_size), self._read(query, self.query_size)
        )

    def _read(self, name: str, size: int) -> Examples:
        path = self._folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: dump the episodes again")
        file = RecordFile(path)
        numbers = range(len(file))
        pairs = [
            open_record(record, self._spec, path, i)
            for i, record in zip(numbers, file.read(numbers), strict=True)
        ]
        labels = np.array([label for _, label in pairs], np.int32)
        expected = {int(k): v for k, v in self._counts[name].items() if v}
        counts = dict(collections.Counter(labels.tolist()))
        if counts != expected:
            raise UserError(
                f"{path} holds {counts} images by label, and {_COUNTS} says "
                f"{expected}: dump the episodes again"
            )
        images = np.array([image for image, _ in pairs], np.uint8)
        return pad_examples(images.reshape(-1, *self._spec.shape), labels, size)
