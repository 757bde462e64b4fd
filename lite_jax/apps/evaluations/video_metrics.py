"""ORBIT's three scores of videos, and their confidence interval over users.

Source: Massiceti et al. 2021, §5. The interval reported there pools the videos of all
tasks of the 17 users. Tasks of a user share their videos, so that interval does not
apply to new users; the interval over users does.
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
        frame_accuracy: Share of the frames that are recognised, in [0, 1].
        frames_to_recognition: Index of the first recognised frame divided by the number
            of frames: 0 for the first frame, 1 if none is recognised.
        video_accuracy: 1 if the most frequent prediction is right, else 0; of equally
            frequent labels the lowest counts.
    """

    frame_accuracy: float
    frames_to_recognition: float
    video_accuracy: float


def score_video(predicted: Sequence[int] | np.ndarray, label: int) -> VideoScores:
    """Return the scores of a video.

    Args:
        predicted: Predicted labels of the frames, in their order.
        label: The true label.

    >>> score_video([2, 1, 1, 2], 1)
    VideoScores(frame_accuracy=0.5, frames_to_recognition=0.25, video_accuracy=1.0)
    """
    labels = np.asarray(predicted)
    right = labels == label
    first = int(np.argmax(right)) / len(right) if right.any() else 1.0
    vote = int(np.argmax(np.bincount(labels)))
    return VideoScores(float(right.mean()), first, float(vote == label))


def user_interval(values: Iterable[float], users: Iterable[str]) -> Interval:
    """Return the mean of the users' means ± its 95 % interval, by Student's t.

    The interval is over users, since only they are drawn independently: it is computed
    from the n means of users, with n - 1 degrees of freedom and a standard deviation
    with denominator n - 1. With one user it is infinite.

    Args:
        values: Scores.
        users: The user of each score.

    >>> user_interval([0.0, 0.5, 0.8, 1.0, 0.9], ["a", "a", "b", "b", "c"]).percent()
    '68.33 ± 93.22 %'
    """
    by_user: dict[str, list[float]] = {}
    for value, user in zip(values, users, strict=True):
        by_user.setdefault(user, []).append(value)
    means = np.array([np.mean(scores) for scores in by_user.values()])
    count = len(means)
    if count < 2:
        return Interval(float(means.mean()), float("inf"), count)
    spread = stats.t.ppf(0.975, count - 1) * means.std(ddof=1) / np.sqrt(count)
    return Interval(float(means.mean()), float(spread), count)
