"""VTAB's 15 data sets in miniature, with tfds' own features, as it prepares them."""

import functools

import numpy as np
import tensorflow_datasets as tfds
from made_records import made_image
from made_tfds import prepare
from PIL import Image

from lite_jax.data.vtab.rules import RULES

SIZES = {"train": 40, "validation": 10, "test": 20}
SUPPORT = 20  # in place of 1000: 16 of training, 4 of validation


@functools.cache
def features_of(dataset):
    builder = tfds.builder(dataset, data_dir="/nonexistent")
    return builder.info.features, str(builder.version)


def example(features, number):
    """An example that fits the features: values follow from its number."""
    return {name: value(feature, number) for name, feature in features.items()}


def value(feature, number):
    if isinstance(feature, tfds.features.Image):
        height, width, channels = (side or 12 for side in feature.shape)
        picture = made_image(number % 7, number, (height, width))[..., :channels]
        if channels == 1:
            picture = picture[..., 0]
        return Image.fromarray(picture)
    if isinstance(feature, tfds.features.ClassLabel):
        return number % feature.num_classes
    if isinstance(feature, tfds.features.BBoxFeature):
        return tfds.features.BBox(0.1, 0.1, 0.9, 0.9)
    if isinstance(feature, tfds.features.Sequence):
        count = 3 + number % 8
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            return [example(inner, number + 3 * k) for k in range(count)]
        return [value(inner, number + k) for k in range(count)]
    if isinstance(feature, tfds.features.Text):
        return f"number {number}"
    dtype = np.dtype(feature.np_dtype)
    if dtype.kind == "f":
        ramp = np.arange(np.prod(feature.shape, dtype=int)) + (number * 1.7) % 30
        return ramp.reshape(feature.shape).astype(dtype)
    if dtype.kind in "iu":
        return np.full(feature.shape, number % 100, dtype) if feature.shape else number
    return b"x" if dtype.kind in "OSU" else bool(number % 2)


def vtab(root, datasets=None):
    """Prepare the data sets of all tasks, or some, below `root`."""
    wanted = datasets or sorted({rule.dataset for rule in RULES.values()})
    for dataset in wanted:
        features, version = features_of(dataset)
        name, _, config = dataset.partition("/")
        splits, number = {}, 0
        for split, size in SIZES.items():
            splits[split] = [example(features, number + i) for i in range(size)]
            number += size
        if name == "dsprites":
            for example_ in [x for own in splits.values() for x in own]:
                bits = np.asarray(example_["image"]) > 100
                example_["image"] = Image.fromarray(bits.astype(np.uint8))
        prepare(root, name, features, splits, version, config or None)
    return root
