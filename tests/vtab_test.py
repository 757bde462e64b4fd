"""VTAB's 18 tasks: label rules, splits of both protocols, three layouts."""

import json

import numpy as np
import pytest
from made_records import made_image
from made_tfds import as_tfrecord
from made_vtab import SUPPORT, features_of, vtab
from PIL import Image

from lite_jax import UserError
from lite_jax.data import ImageSpec
from lite_jax.data.readers.prepared import PreparedSplit, find_prepared
from lite_jax.data.vtab.rules import (
    GROUPS,
    RULES,
    VTAB,
    clevr_count,
    clevr_distance,
    dsprites_location,
    dsprites_orientation,
    kitti_distance,
)
from lite_jax.data.vtab.tasks import vtab_task


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = vtab(tmp_path_factory.mktemp("vtab"))
    vtab(made, ["diabetic_retinopathy_detection/original"])
    as_tfrecord(find_prepared(made, "kitti"))
    as_tfrecord(find_prepared(made, "dmlab"))
    return made


# ------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "distance,label",
    [(0.1, 0), (8, 0), (8.01, 1), (8.5, 1), (9, 2), (9.5, 3), (9.6, 4), (10, 4),
     (10.1, 5), (100, 5)],
)  # fmt: skip
def test_clevr_bins_are_open_below_and_closed_above(distance, label):
    objects = {"pixel_coords": [np.array([1, 2, 50.0]), np.array([3, 4, distance])]}
    assert clevr_distance({"objects": objects}) == (label if distance < 50 else 5)


def test_clevr_counts_from_three_objects():
    for count in range(3, 11):
        objects = {"pixel_coords": [np.zeros(3)] * count}
        assert clevr_count({"objects": objects}) == count - 3


@pytest.mark.parametrize(
    "distance,label",
    [(-3, 0), (8, 0), (8.1, 1), (20, 1), (20.1, 2), (999, 2), (999.1, 3)],
)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_kitti_looks_at_cars_vans_and_trucks(distance, label, kind):
    locations = [np.array([0, 0, distance]), np.array([0, 0, -50.0])]
    objects = {"location": locations, "type": [np.int64(kind), np.int64(3)]}
    assert kitti_distance({"objects": objects}) == label


@pytest.mark.parametrize(
    "objects",
    [{"location": [], "type": []}, {"location": [np.zeros(3)], "type": [5]}],
    ids=["no objects", "a pedestrian"],
)
def test_kitti_without_a_vehicle_is_its_own_class(objects):
    assert kitti_distance({"objects": objects}) == 3


def test_dsprites_values_go_into_sixteen_bins():
    places = [dsprites_location({"label_x_position": v}) for v in range(32)]
    np.testing.assert_array_equal(places, np.repeat(np.arange(16), 2))
    turns = [dsprites_orientation({"label_orientation": v}) for v in range(40)]
    assert np.bincount(turns).tolist() == [3, 2] * 8
    assert turns == [int(np.floor(v / 2.5)) for v in range(40)]


def test_there_are_eighteen_tasks_in_three_groups():
    groups = list(GROUPS.values())
    assert len(VTAB) == 18
    assert [groups.count(g) for g in ("natural", "specialized", "structured")] == (
        [6, 4, 8]
    )
    # The classes of each task, as VTAB's paper and tfds' features have them.
    counts = [rule.num_classes for rule in RULES.values()]
    assert counts == [
        102,
        100,
        102,
        37,
        397,
        10,
        5,
        10,
        45,
        2,
        6,
        8,
        6,
        16,
        16,
        18,
        9,
        4,
    ]


@pytest.mark.parametrize("name", VTAB)
def test_classes_are_as_many_as_tfds_says_where_it_says(name):
    features, _ = features_of(RULES[name].dataset)
    label = name.replace("smallnorb", "label") if "norb" in name else "label"
    if RULES[name].label.__name__.endswith(("count", "distance", "ation")):
        assert label not in features  # a rule of VTAB's makes it
    else:
        assert features[label].num_classes == RULES[name].num_classes


# ------------------------------------------------------------------------- splits

