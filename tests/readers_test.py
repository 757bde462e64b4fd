"""One contract for every reader of data sets, and what each says of bad input."""

import csv
import dataclasses
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from made_records import encoded, made_image, meta_dataset
from made_tfds import as_tfrecord, labelled, pixels, prepare
from PIL import Image

from lite_jax import UserError
from lite_jax.data import (
    DATASETS,
    ArraySource,
    DataSettings,
    EpisodeSpec,
    ImageSpec,
    VariableSpec,
    detect,
    load_task,
    open_source,
    run_ahead,
)
from lite_jax.data.cache import build_cache
from lite_jax.data.readers.items import ItemSource
from lite_jax.data.sources import class_groups

CLASSES = [f"class {c}" for c in range(8)]
SIZES = [6 + c % 3 for c in range(8)]
ROWS = [(c, i) for c in range(8) for i in range(SIZES[c])]


def stacked():
    images = np.stack([made_image(c, i) for c, i in ROWS])
    return images, np.array([c for c, _ in ROWS])


def class_folders(root):
    for c, i in ROWS:
        path = root / CLASSES[c] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_image(c, i)).save(path)
    return root


def npz(root):
    images, labels = stacked()
    root.mkdir()
    path = root / "all.npz"
    np.savez(path, images=images, labels=labels, class_names=CLASSES)
    return path


def hdf5(root):
    images, labels = stacked()
    root.mkdir()
    with h5py.File(root / "all.h5", "w") as file:
        file["x"], file["y"] = images, labels
        file["class_names"] = CLASSES
    return root / "all.h5"


def hdf5_by_class(root):
    root.mkdir()
    with h5py.File(root / "all.hdf5", "w") as file:
        group = file.create_group("datasets")
        for c, name in enumerate(CLASSES):
            group[name] = np.stack([made_image(c, i) for i in range(SIZES[c])])
    return root / "all.hdf5"


def pickled(root):
    images, labels = stacked()
    found = {
        "image_data": images,
        "class_dict": {
            name: np.flatnonzero(labels == c).tolist() for c, name in enumerate(CLASSES)
        },
    }
    root.mkdir()
    (root / "cache.pkl").write_bytes(pickle.dumps(found))
    return root / "cache.pkl"


def parquet(root, names=CLASSES, label="label"):
    root.mkdir()
    rows = [{"bytes": encoded(made_image(c, i)), "path": "x.png"} for c, i in ROWS]
    features = {label: {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, rows_of_part in enumerate((slice(0, 20), slice(20, None))):
        table = pyarrow.table(
            {"image": rows[rows_of_part], label: [c for c, _ in ROWS[rows_of_part]]}
        ).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, root / f"train-0000{part}-of-00002.parquet")
    return root


def prepared(root):
    examples = [
        {"image": Image.fromarray(made_image(c, i)), "label": c} for c, i in ROWS
    ]
    splits = {"train": examples[::2], "test": examples[1::2]}
    return prepare(root, "made", labelled(8, names=CLASSES), splits)


def list_of_images(root):
    class_folders(root / "images")
    for split, chosen in (("train", range(4)), ("val", (4, 5)), ("test", (6, 7))):
        with (root / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            rows.writerows((f"{i}.png", CLASSES[c]) for c, i in ROWS if c in chosen)
    return root / "images"


def cached(root):
    plain = str(class_folders(root.with_name("plain")))
    data = DataSettings("folder", plain, image_size=8, cache_gb=0.0)
    splits = ("train", "valid", "test")
    build_cache(root, {split: open_source(data, split) for split in splits}, {})
    return root


MAKERS = {
    "folder": class_folders,
    "cache": cached,
    "a list of images": list_of_images,
    "npz": npz,
    "hdf5": hdf5,
    "hdf5 by class": hdf5_by_class,
    "pickle": pickled,
    "parquet": parquet,
    "tfds array_record": prepared,
    "tfds tfrecord": lambda root: as_tfrecord(prepared(root)),
    "meta_dataset": meta_dataset,
}
ROWS_READERS = [name for name in MAKERS if name != "meta_dataset"]  # of `ROWS`


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    made = {}

    def root(name):
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp("data") / "set")
        return made[name]

    return root


def settings_of(root, dataset=None, **changes):
    settings = DataSettings(
        dataset or detect(root), str(root), image_size=8, allow_pickle=True,
        sources="aircraft,omniglot,ilsvrc_2012",
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def source_of(roots, name, split, **changes):
    if name == "a list of images":
        changes |= {"class_list": str(Path(roots(name)).parent)}
    return open_source(settings_of(roots(name), **changes), split)


@pytest.mark.parametrize("name", MAKERS)
def test_counts_and_shapes_are_those_on_disk(roots, name):
    found = {}
    for split in ("train", "valid", "test"):
        source = source_of(roots, name, split)
        assert source.image_shape == (8, 8, 3)
        assert len(source.class_names) == len(source.class_sizes) >= 2
        assert len(set(source.class_names)) == len(source.class_names)
        for group in class_groups(source).members:
            assert set(group) <= set(range(len(source.class_names)))
        images = source.read(1, [2, 0])
        assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
        assert not found.keys() & set(source.class_names)
        found |= dict(zip(source.class_names, source.class_sizes, strict=True))
    if name != "meta_dataset":
        assert found == dict(zip(CLASSES, SIZES, strict=True))


@pytest.mark.parametrize("name", ROWS_READERS)
@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "read each time"])
def test_a_class_holds_its_own_images(roots, name, cache_gb):
    source = source_of(roots, name, "test", cache_gb=cache_gb)
    if name != "cache":
        assert isinstance(source, ArraySource if cache_gb else ItemSource)
    for place, title in enumerate(source.class_names):
        c = CLASSES.index(title)
        wanted = {ImageSpec(8).fit(made_image(c, i)).tobytes() for i in range(SIZES[c])}
        read = source.read(place, range(SIZES[c]))
        assert {image.tobytes() for image in read} == wanted


