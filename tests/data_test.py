"""Sources, episodes and loading; reads made-up files, and real ones where present."""

import functools
import logging
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lite_jax import UserError
from lite_jax.data import (
    ArraySource,
    EpisodeSpec,
    digits,
    folder,
    load_batch,
    load_task,
    omniglot_folder,
    random_affine,
    random_crop,
    rotated,
    run_ahead,
    sample_episode,
    synthetic,
)
from lite_jax.data.augment import make_augment, random_flip, random_jitter
from lite_jax.data.episodes import check_spec, episode_rng

REAL = Path(__file__).parents[2] / "shared" / "data"
needs_real_images = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"the real images are not at {REAL}"
)


def picture(path, size=(20, 12), mode="RGB", level=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    level = len(list(path.parent.iterdir())) * 20 if level is None else level
    colour = level if len(mode) == 1 else (level,) * len(mode)
    Image.new(mode, size, colour).save(path, **options)


def class_folders(root, classes, images=3):
    for name in classes:
        for i in range(images):
            picture(root / name / f"{i}.png")
    return root


# ------------------------------------------------------------------------ sources


@pytest.mark.parametrize(
    "source",
    [digits("train"), digits("test", 28), synthetic("valid", 20, channels=1),
     rotated(synthetic("train", 16))],
    ids=["digits", "digits 28", "synthetic", "rotated"],
)  # fmt: skip
def test_source_keeps_the_protocol(source):
    assert (
        len(source.class_names)
        == len(source.class_sizes)
        == len(set(source.class_names))
    )
    for label in (0, len(source.class_names) - 1):
        last = source.class_sizes[label] - 1
        images = source.read(label, [0, last, 0])
        assert images.shape == (3, *source.image_shape) and images.dtype == np.uint8
        np.testing.assert_array_equal(images[0], images[2])
        assert (images[0] != images[1]).any() and images[0].std() > 5


def test_digits_splits_share_no_image_and_test_no_class():
    train, valid, test = (digits(s) for s in ("train", "valid", "test"))
    assert train.class_names == valid.class_names
    assert not set(train.class_names) & set(test.class_names)
    total = sum(sum(s.class_sizes) for s in (train, valid, test))
    assert total == 1797


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load_digits()
    first_one = data.images[data.target == 1][0]
    np.testing.assert_array_equal(
        digits("test", image_size=8).read(0, [0])[0, :, :, 0],
        np.rint(first_one * 255 / 16),
    )


def test_synthetic_classes_differ_and_splits_are_disjoint():
    train, test = synthetic("train", 24), synthetic("test", 24)
    assert not set(train.class_names) & set(test.class_names)
    means = [train.read(c, range(30)).mean((0, 3)) for c in range(3)]
    assert np.abs(means[0] - means[1]).mean() > 5
    np.testing.assert_array_equal(
        train.read(3, [7]), synthetic("train", 24).read(3, [7])
    )
    assert (train.read(3, [7]) != synthetic("train", 24, seed=1).read(3, [7])).any()


def test_rotation_adds_each_class_turned():
    plain = synthetic("train", 16, num_classes=3)
    source = rotated(plain)
    assert len(source.class_names) == 12
    for turn in range(4):
        expected = np.rot90(plain.read(1, [4])[0], turn)
        np.testing.assert_array_equal(source.read(1 + 3 * turn, [4])[0], expected)


def test_rotation_needs_square_images():
    source = ArraySource(["a"], [np.zeros((2, 4, 5, 1), np.uint8)])
    with pytest.raises(UserError, match="square images, got 4 × 5"):
        rotated(source)


def test_rotation_is_not_for_clips():
    clips = types.SimpleNamespace(image_shape=(8, 16, 16, 3))
    with pytest.raises(UserError, match="not clips: set it to False"):
        rotated(clips)


@pytest.mark.parametrize("make", [digits, synthetic])
def test_unknown_split_is_named(make):
    with pytest.raises(UserError, match="unknown split 'tests'; did you mean 'test'"):
        make("tests")


# ------------------------------------------------------------------------ folders


def test_split_folders_are_used_as_they_are(tmp_path):
    for split, names in {"train": ["b", "a"], "val": ["c"], "test": ["d"]}.items():
        class_folders(tmp_path / split, names)
    assert folder(tmp_path, "train", 8).class_names == ["a", "b"]
    assert folder(tmp_path, "valid", 8).class_names == ["c"]
    assert folder(tmp_path, "test", 8).class_sizes == [3]


def test_classes_side_by_side_are_split_once_and_for_all(tmp_path):
    class_folders(tmp_path, [f"c{i}" for i in range(10)])
    splits = {s: folder(tmp_path, s, 8).class_names for s in ("train", "valid", "test")}
    assert {s: len(x) for s, x in splits.items()} == {"train": 6, "valid": 2, "test": 2}
    assert len(set().union(*splits.values())) == 10
    assert folder(tmp_path, "train", 8).class_names == splits["train"]


@pytest.mark.parametrize("count", [6, 7, 8, 9, 11, 40])
def test_every_split_has_two_classes_or_more(tmp_path, count):
    class_folders(tmp_path, [f"c{i}" for i in range(count)], images=1)
    splits = [folder(tmp_path, s, 8).class_names for s in ("train", "valid", "test")]
    assert min(map(len, splits)) >= 2
    assert len(set().union(*splits)) == sum(map(len, splits)) == count


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_photographs_are_upright_rgb_squares(tmp_path, cache_gb):
    for name in ("train/a", "valid/b", "test/c"):
        exif = Image.Exif()
        exif[0x0112] = 6  # stored on its side
        image = Image.new("RGB", (20, 10), (0, 0, 0))
        image.paste((200, 100, 50), (0, 0, 10, 10))  # left half, which belongs on top
        (tmp_path / name).mkdir(parents=True)
        image.save(tmp_path / name / "1.JPG", exif=exif, quality=100, subsampling=0)
    found = folder(tmp_path, "train", 8, cache_gb=cache_gb).read(0, [0])[0]
    assert found.shape == (8, 8, 3)
    np.testing.assert_allclose(found[1, 4], (200, 100, 50), atol=4)
    np.testing.assert_allclose(found[6, 4], (0, 0, 0), atol=4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    for name in ("train/a", "valid/b", "test/c"):
        picture(tmp_path / name / f"1.{suffix}", mode=mode, level=1)
    assert folder(tmp_path, "train", 8).read(0, [0]).shape == (1, 8, 8, 3)


def test_unreadable_images_are_named_counted_and_skipped(tmp_path, caplog):
    class_folders(tmp_path / "train", ["a", "b"], images=4)
    whole = tmp_path / "train/a/whole.jpg"
    picture(whole, size=(64, 64))
    (tmp_path / "train/a/cut.jpg").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "train/b/empty.png").touch()
    (tmp_path / "train/b/text.png").write_text("not an image")
    (tmp_path / "train/b/notes.txt").write_text("ignored")
    with caplog.at_level(logging.WARNING):
        source = folder(tmp_path, "train", 8)
    assert source.class_sizes == [5, 4]
    assert "skipped 3 unreadable of 12 images" in caplog.text
    assert all(name in caplog.text for name in ("cut.jpg", "empty.png", "text.png"))


def test_class_of_unreadable_images_is_refused(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"])
    for path in (tmp_path / "train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class 'b': none of its 3 images can be read"):
        folder(tmp_path, "train", 8)


def test_unreadable_image_of_a_set_too_large_to_cache_is_replaced(tmp_path, caplog):
    class_folders(tmp_path / "train", ["a", "b"])
    (tmp_path / "train/a/2.png").write_bytes(b"")
    source = folder(tmp_path, "train", 8, cache_gb=0.0)
    with caplog.at_level(logging.WARNING):
        images = source.read(0, [0, 1, 2])
        np.testing.assert_array_equal(images, source.read(0, [0, 1, 2]))
    np.testing.assert_array_equal(images[2], images[0])
    assert (images[1] != images[0]).any()
    assert caplog.text.count("skipped unreadable") == 1 and "2.png" in caplog.text
    for path in (tmp_path / "train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class 'b': none of its 3 images can be read"):
        source.read(1, [1])


def test_decompression_bomb_is_unreadable(tmp_path, monkeypatch, caplog):
    class_folders(tmp_path / "train", ["a"])
    picture(tmp_path / "train/a/large.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with caplog.at_level(logging.WARNING):
        assert folder(tmp_path, "train", 8).class_sizes == [3]
    assert "large.png" in caplog.text


def test_folders_that_cannot_serve_are_explained(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="holds 0 classes"):
        folder(tmp_path, "train")
    class_folders(tmp_path / "three", "abc")
    with pytest.raises(UserError, match="holds 3 classes; .* takes 6 or more"):
        folder(tmp_path / "three", "train")
    class_folders(tmp_path / "no_valid/train", "ab")
    with pytest.raises(UserError, match="no 'valid' folder"):
        folder(tmp_path / "no_valid", "valid")
    (tmp_path / "empty_class/train/a").mkdir(parents=True)
    with pytest.raises(UserError, match="no images for 'train'"):
        folder(tmp_path / "empty_class", "train")
    class_folders(tmp_path / "empty_class/train", "b")
    with pytest.raises(UserError, match="class 'a' has no images"):
        folder(tmp_path / "empty_class", "train")


# ----------------------------------------------------------------------- omniglot


def drawings(root, alphabets, inverted=False):
    for alphabet in alphabets:
        for character in ("character01", "character02"):
            for drawer in range(3):
                path = root / alphabet / character / f"0001_{drawer:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("1", (105, 105), 0 if inverted else 1)
                image.paste(1 if inverted else 0, (10 + drawer, 10, 40, 40))
                image.save(path)


def test_omniglot_classes_are_alphabet_and_character(tmp_path):
    drawings(tmp_path / "one", ["Greek", "Latin"])
    drawings(tmp_path / "two", ["Greek", "Tagalog"])
    names = omniglot_folder(tmp_path / "one").class_names
    assert names[0] == "Greek/character01" and len(names) == 4
    assert omniglot_folder(tmp_path / "one", alphabets=["Latin"]).class_sizes == [3, 3]
    left = omniglot_folder(tmp_path / "two", without=tmp_path / "one").class_names
    assert left == ["Tagalog/character01", "Tagalog/character02"]
    with pytest.raises(UserError, match="'Greec'; did you mean 'Greek'"):
        omniglot_folder(tmp_path / "one", alphabets=["Greec"])
    with pytest.raises(UserError, match="no images"):
        omniglot_folder(tmp_path / "one", without=tmp_path / "one")


def test_ink_is_bright_whatever_the_polarity_of_the_files(tmp_path):
    drawings(tmp_path / "dark_ink", ["Greek"])
    drawings(tmp_path / "bright_ink", ["Greek"], inverted=True)
    dark = omniglot_folder(tmp_path / "dark_ink").read(0, [0, 1])
    assert (
        dark.shape == (2, 28, 28, 1) and dark[0, 6, 6] == 255 and dark[0, 20, 20] == 0
    )
    bright = omniglot_folder(tmp_path / "bright_ink").read(0, [0, 1])
    np.testing.assert_array_equal(dark, bright)


@pytest.mark.parametrize("cache_gb", [2.0, 0.0])
def test_drawings_keep_their_number_and_their_share_of_ink(tmp_path, cache_gb):
    """Drawer d's ink is (30 − d) × 30 of 105 × 105 pixels."""
    drawings(tmp_path / "small1", ["Greek", "Latin"])
    drawings(tmp_path / "small2", ["Greek", "Tagalog", "Tifinagh"])
    options = {"without": tmp_path / "small1", "cache_gb": cache_gb}
    new = omniglot_folder(tmp_path / "small2", **options)
    assert len(new.class_names) == 4 and set(new.class_sizes) == {3}
    for label in range(4):
        ink = new.read(label, range(3)).mean((1, 2, 3)) / 255
        expected = (30 - np.arange(3)) * 30 / 105**2
        np.testing.assert_allclose(ink, expected, rtol=0.01)


@needs_real_images
def test_real_omniglot_has_its_known_size():
    """Its own files in its own layout, beside the made ones above."""
    first, second = (REAL / f"omniglot/images_background_small{i}" for i in (1, 2))
    small1 = omniglot_folder(first, cache_gb=0.0)
    assert len(small1.class_names) == 136 and set(small1.class_sizes) == {20}
    new = omniglot_folder(second, without=first, cache_gb=0.0)
    assert len(new.class_names) == 156 - 50
    ink = np.mean([new.read(c, range(20)).mean() / 255 for c in range(10)])
    assert 0.03 < ink < 0.15


@pytest.mark.parametrize("cache_gb", [2.0, 0.0])
def test_photographs_of_all_sizes_keep_their_class_and_place(tmp_path, cache_gb):
    sizes = {"train": 4, "valid": 2, "test": 3}
    for split, classes in sizes.items():
        for label in range(classes):
            for i in range(3):
                path = tmp_path / split / f"{split}{label}" / f"{i}.jpg"
                size = 30 + 7 * i, 40 - 5 * label
                picture(path, size, level=40 * i + 10 * label, quality=95)
    for split, classes in sizes.items():
        source = folder(tmp_path, split, 16, cache_gb=cache_gb)
        assert source.class_names == [f"{split}{label}" for label in range(classes)]
        assert list(source.class_sizes) == [3] * classes
        for label in range(classes):
            levels = source.read(label, [2, 0, 1]).mean((1, 2, 3))
            expected = np.array([80, 0, 40]) + 10 * label
            np.testing.assert_allclose(levels, expected, atol=2)


@needs_real_images
def test_real_photographs_have_their_known_size():
    """A camera's own JPEGs, beside the made ones above."""
    sizes = {"train": 40, "valid": 8, "test": 12}
    for split, classes in sizes.items():
        source = folder(REAL / "caltech101", split, 16, cache_gb=0.0)
        assert len(source.class_names) == classes
    assert source.read(0, [0, 1]).std() > 20


# ----------------------------------------------------------------------- episodes

SPEC = EpisodeSpec(way=(3, 6), shot=(1, 5), query=4, max_support=20)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(5, 30), min_size=6, max_size=12),
    way=st.tuples(st.integers(2, 6), st.integers(2, 6)).map(sorted).map(tuple),
    shot=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(sorted).map(tuple),
    query=st.integers(1, 4),
    limit=st.none() | st.integers(6, 40),
    seed=st.integers(0, 2**32),
)
def test_episode_is_within_its_spec(sizes, way, shot, query, limit, seed):
    spec = EpisodeSpec(way, shot, query, limit)
    episode = sample_episode(sizes, spec, np.random.default_rng(seed))
    assert way[0] <= len(episode.classes) <= way[1]
    assert len(set(episode.classes)) == len(episode.classes)
    total = sum(map(len, episode.support))
    assert total <= spec.support_size
    for c, support, query_rows in zip(*episode, strict=True):
        assert 1 <= len(support) <= shot[1] and len(query_rows) == query
        if limit is None:
            assert len(support) >= min(shot[0], sizes[c] - query)
        drawn = np.concatenate([support, query_rows])
        assert len(set(drawn)) == len(drawn) and drawn.max() < sizes[c]


def test_ways_shots_and_classes_are_uniform():
    episodes = [
        sample_episode([9] * 10, EpisodeSpec((2, 4), (1, 3), 2), episode_rng(0, "t", i))
        for i in range(3000)
    ]

    def frequencies(values, count):
        return np.bincount(values, minlength=count) / len(values)

    ways = frequencies([len(e.classes) for e in episodes], 5)
    np.testing.assert_allclose(ways[2:], 1 / 3, atol=0.035)
    shots = frequencies([len(s) for e in episodes for s in e.support], 4)
    np.testing.assert_allclose(shots[1:], 1 / 3, atol=0.025)
    classes = frequencies(np.concatenate([e.classes for e in episodes]), 10)
    np.testing.assert_allclose(classes, 0.1, atol=0.015)
    rows = frequencies(np.concatenate([e.query[0] for e in episodes]), 9)
    np.testing.assert_allclose(rows, 1 / 9, atol=0.02)


def tasks_equal(first, second):
    return all(
        np.array_equal(a, b)
        for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )  # fmt: skip


def test_task_is_a_pure_function_of_seed_stream_and_index():
    source = synthetic("train", 8)

    def load(*where):
        return load_task(source, SPEC, *where)

    assert tasks_equal(load(3, "train", 9), load(3, "train", 9))
    for other in [(4, "train", 9), (3, "valid", 9), (3, "train", 10)]:
        assert not tasks_equal(load(3, "train", 9), load(*other))


def test_task_holds_the_episode_padded():
    source = synthetic("train", 8)
    for index in range(20):
        task = load_task(source, SPEC, 0, "train", index)
        episode = sample_episode(
            source.class_sizes, SPEC, episode_rng(0, "train", index)
        )
        assert task.support.inputs.shape == (20, 8, 8, 3)
        assert task.query.inputs.shape == (24, 8, 8, 3)
        for examples, parts in [(task.support, episode[1]), (task.query, episode[2])]:
            count = sum(map(len, parts))
            assert examples.mask.tolist() == [
                i < count for i in range(len(examples.mask))
            ]
            expected = np.concatenate(
                [source.read(c, p) for c, p in zip(episode.classes, parts, strict=True)]
            )
            np.testing.assert_array_equal(examples.inputs[:count], expected)
            assert not examples.inputs[count:].any()
            sizes = np.bincount(examples.labels[:count])
            assert sizes.tolist() == [len(p) for p in parts]


@pytest.mark.parametrize("channels", [1, 3])
def test_affine_distorts_about_half_of_the_images_a_little(channels):
    images = np.zeros((400, 28, 28, channels), np.uint8)
    images[:, 12:16, 12:16] = 255  # a square on the centre
    found = random_affine(images, np.random.default_rng(0))
    assert found.shape == images.shape and found.dtype == np.uint8
    changed = found[(found != images).any((1, 2, 3))][:, :, :, 0].astype(float)
    assert 0.4 < len(changed) / 400 < 0.6
    weights = changed / changed.sum((1, 2), keepdims=True)
    for axis in np.mgrid[:28, :28]:
        centre = (weights * axis).sum((1, 2))
        # Shifts within 7 % of 28 pixels, stretched by up to 1 + 0.3 over 0.8.
        assert abs(centre - 13.5).max() < 0.07 * 28 * 1.3 / 0.8 + 0.1
        assert abs(centre.mean() - 13.5) < 0.3 and centre.std() > 0.5
    area = changed.sum((1, 2)) / (16 * 255)
    # Scales in [0.8, 1.2] along both axes; shears change areas by 1 ± 0.09.
    assert 0.5 < area.min() < 0.9 and 1.1 < area.max() < 1.7


def test_augmented_task_is_pure_too():
    source = synthetic("train", 8)
    tasks = [
        load_task(source, SPEC, 0, "train", 5, augment=random_affine) for _ in range(2)
    ]
    assert tasks_equal(*tasks)
    plain = load_task(source, SPEC, 0, "train", 5)
    assert not tasks_equal(tasks[0], plain)
    assert np.array_equal(tasks[0].support.labels, plain.support.labels)
    assert not tasks[0].support.inputs[~plain.support.mask].any()


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"way": (5, 30), "max_support": None},
            r"e\.way=30 is more than the 20 classes",
        ),
        ({"way": (1, 5)}, r"e\.way=1,5: expected .* 2 ≤ least"),
        ({"way": (5, 4)}, r"e\.way=5,4"),
        ({"shot": (0, 5)}, r"e\.shot=0,5"),
        ({"query": 0}, r"e\.query=0"),
        ({"shot": (39, 39)}, r"class 'pattern 0' has 40 images, too few .*\(43\)"),
        ({"max_support": 4}, r"e\.max_support=4 is under one image a class"),
    ],
)
def test_spec_that_cannot_be_served_is_explained(changes, message):
    with pytest.raises(UserError, match=message):
        check_spec("e", SPEC._replace(**changes), synthetic("train", 8))


