"""Evaluation on ORBIT's test users: frame accuracy and two other scores of videos."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lite_jax import data
from lite_jax.apps.evaluations import published
from lite_jax.apps.evaluations.jobs import (
    OVER_TASKS,
    Job,
    Row,
    learner_of,
    names_to_run,
    settings_row,
)
from lite_jax.apps.evaluations.video_metrics import score_video, user_interval
from lite_jax.data.episodes import episode_rng
from lite_jax.data.orbit.protocol import User, draw_task, open_clips
from lite_jax.data.orbit.source import OrbitSource
from lite_jax.errors import UserError
from lite_jax.run import build_data, build_gradient
from lite_jax.run.evaluate import format_table
from lite_jax.run.metrics import interval
from lite_jax.run.predictor import Predictor
from lite_jax.run.settings import Settings
from lite_jax.types import Params

_TITLES = {
    "frame_accuracy": "frame accuracy",
    "frames_to_recognition": "frames to recognition",
    "video_accuracy": "video accuracy",
}


def plan_orbit(config: Settings, params: Params) -> list[Job]:
    """Return a job for each test task of each user.

    Raises:
        UserError: `data.dataset` is not ORBIT, or cannot be read.
    """
    if config.data.dataset != "orbit":
        raise UserError(
            f"benchmark.name=orbit needs data.dataset=orbit, not {config.data.dataset}"
        )
    source = build_data.make_sources(config)("test")
    assert isinstance(source, OrbitSource)
    count = config.benchmark.tasks_per_user or source.protocol.tasks_per_user["test"]
    users = {user.name: user for user in source.users}
    way = max(len(user.things) for user in source.users)
    chunk = build_gradient.checked_chunk_size(config)
    predictor = Predictor(learner_of(config, way), chunk, [chunk])
    protocol = f"{config.data.orbit_protocol}, {config.data.orbit_mode}"
    jobs = []
    for name in names_to_run(config, users):
        for number in range(count):
            title = f"{name}, task {number}"
            row = settings_row(config, title, protocol, source.spec.resize)
            row |= {"user": name, "filter": sorted(source.protocol.frame_filter)}
            run = functools.partial(
                _run_task, config, params, source, predictor, users[name], number
            )
            jobs.append(Job(title, row, run))
    return jobs


def _run_task(
    config: Settings,
    params: Params,
    source: OrbitSource,
    predictor: Predictor,
    user: User,
    number: int,
) -> Row:
    """Adapt to the context clips of a task, and return scores of its target videos."""
    rng = episode_rng(config.seed, f"benchmark.{user.name}", number)
    task = draw_task(user, source.protocol, rng)
    context = open_clips(task.context, source.spec)
    adapted = predictor.adapt(params, context, np.array(task.labels))
    videos = data.run_ahead(
        lambda video: open_clips(video.clips, source.spec),
        task.videos,
        depth=config.data.prefetch,
    )
    scores = {}
    for video, clips in zip(task.videos, videos, strict=True):
        video_scores = score_video(predictor.predict(adapted, clips), video.label)
        scores[video.name] = video_scores._asdict()
    return {"objects": task.things, "clips": len(task.context), "videos": scores}


def report_orbit(config: Settings, rows: Sequence[Row]) -> str:
    """Return the table of scores, with intervals over videos and over users."""
    flat = [(row["user"], video) for row in rows for video in row["videos"].values()]
    users = [user for user, _ in flat]
    settings = config.data
    key = (settings.orbit_protocol, settings.orbit_mode, config.learner)
    lines = []
    for name, title in _TITLES.items():
        values = [video[name] for _, video in flat]
        pooled, by_user = interval(values), user_interval(values, users)
        figure = published.ORBIT.get(key) if name == "frame_accuracy" else None
        paper = str(figure or "not verified")
        lines.append([title, pooled.percent(), by_user.percent(), paper])
    header = ["score", "over videos", "over users", "published, EN-B0, 224 px"]
    return "\n".join(
        [
            format_table(header, lines),
            f"{len(rows)} tasks of {len(set(users))} users, {len(flat)} videos; "
            f"protocol {rows[0]['protocol']}, resize {rows[0]['resize']}, seed "
            f"{config.seed}",
            f"over videos: {OVER_TASKS.replace('tasks', 'all videos')}, as published; "
            "a user's tasks share videos, so it is too narrow for what new users get",
            "over users: mean of users' means ± t(n-1) s/√n",
            "* from a secondary source",
        ]
    )
