"""Classifiers of people's own images: adapted, calibrated, saved, commanded."""

import csv
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import load_config
from scipy.special import log_softmax
from sklearn.model_selection import cross_val_score

import lite_jax
from lite_jax import Examples, UserError, exact_sum
from lite_jax.classify import FewShotClassifier, load_classifier, standalone
from lite_jax.classify.held_out import HeldOut, assign_folds, fit_temperature, hold_out
from lite_jax.classify.predictions import Predictions, as_csv
from lite_jax.cli import command as cli
from lite_jax.cli.command import main
from lite_jax.run import build_learner, train
from lite_jax.run.configs import base_config
from lite_jax.run.predictor import padded_size
from lite_jax.run.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("as_users_run_it")
SIZE = 16


def drawn(kind, count, size=SIZE):
    """Colour patterns of a kind, each with noise of its own."""
    rng = np.random.default_rng(kind)
    pattern = np.kron(
        rng.integers(40, 216, (4, 4, 3)), np.ones((size // 4,) * 2 + (1,))
    )
    noise = rng.normal(0, 8, (count, size, size, 3))
    return list(np.clip(pattern + noise, 0, 255).astype(np.uint8))


SUPPORT = {name: drawn(kind, 4) for kind, name in enumerate(("ash", "elm", "oak"))}
QUERIES = [drawn(kind, 9)[8] for kind in range(3)]


def trained(folder, name="protonets", **changes):
    """A run of no steps, so of random weights, that is not tested at its end."""
    small = {
        "data__image_size": SIZE, "train__steps": 0, "valid__tasks": 0,
        "test__tasks": 1, "backbone__width": 8, "backbone__norm_groups": 2,
    }  # fmt: skip
    config = load_config(name, "synthetic", **(small | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run_tests", lambda *args: {})
        train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, as_users_run_it):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def learner(run):
    return lite_jax.load(run)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for name, images in SUPPORT.items():
        (root / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


@functools.cache
def definition(learner, way):
    """The learner as it is defined: one program for all supports of a size."""
    original = build_learner.make_tested_learner(learner.config, way)

    @jax.jit
    def logits(params, support, queries):
        state = original.adapt(params, support, jax.random.key(0), exact_sum())
        return original.predict(params, state, queries)

    return logits


def log_probabilities(learner, support, queries, temperature=1.0):
    """What the learner says by its own definition, of images and without padding."""
    way = max(build_learner.most_ways(learner.config), len(support))
    images = np.stack([x for own in support.values() for x in own])
    labels = np.repeat(np.arange(len(support)), [len(x) for x in support.values()])
    examples = Examples(images, labels.astype(np.int32), np.ones(len(labels), bool))
    logits = definition(learner, way)(learner.params, examples, np.stack(queries))
    return np.asarray(log_softmax(logits[:, : len(support)] / temperature, 1))


# ------------------------------------------------------------------------ adapting


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_classifier_says_what_the_learner_says(learner, count):
    support = {name: images[:count] for name, images in SUPPORT.items()}
    classifier = learner.adapt(support)
    expected = log_probabilities(learner, support, QUERIES, classifier.temperature)
    found = classifier.predict_proba(QUERIES)
    np.testing.assert_allclose(np.log(found), expected, rtol=1e-3, atol=1e-3)
    names = np.array(list(SUPPORT))
    assert classifier.predict(QUERIES).tolist() == names[expected.argmax(1)].tolist()


def test_the_classes_of_new_images_are_told(learner):
    assert learner.adapt(SUPPORT).predict(QUERIES).tolist() == ["ash", "elm", "oak"]
    other = {name: SUPPORT[name] for name in ("oak", "ash", "elm")}
    assert learner.adapt(other).predict(QUERIES).tolist() == ["ash", "elm", "oak"]


@pytest.mark.parametrize("name", ["simple_cnaps", "maml", "mrml"])
def test_other_learners_adapt_and_are_saved(tmp_path, name):
    trained(tmp_path, name)
    learner = lite_jax.load(tmp_path)
    classifier = learner.adapt(SUPPORT, folds=2)
    expected = log_probabilities(learner, SUPPORT, QUERIES, classifier.temperature)
    found = np.log(classifier.predict_proba(QUERIES))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    classifier.save(tmp_path / "saved.zip")
    again = load_classifier(tmp_path / "saved.zip")
    np.testing.assert_allclose(
        again.predict_proba(QUERIES), classifier.predict_proba(QUERIES), atol=1e-5
    )


def test_more_classes_than_the_run_has_seen_get_room(learner):
    support = {f"kind {kind}": drawn(kind, 2) for kind in range(13)}
    classifier = learner.adapt(support)
    found = classifier.predict_proba([drawn(kind, 9)[8] for kind in range(13)])
    assert found.shape == (13, 13)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found.argmax(1) == np.arange(13)).mean() > 0.8


def test_a_learned_head_has_room_for_its_own_classes_alone(tmp_path):
    learner = lite_jax.load(trained(tmp_path, "maml", inner__learned_head=True))
    most = build_learner.most_ways(learner.config)
    learner.adapt({f"{k}": drawn(k, 1) for k in range(most)}, folds=0)
    with pytest.raises(UserError, match=f"{most + 1} classes.*room for {most}"):
        learner.adapt({f"{k}": drawn(k, 1) for k in range(most + 1)})


def test_a_folder_arrays_paths_and_bytes_are_one_support(learner, photographs):
    paths = {p.name: sorted(p.iterdir()) for p in sorted(photographs.iterdir())}
    content = {name: [x.read_bytes() for x in own] for name, own in paths.items()}
    found = [
        learner.adapt(support).predict_proba(QUERIES)
        for support in (photographs, str(photographs), SUPPORT, paths, content)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_images_are_seen_as_the_run_saw_its_own():
    def spec(dataset, **changes):
        settings = base_config().data
        settings.update({"dataset": dataset, "image_size": 20} | changes)
        return lite_jax.data.registry.own_image_spec(settings)

    assert spec("folder").shape == (20, 20, 3) and spec("folder").resize == "bilinear"
    assert spec("meta_dataset").resize == "md"
    assert spec("arrays", channels=1).shape == (20, 20, 1)
    paper = np.full((40, 40), 255, np.uint8)
    paper[10:20, 10:20] = 0
    for dataset in ("omniglot", "digits"):  # ink is bright there
        for drawing in (paper, 255 - paper):
            seen = spec(dataset).fit(drawing)
            assert seen.shape == (20, 20, 1) and seen[7, 7] == 255 and seen[0, 0] == 0
    with pytest.raises(UserError, match="learned from videos"):
        spec("orbit")


def test_nearest_finds_the_images_themselves(learner):
    classifier = learner.adapt(SUPPORT)
    found = classifier.nearest(classifier.support.images, 3)
    assert found.shape == (12, 3)
    np.testing.assert_array_equal(found[:, 0], np.arange(12))
    assert (classifier.support.labels[found[:, 1]] == np.arange(12) // 4).mean() > 0.9


def test_few_programs_serve_all_sizes():
    sizes = {padded_size(count) for count in range(1, 1001)}
    assert sizes >= {1, 2, 3, 4, 6, 8, 1024} and len(sizes) == 20
    for count in range(1, 1001):
        assert count <= padded_size(count) <= max(1.5 * count, count + 1)


def test_sets_of_almost_equal_size_share_a_program(run, caplog):
    learner = lite_jax.load(run)

    def compiled(*sizes):
        caplog.clear()
        kinds = dict(zip(SUPPORT, sizes, strict=False))
        with jax.log_compiles(), caplog.at_level("WARNING"):
            learner.adapt({k: SUPPORT[k][:count] for k, count in kinds.items()})
        return sum("Compiling jit(adapt)" in x.getMessage() for x in caplog.records)

    assert compiled(3, 2, 2) == 1  # 7 images take the room of 8
    assert compiled(3, 3, 2) == compiled(4, 4) == 0
    assert compiled(3, 3, 3) == 1  # 9 that of 12


# ------------------------------------------------------------- held out, calibrated


def test_leaving_one_out_is_adapting_without_it(learner):
    """On noise, of which an image is known again if it was adapted on, else guessed."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 4, SIZE, SIZE, 3)).astype(np.uint8)
    support = {name: list(images) for name, images in zip(SUPPORT, noise, strict=True)}
    classifier = learner.adapt(support)
    right = seen = 0
    for kind, (name, images) in enumerate(support.items()):
        seen += (log_probabilities(learner, support, images).argmax(1) == kind).sum()
        for place, image in enumerate(images):
            rest = {**support, name: images[:place] + images[place + 1 :]}
            right += log_probabilities(learner, rest, [image])[0].argmax() == kind
    assert right < seen - 3
    found = classifier.held_out
    assert (found.correct, found.counted, found.folds) == (right, 12, 12)
    assert found.describe().startswith(f"leave-one-out: {right} of 12 right")


def test_what_is_held_out_is_never_adapted_on():
    labels = np.array([0, 0, 1, 1, 1, 2])
    seen = []

    def score(rest, held):
        assert not set(rest) & set(held)
        assert set(labels[held]) <= set(labels[rest])
        assert 5 in rest  # the only one of its class
        seen.extend(held)
        return np.eye(3)[labels[held]]

    found, logits, truth = hold_out(score, labels, 3)
    assert sorted(seen) == [0, 1, 2, 3, 4] and found == HeldOut(5, 5, 3, 6)
    np.testing.assert_array_equal(logits.argmax(1), truth)
    assert "1 left aside" in found.describe() and "3 parts" in found.describe()


def test_one_image_a_class_holds_nothing_out(learner):
    classifier = learner.adapt({name: images[:1] for name, images in SUPPORT.items()})
    assert classifier.held_out == HeldOut(0, 0, 0, 3)
    assert classifier.held_out.accuracy is None and classifier.temperature == 1.0
    assert "takes two images" in classifier.held_out.describe()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 12))
def test_folds_leave_something_of_every_class(labels, folds):
    labels = np.array(labels)
    parts = assign_folds(labels, folds)
    for part in range(folds):
        rest = labels[parts != part]
        assert set(rest) == set(labels)
    alone = np.bincount(labels)[labels] == 1
    assert ((parts == -1) == alone).all()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_the_temperature_that_made_labels_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    noise = rng.gumbel(size=logits.shape)
    labels = (logits + noise).argmax(1)  # drawn from softmax(logits)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(
        temperature, rel=0.05
    )


def test_a_few_right_answers_do_not_make_for_certainty():
    logits = np.array([[3.0, 0.0, -np.inf], [0.0, 3.0, -np.inf]])
    temperature = fit_temperature(logits, np.array([0, 1]))
    sure = np.exp(log_softmax(logits / temperature, 1)).max(1)
    np.testing.assert_allclose(sure, 3 / 4, atol=1e-3)  # (n + 1) / (n + K), n = K = 2
    many = fit_temperature(np.tile(logits, (500, 1)), np.tile([0, 1], 500))
    assert np.exp(log_softmax(logits / many, 1)).max() > 0.99


# --------------------------------------------------------------------------- saved


def test_a_saved_classifier_predicts_the_same_without_lite_jax(learner, tmp_path):
    classifier = learner.adapt(SUPPORT)
    path = tmp_path / "trees.zip"
    classifier.save(path)
    again = load_classifier(path)
    expected = classifier.predict_proba(QUERIES)
    np.testing.assert_allclose(again.predict_proba(QUERIES), expected, atol=1e-5)
    assert again.class_names == ("ash", "elm", "oak") and again.spec == learner.spec
    assert again.held_out == classifier.held_out
    shutil.copy(standalone.__file__, tmp_path / "standalone.py")
    np.save(tmp_path / "queries.npy", np.stack(QUERIES))
    script = (
        "import sys, numpy as np; from standalone import load\n"
        "found = load('trees.zip').probabilities(np.load('queries.npy'))\n"
        "assert not [x for x in sys.modules if x.startswith(('lite_jax', 'flax'))]\n"
        "print(found.tolist())"
    )
    alone = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    np.testing.assert_allclose(json.loads(alone.stdout), expected, atol=1e-5)


def test_a_saved_classifier_holds_what_predicting_takes_and_no_more(learner, tmp_path):
    learner.adapt(SUPPORT).save(tmp_path / "trees.zip")
    with zipfile.ZipFile(tmp_path / "trees.zip") as file:
        assert sorted(file.namelist()) == ["manifest.json", "predict", "weights.npz"]
        stored = np.load(io.BytesIO(file.read("weights.npz")), allow_pickle=False)
        prototypes = stored["1/prototypes"]
    assert prototypes.shape[0] == 10 and np.isfinite(prototypes).all()
    backbone = jax.tree.leaves(learner.params["backbone"])
    assert sum(stored[x].size for x in stored.files if x.startswith("0/")) == sum(
        x.size for x in backbone
    )


@pytest.mark.parametrize("change", ["kind", "format", "cut", "text", "missing"])
def test_what_is_no_classifier_is_refused(learner, tmp_path, change):
    path = tmp_path / "trees.zip"
    learner.adapt(SUPPORT, folds=0).save(path)
    if change in ("kind", "format"):
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        manifest = json.loads(parts["manifest.json"]) | {change: 99}
        with zipfile.ZipFile(path, "w") as file:
            for name, data in (parts | {"manifest.json": json.dumps(manifest)}).items():
                file.writestr(name, data)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif change == "text":
        path.write_text("not a classifier")
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"trees\.zip cannot be loaded"):
        load_classifier(path)


def test_a_classifier_is_of_the_platforms_that_it_was_saved_for(learner, tmp_path):
    classifier = learner.adapt(SUPPORT, folds=0)
    with pytest.raises(UserError, match="unknown platform 'cda'; did you mean 'cuda'"):
        classifier.save(tmp_path / "a.zip", platforms=["cda"])
    classifier.save(tmp_path / "a.zip", platforms=["cuda"])
    with pytest.raises(UserError, match="made for cuda, and this machine computes on"):
        load_classifier(tmp_path / "a.zip")
    classifier.save(tmp_path / "a.zip", platforms=["cpu", "cuda"])
    expected = classifier.predict_proba(QUERIES)
    found = load_classifier(tmp_path / "a.zip").predict_proba(QUERIES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_place_that_cannot_be_written_is_told(learner, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        learner.adapt(SUPPORT, folds=0).save(tmp_path / "nowhere/trees.zip")


# ------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ({"ash": SUPPORT["ash"]}, "1 classes.*2 or more"),
        ({"ash": SUPPORT["ash"], "elm": []}, "class 'elm' has no images"),
        ({"ash": SUPPORT["ash"], "elm": [b"no image"]}, "'elm': none of its 1 images"),
        ({"ash": SUPPORT["ash"], "elm": [np.zeros((4, 4))]}, "expected uint8"),
        ("nowhere", "support=nowhere: no such folder"),
    ],
)
def test_supports_that_cannot_serve_are_refused(learner, support, message):
    with pytest.raises(UserError, match=message):
        learner.adapt(support)


def test_images_have_to_be_a_readable_list(learner):
    classifier = learner.adapt(SUPPORT, folds=0)
    for single in ("photo.png", Path("photo.png"), b"bytes", QUERIES[0]):
        with pytest.raises(UserError, match="expected a list"):
            classifier.predict(single)
    with pytest.raises(UserError, match="1 of 2 cannot be read"):
        classifier.predict([QUERIES[0], b"no image"])
    with pytest.raises(UserError, match="none of 0"):
        classifier.predict([])
    with pytest.raises(UserError, match="folds=1"):
        learner.adapt(SUPPORT, folds=1)


def change_program(run, program):
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"program": program}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "holds no config.json"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoint"),
        (lambda run: (run / "config.json").write_text("[]"), "it holds a list"),
        (lambda run: (run / "config.json").write_text("{"), "is no configuration"),
        (
            lambda run: change_config(run, "backbone", width=4, norm_groups=2),
            "does not fit its config.json",
        ),
        (lambda run: change_program(run, "policies"), "its program is policies"),
    ],
)
def test_runs_that_cannot_be_loaded_are_refused(run, tmp_path, spoil, message):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    spoil(copy)
    with pytest.raises(UserError, match=message):
        lite_jax.load(copy)


def change_config(run, section, **changes):
    config = json.loads((run / "config.json").read_text())
    config[section].update(changes)
    (run / "config.json").write_text(json.dumps(config))


def test_a_config_of_an_older_version_gets_defaults(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["hypergrad"], config["inner"]["norm_gradient"]
    (copy / "config.json").write_text(json.dumps(config))
    assert lite_jax.load(copy).config.inner.norm_gradient == "exact"


# ------------------------------------------------------------------- scikit-learn


def test_the_estimator_serves_scikit_learn(learner):
    images = [x for own in SUPPORT.values() for x in own]
    labels = np.repeat([30, 10, 20], 4)
    estimator = FewShotClassifier(learner, folds=0).fit(images, labels)
    assert estimator.classes_.tolist() == [10, 20, 30]
    assert estimator.predict(QUERIES).tolist() == [30, 10, 20]
    expected = learner.adapt(SUPPORT, folds=0).predict_proba(QUERIES)
    np.testing.assert_allclose(
        estimator.predict_proba(QUERIES), expected[:, [1, 2, 0]], rtol=1e-4, atol=1e-6
    )
    assert estimator.score(QUERIES, [30, 10, 20]) == 1
    scores = cross_val_score(FewShotClassifier(learner, folds=0), images, labels, cv=4)
    assert scores.shape == (4,) and scores.mean() > 0.8
    with pytest.raises(UserError, match="11 labels for 12 images"):
        estimator.fit(images, labels[:-1])


def test_the_lines_of_the_documents_run(
    learner, run, photographs, tmp_path, monkeypatch, capsys
):
    page = (Path(__file__).parents[1] / "docs/photographs.md").read_text()
    lines, estimator, alone = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(standalone.__file__).parent)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/photos").symlink_to(run)
    shutil.copytree(photographs, "birds")
    (tmp_path / "new_photos").mkdir()
    Image.fromarray(QUERIES[1]).save("new_photos/a.jpg")
    exec(lines, space := {})
    space["classifier"].save("birds.zip")
    space |= {
        "images": [x for own in SUPPORT.values() for x in own],
        "labels": np.repeat([0, 1, 2], 4),
        "new_images": QUERIES,
        "new_labels": [0, 1, 2],
    }
    exec(estimator, space)
    exec(alone, space | {"images": np.stack(QUERIES)})
    assert capsys.readouterr().out.split() == ["['elm']", "[0", "1", "2]", "1.0"]


# ------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def adapted(run, photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "trees.zip"
    main(["adapt", f"--checkpoint={run}", f"--support={photographs}", f"--out={out}"])
    return out


def test_adapt_tells_and_predict_lists(
    run, photographs, adapted, tmp_path, capsys, caplog
):
    again = ["adapt", f"--checkpoint={run}", f"--support={photographs}"]
    main([*again, f"--out={adapted}"])  # an older classifier may be replaced
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("12 images of 3 classes: adapted in ")
    assert second.startswith("leave-one-out: ") and str(adapted) in third
    (tmp_path / "new").mkdir()
    for number, image in enumerate(QUERIES):
        Image.fromarray(image).save(tmp_path / "new" / f"{number}.png")
    (tmp_path / "new/broken.png").write_bytes(b"broken")
    predict = ["predict", f"--classifier={adapted}", str(tmp_path / "new")]
    main([*predict, f"--sheet={tmp_path / 'sheet.png'}"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows] == ["ash", "elm", "oak"]
    assert "broken.png" in caplog.text and "1 unreadable of 4" in caplog.text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 200 and len(sheet.getcolors(100_000)) > 100
    main([*predict, "--format=json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in found] == ["ash", "elm", "oak"]
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["probability"] == max(row["probabilities"].values())
    main([*predict, "--format=csv", f"--out={tmp_path / 'found.csv'}"])
    listed = list(csv.DictReader(io.StringIO((tmp_path / "found.csv").read_text())))
    assert [row["class"] for row in listed] == ["ash", "elm", "oak"]
    assert float(listed[0]["ash"]) == pytest.approx(found[0]["probability"], abs=1e-5)


def test_names_that_csv_has_to_quote_come_back():
    found = Predictions(
        ['a,"b".png'], np.zeros((1, 4, 4, 3), np.uint8), ("x, y", "z"),
        np.array([[0.75, 0.25]]),
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert row["file"] == 'a,"b".png' and row["class"] == "x, y"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "--classifier=nowhere.zip", "x"], "classifier=nowhere.zip cannot"),
        (["predict", "--classifier={adapted}", "nowhere"], "nowhere: no such file"),
        (["predict", "--classifier={adapted}", "{empty}"], "holds no images"),
        (
            ["predict", "--classifier={adapted}", "{photos}", "--sheet=sheet.gif"],
            "sheet=sheet.gif: expected a .png",
        ),
        (
            ["predict", "--classifier={adapted}", "{photos}", "--out={empty}/a/b.csv"],
            "b.csv: expected a file in a folder",
        ),
        (["predict", "--classifier=x.zip", "x", "--out=."], "--out=.: expected a file"),
        (
            ["adapt", "--checkpoint={empty}", "--support={photos}"],
            "holds no config.json",
        ),
        (
            ["adapt", "--checkpoint={run}", "--support={empty}"],
            "holds no images in sub-folders",
        ),
        (
            ["adapt", "--checkpoint={run}", "--support={photos}", "--out={run}"],
            "expected a file in a folder",
        ),
        (
            ["adapt", "--checkpoint={run}", "--support={photos}", "--out={config}"],
            "exists, and is no classifier",
        ),
    ],
)
def test_mistakes_are_one_line(
    run, photographs, adapted, tmp_path, monkeypatch, command, message
):
    monkeypatch.chdir(tmp_path)
    places = {
        "adapted": adapted, "empty": tmp_path, "photos": photographs, "run": run,
        "config": run / "config.json",
    }  # fmt: skip
    before = (run / "config.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main([part.format(**places) for part in command])
    assert str(stop.value).startswith("error: ") and message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert (run / "config.json").read_bytes() == before


def test_doctor_examines_and_tests(capsys):
    main(["doctor"])
    found = capsys.readouterr().out
    assert f"jax {jax.__version__}" in found and "device 0: cpu" in found
    assert "self-test: lite_grad with H = N is exact" in found


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        ("train", "lite_jax.main", ["--mode=train"]),
        ("eval", "lite_jax.main", ["--mode=eval"]),
        ("describe", "lite_jax.data", ["describe"]),
        ("report", "experiments.report", []),
    ],
)
def test_thin_names_pass_their_arguments_on(command, module, arguments, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.syspath_prepend("")  # as `report` does, and takes back here
    ran = []
    monkeypatch.setattr(cli, "_run_module", lambda *call: ran.append(call))
    main([command, "--one", "two"])
    assert ran == [(module, [*arguments, "--one", "two"])]
    assert importlib.util.find_spec(module) is not None


def test_a_thin_name_reaches_what_it_names_on_the_command_line():
    found = subprocess.run(
        [sys.executable, "-m", "lite_jax.cli", "eval", "--config=nowhere.py"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert found.stderr.startswith("error: --config=nowhere.py: no such file")
    assert found.returncode == 1


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    told = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    passed_on = ["describe", "eval", "report", "train"]
    assert told == ["adapt", "predict", "demo", "doctor", *passed_on]


def test_importing_the_package_leaves_out_what_takes_long():
    slow = "sklearn", "scipy.optimize", "starlette", "tensorflow_datasets", "mujoco"
    script = f"import sys, lite_jax; print([x for x in {slow} if x in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert found.stdout == "[]\n", found.stderr
    with pytest.raises(AttributeError, match="no attribute 'FewShot'"):
        _ = lite_jax.classify.FewShot


def test_report_is_made_in_a_clone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="in the folder of a clone"):
        main(["report"])
