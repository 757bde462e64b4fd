"""ORBIT's users, clips, protocols, padded tasks and scores."""

import jax
import numpy as np
import pytest
from learners import filled, first_blocks
from made_orbit import orbit, write_video

from lite_jax import UserError, nn
from lite_jax.apps.evaluations.video_metrics import score_video, user_interval
from lite_jax.data import EpisodeSpec, ImageSpec, load_task, synthetic
from lite_jax.data.episodes import check_spec, episode_rng
from lite_jax.data.orbit.protocol import (
    ORBIT_PROTOCOLS,
    ClipRule,
    draw_task,
    open_clips,
    read_users,
    take_clips,
)
from lite_jax.data.orbit.source import OrbitSource, OrbitSpec
from lite_jax.run.metrics import interval

NEW, OLD = ORBIT_PROTOCOLS["2022"], ORBIT_PROTOCOLS["2021"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return orbit(tmp_path_factory.mktemp("orbit"))


def rng(number=0):
    return np.random.default_rng(number)


# -------------------------------------------------------------------------- clips


def test_uniform_clips_start_at_every_thirtieth_frame():
    clips = take_clips(range(95), ClipRule("uniform", 200), 1, rng())
    assert clips == [(0,), (30,), (60,), (90,)]
    clips = take_clips(range(95), ClipRule("uniform", 3), 4, rng())
    assert clips == [(0, 1, 2, 3), (30, 31, 32, 33), (60, 61, 62, 63)]
    assert take_clips(range(62), ClipRule("uniform", 9), 4, rng())[-1] == (
        60,
        61,
        61,
        61,
    )


@pytest.mark.parametrize("length", [1, 8])
def test_random_clips_are_neighbouring_frames_that_do_not_overlap(length):
    for seed in range(20):
        clips = take_clips(range(50), ClipRule("random", 4), length, rng(seed))
        assert len(clips) == 4 and clips == sorted(clips)
        for clip in clips:  # numbers of frames, not of clips
            assert list(clip) == list(range(clip[0], clip[0] + length))
        frames = [frame for clip in clips for frame in clip]
        assert len(set(frames)) == 4 * length and max(frames) < 50
    starts = {
        clip[0]
        for seed in range(200)
        for clip in take_clips(range(50), ClipRule("random", 4), length, rng(seed))
    }
    assert len(starts) == 50 // length


def test_the_number_of_random_clips_may_be_drawn():
    rule = ClipRule("random", 5, vary=True)
    counts = {len(take_clips(range(50), rule, 1, rng(i))) for i in range(100)}
    assert counts == {1, 2, 3, 4, 5}


def test_a_history_ends_with_its_frame_and_begins_with_the_first():
    clips = take_clips(range(6), ClipRule("history", 5), 3, rng())
    assert clips == [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)]


def test_a_video_shorter_than_a_clip_is_filled_with_its_last_frame():
    assert take_clips(range(3), ClipRule("random", 4), 5, rng()) == [(0, 1, 2, 2, 2)]


# -------------------------------------------------------------------------- users


def test_users_objects_and_videos_are_those_on_disk(root):
    users = read_users(root, "test", NEW)
    assert [(u.name, len(u.things)) for u in users] == [
        ("P000", 3), ("P001", 2), ("P002", 4),
    ]  # fmt: skip
    thing = users[0].things[1]
    assert thing.name == "object1"
    assert [len(v.frames) for v in thing.context] == [64, 67, 70]
    assert [v.name for v in thing.target] == [
        "P000--object1--clutter--0000", "P000--object1--clutter--0001",
    ]  # fmt: skip


def test_frames_without_the_object_are_no_targets_but_context(root):
    thing = read_users(root, "test", NEW)[0].things[0]
    assert [i for i, on in enumerate(thing.target[0].shown, 1) if not on] == [2, 3]
    assert all(thing.context[0].shown)
    assert all(read_users(root, "test", OLD)[0].things[0].target[0].shown)


def test_target_videos_with_few_frames_left_are_left_out(tmp_path):
    for thing in ("mug", "key"):
        write_video(tmp_path, "test", "P1", thing, "clean", 0, 12, 1)
        write_video(tmp_path, "test", "P1", thing, "clutter", 0, 52, 1, absent=(1, 2))
        write_video(tmp_path, "test", "P1", thing, "clutter", 1, 51, 1, absent=(1, 2))
    (user,) = read_users(tmp_path, "test", NEW)
    assert [len(t.target) for t in user.things] == [1, 1]
    assert [len(t.target) for t in read_users(tmp_path, "test", OLD)[0].things] == [
        2,
        2,
    ]


