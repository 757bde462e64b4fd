"""The protocols of ORBIT, a benchmark of videos by blind and low-vision people.

A task belongs to one user. It is to recognise the user's objects in new videos, given a
few clean videos of each. Below the root lie the folders
`{train,validation,test}/<user>/<object>/{clean,clutter}/<video>/` with frames
`<video>-00001.jpg`, …, and the files `annotations/<split>/<video>.json`.

An example is a clip, `[clip_length, height, width, 3]`. The features of its frames are
averaged before examples are summed, so LITE's H counts clips.

Source: Massiceti et al., "ORBIT: A Real-World Few-Shot Dataset for Teachable Object
Recognition", ICCV 2021, and the protocols of its code as of 2021 and of December 2022.
Clips of both protocols are runs of neighbouring frames here. The released code of 2022
differs where clips are longer than one frame: there it reads the number of clips as a
number of frames.
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
from lite_jax.errors import MALFORMED, UserError, pick, unknown_name

_logger = logging.getLogger(__name__)

Clip = tuple[Path, ...]
Pick = Literal["all", "random", "uniform", "history"]
TARGET_MODES = ("clutter", "clean")
"""Kinds of target videos: CLU-VE and CLE-VE."""
_FOLDERS = {"train": "train", "valid": "validation", "test": "test"}
_MOST_VIDEOS = 15
_STRIDE = 30
_CONTEXT_VIDEOS = 5  # of an object at most, in mode "clean"


class ClipRule(NamedTuple):
    """A rule that selects clips of a video.

    Attributes:
        pick: "random": a random choice of the video's clips that do not overlap.
            "uniform": the clips that start at every 30th frame. "history": the clips
            that end at each of the video's first frames.
        most: Largest number of clips.
        vary: Whether "random" draws the number of clips from 1 to `most`.
    """

    pick: Pick
    most: int
    vary: bool = False


class OrbitProtocol(NamedTuple):
    """The rules of one version of the benchmark.

    Attributes:
        clip_length: Number of frames of a clip.
        train: Rules for context and target clips in training.
        test: Rules for context and target clips in testing.
        tasks_per_user: Number of tasks of each user, for "valid" and "test".
        frame_filter: Annotated issues whose target frames are left out.
        least_frames: Target videos with fewer remaining frames are left out.
    """

    clip_length: int
    train: tuple[ClipRule, ClipRule]
    test: tuple[ClipRule, ClipRule]
    tasks_per_user: dict[str, int]
    frame_filter: tuple[str, ...]
    least_frames: int


ORBIT_PROTOCOLS = {
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


def find_orbit_protocol(name: str) -> OrbitProtocol:
    """Return the protocol with the given name.

    Raises:
        UserError: `name` is unknown; the message suggests the nearest known name.
    """
    return pick("orbit_protocol", name, ORBIT_PROTOCOLS)


class Video(NamedTuple):
    """A video.

    Attributes:
        name: Name of the video.
        frames: Files of its frames, in order.
        shown: For each frame, whether it may be in a target clip.
    """

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
    """A target video: its name, the label of its object, and its clips in order."""

    name: str
    label: int
    clips: list[Clip]


class OrbitTask(NamedTuple):
    """One task of a user.

    Attributes:
        user: Name of the user.
        things: Names of the objects, by label.
        context: Context clips of all objects.
        labels: Label of each context clip.
        videos: Target videos.
    """

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

    Only objects that have context and target videos count. Users with fewer than two
    such objects are left out, with a warning that names them.

    Args:
        root: The benchmark's folder, such as `orbit_benchmark_224`.
        split: "train", "valid" or "test".
        protocol: Protocol, which filters target frames.
        mode: "clutter" (CLU-VE), where target videos are the cluttered ones, or "clean"
            (CLE-VE), where an object's first five clean videos, or all but one, are
            context, and the others target.

    Raises:
        UserError: The folder does not exist, no user has two objects, or annotations
            for the filter are missing.
    """
    check_split(split)
    if mode not in TARGET_MODES:
        raise unknown_name("orbit_mode", mode, TARGET_MODES)
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
    usable = [user for user in users if len(user.things) > 1]
    if len(usable) < len(users):
        left_out = [user.name for user in users if len(user.things) < 2]
        _logger.warning(
            "left out %d of %d users of ORBIT's %s split, who have fewer than two "
            "objects with context and target videos: %s",
            len(left_out), len(users), folder.name, ", ".join(left_out),
        )  # fmt: skip
    if not usable:
        raise UserError(
            f"{folder} has no user with two objects or more; expected "
            "<user>/<object>/{clean,clutter}/<video>/<frame>.jpg"
        )
    return usable