def test_spec_phrases():
    assert SPEC.describe() == "3–6-way 1–5-shot"
    assert SPEC._replace(way=(5, 5), shot=(1, 1)).describe() == "5-way 1-shot"
    assert (SPEC.support_size, SPEC.query_size, SPEC.least_support) == (20, 24, 3)


# ------------------------------------------------------------------------ loading


def test_results_come_in_order_and_ahead_but_not_far():
    """What is taken to be made is what may be held: `depth` beyond the result asked."""
    taken, made = [], [threading.Event() for _ in range(100)]
    together = threading.Barrier(3, timeout=60)

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    def make(item):
        if item < 3:
            together.wait()  # three workers are at it at the same time
        made[item].set()
        return item**2

    results = run_ahead(make, items(), depth=3, workers=3)
    for item in range(5):
        assert next(results) == item**2
        assert taken == list(range(item + 1 + 3))
        assert all(event.wait(60) for event in made[: item + 1 + 3])  # unasked
    assert list(results) == [i**2 for i in range(5, 100)]


def test_exception_of_a_worker_is_raised_in_turn():
    def make(item):
        if item == 2:
            raise UserError("cannot read image 2")
        return item

    results = run_ahead(make, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="cannot read image 2"):
        next(results)


def test_closing_stops_the_workers():
    before = threading.active_count()
    results = run_ahead(lambda i: i, iter(int, 1))
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_keep_size_and_mirror_half(channels):
    ramp = np.linspace(40, 200, 32).astype(np.uint8)  # bright on the right
    images = np.broadcast_to(ramp[None, None, :, None], (300, 32, 32, channels))
    found = random_crop(images, np.random.default_rng(0))
    assert found.shape == images.shape and found.dtype == np.uint8
    slopes = found[:, :, -1].astype(float).mean((1, 2)) - found[:, :, 0].mean((1, 2))
    assert 0.4 < (slopes < 0).mean() < 0.6
    # A crop of width w of 32 keeps w/32 of the slope, times a contrast in [0.7, 1.3].
    kept = abs(slopes) / 160
    assert (
        0.7 * (0.35 * 0.75) ** 0.5 - 0.05 < kept.min() < 0.6 < 0.9 < kept.max() < 1.35
    )
    whole = found.astype(float).mean((1, 2, 3))
    assert whole.std() > 10  # brightness and place vary


