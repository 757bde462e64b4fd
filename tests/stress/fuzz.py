"""Readers given files that are broken, or made up, in great number.

    pip install -e '.[test]'
    python -m tests.stress.fuzz [--examples=20000] [--smoke]
        [--out=experiments/results/fuzz.jsonl]

Whole files of each kind are cut, spliced, and changed bit by bit, and JSON is rebuilt
with other values in places; each result is read. A reader may return, or refuse with a
`UserError`; anything else ends the run with the file that did it. A row tells how many
of each, and the most memory that reading took.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import shutil
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.rows import emit, parser
from lite_jax.classify import HeldOut, load_classifier, standalone
from lite_jax.data.class_lists import read_list
from lite_jax.data.images import ImageSpec
from lite_jax.data.meta_dataset.spec import read_spec
from lite_jax.data.orbit.protocol import find_orbit_protocol, read_users
from lite_jax.data.readers.arrays import array_source
from lite_jax.data.readers.tfrecord import (
    RecordFile,
    make_example,
    parse_example,
    write_records,
)
from lite_jax.errors import UserError
from lite_jax.files import exported, shapes_of, write_artefact
from lite_jax.run.configs import base_config
from lite_jax.run.workdir import load_config

MOST_BYTES = 256 * 2**20
"""What reading a file of a few kilobytes may take at most."""


class Reader(NamedTuple):
    """One kind of file.

    Attributes:
        file: What it is called.
        read: `folder -> anything`; reads the file of that name there.
        is_json: Whether it can be rebuilt value by value.
    """

    file: str
    read: Callable[[Path], Any]
    is_json: bool = False


def _records(folder: Path) -> None:
    file = RecordFile(folder / "1.tfrecords")
    for record in file.read(range(len(file))):
        try:
            parse_example(record)
        except ValueError as error:
            raise UserError(str(error)) from error


def _index(folder: Path) -> None:
    (folder / "whole.tfrecords").write_bytes(_record_file())
    (folder / "whole.tfrecords.npy").write_bytes((folder / "index").read_bytes())
    found = RecordFile(folder / "whole.tfrecords", index_folder=folder)
    found.read(range(len(found)))


def _image(folder: Path) -> None:
    try:  # the limit as it is makes images of half a gigabyte, which take their time
        with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 2**20):
            ImageSpec(8).open(folder / "image")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(str(error)) from error


def _annotations(folder: Path) -> None:
    video = "P1--cup--clutter--0001"
    for thing in ("cup", "hat"):
        for kind, name in (("clean", "a"), ("clutter", video)):
            frames = folder / "orbit/train/P1" / thing / kind / name
            frames.mkdir(parents=True, exist_ok=True)
            for number in range(1, 4):
                (frames / f"{number}.jpg").touch()
    notes = folder / "orbit/annotations/train"
    notes.mkdir(parents=True, exist_ok=True)
    (folder / "video.json").rename(notes / f"{video}.json")
    protocol = find_orbit_protocol("2022")._replace(least_frames=1)
    read_users(folder / "orbit", "train", protocol)


READERS = {
    "annotations": Reader("video.json", _annotations, is_json=True),
    "classifier": Reader(
        "classifier.zip", lambda folder: load_classifier(folder / "classifier.zip")
    ),
    "config": Reader("config.json", load_config, is_json=True),
    "records": Reader("1.tfrecords", _records),
    "record index": Reader("index", _index),
    "spec": Reader("dataset_spec.json", read_spec, is_json=True),
    "npz": Reader(
        "train.npz", lambda folder: array_source(folder, "train", ImageSpec(8))
    ),
    "class list, JSON": Reader(
        "base.json", lambda folder: read_list(folder, "train"), is_json=True
    ),
    "class list, CSV": Reader("train.csv", lambda folder: read_list(folder, "train")),
    "class list, text": Reader("train.txt", lambda folder: read_list(folder, "train")),
    "image": Reader("image", _image),
}


def run(name: str, content: bytes, folder: Path) -> str:
    """Return "read" or "refused"; raise what else comes of reading a file."""
    reader = READERS[name]
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / reader.file).write_bytes(content)
    try:
        reader.read(folder)
    except UserError:
        return "refused"
    return "read"


# ------------------------------------------------------------------------- samples


@functools.cache
def samples(name: str) -> tuple[bytes, ...]:
    """Return whole files of a kind."""
    return tuple(_SAMPLES[name]())


def _record_file() -> bytes:
    examples = [make_example({"image": b"pixels" * i, "label": i}) for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "1.tfrecords"
        write_records(path, examples)
        return path.read_bytes()


def _indices() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "1.tfrecords").write_bytes(_record_file())
        RecordFile(folder / "1.tfrecords", index_folder=folder / "index")
        return [(folder / "index/1.tfrecords.npy").read_bytes()]


def _specs() -> list[bytes]:
    splits = {"TRAIN": 2, "VALID": 1, "TEST": 1}
    flat = {
        "__class__": "DatasetSpecification",
        "name": "flat",
        "classes_per_split": splits,
        "images_per_class": {str(i): 5 for i in range(4)},
        "class_names": {str(i): f"class {i}" for i in range(4)},
    }
    bilevel = {
        "__class__": "BiLevelDatasetSpecification",
        "name": "bilevel",
        "superclasses_per_split": splits,
        "classes_per_superclass": {str(i): 1 for i in range(4)},
        "images_per_class": {str(i): 5 for i in range(4)},
        "superclass_names": {str(i): f"group {i}" for i in range(4)},
        "class_names": {str(i): f"class {i}" for i in range(4)},
    }
    return [json.dumps(spec).encode() for spec in (flat, bilevel)]


def _arrays() -> list[bytes]:
    file = io.BytesIO()
    labels = np.arange(8) % 2
    np.savez(file, images=np.zeros((8, 4, 4, 3), np.uint8), labels=labels)
    return [file.getvalue()]


def _lists() -> list[bytes]:
    named = {
        "label_names": ["a", "b"],
        "image_names": ["1.png", "2.png"],
        "image_labels": [0, 1],
    }
    rooted = {"class_names": ["a", "b"], "class_roots": ["x/a", "x/b"]}
    return [json.dumps(found).encode() for found in (["a", "b"], named, rooted)]


def _images() -> list[bytes]:
    ramp = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    found = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(ramp).save(file, kind)
        found.append(file.getvalue())
    return found


def _annotated() -> list[bytes]:
    issue = {"object_not_present_issue": False, "object_bounding_box": {"x": 1}}
    frames = {f"{number}.jpg": issue for number in range(1, 4)}
    return [json.dumps(frames).encode()]


def _classifiers() -> list[bytes]:
    weights = {"0/bias": np.zeros(2, np.float32)}
    images = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.uint8)
    code = exported(
        lambda w, x: w["0/bias"] * x.max().astype("float32"), shapes_of(weights), images
    )
    manifest = {
        "kind": standalone.KIND,
        "format": standalone.FORMAT,
        "class_names": ["a", "b"],
        "image": ImageSpec(4)._asdict(),
        "temperature": 1.0,
        "held_out": HeldOut(1, 2, 2, 2)._asdict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.zip"
        write_artefact(path, {"predict": code}, weights, manifest)
        return [path.read_bytes()]


_SAMPLES: dict[str, Callable[[], list[bytes]]] = {
    "annotations": _annotated,
    "classifier": _classifiers,
    "config": lambda: [base_config().to_json().encode()],
    "records": lambda: [_record_file()],
    "record index": _indices,
    "spec": _specs,
    "npz": _arrays,
    "class list, JSON": _lists,
    "class list, CSV": lambda: [b"filename,label\n1.png,a\n2.png,b\n"],
    "class list, text": lambda: [b"a\nb\n"],
    "image": _images,
}


def _altered(spec: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(spec) | changes).encode()


def _archive(start: bytes, shape: tuple[int, ...]) -> bytes:
    """Return an archive of one array, with a header of one's choice and no content."""
    told = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    text = told.ljust(117) + "\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        head = start + len(text).to_bytes(2, "little")
        archive.writestr("images.npy", head + text.encode())
    return file.getvalue()