def _things(
    base: Path, split: str, user: Path, protocol: OrbitProtocol, mode: str
) -> tuple[Thing, ...]:
    things = []
    for name, path in class_folders(user).items():
        clean = _videos(path / "clean", None, protocol)
        annotations = base / "annotations" / _FOLDERS[split]
        if mode == "clutter":
            context, target = clean, _videos(path / "clutter", annotations, protocol)
        else:
            num_context = min(_CONTEXT_VIDEOS, len(clean) - 1)
            context = clean[: max(num_context, 0)]
            target = _videos(path / "clean", annotations, protocol)
            target = [video for video in target if video.name not in
                      {x.name for x in context}]  # fmt: skip
        if context and target:
            things.append(Thing(name, tuple(context), tuple(target)))
    return tuple(things)


def _videos(
    folder: Path, annotations: Path | None, protocol: OrbitProtocol
) -> list[Video]:
    """Return the videos of a folder that have frames.

    With a folder of annotations, they are target videos: their frames are filtered, and
    those with too few remaining frames are left out.
    """
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
    """Return for each frame whether it has none of the issues."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: unpack ORBIT's annotations there, or leave no frame "
            "out with orbit_filter=none"
        )
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            not any(annotations[frame.name].get(issue) for issue in issues)
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
    """Draw a task of a user.

    Args:
        user: The user.
        protocol: Protocol, with the rules for clips.
        rng: Generator, advanced by the call.
        way: In training, the smallest and largest number of objects; the number of
            objects and the number of videos of each are drawn. None in testing: all
            objects, with the first 15 of their context and of their target videos.
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
        for video in _selected_videos(thing.context, way is not None, rng):
            clips = take_clips(video.frames, context_rule, protocol.clip_length, rng)
            context += clips
            labels += [label] * len(clips)
        for video in _selected_videos(thing.target, way is not None, rng):
            shown = [f for f, on in zip(video.frames, video.shown, strict=True) if on]
            clips = take_clips(shown, target_rule, protocol.clip_length, rng)
            videos.append(TargetVideo(video.name, label, clips))
    return OrbitTask(user.name, [t.name for t in things], context, labels, videos)


def _selected_videos(
    videos: Sequence[Video], drawn: bool, rng: np.random.Generator
) -> Sequence[Video]:
    """Return a random number of random videos, or the first ones; at most 15."""
    most = min(_MOST_VIDEOS, len(videos))
    if not drawn:
        return videos[:most]
    numbers = rng.choice(len(videos), int(rng.integers(1, most + 1)), replace=False)
    return [videos[i] for i in numbers]


def take_clips(
    frames: Sequence[Path], rule: ClipRule, length: int, rng: np.random.Generator
) -> list[Clip]:
    """Return clips of neighbouring frames, in the video's order.

    Frames before the video's first are filled with the first, and frames after its last
    with the last.

    Args:
        frames: The video's frames in order, one or more.
        rule: The rule that selects clips.
        length: Number of frames of a clip.
        rng: Generator, advanced by the rule "random".
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
    """Return the pixels of clips, `[n, clip_length, size, size, 3]` uint8.

    A frame that several clips share is opened once.

    Args:
        clips: One clip or more.
        spec: Size and form of the frames.
        pool: Threads that open frames in parallel.

    Raises:
        UserError: A frame cannot be read.
    """

    def open_frame(frame: Path) -> np.ndarray:
        try:
            return spec.open(frame)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{frame} cannot be read ({error}): unpack its video again"
            ) from error

    frames = list(dict.fromkeys(frame for clip in clips for frame in clip))
    map_frames = pool.map if pool else map
    pixels = dict(zip(frames, map_frames(open_frame, frames), strict=True))
    return np.stack([np.stack([pixels[frame] for frame in clip]) for clip in clips])
