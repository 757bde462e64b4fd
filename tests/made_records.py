"""Miniature data sets in the exact layout of the real ones."""

import io
import json

import numpy as np
from PIL import Image

from lite_jax.data.readers.tfrecord import make_example, write_records


def encoded(image, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format)
    return file.getvalue()


def made_image(level, number, size=(12, 10), hue=0):
    """A picture whose brightness tells the class, and whose noise the number."""
    rng = np.random.default_rng((level, number, hue))
    base = 40 + (level * 37) % 180
    noise = rng.integers(-20, 20, (*size, 3))
    return np.clip(base + noise + np.array([0, hue, -hue]), 0, 255).astype(np.uint8)


def write_class(folder, class_id, count, format="PNG"):
    folder.mkdir(parents=True, exist_ok=True)
    write_records(
        folder / f"{class_id}.tfrecords",
        (
            make_example(
                {"image": encoded(made_image(class_id, i), format), "label": class_id}
            )
            for i in range(count)
        ),
    )


def write_spec(folder, spec):
    text = json.dumps(spec | {"path": "/gone", "file_pattern": "{}.tfrecords"})
    (folder / "dataset_spec.json").write_text(text)


def flat_source(folder, splits=(6, 5, 5), images=8):
    count = sum(splits)
    for i in range(count):
        write_class(folder, i, images + i % 3, "JPEG")
    spec = {
        "__class__": "DatasetSpecification",
        "name": folder.name,
        "classes_per_split": dict(zip(("TRAIN", "VALID", "TEST"), splits, strict=True)),
        "images_per_class": {str(i): images + i % 3 for i in range(count)},
        "class_names": {str(i): f"{folder.name} {i}" for i in range(count)},
    }
    write_spec(folder, spec)
    return spec


def bilevel_source(folder, alphabets=((5, 7), (6,), (5, 6)), images=6):
    sizes = [size for split in alphabets for size in split]
    names = [
        f"Alphabet{a}-character{c:02d}" for a, n in enumerate(sizes) for c in range(n)
    ]
    for i in range(len(names)):
        write_class(folder, i, images)
    spec = {
        "__class__": "BiLevelDatasetSpecification",
        "name": folder.name,
        "superclasses_per_split": dict(
            zip(("TRAIN", "VALID", "TEST"), map(len, alphabets), strict=True)
        ),
        "classes_per_superclass": {str(i): n for i, n in enumerate(sizes)},
        "images_per_class": {str(i): images for i in range(len(names))},
        "superclass_names": {str(i): f"Alphabet{i}" for i in range(len(sizes))},
        "class_names": {str(i): name for i, name in enumerate(names)},
    }
    write_spec(folder, spec)
    return spec


# Two nodes of 5 leaves or more: "animal" (all 8) and "bird" (5 of them).
TREE = {
    "animal": ["bird", "fish"],
    "bird": ["n0", "n1", "n2", "n3", "pet"],
    "fish": ["n5", "n6", "n7", "pet"],
    "pet": ["n4"],
    **{f"n{i}": [] for i in range(8)},
}


def hierarchical_source(folder, images=7):
    parents = {
        name: [p for p, children in TREE.items() if name in children] for name in TREE
    }
    nodes = [
        {"wn_id": k, "words": k, "children_ids": v, "parents_ids": parents[k]}
        for k, v in TREE.items()
    ]
    for i in range(8):
        write_class(folder, i, images)
    counts = {f"n{i}": images for i in range(8)}
    counts |= {"animal": 8 * images, "bird": 5 * images, "fish": 4 * images}
    spec = {
        "__class__": "HierarchicalDatasetSpecification",
        "name": folder.name,
        "split_subgraphs": {"TRAIN": nodes, "VALID": [], "TEST": []},
        "images_per_class": {
            "TRAIN": counts | {"pet": images}, "VALID": {}, "TEST": {},
        },
        "class_names": {str(i): f"n{i}" for i in range(8)},
    }  # fmt: skip
    write_spec(folder, spec)
    return spec


def meta_dataset(root):
    """Three sources, one of each kind of spec."""
    flat_source(root / "aircraft")
    bilevel_source(root / "omniglot")
    hierarchical_source(root / "ilsvrc_2012")
    return root