def test_flips_mirror_half_of_the_images_and_nothing_else():
    images = synthetic("train", 12).read(0, range(200))
    flipped = random_flip(images, np.random.default_rng(0))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / 200)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_changes_light_and_colour_within_its_ranges(channels):
    level, rng = 100, np.random.default_rng(0)
    flat = np.full((300, 4, 4, channels), level, np.uint8)
    lit = random_jitter(flat, rng)[:, 0, 0, 0] / level
    assert lit.min() >= 0.59 and lit.max() <= 1.41 and np.ptp(lit) > 0.7
    halves = flat.copy()
    halves[:, :2] = 60
    spread = np.ptp(random_jitter(halves, rng).astype(float), axis=(1, 2, 3)) / 40
    assert 0.3 < spread.min() < 0.6 and 1.4 < spread.max() < 2.1  # contrast × light


def test_saturation_leaves_grey_alone_and_varies_colour():
    red = np.zeros((300, 2, 2, 3), np.uint8)
    red[..., 0], red[..., 1], red[..., 2] = 150, 100, 100
    found = random_jitter(red, np.random.default_rng(0))[:, 0, 0].astype(float)
    colourful = (found[:, 0] - found[:, 1]) / found.mean(1)
    assert np.ptp(colourful) > 0.2
    assert np.abs(found[:, 1] - found[:, 2]).max() <= 1


