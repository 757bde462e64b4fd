"""How fast episodes are loaded, and how much memory loading takes.

Episodes of the LITE paper's mean size (350 support and 208 query images at 224 pixels)
are drawn from Meta-Dataset records of JPEGs of 500 × 333 pixels, and from a cache of
them (`python -m lite_jax.data cache`), on one core and on two; then the peak of
resident memory that loading adds while a slow step consumes the episodes, by
`data.prefetch`.
Every case runs in a process of its own; the records are made anew.

python -m benchmarks.loading [--smoke] [--out=FILE.jsonl]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import data
from lite_jax.data.cache import CachedSource, build_cache, open_cache
from lite_jax.data.meta_dataset.source import read_source
from lite_jax.data.readers.tfrecord import make_example, write_records

CLASSES, IMAGES = 30, 24
SPEC = data.EpisodeSpec((26, 26), (13, 14), 8, max_support=350)
SMALL = data.EpisodeSpec((5, 5), (4, 4), 4)


def make_records(root: Path, classes: int, images: int, size: tuple[int, int]) -> None:
    """Write a source of JPEGs in Meta-Dataset's layout."""
    folder = root / "made"
    folder.mkdir()
    patterns = data.synthetic("train", 64, num_classes=classes, images_per_class=images)
    rng = np.random.default_rng(0)
    for label in range(classes):
        records = []
        for pattern in patterns.read(label, range(images)):
            large = np.asarray(Image.fromarray(pattern).resize(size), np.float32)
            noisy = np.clip(large + rng.normal(0, 6, large.shape), 0, 255)
            file = io.BytesIO()
            Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG")
            records.append(make_example({"image": file.getvalue(), "label": label}))
        write_records(folder / f"{label}.tfrecords", records)
    spec = {
        "__class__": "DatasetSpecification",
        "classes_per_split": {"TRAIN": classes, "VALID": 0, "TEST": 0},
        "images_per_class": {str(i): images for i in range(classes)},
        "class_names": {str(i): str(i) for i in range(classes)},
        "file_pattern": "{}.tfrecords",
    }
    (folder / "dataset_spec.json").write_text(json.dumps(spec))


def open_made(root: str, source: str, image_size: int) -> data.ClassSource:
    """Return the records, or the cache of them."""
    if source == "cache":
        return open_cache(Path(root) / "cache", "train")
    return read_source(root, "made", "train", data.ImageSpec(image_size, "md"))


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Load episodes here, on so many cores; return the rate and the memory added."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["cores"]])
    source = open_made(case["root"], case["source"], case["image_size"])
    spec = SMALL if case["smoke"] else SPEC
    pool = ThreadPoolExecutor(case["cores"])

    def load(index: int) -> Any:
        return data.load_task(source, spec, 0, "train", index, pool=pool)

    load(0)
    if isinstance(source, CachedSource):
        source.images.max()  # mapped pages count as memory, so all are mapped first
    before = _peak_bytes()
    start = time.perf_counter()
    images = 0
    for task in data.run_ahead(load, range(case["episodes"]), depth=case["prefetch"]):
        images += int(task.support.mask.sum() + task.query.mask.sum())
        time.sleep(case["step"])
    seconds = time.perf_counter() - start
    return {
        "episodes_per_second": case["episodes"] / seconds,
        "images_per_second": images / seconds,
        "images_per_episode": images / case["episodes"],
        "added_mib": (_peak_bytes() - before) / 2**20,
        "episode_mib": sum(x.inputs.nbytes for x in load(0)) / 2**20,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cases(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield what is measured."""
    episodes = 3 if smoke else 12
    cores = [n for n in (1, 2) if n <= len(os.sched_getaffinity(0))]
    for source in ("jpeg records", "cache"):
        for count in cores[-1:] if smoke else cores:
            many = episodes * (8 if source == "cache" and not smoke else 1)
            yield {
                "part": "throughput", "source": source, "cores": count,
                "prefetch": 3, "episodes": many, "step": 0.0,
            }  # fmt: skip
    for prefetch in (3,) if smoke else (1, 3, 8):
        yield {
            "part": "memory", "source": "cache", "cores": cores[-1],
            "prefetch": prefetch, "episodes": episodes, "step": 0.01 if smoke else 0.5,
        }  # fmt: skip


def in_a_process(case: dict[str, Any]) -> dict[str, float]:
    """Return what `measure` finds in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.loading", "--measure"]
    found = subprocess.run(
        [*command, json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the records and the cache, and emit a row a case."""
    found = parser("loading episodes")
    found.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = found.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    smoke = arguments.smoke
    size, image_size = ((60, 40), 32) if smoke else ((500, 333), 224)
    with tempfile.TemporaryDirectory() as root:
        make_records(Path(root), 6 if smoke else CLASSES, IMAGES, size)
        source = open_made(root, "jpeg records", image_size)
        build_cache(Path(root) / "cache", {"train": source}, {"resize": "md"})
        for case in cases(smoke):
            own = {"root": root, "image_size": image_size, "smoke": smoke}
            result = {k: round(v, 2) for k, v in in_a_process(case | own).items()}
            row = {"experiment": "loading", **case, "image_size": image_size}
            emit(arguments.out, row | {"jpeg": "×".join(map(str, size))} | result)


SECTIONS = (
    Section(
        "Loading episodes",
        "loading",
        "python -m benchmarks.loading",
        "Episodes of 350 + 208 images at 224 pixels, from JPEG and from a cache; "
        "memory that loading adds while a slow step consumes them.",
    ),
)


if __name__ == "__main__":
    main()
