"""Prepared TensorFlow Datasets, made without TensorFlow in either file format."""

import json
import logging

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.core import shuffle

from lite_jax.data.readers.tfrecord import write_records

shuffle.BUCKETS_NUMBER = 1  # files to sort through; few examples fit into memory


def prepare(root, name, features, splits, version="1.0.0", config=None, shuffled=True):
    """Write examples as array_record below `root`; return the folder of the version.

    `splits` maps the name of a split to a list of examples.
    """

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=config, version=version)] if config else []
        )
        name = "placeholder"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=features, disable_shuffling=not shuffled
            )

        def _split_generators(self, dl_manager):
            return {k: self._generate_examples(k) for k in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    Builder.name = name
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    options = {"config": config} if config else {}
    builder = Builder(data_dir=str(root), file_format="array_record", **options)
    builder.download_and_prepare()
    return root.joinpath(name, *([config] if config else []), version)


def as_tfrecord(folder):
    """Turn a prepared data set into the file format that most people have."""
    for path in folder.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        write_records(
            path.with_name(path.name.replace(".array_record-", ".tfrecord-")), records
        )
        path.unlink()
    info = folder / "dataset_info.json"
    found = json.loads(info.read_text())
    found["fileFormat"] = "tfrecord"
    for split in found["splits"]:
        if "filepathTemplate" in split:
            split["filepathTemplate"] = split["filepathTemplate"].replace(
                ".array_record-", ".tfrecord-"
            )
    info.write_text(json.dumps(found))
    return folder


def labelled(classes, shape=(None, None, 3), names=None):
    label = tfds.features.ClassLabel(
        **({"names": names} if names else {"num_classes": classes})
    )
    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=shape), "label": label}
    )


def pixels(level, size=(6, 5), channels=3):
    return np.full((*size, channels), level, np.uint8)
