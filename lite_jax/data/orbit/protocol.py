"""ORBIT: videos that blind and low-vision people took of their own objects.

A task is one user: tell apart their objects in new videos, from a few clean ones.
Below the root lie `{train,validation,test}/<user>/<object>/{clean,clutter}/<video>/`
with frames `<video>-00001.jpg`, …, and `annotations/<split>/<video>.json`. An example
is a clip, `[clip_length, height, width, 3]`; its frames' features are averaged before
anything is summed, so LITE's H counts clips.

Source: Massiceti et al., "ORBIT: A Real-World Few-Shot Dataset for Teachable Object
Recognition", ICCV 2021, and the protocols of its code as of 2021 and of December 2022.
In both, clips here are runs of neighbouring frames; the released code of 2022 takes the
numbers of clips for numbers of frames where clips are longer than one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.folders import class_folders, existing_folder, images_of
from lite_jax.data.sources import check_split
from lite_jax.errors import MALFORMED, UserError, unknown_name

_logger = logging.getLogger(__name__)

Clip = tuple[Path, ...]
Pick = Literal["all", "random", "uniform", "history"]
MODES = ("clutter", "clean")
"""Where target videos come from: CLU-VE and CLE-VE."""
_FOLDERS = {"train": "train", "valid": "validation", "test": "test"}
_MOST_VIDEOS = 15
_STRIDE = 30
_CONTEXT_VIDEOS = 5  # of an object, where its clean videos serve as target too


class ClipRule(NamedTuple):
    """Which clips of a video are taken.

    Attributes:
        pick: "random": that many of the video's consecutive clips; "uniform": one that
            starts at every 30th frame, at most that many; "history": for every frame,
            at most that many, the clip that ends with it.
        most: How many.
        vary: Of "random": the number is drawn, from 1 to `most`.
    """

    pick: Pick
    most: int
    vary: bool = False


class OrbitProtocol(NamedTuple):
    """One generation of the benchmark.

    Attributes:
        clip_length: Frames of a clip.
        train: How context and target clips are taken in training.
        test: And in testing.
        tasks_per_user: Of "valid" and "test".
        frame_filter: Annotated issues for which a target frame is left out.
        least_frames: A target video with fewer frames left is left out.
    """

    clip_length: int
    train: tuple[ClipRule, ClipRule]
    test: tuple[ClipRule, ClipRule]
    tasks_per_user: dict[str, int]
    frame_filter: tuple[str, ...]
    least_frames: int


PROTOCOLS = {
    "2021": OrbitProtocol(
        clip_length=8,
        train=(ClipRule("random", 4), ClipRule("random", 4)),
        test=(ClipRule("random", 8), ClipRule("history", 1000)),
        tasks_per_user={"valid": 5, "test": 5},
        frame_filter=(),
        least_frames=0,
    ),
    "2022": OrbitProtocol(
        clip_length=1,
        train=(ClipRule("uniform", 200), ClipRule("random", 200, vary=True)),
        test=(ClipRule("uniform", 200), ClipRule("random", 200)),
        tasks_per_user={"valid": 30, "test": 50},
        frame_filter=("object_not_present_issue",),
        least_frames=50,
    ),
}


def find_protocol(name: str) -> OrbitProtocol:
    """Return a protocol by name, or raise with the nearest known one."""
    if name not in PROTOCOLS:
        raise unknown_name("orbit_protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


class Video(NamedTuple):
    """A video's name and its frames in order; `shown` says which may be targets."""

    name: str
    frames: tuple[Path, ...]
    shown: tuple[bool, ...]


class Thing(NamedTuple):
    """An object of a user: its name, context videos and target videos."""

    name: str
    context: tuple[Video, ...]
    target: tuple[Video, ...]


class User(NamedTuple):
    """A user's name and objects."""

    name: str
    things: tuple[Thing, ...]


class TargetVideo(NamedTuple):
    """A video to be recognised: its clips in order, and what it shows."""

    name: str
    label: int
    clips: list[Clip]


class OrbitTask(NamedTuple):
    """One draw: clips and labels of the context, and the target videos."""

    user: str
    things: list[str]
    context: list[Clip]
    labels: list[int]
    videos: list[TargetVideo]


def read_users(
    root: str | Path,
    split: str,
    protocol: OrbitProtocol,
    mode: str = "clutter",
) -> list[User]:
    """Return the users of a split; frames are listed, not opened.

    Users with fewer than two objects that have context and target videos are left out,
    with a warning that counts them.

    Args:
        root: Such as `orbit_benchmark_224`.
        split: "train", "valid" or "test".
        protocol: Says which target frames count.
        mode: "clutter" (CLU-VE) or "clean" (CLE-VE: of each object's clean videos the
            first five, or all but one, are context and the others target).

    Raises:
        UserError: No such folder, no users, or no annotations to filter by.
    """
    check_split(split)
    if mode not in MODES:
        raise unknown_name("orbit_mode", mode, MODES)
    base = existing_folder(root)
    folder = base / _FOLDERS[split]
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: unpack ORBIT's {folder.name} split there"
        )
    users = [
        User(name, _things(base, split, path, protocol, mode))
        for name, path in class_folders(folder).items()
    ]
    able = [user for user in users if len(user.things) > 1]
    if len(able) < len(users):
        left_out = [user.name for user in users if len(user.things) < 2]
        _logger.warning(
            "left out %d of %d users of ORBIT's %s split, who have fewer than two "
            "objects with context and target videos: %s",
            len(left_out), len(users), folder.name, ", ".join(left_out),
        )  # fmt: skip
    if not able:
        raise UserError(
            f"{folder} has no user with two objects or more; expected "
            "<user>/<object>/{clean,clutter}/<video>/<frame>.jpg"
        )
    return able


