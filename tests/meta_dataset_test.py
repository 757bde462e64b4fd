"""Meta-Dataset's records, specs and dumped episodes, made in the exact format."""

import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from made_records import (
    bilevel_source,
    encoded,
    flat_source,
    hierarchical_source,
    made_image,
    meta_dataset,
    write_class,
)
from made_tfds import prepare
from PIL import Image

from lite_jax import UserError
from lite_jax.data import ImageSpec, VariableSpec, load_task, make_meta_dataset
from lite_jax.data.meta_dataset.dumped import DumpedEpisodes
from lite_jax.data.meta_dataset.source import META_DATASET_PROTOCOLS, read_source
from lite_jax.data.meta_dataset.spec import parse_spec, read_spec
from lite_jax.data.readers.tfrecord import (
    RecordFile,
    make_example,
    masked_crc,
    parse_example,
    write_records,
)

SMALL = ImageSpec(8, "md")
MADE = ("aircraft", "omniglot", "ilsvrc_2012")

# ------------------------------------------------------------------------ records


def test_record_files_are_byte_for_byte_tensorflows(tmp_path):
    path = tmp_path / "a.tfrecords"
    write_records(path, [b"123456789", b""])
    assert path.read_bytes() == bytes.fromhex(  # written by TensorFlow 2.21
        "090000000000000037f97139313233343536373839e5b08ac7"
        "000000000000000029039807d8ea82a2"
    )
    assert RecordFile(path).read([1, 0]) == [b"", b"123456789"]


def test_examples_are_parsed_by_kind():
    record = make_example({"image": b"\xff\x00", "label": 7})
    assert parse_example(record) == {"image": [b"\xff\x00"], "label": [7]}
    with pytest.raises(ValueError, match="no tf.train.Example"):
        parse_example(b"\xff\xff\xff")


def many(path, count=20):
    write_records(path, (bytes([i]) * i for i in range(count)))
    return path


def test_index_is_kept_and_made_anew_when_the_file_changes(tmp_path):
    path, index = many(tmp_path / "a.tfrecords"), tmp_path / ".offsets"
    first = RecordFile(path, index_folder=index)
    assert [p.name for p in index.iterdir()] == ["a.tfrecords.npy"]
    again = pickle.loads(pickle.dumps(RecordFile(path, index_folder=index)))
    assert len(again) == 20 and again.read([3, 19]) == first.read([3, 19])
    many(path, 25)
    assert len(RecordFile(path, index_folder=index)) == 25


@pytest.mark.parametrize("cut", [1, 5, 18, 25])
def test_a_file_cut_inside_a_record_is_named(tmp_path, cut):
    path = many(tmp_path / "a.tfrecords")
    kept = RecordFile(path, index_folder=tmp_path / ".offsets")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"a\.tfrecords: record 19 .* ends inside it"):
        RecordFile(path, index_folder=tmp_path / ".offsets")
    with pytest.raises(UserError, match="record 19 .* shorter than its index"):
        kept.read([19])
    assert kept.read([18]) == [bytes([18]) * 18]


@pytest.mark.parametrize("place,reason", [(-6, "its bytes do not"), (-30, "length")])
def test_wrong_bytes_are_found_by_their_crc(tmp_path, place, reason):
    path = many(tmp_path / "a.tfrecords")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"record 19 is broken .*{reason}"):
        RecordFile(path).read([19])


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "a").touch()
    assert len(RecordFile(tmp_path / "a", index_folder=tmp_path / "i")) == 0


def test_masked_crc_is_not_the_plain_one():
    assert masked_crc(b"") == 0xA282EAD8


# -------------------------------------------------------------------------- specs


def test_flat_classes_stand_split_after_split(tmp_path):
    spec = parse_spec(flat_source(tmp_path / "aircraft", (3, 2, 1)))
    assert [x.tolist() for x in spec.splits.values()] == [[0, 1, 2], [3, 4], [5]]
    assert set(spec.groups.values()) == {None} and spec.class_sizes[:3] == [8, 9, 10]


def test_alphabets_are_groups(tmp_path):
    spec = parse_spec(bilevel_source(tmp_path / "omniglot"))
    assert spec.splits["valid"].tolist() == list(range(12, 18))
    train, test = spec.groups["train"], spec.groups["test"]
    assert [x.tolist() for x in train.members] == [[0, 1, 2, 3, 4], list(range(5, 12))]
    assert [len(x) for x in test.members] == [5, 6] and test.members[0][0] == 0
    assert train.chances.tolist() == [0.5, 0.5] and train.whole == [False, False]