@pytest.mark.parametrize("name", MAKERS)
def test_threads_and_starting_late_change_nothing(roots, name):
    source = source_of(roots, name, "train", cache_gb=0.0)
    meta = name == "meta_dataset"
    spec = VariableSpec((4, 6)) if meta else EpisodeSpec((2, 4), (1, 3), 2)

    def load(index):
        return load_task(source, spec, 0, "train", index)

    alone = [load(i) for i in range(6)]
    for workers, start in ((4, 0), (1, 3)):
        ahead = run_ahead(load, range(start, 6), depth=3, workers=workers)
        for one, other in zip(alone[start:], ahead, strict=True):
            for a, b in zip((*one.support, *one.query), (*other.support, *other.query),
                            strict=True):  # fmt: skip
                np.testing.assert_array_equal(a, b)


def test_what_lies_at_a_path_is_told(roots, tmp_path):
    assert {detect(Path(roots(name))) for name in MAKERS} == {
        "folder", "arrays", "parquet", "tfds", "meta_dataset", "cache",
    }  # fmt: skip
    assert detect(Path(roots("tfds tfrecord")).parent) == "tfds"
    (tmp_path / "a.txt").touch()
    for path, message in (
        (tmp_path / "a.txt", "expected a folder"),
        (tmp_path / "no", "no such file"),
        (tmp_path, "holds nothing that is read here"),
    ):
        with pytest.raises(UserError, match=message):
            detect(path)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "synthetic"}))
def test_data_sets_of_files_need_a_root(name):
    data = DataSettings(name)
    with pytest.raises(UserError, match="root='' and dataset="):
        open_source(data, "train")


@pytest.mark.parametrize("name", MAKERS)
def test_an_unknown_split_is_named(roots, name):
    with pytest.raises(UserError, match="'trian'"):
        source_of(roots, name, "trian")


# -------------------------------------------------------------------- class lists


def lists(root, form):
    """The classes 0-3, 4-5 and 6-7 in one of the usual forms; return the list."""
    names = {"train": CLASSES[:4], "valid": CLASSES[4:6], "test": CLASSES[6:]}
    if form == "one file":
        (root / "classes.json").write_text(json.dumps(names))
        return root / "classes.json"
    for split, own in names.items():
        if form == "text":
            (root / f"{split}.txt").write_text("\n".join(own) + "\n\n")
        if form == "names":
            (root / f"{split}.json").write_text(json.dumps(own))
        if form == "easyfsl":
            found = {"class_names": own, "class_roots": own}
            (root / f"{split}.json").write_text(json.dumps(found))
        if form == "closer look":
            base = {"train": "base", "valid": "val", "test": "novel"}[split]
            rows = [(c, i) for c, i in ROWS if CLASSES[c] in own]
            found = {
                "label_names": CLASSES,
                "image_names": [f"{CLASSES[c]}/{i}.png" for c, i in rows],
                "image_labels": [c for c, _ in rows],
            }
            (root / f"{base}.json").write_text(json.dumps(found))
    return root


