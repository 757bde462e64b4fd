"""How well videos are recognised: ORBIT's three measures, and two intervals for them.

Source: Massiceti et al. 2021, §5. The published interval pools the videos of all tasks
of all users; tasks of one user share their videos, so it says little about users, of
whom there are 17. The interval over users says that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lite_jax.run.metrics import Interval


class VideoScores(NamedTuple):
    """Scores of one video.

    Attributes:
        frame_accuracy: Share of its frames that are recognised.
        frames_to_recognition: Place of the first recognised frame, as a share of the
            frames: 0 is best, 1 is never.
        video_accuracy: Whether most frames say the right object; of equally many, the
            lowest label counts.
    """

    frame_accuracy: float
    frames_to_recognition: float
    video_accuracy: float


def score_video(predicted: Sequence[int] | np.ndarray, label: int) -> VideoScores:
    """Return the scores of a video's predicted labels, in the order of its frames.

    >>> score_video([2, 1, 1, 2], 1)
    VideoScores(frame_accuracy=0.5, frames_to_recognition=0.25, video_accuracy=1.0)
    """
    found = np.asarray(predicted)
    right = found == label
    first = int(np.argmax(right)) / len(right) if right.any() else 1.0
    vote = int(np.argmax(np.bincount(found)))
    return VideoScores(float(right.mean()), first, float(vote == label))


def user_interval(values: Iterable[float], users: Iterable[str]) -> Interval:
    """Return the mean of the users' means ± its 95 % interval, by Student's t.

    Users are what is drawn independently, so they are what the interval is over: a mean
    for each, standard deviation with denominator n - 1, n - 1 degrees of freedom. One
    user alone gives an infinite interval.

    >>> user_interval([0.0, 0.5, 0.8, 1.0, 0.9], ["a", "a", "b", "b", "c"]).percent()
    '68.33 ± 93.22 %'
    """
    by_user: dict[str, list[float]] = {}
    for value, user in zip(values, users, strict=True):
        by_user.setdefault(user, []).append(value)
    means = np.array([np.mean(own) for own in by_user.values()])
    count = len(means)
    if count < 2:
        return Interval(float(means.mean()), float("inf"), count)
    spread = stats.t.ppf(0.975, count - 1) * means.std(ddof=1) / np.sqrt(count)
    return Interval(float(means.mean()), float(spread), count)