def _oversized(archive: bytes) -> bytes:
    """Return an archive whose directory gives its last member 2 GB of content."""
    found = bytearray(archive)
    found[found.rindex(b"PK\x01\x02") + 23] = 0x7F  # of the compressed size
    return bytes(found)


_FLAT, _BILEVEL = samples("spec")
FOUND: list[tuple[str, bytes]] = [
    ("annotations", b"[]"),
    ("annotations", b"[" * 100_000),
    ("classifier", _oversized(samples("classifier")[0])),
    ("config", b"[" * 100_000),
    ("record index", b""),
    ("record index", samples("record index")[0].replace(b"Y\1", b"Y\3", 1)),
    ("record index", samples("record index")[0][:-8]),
    ("record index", samples("record index")[0].replace(b"\0" * 8, b"\1" * 8)),
    ("spec", _altered(_BILEVEL, classes_per_superclass={})),
    (
        "spec",
        _altered(_FLAT, classes_per_split={"TRAIN": 10**15, "VALID": 1, "TEST": 1}),
    ),
    ("spec", _altered(_FLAT, classes_per_split={"TRAIN": -1, "VALID": 4, "TEST": 1})),
    ("spec", b"[" * 100_000),
    ("npz", b""),
    ("npz", _oversized(samples("npz")[0])),
    ("npz", _archive(b"\x93NUMPY\x01\x00", (10**9, 9, 9, 3))),
    ("npz", _archive(b"\x93NUMPY\x03\x00", (1, 9, 9, 3))),
    ("class list, JSON", b'""'),
    ("class list, JSON", b"[" * 100_000),
]
"""Files that once ended a reader otherwise than by a `UserError`."""


