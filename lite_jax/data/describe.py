"""What a data set holds, in numbers and as a picture of one episode."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from lite_jax.data.episodes import (
    ClassSampler,
    Sampler,
    episode_rng,
    sample_episode,
)
from lite_jax.data.images import as_picture, watched_sizes
from lite_jax.data.loader import load_task
from lite_jax.data.orbit.source import OrbitSource
from lite_jax.data.sources import ClassSource, class_groups
from lite_jax.errors import UserError

_SAMPLE = 2000
_CELL, _GAP, _MARGIN, _NAME = 84, 4, 12, 150
_INK, _GREY, _PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)


class Description(NamedTuple):
    """What was found in a split.

    Attributes:
        classes: Their number.
        images: Their number.
        per_class: Least, median and most images of a class.
        groups: Groups of classes that may meet in an episode.
        read: Images that were opened: all, or a sample of a large set.
        sizes: `(width, height)` of each of them before resizing.
        unreadable: What could not be opened, in words.
    """

    classes: int
    images: int
    per_class: tuple[int, int, int]
    groups: int
    read: int
    sizes: list[tuple[int, int]]
    unreadable: list[str]


def describe(source: ClassSource, *, everything: bool = False) -> Description:
    """Open the images of a source and say what is there.

    Args:
        source: Made with `cache_gb=0`, so that images are opened here.
        everything: Open every image, not only 2000 of a larger set.
    """
    counts = np.array(source.class_sizes)
    total = int(counts.sum())
    ends = np.cumsum(counts)
    chosen = np.arange(total)
    if total > _SAMPLE and not everything:
        chosen = np.sort(np.random.default_rng(0).choice(total, _SAMPLE, replace=False))
    broken: list[str] = []
    with watched_sizes() as sizes, _quiet():
        for place in tqdm(chosen, "opening images", unit="image", leave=False):
            label = int(np.searchsorted(ends, place, side="right"))
            number = int(place - (ends[label] - counts[label]))
            try:
                source.read(label, [number])
            except UserError as error:
                broken.append(str(error))
    broken += [str(item) for item in sorted(getattr(source, "unreadable", ()))]
    return Description(
        len(counts),
        total,
        (int(counts.min()), int(np.median(counts)), int(counts.max())),
        len(class_groups(source).members),
        len(chosen),
        sizes,
        list(dict.fromkeys(broken)),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings of unreadable images back: they are listed at the end."""
    logger = logging.getLogger("lite_jax.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def format_description(found: Mapping[str, Description]) -> str:
    """Return the report on the splits that the command prints."""
    lines = ["split   classes   images   per class (least, median, most)   groups"]
    for split, x in found.items():
        least, median, most = x.per_class
        spread = f"{least}, {median}, {most}"
        lines.append(
            f"{split:<8}{x.classes:>7}{x.images:>9}   {spread:<32}{x.groups:>7}"
        )
    sizes = np.array([size for x in found.values() for size in x.sizes] or [(0, 0)])
    for name, sides in (("widths", sizes[:, 0]), ("heights", sizes[:, 1])):
        lines.append(
            f"{name:<8}{sides.min()} to {sides.max()} pixels, median "
            f"{int(np.median(sides))}"
        )
    opened = sum(x.read for x in found.values())
    total = sum(x.images for x in found.values())
    sample = "" if opened == total else f" (a sample of {total}; --all opens all)"
    broken = [item for x in found.values() for item in x.unreadable]
    lines.append(f"unreadable: {len(broken)} of {opened} opened{sample}")
    lines += [f"  {item}" for item in broken[:20]]
    if len(broken) > 20:
        lines.append(f"  … and {len(broken) - 20} more")
    return "\n".join(lines)


def contact_sheet(
    source: ClassSource, spec: Sampler, path: Path, *, seed: int = 0, index: int = 0
) -> None:
    """Save a picture of one episode: support by class, and its query images beneath.

    It is what a learner sees: the same pixels, enlarged or reduced to 84; of a clip,
    the first frame.

    Args:
        source: Where the images come from.
        spec: What to draw.
        path: A PNG.
        seed: As of a run.
        index: The episode of the stream "train".
    """
    names: Sequence[str]
    if isinstance(source, OrbitSource):
        task = load_task(source, spec, seed, "train", index)
        names = [f"object {label}" for label in range(task.support.labels.max() + 1)]
        rows = {
            title: [x.inputs[x.mask & (x.labels == c), 0] for c in range(len(names))]
            for title, x in zip(("support", "query"), task, strict=True)
        }
    else:
        assert isinstance(spec, ClassSampler)
        rng = episode_rng(seed, "train", index)
        episode = sample_episode(source.class_sizes, spec, rng, class_groups(source))
        names = [source.class_names[c] for c in episode.classes]
        rows = {
            title: [
                source.read(c, i) for c, i in zip(episode.classes, part, strict=True)
            ]
            for title, part in (("support", episode.support), ("query", episode.query))
        }
    headings = {
        f"{title}: {sum(map(len, block))} images of {len(block)} classes": block
        for title, block in rows.items()
    }
    draw_sheet(headings, names, path)


def draw_sheet(
    rows: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], path: Path
) -> None:
    """Save headed blocks of rows of images, each row after its class's name."""
    step = _CELL + _GAP
    widest = max(len(images) for block in rows.values() for images in block)
    height = sum(_TITLE + step * len(block) + _MARGIN for block in rows.values())
    sheet = Image.new(
        "RGB", (2 * _MARGIN + _NAME + step * widest, height + _MARGIN), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for heading, block in rows.items():
        draw.text((_MARGIN, y), heading, _INK, ImageFont.load_default(15))
        y += _TITLE
        for name, images in zip(names, block, strict=True):
            middle = y + _CELL // 2
            draw.text(
                (_MARGIN, middle), _wrapped(name), _GREY, _FONT, anchor="lm", spacing=2
            )
            for column, image in enumerate(images):
                picture = as_picture(image).convert("RGB").resize((_CELL, _CELL))
                sheet.paste(picture, (_MARGIN + _NAME + column * step, y))
            y += step
        y += _MARGIN
    sheet.save(path)


_TITLE = 28
_FONT = ImageFont.load_default(12)
_LETTERS = 22  # of a name, in a line


def _wrapped(name: str) -> str:
    """Return a name in at most three lines."""
    lines = [name[i : i + _LETTERS] for i in range(0, len(name), _LETTERS)]
    return "\n".join([*lines[:2], lines[2][:-1] + "…"] if len(lines) > 3 else lines)