# What the published code asks tfds for, where the sizes are the real ones.
REAL_SIZES = {
    "caltech101": {"train": 3060, "test": 6084},
    "cifar100": {"train": 50_000, "test": 10_000},
    "oxford_iiit_pet": {"train": 3680, "test": 3669},
    "oxford_flowers102": {"train": 1020, "test": 6149, "validation": 1020},
    "svhn": {"train": 73_257, "test": 26_032},
    "eurosat": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "clevr_count": {"train": 70_000, "validation": 15_000},
    "dsprites_location": {"train": 737_280},
    "smallnorb_azimuth": {"train": 24_300, "test": 24_300},
}
OFFICIAL = {
    "caltech101": ("train[:800]+train[2754:2954]", "test[0:]"),
    "cifar100": ("train[:800]+train[45000:45200]", "test[0:]"),
    "oxford_iiit_pet": ("train[:800]+train[2944:3144]", "test[0:]"),
    "oxford_flowers102": ("train[:800]+validation[0:200]", "test[0:]"),
    "svhn": ("train[:800]+train[65931:66131]", "test[0:]"),
    "eurosat": ("train[:800]+train[16200:16400]", "train[21600:]"),
    "resisc45": ("train[:800]+train[18900:19100]", "train[25200:]"),
    "clevr_count": ("train[:800]+train[63000:63200]", "validation[0:]"),
    "dsprites_location": ("train[:800]+train[589824:590024]", "train[663552:]"),
    "smallnorb_azimuth": ("train[:800]+test[0:200]", "test[12150:]"),
}
LITE_TESTS = {
    "eurosat": "train[1000:]", "resisc45": "train[1000:]",
    "dsprites_location": "train[1000:]", "smallnorb_azimuth": "test[0:]",
    "clevr_count": "validation[0:]", "svhn": "test[0:]",
}  # fmt: skip


def write_info(folder, sizes):
    folder.mkdir(parents=True)
    splits = [{"name": k, "shardLengths": [str(v)]} for k, v in sizes.items()]
    (folder / "dataset_info.json").write_text(json.dumps({"splits": splits}))


@pytest.mark.parametrize("name", REAL_SIZES)
def test_splits_of_the_real_sizes_are_the_published_ones(name, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lite_jax.data.vtab.tasks.PreparedSplit",
        lambda folder, split: asked.append(split),
    )
    rule = RULES[name]
    write_info(tmp_path / rule.dataset / f"{rule.version or 4}.0.0", REAL_SIZES[name])
    vtab_task(tmp_path, name)
    assert tuple(asked) == OFFICIAL[name]
    asked.clear()
    vtab_task(tmp_path, name, protocol="lite")
    assert asked[0] == "train[:1000]"
    assert asked[1] == LITE_TESTS.get(name, "test[0:]")


