"""`python -m lite_jax.data`: what a set holds, an episode as a picture, the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_orbit import orbit
from made_records import made_image, meta_dataset
from PIL import Image

from lite_jax import UserError
from lite_jax.cli.data_command import main
from lite_jax.data import EpisodeSpec, VariableSpec, load_task, open_source
from lite_jax.data.cache import build_cache, open_cache
from lite_jax.data.sources import class_groups
from lite_jax.run.configs import base_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for c in range(8):
        for i in range(6 + c % 2):
            path = root / f"a class with quite a long name, number {c}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(made_image(c, i, (20 + c, 30 + i))).save(path)
    return root


def described(capsys, *arguments):
    main(["describe", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def test_a_data_set_is_described(photographs, tmp_path, capsys):
    (photographs / "a class with quite a long name, number 2/9.png").write_bytes(b"no")
    sheet = tmp_path / "sheet.png"
    out = described(
        capsys, f"--source={photographs}", f"--out={sheet}", "--way=4", "--shot=2",
        "--query=3",
    )  # fmt: skip
    totals = [line.split()[1:3] for line in out[1:4]]
    assert sum(int(classes) for classes, _ in totals) == 8
    assert sum(int(images) for _, images in totals) == 4 * 6 + 4 * 7 + 1
    assert out[4].startswith("widths  30 to 36 pixels")
    assert out[5].startswith("heights 20 to 27 pixels")
    assert out[6] == "unreadable: 1 of 53 opened" and out[7].endswith("number 2/9.png")
    assert out[8] == f"episode 0 of 'train': {sheet}"


def test_the_sheet_shows_the_episode_that_is_trained_on(photographs, tmp_path):
    sheet = tmp_path / "sheet.png"
    main(
        ["describe", f"--source={photographs}", f"--out={sheet}", "--way=3", "--seed=5",
         "--shot=2", "--query=1", "--episode=7", "--image-size=84"]
    )  # fmt: skip
    settings = base_config().data
    settings.dataset, settings.root = "folder", str(photographs)
    settings.image_size = 84
    task = load_task(
        open_source(settings, "train"), EpisodeSpec((3, 3), (2, 2), 1), 5, "train", 7
    )
    with Image.open(sheet) as opened:
        picture = np.asarray(opened)
    left, top = 12 + 150, 12 + 28
    for row in range(3):
        for column in range(2):
            y, x = top + row * 88, left + column * 88
            shown = picture[y : y + 84, x : x + 84]
            np.testing.assert_array_equal(shown, task.support.inputs[2 * row + column])
    query_top = top + 3 * 88 + 12 + 28
    shown = picture[query_top : query_top + 84, left : left + 84]
    np.testing.assert_array_equal(shown, task.query.inputs[0])


def test_every_kind_of_source_is_described(tmp_path, capsys):
    out = described(capsys, "--source=digits", f"--out={tmp_path / 'a.png'}")
    assert out[1].split()[1] == "5"
    records = meta_dataset(tmp_path / "records")
    out = described(
        capsys, f"--source={records}", "--set=sources=omniglot,aircraft",
        "--splits=test", "--shot=1", "--query=1", f"--out={tmp_path / 'b.png'}",
    )  # fmt: skip
    assert out[1].split()[-1] == "3"  # two alphabets, and aircraft
    videos = orbit(tmp_path / "orbit", users=(3,), clutter=1)
    out = described(
        capsys, f"--source={videos}", "--shot=2", f"--out={tmp_path / 'c.png'}",
    )  # fmt: skip
    assert out[1].split()[1:3] == ["3", "9"]
    with Image.open(tmp_path / "c.png") as sheet:
        assert sheet.width > 300


def test_a_broken_record_is_listed(tmp_path, capsys):
    records = meta_dataset(tmp_path / "records")
    path = records / "aircraft/12.tfrecords"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    out = described(
        capsys, f"--source={records}", "--set=sources=aircraft", "--splits=test",
        "--shot=1", "--query=1", f"--out={tmp_path / 'b.png'}",
    )  # fmt: skip
    assert out[4].startswith("unreadable: 1 of") and "12.tfrecords: record 7" in out[5]


# --------------------------------------------------------------------------- cache


def cached(tmp_path, root, *arguments):
    out = tmp_path / "cache"
    main(
        ["cache", f"--source={root}", f"--out={out}", "--image-size=16",
         *map(str, arguments)]
    )  # fmt: skip
    return out


def test_a_cache_gives_the_same_tasks(photographs, tmp_path, capsys):
    (photographs / "a class with quite a long name, number 2/9.png").unlink(True)
    out = cached(tmp_path, photographs)
    assert "--config.data.dataset=cache" in capsys.readouterr().out
    settings = base_config().data
    settings.image_size, settings.dataset = 16, "folder"
    settings.root = str(photographs)
    plain = open_source(settings, "train")
    settings.dataset, settings.root = "cache", str(out)
    again = open_source(settings, "train")
    assert again.class_names == list(plain.class_names)
    spec = EpisodeSpec((2, 4), (1, 2), 2)
    for i in range(5):
        one, other = (load_task(x, spec, 0, "train", i) for x in (plain, again))
        for a, b in zip((*one.support, *one.query), (*other.support, *other.query),
                        strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)
    about = json.loads((out / "index.json").read_text())["about"]
    assert about["dataset"] == "folder" and not out.with_name("cache.part").exists()


def test_a_cache_keeps_which_classes_may_meet(tmp_path):
    records = meta_dataset(tmp_path / "records")
    chosen = "--set=sources=omniglot,aircraft"
    out = cached(tmp_path, records, chosen, "--splits=train,test")
    settings = base_config().data
    settings.dataset, settings.root, settings.image_size = (
        "meta_dataset",
        str(records),
        16,
    )
    settings.sources = "omniglot,aircraft"
    plain, again = open_source(settings, "test"), open_cache(out, "test")
    for a, b in zip(class_groups(plain).members, class_groups(again).members,
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    one, other = (load_task(x, VariableSpec(), 0, "t", 3) for x in (plain, again))
    np.testing.assert_array_equal(one.query.inputs, other.query.inputs)
    with pytest.raises(UserError, match="no 'valid' split"):
        open_cache(out, "valid")


def test_every_image_is_checked_when_it_is_read(photographs, tmp_path):
    out = cached(tmp_path, photographs)
    images = np.load(out / "train.npy", mmap_mode="r+")
    images[3, 5, 5, 0] ^= 1
    images.flush()
    source = open_cache(out, "train")
    source.read(0, [0, 1, 2])
    with pytest.raises(UserError, match=r"train\.npy: image 3 is not what was written"):
        source.read(0, [3])


def test_files_that_do_not_belong_to_the_index_are_refused(photographs, tmp_path):
    out = cached(tmp_path, photographs)
    with pytest.raises(UserError, match="set image_size=16"):
        open_cache(out, "train", 84)
    np.save(out / "valid.crc.npy", np.zeros(5, np.uint32))
    with pytest.raises(UserError, match="does not belong to its index"):
        open_cache(out, "valid")
    (out / "test.npy").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        open_cache(out, "test")
    with pytest.raises(UserError, match="holds no cache: build one with"):
        open_cache(tmp_path, "train")


def test_an_interrupted_build_leaves_no_cache(photographs, tmp_path, monkeypatch):
    settings = base_config().data
    settings.dataset, settings.root, settings.image_size = "folder", str(photographs), 8
    source = open_source(settings, "train")
    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("lite_jax.data.cache._crc", lambda image: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            build_cache(out, {"train": source}, {})
    assert not out.exists()
    build_cache(out, {"train": source}, {})
    with pytest.raises(UserError, match="exists: remove it"):
        build_cache(out, {"train": source}, {})


# ----------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--source=nowhere"], "nowhere: no such file or folder"),
        (["--source=digits", "--set=clas_list=x"], "expected KEY=VALUE with one of"),
        (["--source=digits", "--set=allow_pickle=perhaps"], "expected true or false"),
        (["--source=digits", "--set=cache_gb=much"], "of type float"),
        (["--source=digits", "--way=9"], "way=9 is more than the 5 classes"),
        (["--source=digits", "--splits=trian"], "did you mean 'train'"),
        (["--source=digits", "--image-size=0"], "expected 1 to 4096"),
        (["--source=digits", "--out=a.txt"], "a .png file in a folder that exists"),
        (["--source=digits", "--out=no/a.png"], "a .png file in a folder that exists"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["describe", f"--out={tmp_path / 'a.png'}", *arguments])
    assert str(error.value).startswith("error: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_module_is_a_command(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "lite_jax.data", "describe", "--source=digits"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("episode 0 of 'train': episode.png\n")
    assert (tmp_path / "episode.png").is_file()