def test_augmentations_follow_one_another_by_name():
    images = synthetic("train", 12).read(0, range(20))
    assert make_augment("none") is None
    both = make_augment("flip, jitter")(images, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(both, random_jitter(random_flip(images, rng), rng))
    with pytest.raises(UserError, match="unknown augment 'flop'; did you mean"):
        make_augment("crop,flop")


def test_batches_of_an_epoch_hold_every_image_once_under_its_own_label():
    images = [np.full((n, 2, 2, 1), 10 * c, np.uint8) for c, n in enumerate((3, 5, 4))]
    for group in images:
        group += np.arange(len(group), dtype=np.uint8)[:, None, None, None]
    source = ArraySource(["a", "b", "c"], images)
    for epoch in (0, 1):
        tasks = [load_batch(source, 4, 7, "train", 3 * epoch + i) for i in range(3)]
        pixels = np.concatenate([t.query.inputs[:, 0, 0, 0] for t in tasks])
        labels = np.concatenate([t.query.labels for t in tasks])
        assert sorted(pixels) == sorted(np.concatenate(images)[:, 0, 0, 0])
        np.testing.assert_array_equal(labels, pixels // 10)
        assert all(len(t.support.mask) == 0 and t.query.mask.all() for t in tasks)


def test_batches_are_pure_and_differ_between_epochs():
    source = synthetic("train", 8)
    batch = functools.partial(load_batch, source, 16, 0, "train")
    assert tasks_equal(batch(3), batch(3))
    per_epoch = sum(source.class_sizes) // 16
    assert not tasks_equal(batch(0), batch(per_epoch))
    assert tasks_equal(batch(5, augment=random_crop), batch(5, augment=random_crop))
    assert not tasks_equal(batch(5, augment=random_crop), batch(5))


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_batch_larger_than_the_set_is_refused(size):
    with pytest.raises(UserError, match=f"^size={size}: expected 1 to"):
        load_batch(synthetic("train", 8), size, 0, "train", 0)
