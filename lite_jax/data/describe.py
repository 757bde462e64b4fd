"""Descriptions of data sets: counts, image sizes, and a picture of one episode."""

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
    EpisodeSampler,
    episode_rng,
    sample_episode,
)
from lite_jax.data.images import as_picture, watched_sizes
from lite_jax.data.loader import load_task
from lite_jax.data.orbit.source import OrbitSource
from lite_jax.data.sources import ClassSource, class_groups
from lite_jax.errors import UserError

_SAMPLE_SIZE = 2000
_CELL, _GAP, _MARGIN, _NAME = 84, 4, 12, 150
_INK, _GREY, _PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)


class Description(NamedTuple):
    """The description of a split.

    Attributes:
        classes: Number of classes.
        images: Number of images.
        per_class: Least, median and largest number of images of a class.
        groups: Number of groups of classes that may meet in an episode.
        read: Number of images that were opened: all, or a sample of a large set.
        sizes: `(width, height)` in pixels of the opened images, before resizing.
        unreadable: Names of the unreadable images, or messages about them.
    """

    classes: int
    images: int
    per_class: tuple[int, int, int]
    groups: int
    read: int
    sizes: list[tuple[int, int]]
    unreadable: list[str]


def describe(source: ClassSource, *, everything: bool = False) -> Description:
    """Open the images of a source, and return its description.

    Args:
        source: Source made with `cache_gb=0`, so that this call opens the images.
        everything: Open every image, instead of 2000 random ones of a larger set.
    """
    counts = np.array(source.class_sizes)
    total = int(counts.sum())
    ends = np.cumsum(counts)
    rows = np.arange(total)
    if total > _SAMPLE_SIZE and not everything:
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(total, _SAMPLE_SIZE, replace=False))
    unreadable: list[str] = []
    with watched_sizes() as sizes, _silenced_warnings():
        for row in tqdm(rows, "opening images", unit="image", leave=False):
            label = int(np.searchsorted(ends, row, side="right"))
            number = int(row - (ends[label] - counts[label]))
            try:
                source.read(label, [number])
            except UserError as error:
                unreadable.append(str(error))
    unreadable += [str(item) for item in sorted(getattr(source, "unreadable", ()))]
    return Description(
        len(counts),
        total,
        (int(counts.min()), int(np.median(counts)), int(counts.max())),
        len(class_groups(source).members),
        len(rows),
        sizes,
        list(dict.fromkeys(unreadable)),
    )


@contextlib.contextmanager
def _silenced_warnings() -> Iterator[None]:
    """Silence the warnings about unreadable images, which the description lists."""
    logger = logging.getLogger("lite_jax.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def format_description(found: Mapping[str, Description]) -> str:
    """Return the report that the command prints, from split name → description."""
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
    unreadable = [item for x in found.values() for item in x.unreadable]
    lines.append(f"unreadable: {len(unreadable)} of {opened} opened{sample}")
    lines += [f"  {item}" for item in unreadable[:20]]
    if len(unreadable) > 20:
        lines.append(f"  … and {len(unreadable) - 20} more")
    return "\n".join(lines)


def contact_sheet(
    source: ClassSource,
    spec: EpisodeSampler,
    path: Path,
    *,
    seed: int = 0,
    index: int = 0,
) -> None:
    """Save a picture of one episode: its support images, and its query images below.

    A row holds the images of one class. They are the images that a learner receives,
    before augmentation, scaled to 84 × 84 pixels. A clip is shown by its first frame.

    Args:
        source: Source of the images.
        spec: How the episode is drawn.
        path: The PNG to write.
        seed: The seed, as of a run.
        index: Number of the episode in the stream "train".
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
    """Save a picture of blocks of images, with a row of images for each class.

    Args:
        rows: Heading of a block → each class's images `[n, height, width, channels]`
            uint8.
        names: Name of each class, written before its rows.
        path: The image file to write.
    """
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
_LINE_LENGTH = 22  # letters of a name


def _wrapped(name: str) -> str:
    """Return a name broken into lines, cut after the third."""
    lines = [name[i : i + _LINE_LENGTH] for i in range(0, len(name), _LINE_LENGTH)]
    return "\n".join([*lines[:2], lines[2][:-1] + "…"] if len(lines) > 3 else lines)