@pytest.mark.parametrize(
    "form", ["one file", "text", "names", "easyfsl", "closer look"]
)
def test_lists_choose_the_classes_of_folders(roots, tmp_path, form):
    path = str(lists(tmp_path, form))
    for split, own in (("train", CLASSES[:4]), ("valid", CLASSES[4:6])):
        source = open_source(settings_of(roots("folder"), class_list=path), split)
        assert list(source.class_names) == own
        assert list(source.class_sizes) == SIZES[CLASSES.index(own[0]) :][: len(own)]


@pytest.mark.parametrize("name", ["npz", "hdf5 by class", "parquet", "tfds tfrecord"])
def test_lists_choose_the_classes_of_other_sets(roots, tmp_path, name):
    path = str(lists(tmp_path, "text"))
    source = source_of(roots, name, "test", class_list=path)
    assert list(source.class_names) == CLASSES[6:]


def test_names_never_leave_their_folder(roots, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(made_image(0, 0)))
    for outside in ("../../secret.png", str(tmp_path / "secret.png"), "../.."):
        (tmp_path / "train.csv").write_text(f"filename,label\n{outside},a\n")
        settings = settings_of(roots("folder"), class_list=str(tmp_path))
        with pytest.raises(UserError, match="lies outside root"):
            open_source(settings, "train")


@pytest.mark.parametrize(
    "file,text,message",
    [
        ("train.csv", "name,label\na,b\n", "expected one of .*filename"),
        ("train.csv", "filename,label\n", "lists nothing"),
        (
            "train.csv",
            "filename,label\nnone.png,class 0\n",
            "'none.png'.* no such file",
        ),
        ("train.txt", "class 9\n", "'class 9'.* no such file"),
        ("train.json", "{", "is no list of classes"),
        ("train.json", '{"class_names": ["a"], "class_roots": []}', "is no list"),
        ("test.txt", "class 0\n", "has no list of 'train'"),
    ],
)
def test_lists_that_do_not_fit_are_explained(roots, tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    settings = settings_of(roots("folder"), class_list=str(tmp_path))
    with pytest.raises(UserError, match=message):
        open_source(settings, "train")


def test_lists_of_other_sets_are_of_classes_they_have(roots, tmp_path):
    (tmp_path / "train.txt").write_text("class 9\n")
    with pytest.raises(UserError, match="unknown class .*'class 9'"):
        source_of(roots, "npz", "train", class_list=str(tmp_path))
    (tmp_path / "train.csv").write_text("filename,label\n0.png,class 0\n")
    (tmp_path / "train.txt").unlink()
    with pytest.raises(UserError, match="lists files, and .* has none"):
        source_of(roots, "npz", "train", class_list=str(tmp_path))
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        source_of(roots, "npz", "train", class_list="nowhere")
    (tmp_path / "all.json").write_text('{"train": ["class 0"]}')
    with pytest.raises(UserError, match="no list of 'valid'"):
        source_of(roots, "npz", "valid", class_list=str(tmp_path / "all.json"))
    (tmp_path / "all.json").write_text('{"train": [3]}')
    with pytest.raises(UserError, match="a list of class names"):
        source_of(roots, "npz", "train", class_list=str(tmp_path / "all.json"))


# ------------------------------------------------------------------------- arrays


def open_arrays(path, split="train", **changes):
    return open_source(settings_of(path, dataset="arrays", **changes), split)


def test_a_file_a_split_is_used_as_it_is(tmp_path):
    images, labels = stacked()
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "val.npz", images=images[:12, ..., 0], labels=labels[:12])
    assert open_arrays(tmp_path).class_names == [str(c) for c in range(8)]
    assert open_arrays(tmp_path, "valid").class_sizes == [6, 6]
    with pytest.raises(UserError, match="no file for 'test'"):
        open_arrays(tmp_path, "test")


def test_pickles_are_refused_unless_they_are_trusted(roots):
    with pytest.raises(UserError, match="runs code that its author chose"):
        source_of(roots, "pickle", "train", allow_pickle=False)