@pytest.mark.parametrize("clean,context,target", [(2, 1, 1), (5, 4, 1), (8, 5, 3)])
def test_clean_videos_serve_as_targets_after_the_first_five(
    tmp_path, clean, context, target
):
    for thing in ("mug", "key"):
        for v in range(clean):
            write_video(tmp_path, "test", "P1", thing, "clean", v, 60, 1)
    (user,) = read_users(tmp_path, "test", NEW, "clean")
    for thing in user.things:
        assert (len(thing.context), len(thing.target)) == (context, target)
        names = [v.name for v in (*thing.context, *thing.target)]
        assert names == sorted(set(names))


def test_users_of_one_object_are_left_out_and_counted(tmp_path, caplog):
    orbit(tmp_path, users=(1, 3, 1))
    assert [u.name for u in read_users(tmp_path, "test", NEW)] == ["P001"]
    assert "left out 2 of 3 users" in caplog.text and "P000, P002" in caplog.text


def test_roots_that_are_not_orbit_are_explained(root, tmp_path):
    with pytest.raises(UserError, match="validation is missing: unpack"):
        read_users(tmp_path, "valid", NEW)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no user with two objects or more"):
        read_users(tmp_path, "test", NEW)
    with pytest.raises(UserError, match="unknown orbit_mode 'cluter'; did you"):
        read_users(root, "test", NEW, "cluter")
    with pytest.raises(UserError, match="no such folder"):
        read_users(tmp_path / "no", "test", NEW)


def test_annotations_that_are_missing_or_wrong_are_named(tmp_path):
    orbit(tmp_path, users=(2,), clutter=1)
    path = tmp_path / "annotations/test/P000--object0--clutter--0000.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="does not describe every frame"):
        read_users(tmp_path, "test", NEW)
    path.unlink()
    with pytest.raises(UserError, match="orbit_filter=none"):
        read_users(tmp_path, "test", NEW)
    assert read_users(tmp_path, "test", NEW._replace(frame_filter=()))


# -------------------------------------------------------------------------- tasks


def test_test_tasks_have_all_objects_and_videos(root):
    user = read_users(root, "test", NEW)[2]
    task = draw_task(user, NEW, rng())
    assert task.things == ["object0", "object1", "object2", "object3"]
    assert len(task.videos) == 8 and {v.label for v in task.videos} == {0, 1, 2, 3}
    # Every 30th of 64, 67 and 70 frames: three clips a video, three videos an object.
    assert np.bincount(task.labels).tolist() == [9] * 4
    for video in task.videos:
        shown = 62 if video.name.endswith("0") else 65
        assert len(video.clips) == shown and {len(c) for c in video.clips} == {1}


def test_test_tasks_of_2021_have_clips_of_eight_and_histories(root):
    task = draw_task(read_users(root, "test", OLD)[1], OLD, rng())
    assert np.bincount(task.labels).tolist() == [24, 24]  # 8 clips of 3 videos
    for video in task.videos:
        assert len(video.clips) in (64, 67) and {len(c) for c in video.clips} == {8}


def test_training_tasks_draw_objects_and_videos(root):
    user = read_users(root, "train", NEW)[2]
    ways, videos = set(), set()
    for i in range(60):
        task = draw_task(user, NEW, rng(i), way=(2, 3))
        ways.add(len(task.things))
        videos.add(len(task.videos) / len(task.things))
        names = {clip[0].parent.parent.name for clip in task.context}
        assert names == {"clean"}
    assert ways == {2, 3} and {1.0, 2.0} <= videos


def source_of(root, split="train", protocol=NEW):
    return OrbitSource(read_users(root, split, protocol), protocol, ImageSpec(8))