# ------------------------------------------------------------------------ strategies


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return files like `whole`, with a few things wrong; or any bytes."""
    place = st.integers(0, len(whole))
    edit = st.tuples(place, place, st.binary(max_size=12))

    def spliced(edits: list[tuple[int, int, bytes]]) -> bytes:
        found = whole
        for start, end, inserted in edits:
            found = found[:start] + inserted + found[max(start, end) :]
        return found

    def changed(changes: list[tuple[int, int]]) -> bytes:
        found = bytearray(whole)
        for index, bits in changes:
            found[index % len(found)] ^= bits
        return bytes(found)

    bits = st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255))
    return st.one_of(
        st.lists(bits, min_size=1, max_size=6).map(changed),
        st.lists(edit, min_size=1, max_size=3).map(spliced),
        place.map(lambda end: whole[:end]),
        st.binary(max_size=200),
    )


def json_like(whole: Any) -> st.SearchStrategy[Any]:
    """Return values like `whole`, with others in a few places."""
    other = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    )
    if isinstance(whole, dict):
        fields = {name: json_like(value) for name, value in whole.items()}
        same: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=fields)
        same = st.one_of(same, st.fixed_dictionaries(fields))
    elif isinstance(whole, list):
        same = st.tuples(*map(json_like, whole)).map(list)
    else:
        same = st.just(whole)
    return st.integers(0, 9).flatmap(lambda n: other if n == 0 else same)


# ------------------------------------------------------------------------------ main


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each reader."""
    found = parser("readers given broken files")
    found.add_argument("--examples", type=int, default=20_000, help="of each kind")
    arguments = found.parse_args(argv)
    examples = 20 if arguments.smoke else arguments.examples
    for name in READERS:
        row = {"experiment": "fuzz", "reader": name, "examples": examples}
        emit(arguments.out, row | fuzz(name, examples))


def fuzz(name: str, examples: int) -> dict[str, Any]:
    """Return how often a reader read and refused, and the most memory it took."""
    counts: collections.Counter[str] = collections.Counter()
    most = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: Any) -> None:
        nonlocal most
        whole = data.draw(st.sampled_from(samples(name)))
        if READERS[name].is_json and data.draw(st.booleans()):
            content = json.dumps(data.draw(json_like(json.loads(whole)))).encode()
        else:
            content = data.draw(damaged(whole))
        tracemalloc.start()
        try:
            counts[run(name, content, Path(folder))] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {content!r}") from error
        finally:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert most < MOST_BYTES, f"{name}: {content!r} took {most} bytes"

    with tempfile.TemporaryDirectory() as folder:
        one()
    return dict(counts) | {"most_mb": most / 1e6}


if __name__ == "__main__":
    main()