def test_the_pickles_of_fc100_and_tiered_imagenet_are_read(tmp_path):
    images, labels = stacked()
    (tmp_path / "fc").mkdir()
    found = {"data": images, "labels": labels.tolist()}
    (tmp_path / "fc" / "FC100_train.pickle").write_bytes(pickle.dumps(found))
    assert open_arrays(tmp_path / "fc").class_sizes == SIZES
    (tmp_path / "tiered").mkdir()
    files = [np.frombuffer(encoded(x), np.uint8) for x in images]
    (tmp_path / "tiered/train_images_png.pkl").write_bytes(pickle.dumps(files))
    found = {"label_specific": labels, "label_general": labels // 2}
    (tmp_path / "tiered/train_labels.pkl").write_bytes(pickle.dumps(found))
    tiered = open_arrays(tmp_path / "tiered", cache_gb=0.0)
    assert tiered.class_sizes == SIZES
    np.testing.assert_array_equal(
        tiered.read(3, [1]), open_arrays(tmp_path / "fc").read(3, [1])
    )


@pytest.mark.parametrize(
    "arrays,message",
    [
        ({"pictures": np.zeros(3)}, "expected one of images"),
        ({"images": np.zeros((3, 4, 4), np.uint8)}, "expected one of labels"),
        ({"images": np.zeros((3, 4, 4)), "labels": [0, 1, 2]}, "float64"),
        ({"images": np.zeros((3, 4, 4, 2), np.uint8), "labels": [0, 1, 2]}, "1 or 3"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": [0, 1]}, "2 labels"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": [0, 1, 5],
          "class_names": ["a", "b"]}, "label 5, outside its 2 class names"),
        ({"images": np.array([None]), "labels": [0]}, "without objects"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_explained(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_arrays(tmp_path / "a.npz")


def test_files_of_arrays_that_are_none_are_explained(tmp_path):
    for name, message in (
        ("a.npz", "cannot be read"), ("a.h5", "is no HDF5 file"),
        ("a.pkl", "cannot be read"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"not that")
        with pytest.raises(UserError, match=message):
            open_arrays(tmp_path / name)
    with pytest.raises(UserError, match="no such file or folder"):
        open_arrays(tmp_path / "no")


def test_grey_arrays_become_the_channels_asked_for(tmp_path):
    images, labels = stacked()
    np.savez(tmp_path / "a.npz", images=images[..., 0], labels=labels)
    for channels in (1, 3):
        source = open_arrays(tmp_path / "a.npz", channels=channels)
        assert source.read(0, [0]).shape == (1, 8, 8, channels)


# ------------------------------------------------------------------ parquet, tfds


def test_tables_of_other_columns_are_explained(tmp_path):
    root = parquet(tmp_path / "set", label="fine_label")
    with pytest.raises(UserError, match="expected 'image' and 'label'"):
        open_source(settings_of(root), "train")
    assert open_source(settings_of(root, label="fine_label"), "test").class_sizes
    root = parquet(tmp_path / "few", names=CLASSES[:3])
    with pytest.raises(UserError, match="label 3, outside its 3 class names"):
        open_source(settings_of(root), "train")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="is no parquet file"):
        open_source(settings_of(tmp_path / "a.parquet"), "train")


def test_a_set_that_is_not_prepared_comes_with_the_command(tmp_path):
    data = DataSettings("tfds", str(tmp_path / "cub"))
    with pytest.raises(UserError, match=r"tfds build cub --data_dir=\S+ --file_format"):
        open_source(data, "train")


def test_the_newest_version_is_taken(tmp_path):
    for version, level in (("1.0.0", 10), ("1.10.0", 30), ("1.9.0", 20)):
        examples = [{"image": pixels_of(level), "label": c} for c in range(6)]
        prepare(tmp_path, "made", labelled(6), {"train": examples}, version)
    source = open_source(settings_of(tmp_path / "made"), "train")
    assert source.read(0, [0]).mean() == 30


def pixels_of(level):
    return Image.fromarray(pixels(level))


def test_a_shard_with_too_few_records_is_named(roots, tmp_path):
    folder = as_tfrecord(prepared(tmp_path))
    shard = next(folder.glob("made-train*"))
    shard.write_bytes(b"")
    with pytest.raises(UserError, match="holds 0 records, fewer than its"):
        open_source(settings_of(folder), "train")


def test_a_set_without_classes_is_explained(roots):
    with pytest.raises(UserError, match="class labels in 'kind'"):
        source_of(roots, "tfds tfrecord", "train", label="kind")