@pytest.mark.parametrize("protocol", [NEW, OLD], ids=["2022", "2021"])
def test_padded_tasks_are_pure_and_hold_clips(root, protocol):
    source = source_of(root, protocol=protocol)
    spec = OrbitSpec((2, 4), 20, 30)
    task, again = (load_task(source, spec, 0, "train", 5) for _ in range(2))
    for a, b in zip((*task.support, *task.query), (*again.support, *again.query),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    assert task.support.inputs.shape == (20, protocol.clip_length, 8, 8, 3)
    assert task.query.inputs.shape[0] == 30
    for examples in task:
        labels = examples.labels[examples.mask]
        assert set(labels) == set(range(labels.max() + 1))  # none was dropped whole
        levels = examples.inputs[examples.mask].mean((1, 2, 3, 4))
        for label in set(labels):  # an object has one brightness
            assert np.ptp(levels[labels == label]) < 15


def test_every_user_has_fifty_tasks_an_epoch(root):
    source = source_of(root)
    seen = []
    original = draw_task

    def spy(user, *args, **options):
        seen.append(user.name)
        return original(user, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lite_jax.data.orbit.source.draw_task", spy)
        for i in range(150):
            source.load_task(OrbitSpec((2, 2), 4, 4), 0, "train", i)
    assert {name: seen.count(name) for name in seen} == dict.fromkeys(
        ["P000", "P001", "P002"], 50
    )
    assert seen != sorted(seen)


def test_augmentation_keeps_the_shape_of_clips(root):
    source = source_of(root, protocol=OLD)
    spec = OrbitSpec((2, 2), 4, 4)
    plain = load_task(source, spec, 0, "train", 0)
    dark = load_task(source, spec, 0, "train", 0, augment=lambda x, rng: x // 2)
    np.testing.assert_array_equal(dark.support.inputs, plain.support.inputs // 2)


def test_specs_and_sources_must_belong_together(root):
    source = source_of(root)
    check_spec("train.episode", OrbitSpec((2, 4)), source)
    with pytest.raises(UserError, match="max_support=3 is under one clip an object"):
        check_spec("train.episode", OrbitSpec((2, 4), 3), source)
    with pytest.raises(UserError, match="config variant orbit"):
        check_spec("train.episode", EpisodeSpec((2, 2), (1, 1), 1), source)
    with pytest.raises(UserError, match="set dataset=orbit"):
        check_spec("train.episode", OrbitSpec((2, 4)), synthetic("train"))


def test_an_unreadable_frame_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.jpg cannot be read"):
        open_clips([(tmp_path / "x.jpg",)], ImageSpec(8))


def test_a_clips_features_are_the_mean_of_its_frames():
    frames = first_blocks(nn.conv4(8), 1)
    clips = nn.over_clips(frames)
    inputs = rng().integers(0, 256, (5, 3, 16, 16, 3)).astype(np.uint8)
    spec = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    params = filled(
        jax.eval_shape(lambda key: clips.init(key, spec), jax.random.key(0))
    )
    apply = jax.jit(frames.apply)
    each = [np.asarray(apply(params, inputs[:, i])) for i in range(3)]
    found = jax.jit(clips.apply)(params, inputs)
    np.testing.assert_allclose(found, sum(each) / 3, rtol=1e-4, atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 0.1


# ------------------------------------------------------------------------- scores


def test_scores_of_a_video():
    assert score_video([0, 0, 1, 1, 1], 1) == (0.6, 0.4, 1.0)
    assert score_video([2, 2, 2], 1) == (0.0, 1.0, 0.0)  # never recognised
    assert score_video([1, 1, 1], 1) == (1.0, 0.0, 1.0)
    # Of two labels with as many frames the lower one is the vote.
    assert score_video([3, 1, 1, 3], 1).video_accuracy == 1.0
    assert score_video([3, 1, 1, 3], 3).video_accuracy == 0.0


def test_the_interval_over_users_covers_and_the_pooled_one_does_not():
    """Users differ; 50 tasks of each on the same videos add nothing about users."""
    generator, inside = rng(), {"users": 0, "videos": 0}
    for _ in range(400):
        skill = generator.normal(0.65, 0.1, 17)
        scores = np.repeat(skill, 60) + generator.normal(0, 0.1, 17 * 60)
        users = np.repeat(np.arange(17), 60).astype(str)
        for name, found in (
            ("users", user_interval(scores, users)), ("videos", interval(scores)),
        ):  # fmt: skip
            inside[name] += abs(found.mean - 0.65) < found.half_width
    assert abs(inside["users"] / 400 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    assert inside["videos"] / 400 < 0.5


def test_users_count_alike_however_many_videos_they_have():
    found = user_interval([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
    assert found.mean == 0.5 and found.num_tasks == 2
    assert user_interval([0.5], ["a"]).half_width == float("inf")


def test_streams_of_a_benchmark_differ_from_task_to_task(root):
    user = read_users(root, "test", NEW)[0]
    protocol = NEW._replace(test=(NEW.test[0], ClipRule("random", 5)))
    tasks = [
        draw_task(user, protocol, episode_rng(0, "benchmark", number)).videos[0].clips
        for number in (0, 1, 0)
    ]
    assert tasks[0] == tasks[2] != tasks[1]