def test_nodes_of_the_hierarchy_are_groups_of_all_their_leaves(tmp_path):
    spec = parse_spec(hierarchical_source(tmp_path / "ilsvrc_2012"))
    groups = spec.groups["train"]
    members = sorted(tuple(x.tolist()) for x in groups.members)
    assert members == [(0, 1, 2, 3, 4), tuple(range(8)), (4,), (4, 5, 6, 7)]
    assert all(groups.whole) and spec.groups["test"] is None
    assert spec.class_sizes == [7] * 8 and len(spec.splits["test"]) == 0


def test_only_nodes_of_five_leaves_or_more_are_drawn(tmp_path):
    source = read_source(meta_dataset(tmp_path), "ilsvrc_2012", "train", SMALL)
    ways = [
        int(load_task(source, VariableSpec(), 0, "dag", i).support.labels.max()) + 1
        for i in range(40)
    ]
    assert set(ways) == {5, 8}  # "bird" and "animal"


def test_nodes_above_392_leaves_are_left_out():
    names = [f"n{i}" for i in range(400)]
    tree = {"root": ["most", *names[392:]], "most": names[:392]}
    tree |= {name: [] for name in names}
    nodes = [{"wn_id": k, "children_ids": v} for k, v in tree.items()]
    spec = parse_spec(
        {
            "__class__": "HierarchicalDatasetSpecification",
            "split_subgraphs": {"TRAIN": nodes, "VALID": [], "TEST": []},
            "images_per_class": {
                "TRAIN": dict.fromkeys(names, 9), "VALID": {}, "TEST": {},
            },
            "class_names": {str(i): name for i, name in enumerate(names)},
        }
    )  # fmt: skip
    assert [len(x) for x in spec.groups["train"].members] == [392]


# ------------------------------------------------------------------------ reading


def test_records_are_read_by_class_and_resized_as_meta_dataset_does(tmp_path):
    source = read_source(meta_dataset(tmp_path), "omniglot", "test", SMALL)
    assert source.class_names[0] == "Alphabet3-character00"
    found = source.read(2, [5, 0])
    for image, number in zip(found, (5, 0), strict=True):
        original = made_image(18 + 2, number)
        np.testing.assert_array_equal(image, SMALL.fit(original))


def test_an_episode_never_mixes_sources_and_is_pure(tmp_path):
    source = make_meta_dataset(meta_dataset(tmp_path), "train", 8, sources=MADE)
    assert list(source.parts) == ["ilsvrc_2012", "omniglot", "aircraft"]
    spec = VariableSpec(max_support=60)
    first, again = (load_task(source, spec, 0, "train", 3) for _ in range(2))
    for a, b in zip(first.support, again.support, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.support.inputs.shape == (60, 8, 8, 3)


def test_lite_flattens_imagenet_and_adds_mnist(tmp_path):
    root = meta_dataset(tmp_path)
    flat_source(root / "mnist", (10, 0, 0))
    chosen = (*MADE, "mnist")
    source = make_meta_dataset(root, "train", 8, protocol="lite", sources=chosen)
    assert set(source.parts) == set(chosen)
    assert source.parts["ilsvrc_2012"].groups is None
    assert source.parts["omniglot"].groups is not None
    with pytest.raises(UserError, match="'mnist'"):
        make_meta_dataset(root, "train", 8, sources=chosen)


def test_protocols_have_the_published_sources():
    v2, lite = META_DATASET_PROTOCOLS["md-v2"], META_DATASET_PROTOCOLS["lite"]
    assert len(v2.train) == 7 and set(lite.train) - set(v2.train) == {"mnist"}
    assert len(v2.valid) == 7 and len(v2.test) == 8 and v2.test == lite.test
    assert "vgg_flower" not in {*v2.train, *v2.valid, *v2.test}


def test_imagenets_second_split_is_looked_for_first(tmp_path):
    root = meta_dataset(tmp_path)
    flat_source(root / "ilsvrc_2012_v2", (9, 0, 0))
    assert len(read_source(root, "ilsvrc_2012", "train", SMALL).class_names) == 9
    flat = read_source(root, "ilsvrc_2012", "train", SMALL, hierarchy=False)
    assert len(flat.class_names) == 8


# ---------------------------------------------------------------------- bad input


def changed(folder, **entries):
    path = folder / "dataset_spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "entries,message",
    [
        ({"__class__": "Spec"}, "unknown kind of spec 'Spec'"),
        ({"file_pattern": "{}_{}.tfrecords"}, "one file a class"),
        ({"classes_per_split": {"TRAIN": 2, "VALID": 0, "TEST": 0}}, "have 2 classes"),
        ({"class_names": {"0": "a", "2": "b"}}, "not 0, 1, 2"),
        ({"images_per_class": {}}, "lacks '0'"),
        ({"images_per_class": {str(i): {"train": 3} for i in range(16)}}, "pools"),
        ({"class_names": 3}, "is no dataset spec"),
    ],
)
def test_specs_that_contradict_themselves_are_named(tmp_path, entries, message):
    flat_source(tmp_path / "aircraft")
    changed(tmp_path / "aircraft", **entries)
    with pytest.raises(UserError, match=r"dataset_spec\.json.*" + message):
        read_spec(tmp_path / "aircraft")