@pytest.mark.parametrize("protocol", ["official", "lite"])
@pytest.mark.parametrize("name", VTAB)
def test_every_task_is_read(root, name, protocol):
    task = vtab_task(root, name, 16, protocol=protocol, num_support=SUPPORT)
    assert (task.layout, len(task.support)) == ("tfds", SUPPORT)
    for images in (task.support, task.test):
        pixels, labels = images.read(range(len(images)))
        assert pixels.shape == (len(images), 16, 16, 3) and pixels.dtype == np.uint8
        assert 0 <= labels.min() and labels.max() < task.num_classes
        for a, b in zip(images.read([2]), (pixels[2:3], labels[2:3]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_support_and_test_are_the_right_examples(root):
    task = vtab_task(root, "eurosat", 16, num_support=SUPPORT)
    everything = PreparedSplit(find_prepared(root, "eurosat/rgb"), "train").read(
        range(40)
    )
    labels = [int(x["label"]) for x in everything]
    assert task.support.read(range(20))[1].tolist() == labels[:16] + labels[24:28]
    assert task.test.read(range(8))[1].tolist() == labels[32:]


@pytest.mark.parametrize("protocol,rule", [("official", "vtab"), ("lite", "lanczos")])
def test_each_protocol_resizes_in_its_own_way(root, protocol, rule):
    task = vtab_task(root, "svhn", 16, protocol=protocol, num_support=SUPPORT)
    raw = PreparedSplit(find_prepared(root, "svhn_cropped"), "train").read([4])[0]
    expected = ImageSpec(16, rule).open(raw["image"])
    np.testing.assert_array_equal(task.support.read([4])[0][0], expected)


def test_dsprites_are_white_and_smallnorb_has_one_camera(root):
    sprites = vtab_task(root, "dsprites_location", 64, num_support=SUPPORT)
    images, _ = sprites.support.read(range(20))
    assert set(np.unique(images)) == {0, 255}
    assert (images[..., 0] == images[..., 2]).all()
    raw = PreparedSplit(find_prepared(root, "smallnorb"), "train").read([3])[0]
    norb = vtab_task(root, "smallnorb_azimuth", 96, num_support=SUPPORT)
    expected = ImageSpec(96, "vtab").open(raw["image"])
    np.testing.assert_array_equal(norb.support.read([3])[0][0], expected)


# -------------------------------------------------------------------- other layouts


def pictures(folder, count, level):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(made_image(level, i)).save(folder / f"{i}.png")


def lists(folder, lines):
    pictures(folder / "images", 6, 1)
    for name, own in lines.items():
        (folder / name).write_text("\n".join(own) + "\n")


def test_folders_with_lists_are_read(tmp_path):
    lists(
        tmp_path / "smallnorb_azi",
        {
            "train800val200.txt": ["images/0.png 3", "images/4.png 17"],
            "test.txt": ["images/1.png 0", "", "images/2.png 2", "images/5.png 3"],
        },
    )
    task = vtab_task(tmp_path, "smallnorb_azimuth", 8)
    assert (task.layout, len(task.support), len(task.test)) == ("list", 2, 3)
    images, labels = task.support.read([1, 0])
    assert labels.tolist() == [17, 3]
    np.testing.assert_array_equal(images[1], ImageSpec(8, "vtab").fit(made_image(1, 0)))
    with pytest.raises(UserError, match="VTAB's official 1000 images"):
        vtab_task(tmp_path, "smallnorb_azimuth", 8, protocol="lite")


@pytest.mark.parametrize(
    "line,message",
    [
        ("images/0.png 18", "line 1.* label below 18"),
        ("images/0.png", "line 1.* label below 18"),
        ("images/0.png x", "line 1.* label below 18"),
        ("../../etc/passwd 1", "lies outside"),
    ],
)
def test_lists_with_wrong_lines_are_explained(tmp_path, line, message):
    lists(
        tmp_path / "smallnorb_azi",
        {"train800val200.txt": [line], "test.txt": ["images/1.png 0"]},
    )
    with pytest.raises(UserError, match=message):
        vtab_task(tmp_path, "smallnorb_azimuth", 8)


def test_lists_that_are_missing_or_empty_and_unreadable_images_are_named(tmp_path):
    lists(tmp_path / "kitti", {"train800val200.txt": ["images/0.png 0"]})
    with pytest.raises(UserError, match=r"test\.txt is missing"):
        vtab_task(tmp_path, "kitti_distance", 8)
    (tmp_path / "kitti/test.txt").write_text("\n")
    with pytest.raises(UserError, match="lists nothing"):
        vtab_task(tmp_path, "kitti_distance", 8)
    (tmp_path / "kitti/test.txt").write_text("images/none.png 1")
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        vtab_task(tmp_path, "kitti_distance", 8).test.read([0])


def test_class_folders_are_read(tmp_path):
    for name, level in (("cat", 0), ("dog", 1), ("fox", 2)):
        pictures(tmp_path / "svhn/train" / name, 5, level)
    pictures(tmp_path / "svhn/test/dog", 2, 1)
    task = vtab_task(tmp_path, "svhn", 8, num_support=9)
    assert (task.layout, task.num_classes, len(task.support)) == ("folder", 3, 9)
    assert task.test.read([0, 1])[1].tolist() == [1, 1]
    again = vtab_task(tmp_path, "svhn", 8, num_support=9)
    assert again.support.files == task.support.files
    pictures(tmp_path / "svhn/test/wolf", 1, 1)
    with pytest.raises(UserError, match="class 'wolf', and train has not"):
        vtab_task(tmp_path, "svhn", 8)


def test_sun397_as_lite_has_every_class_in_its_support(tmp_path):
    rare = 30
    for c in range(rare):
        pictures(tmp_path / "sun397" / "abc"[c % 3] / f"class{c:02d}", 10, c)
    pictures(tmp_path / "sun397" / "z" / "common", 200, 99)
    task = vtab_task(tmp_path, "sun397", 8, protocol="lite", num_support=100)
    labels = np.array([label for _, label in task.support.files])
    assert task.num_classes == 31 and len(labels) == 100
    assert set(labels) == set(range(31))
    files = {str(f) for f, _ in task.support.files}
    assert len(files) == 100 and not files & {str(f) for f, _ in task.test.files}
    assert len(task.test) == 100  # 20 % of 500


# ----------------------------------------------------------------------- bad input


def test_names_protocols_and_sets_that_are_not_there_are_explained(tmp_path):
    with pytest.raises(UserError, match="did you mean 'smallnorb_azimuth'"):
        vtab_task(tmp_path, "smallnorb_azimut")
    with pytest.raises(UserError, match="unknown VTAB protocol 'vtab'"):
        vtab_task(tmp_path, "svhn", protocol="vtab")
    with pytest.raises(UserError, match="tfds build eurosat/rgb --data_dir="):
        vtab_task(tmp_path, "eurosat")


def test_a_split_that_is_missing_is_named(tmp_path):
    write_info(tmp_path / "dmlab/2.0.1", {"train": 40, "test": 20})
    with pytest.raises(UserError, match="lacks the split 'validation'"):
        vtab_task(tmp_path, "dmlab")


def test_labels_outside_the_classes_are_named(root, monkeypatch):
    rule = RULES["svhn"]._replace(num_classes=5)
    monkeypatch.setitem(RULES, "svhn", rule)
    task = vtab_task(root, "svhn", 8, num_support=SUPPORT)
    with pytest.raises(UserError, match="svhn: label 9 is outside its 5 classes"):
        task.support.read(range(20))
