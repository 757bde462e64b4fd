"""How long a person waits for a classifier, and for its answers.

    python -m experiments.adapting [--classes=10] [--photographs=5] [--smoke]
        [--out=experiments/results/adapting.jsonl]

What `lite-jax demo` does between a drop and the page's change, without the browser: a
photograph of 640 × 480 pixels is decoded and added, the classifier is adapted, held-out
accuracy and temperature included; a new one is decoded and answered with its nearest
examples. At 84 pixels, with random weights, which take as long as others. Seconds,
the median of several; `first_…` are those of a program's first use, which compiles it.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import lite_jax
from experiments.rows import emit, parser, rounded
from experiments.sections import Section, columns
from lite_jax.classify.demo.session import Session
from lite_jax.run.train import train_and_evaluate
from tests.toys import run_config

CASES = {
    "ProtoNets, Conv-4": ("protonets", "conv4"),
    "ProtoNets, ResNet-18": ("protonets", "resnet18"),
    "Simple CNAPs, ResNet-18": ("simple_cnaps", "resnet18"),
}
SIZE = 84


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each learner."""
    found = parser("seconds until a classifier is adapted, and until it answers")
    found.add_argument("--classes", type=int, default=10)
    found.add_argument("--photographs", type=int, default=5, help="of each class")
    arguments = found.parse_args(argv)
    chosen = list(CASES)[:1] if arguments.smoke else list(CASES)
    for name in chosen:
        for photographs in (1, 2) if arguments.smoke else (arguments.photographs,):
            classes = 2 if arguments.smoke else arguments.classes
            row = row_of(*CASES[name], classes, photographs)
            emit(arguments.out, {"experiment": "adapting", "learner": name} | row)


def row_of(learner: str, backbone: str, classes: int, photographs: int) -> Any:
    """Return the seconds of each part."""
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(steps=0)
        config.learner, config.backbone.name = learner, backbone
        config.backbone.width, config.data.image_size = 64, SIZE
        train_and_evaluate(config, Path(folder))
        session = Session(lite_jax.load(folder))
    names = [f"class {i}" for i in range(classes)]
    files = iter([photograph(i) for i in range(classes * photographs + 20)])
    for name in names:
        for _ in range(photographs):
            session.add(name, "", next(files))

    def one_more() -> None:
        session.add(names[0], "", next(files))
        session.describe()

    def answer() -> None:
        session.predict("", next(files))

    return rounded(
        {
            "classes": classes,
            "photographs": photographs,
            "image_size": SIZE,
            "first_adapted": seconds(session.describe),
            "first_answer": seconds(answer),
            "adapted_to_one_more": repeated(one_more),
            "answer": repeated(answer),
        }
    )


def photograph(seed: int) -> bytes:
    """Return a JPEG of 640 × 480 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480)).save(file, "jpeg")
    return file.getvalue()


def seconds(action: Callable[[], Any]) -> float:
    """Return what one call takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def repeated(action: Callable[[], Any]) -> float:
    """Return the median of some calls after a first one."""
    action()
    return statistics.median(seconds(action) for _ in range(5))


SECTIONS = (
    Section(
        "A classifier of photographs",
        "adapting",
        "python -m experiments.adapting",
        "Seconds that a person waits, at 84 pixels, decoding included: after one more "
        "photograph until a new classifier stands, and until it answers.",
        lambda rows: columns(
            rows,
            "learner",
            "classes",
            "photographs",
            "first_adapted",
            "adapted_to_one_more",
            "first_answer",
            "answer",
        ),
    ),
)


if __name__ == "__main__":
    main()