def test_specs_that_are_absent_old_or_no_json_are_explained(tmp_path):
    folder = tmp_path / "aircraft"
    folder.mkdir()
    with pytest.raises(UserError, match="has no dataset_spec.json"):
        read_spec(folder)
    (folder / "dataset_spec.pkl").write_bytes(b"anything")
    with pytest.raises(UserError, match="old pickled spec, and reading one runs code"):
        read_spec(folder)
    (folder / "dataset_spec.json").write_text("{")
    with pytest.raises(UserError, match="is no dataset spec"):
        read_spec(folder)


def test_a_leaf_without_an_id_is_named(tmp_path):
    spec = hierarchical_source(tmp_path / "ilsvrc_2012")
    spec["class_names"]["7"] = "n70"
    with pytest.raises(UserError, match="leaf n7 of TRAIN"):
        parse_spec(spec)


def test_files_that_the_spec_does_not_describe_are_named(tmp_path):
    root = meta_dataset(tmp_path)
    write_class(root / "aircraft", 1, 3)
    with pytest.raises(UserError, match=r"1\.tfrecords holds 3 images, .* says 9"):
        read_source(root, "aircraft", "train", SMALL)
    (root / "aircraft" / "1.tfrecords").unlink()
    with pytest.raises(UserError, match=r"1\.tfrecords is missing"):
        read_source(root, "aircraft", "train", SMALL)
    read_source(root, "aircraft", "test", SMALL)  # those files are as they should be


def test_sources_splits_and_protocols_that_are_not_there_are_named(tmp_path):
    root = meta_dataset(tmp_path)
    with pytest.raises(UserError, match="has no folder 'cu_birds'"):
        make_meta_dataset(root, "train", 8)
    with pytest.raises(UserError, match="'aircraf'; did you mean 'aircraft'"):
        make_meta_dataset(root, "train", 8, sources=["aircraf"])
    with pytest.raises(UserError, match="unknown protocol 'md-v3'"):
        make_meta_dataset(root, "train", 8, protocol="md-v3")
    with pytest.raises(UserError, match="name one data set or more"):
        make_meta_dataset(root, "test", 8, sources=["ilsvrc_2012"])
    with pytest.raises(UserError, match="has no test classes"):
        read_source(root, "ilsvrc_2012", "test", SMALL)


def test_imagenets_first_split_is_refused_where_all_classes_train(tmp_path):
    flat_source(tmp_path / "ilsvrc_2012")
    with pytest.raises(UserError, match="set protocol=lite"):
        read_source(tmp_path, "ilsvrc_2012", "train", SMALL)
    flat = read_source(tmp_path, "ilsvrc_2012", "train", SMALL, hierarchy=False)
    assert len(flat.class_names) == 16


@pytest.mark.parametrize(
    "features,message",
    [
        ({"image": b"no image", "label": 0}, "cannot identify image"),
        ({"label": 0}, "no feature 'image'"),
        ({"image": 5, "label": 0}, "its image is a number"),
    ],
)
def test_a_record_that_is_no_image_is_named(tmp_path, features, message):
    flat_source(tmp_path / "aircraft", (1, 0, 0))
    write_records(tmp_path / "aircraft" / "0.tfrecords", [make_example(features)] * 8)
    source = read_source(tmp_path, "aircraft", "train", SMALL)
    with pytest.raises(UserError, match=f"record 3 cannot be read .*{message}"):
        source.read(0, [3])


# ---------------------------------------------------------------------- tfds' build