def _things(
    base: Path, split: str, user: Path, protocol: OrbitProtocol, mode: str
) -> tuple[Thing, ...]:
    found = []
    for name, path in class_folders(user).items():
        clean = _videos(path / "clean", None, protocol)
        annotations = base / "annotations" / _FOLDERS[split]
        if mode == "clutter":
            context, target = clean, _videos(path / "clutter", annotations, protocol)
        else:
            kept = min(_CONTEXT_VIDEOS, len(clean) - 1)
            context = clean[: max(kept, 0)]
            target = _videos(path / "clean", annotations, protocol)
            target = [video for video in target if video.name not in
                      {own.name for own in context}]  # fmt: skip
        if context and target:
            found.append(Thing(name, tuple(context), tuple(target)))
    return tuple(found)


def _videos(
    folder: Path, annotations: Path | None, protocol: OrbitProtocol
) -> list[Video]:
    """Return the videos of a folder; of targets, those with enough frames to show."""
    if not folder.is_dir():
        return []
    videos = []
    for name, path in class_folders(folder).items():
        frames = tuple(images_of(path))
        shown = (True,) * len(frames)
        if annotations is not None and protocol.frame_filter:
            shown = _shown(annotations / f"{name}.json", frames, protocol.frame_filter)
        enough = annotations is None or sum(shown) >= protocol.least_frames
        if any(shown) and enough:
            videos.append(Video(name, frames, shown))
    return videos


def _shown(
    path: Path, frames: Sequence[Path], issues: Sequence[str]
) -> tuple[bool, ...]:
    """Return which frames have none of the issues."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: unpack ORBIT's annotations there, or leave no frame "
            "out with orbit_filter=none"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            not any(found[frame.name].get(issue) for issue in issues)
            for frame in frames
        )
    except MALFORMED as error:
        raise UserError(
            f"{path} does not describe every frame of its video ({error}): unpack the "
            "annotations again"
        ) from error


def draw_task(
    user: User,
    protocol: OrbitProtocol,
    rng: np.random.Generator,
    *,
    way: tuple[int, int] | None = None,
) -> OrbitTask:
    """Return a task of a user.

    Args:
        user: Whose.
        protocol: How clips are taken.
        rng: Used up.
        way: For training: least and most objects, of which a number is drawn (and so is
            the number of videos of each). None for testing: all objects, all videos.
    """
    things = list(user.things)
    if way is not None:
        most = min(way[1], len(things))
        count = int(rng.integers(min(way[0], most), most + 1))
        things = [things[i] for i in rng.choice(len(things), count, replace=False)]
    context_rule, target_rule = protocol.train if way else protocol.test
    context: list[Clip] = []
    labels: list[int] = []
    videos: list[TargetVideo] = []
    for label, thing in enumerate(things):
        for video in _some(thing.context, way is not None, rng):
            clips = take_clips(video.frames, context_rule, protocol.clip_length, rng)
            context += clips
            labels += [label] * len(clips)
        for video in _some(thing.target, way is not None, rng):
            shown = [f for f, on in zip(video.frames, video.shown, strict=True) if on]
            clips = take_clips(shown, target_rule, protocol.clip_length, rng)
            videos.append(TargetVideo(video.name, label, clips))
    return OrbitTask(user.name, [t.name for t in things], context, labels, videos)


def _some(
    videos: Sequence[Video], drawn: bool, rng: np.random.Generator
) -> Sequence[Video]:
    """Return a drawn number of videos, or all, at most 15."""
    most = min(_MOST_VIDEOS, len(videos))
    if not drawn:
        return videos[:most]
    chosen = rng.choice(len(videos), int(rng.integers(1, most + 1)), replace=False)
    return [videos[i] for i in chosen]


def take_clips(
    frames: Sequence[Path], rule: ClipRule, length: int, rng: np.random.Generator
) -> list[Clip]:
    """Return clips of neighbouring frames, in the video's order.

    Frames missing at the end of a clip are filled with the last one, and those before
    the first frame of a video with the first.

    Args:
        frames: Of the video, in order, one or more.
        rule: Which clips.
        length: Frames of a clip.
        rng: Used by rules that draw.
    """
    if rule.pick == "history":
        ends = range(min(len(frames), rule.most))
        starts = [end - length + 1 for end in ends]
    elif rule.pick == "uniform":
        starts = list(range(0, len(frames), _STRIDE))[: rule.most]
    else:
        whole = list(range(0, len(frames) - length + 1, length)) or [0]
        most = min(rule.most, len(whole))
        count = int(rng.integers(1, most + 1)) if rule.vary else most
        starts = sorted(int(x) for x in rng.choice(whole, count, replace=False))
    last = len(frames) - 1
    return [
        tuple(frames[min(max(i, 0), last)] for i in range(start, start + length))
        for start in starts
    ]


def open_clips(
    clips: Sequence[Clip], spec: ImageSpec, pool: Executor | None = None
) -> np.ndarray:
    """Return `[n, clip_length, size, size, 3]` uint8; each frame is opened once.

    Args:
        clips: One or more.
        spec: What becomes of the frames.
        pool: Threads that open them side by side.

    Raises:
        UserError: A frame that cannot be read.
    """

    def open_frame(frame: Path) -> np.ndarray:
        try:
            return spec.open(frame)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{frame} cannot be read ({error}): unpack its video again"
            ) from error

    frames = list(dict.fromkeys(frame for clip in clips for frame in clip))
    side_by_side = pool.map if pool else map
    opened = dict(zip(frames, side_by_side(open_frame, frames), strict=True))
    return np.stack([np.stack([opened[frame] for frame in clip]) for clip in clips])