def tfds_build(root, spec, name="omniglot", shift=0):
    """The source as tfds prepares it: one split, metadata with slices."""
    sizes = [spec["images_per_class"][str(i)] for i in range(len(spec["class_names"]))]
    examples = [
        {
            "image": Image.fromarray(made_image(label, i)),
            "label": label,
            "class_name": spec["class_names"][str(label)],
        }
        for label, size in enumerate(sizes)
        for i in range(size)
    ]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Scalar(np.int64),
            "class_name": tfds.features.Text(),
        }
    )
    splits = {"all_classes": examples}
    folder = prepare(
        root, "meta_dataset", features, splits, config=name, shuffled=False
    )
    parsed = parse_spec(spec)
    ends = np.cumsum([0, *sizes])
    whole, relative = {}, {}
    for split, ids in parsed.splits.items():
        start = int(ends[ids[0]])
        whole[split] = [start, int(ends[ids[-1] + 1])]
        relative[split] = {
            str(k): [int(ends[i] - start + shift), int(ends[i + 1] - start + shift)]
            for k, i in enumerate(ids)
        }
    metadata = {
        "dataset_specs": {"v2": json.dumps(spec)},
        "meta_split_slices": {"v2": whole},
        "relative_class_slices": {"v2": relative},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_the_build_of_tfds_gives_what_the_records_give(tmp_path):
    spec = bilevel_source(tmp_path / "records" / "omniglot")
    tfds_build(tmp_path / "tfds", spec)
    for split in ("train", "valid", "test"):
        records = read_source(tmp_path / "records", "omniglot", split, SMALL)
        built = read_source(tmp_path / "tfds", "omniglot", split, SMALL)
        assert built.class_names == records.class_names
        assert built.class_sizes == records.class_sizes
        np.testing.assert_array_equal(built.read(3, [4, 1]), records.read(3, [4, 1]))
        one, other = (load_task(x, VariableSpec(), 0, "t", 2) for x in (built, records))
        np.testing.assert_array_equal(one.query.inputs, other.query.inputs)


def test_slices_that_the_labels_contradict_are_refused(tmp_path):
    spec = bilevel_source(tmp_path / "omniglot")
    folder = tfds_build(tmp_path / "tfds", spec, shift=-1)
    with pytest.raises(UserError, match="holds other classes too"):
        read_source(tmp_path / "tfds", "omniglot", "valid", SMALL)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match=r"metadata\.json is not Meta-Dataset's"):
        read_source(tmp_path / "tfds", "omniglot", "valid", SMALL)
    (folder / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"metadata\.json is missing"):
        read_source(tmp_path / "tfds", "omniglot", "valid", SMALL)


# ----------------------------------------------------------------- dumped episodes


def dumped(folder, supports=((0, 0, 1), (0, 1, 2, 2)), queries=((1, 0), (0, 1, 2))):
    folder.mkdir(exist_ok=True)
    counts = {}
    for number, sets in enumerate(zip(supports, queries, strict=True)):
        for half, labels in zip(("train", "test"), sets, strict=True):
            name = f"episode-{number:04d}-{half}.tfrecords"
            pictures = [encoded(made_image(x, i)) for i, x in enumerate(labels)]
            pairs = zip(pictures, labels, strict=True)
            write_records(
                folder / name,
                [make_example({"image": p, "label": x}) for p, x in pairs],
            )
            counts[name] = {str(c): labels.count(c) for c in set(labels)}
    (folder / "images_per_class.json").write_text(json.dumps(counts))
    return folder


def test_dumped_episodes_are_read_as_they_are(tmp_path):
    episodes = DumpedEpisodes(dumped(tmp_path), 8)
    assert (len(episodes), episodes.way) == (2, 3)
    assert (episodes.support_size, episodes.query_size) == (4, 3)
    task = episodes.load(0)
    assert task.support.mask.tolist() == [True] * 3 + [False]
    assert task.support.labels[:3].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(task.query.inputs[0], SMALL.fit(made_image(1, 0)))


def test_dumped_episodes_that_do_not_fit_their_counts_are_named(tmp_path):
    folder = dumped(tmp_path)
    path = folder / "images_per_class.json"
    counts = json.loads(path.read_text())
    counts["episode-0000-train.tfrecords"]["0"] = 5
    path.write_text(json.dumps(counts))
    with pytest.raises(UserError, match="dump the episodes again"):
        DumpedEpisodes(folder, 8).load(0)
    del counts["episode-0001-test.tfrecords"]
    path.write_text(json.dumps(counts))
    with pytest.raises(UserError, match="lists no episode-0001-test"):
        DumpedEpisodes(folder, 8)
    path.write_text("{}")
    with pytest.raises(UserError, match="lists no episode"):
        DumpedEpisodes(folder, 8)
    path.unlink()
    with pytest.raises(UserError, match="no dumped episodes"):
        DumpedEpisodes(folder, 8)
